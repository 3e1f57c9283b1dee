import pytest
import torch
from torch.utils.data import DataLoader

from minigpt import CharDataset, MiniGPTError
from minigpt.data.dataset import EvalWindows
from minigpt.data.order import BatchOrder, EvalOrder
from minigpt.data.prepare import split_at


def test_windows_are_the_articles():
    data = torch.arange(100)
    dataset = CharDataset(data, 8)
    assert len(dataset) == 92
    for i in (0, 1, 57, 91, -1):
        x, y = dataset[i]
        start = i % 92
        assert torch.equal(x, data[start : start + 8])
        assert torch.equal(y, data[start + 1 : start + 9])
    assert len(list(dataset)) == 92


def test_windows_of_small_integers_are_int64():
    data = torch.arange(100, dtype=torch.uint8)
    for index in (5, torch.tensor(5), torch.tensor([5, 90, 7])):
        assert [part.dtype for part in CharDataset(data, 8)[index]] == [torch.int64] * 2
    for index in (5, range(5, 9)):
        assert [part.dtype for part in EvalWindows(data, 8)[index]] == [torch.int64] * 2


@pytest.mark.parametrize("index", [92, -93])
def test_there_is_no_window_outside(index):
    with pytest.raises(IndexError):
        CharDataset(torch.arange(100), 8)[index]
    with pytest.raises(IndexError):
        CharDataset(torch.arange(100), 8)[torch.tensor([5, index])]


def test_windows_of_different_lengths_are_no_batch():
    windows = EvalWindows(torch.arange(9), 3)  # of 3, 3 and 2 targets
    assert [part.shape for part in windows[range(2)]] == [(2, 3)] * 2
    with pytest.raises(RuntimeError, match="shape"):
        windows[range(1, 3)]
    even = EvalWindows(torch.arange(5), 3)  # of 3 targets and 1, which two rows of 2 would hold
    with pytest.raises(RuntimeError, match="shape"):
        even[range(2)]


def test_a_batch_is_gathered_as_its_windows_one_by_one():
    dataset = CharDataset(torch.randint(0, 50, (500,)), 16)
    starts = torch.tensor([0, 483, 17, 17, -1])
    x, y = dataset[starts]
    assert x.shape == y.shape == (5, 16)
    for row, start in enumerate(starts.tolist()):
        assert torch.equal(x[row], dataset[start][0])
        assert torch.equal(y[row], dataset[start][1])


def test_the_articles_loader_takes_the_dataset():
    x, y = next(iter(DataLoader(CharDataset(torch.arange(100), 8), batch_size=4, shuffle=True)))
    assert x.shape == (4, 8)
    assert torch.equal(x + 1, y)


def test_the_last_tenth_validates():
    assert split_at(1_115_394, 0.1) == 1_003_854  # the field's split of tinyshakespeare


def test_both_parts_of_a_short_text_hold_a_window():
    assert [split_at(n, 0.1) for n in (18, 50, 89, 90, 100)] == [9, 41, 80, 81, 90]
    assert [split_at(n, 0.9) for n in (18, 50, 100)] == [9, 9, 9]


@pytest.mark.parametrize("n", [1, 2, 5, 17, 64, 1000, 4097])
def test_each_pass_visits_every_window_once_in_a_new_order(n):
    order = BatchOrder(n, batch_size=1, seed=3).batches(0, 3 * n).flatten()
    passes = order.view(3, n)
    for one in passes:
        assert sorted(one.tolist()) == list(range(n))
    if n >= 17:
        assert not torch.equal(passes[0], passes[1])


def test_batch_t_depends_on_seed_and_t_alone():
    order = BatchOrder(1000, batch_size=7, seed=5)
    batches = order.batches(0, 400)
    for t in (0, 1, 142, 143, 399):  # batch 142 holds the end of one pass and the start of the next
        assert torch.equal(order.batches(t, 1)[0], batches[t])
    later = iter(BatchOrder(1000, batch_size=7, seed=5, start=250))
    for t in range(250, 400):
        assert torch.equal(next(later), batches[t])
    assert not torch.equal(BatchOrder(1000, batch_size=7, seed=6).batches(0, 400), batches)


def test_iteration_goes_on_past_what_is_computed_ahead():
    order = BatchOrder(50_000, batch_size=16, seed=0)
    drawn = [batch for batch, _ in zip(order, range(1100), strict=False)]  # 17,600 starts, 8,192 at a time
    assert torch.equal(torch.stack(drawn), order.batches(0, 1100))


def test_a_few_batches_come_round_again():
    order = BatchOrder(1000, batch_size=4, seed=0, start=5, cycle=3)
    drawn = torch.stack([batch for batch, _ in zip(order, range(7), strict=False)])
    assert torch.equal(drawn, order.batches(0, 3)[[2, 0, 1, 2, 0, 1, 2]])


def test_more_batches_to_repeat_than_fit_into_memory_are_fine():
    order = iter(BatchOrder(1000, batch_size=4, seed=0, start=10**11 + 5, cycle=10**11))
    assert torch.equal(next(order), BatchOrder(1000, 4, seed=0).batches(5, 1)[0])


def test_an_order_looks_shuffled():
    order = BatchOrder(10_000, batch_size=10_000, seed=1).batches(0, 1)[0].double()
    neighbours = torch.corrcoef(torch.stack([order[:-1], order[1:]]))[0, 1]
    place = torch.corrcoef(torch.stack([order, torch.arange(10_000).double()]))[0, 1]
    assert abs(neighbours) < 0.05
    assert abs(place) < 0.05


@pytest.mark.parametrize("n", [2, 9, 10, 16, 17, 18, 129])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_evaluation_scores_each_token_but_the_first_once(n, batch_size):
    data = torch.arange(n)
    windows = EvalWindows(data, 8)
    batches = [windows[numbers] for numbers in EvalOrder(windows, batch_size)]
    for pairs in (windows, batches):
        assert torch.cat([y.flatten() for _, y in pairs]).tolist() == list(range(1, n))
        assert all(torch.equal(x + 1, y) for x, y in pairs)
    assert all(x.dim() == 2 and x.shape[0] <= batch_size for x, _ in batches)
    assert torch.equal(windows[-1][1], windows[len(windows) - 1][1])


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_processes_evaluate_equally_many_batches_and_each_token_once(processes, batch_size):
    for n in range(8 * processes + 1, 200):
        windows = EvalWindows(torch.arange(n), 8)
        orders = [EvalOrder(windows, batch_size, rank, processes) for rank in range(processes)]
        assert len({len(order) for order in orders}) == 1
        assert sorted(number for order in orders for batch in order for number in batch) == list(range(len(windows)))
        batches = [windows[batch] for order in orders for batch in order]  # each of rows of one length
        assert sum(y.numel() for _, y in batches) == n - 1
        assert max(len(x) for x, _ in batches) <= batch_size + (n < 16 * processes or batch_size == 1)


def test_one_token_cannot_be_evaluated():
    with pytest.raises(MiniGPTError, match="2 tokens"):
        EvalWindows(torch.arange(1), 8)
