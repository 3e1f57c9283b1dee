import itertools
import math

import pytest
import torch
from torch.nn import functional as F

import minigpt
from minigpt import MiniGPTError, TinyGPT
from minigpt.evaluation import BitsPerCharacter, TextMetrics, baselines, evaluate, longest_overlap


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyGPT(30, block_size=16)


@pytest.mark.parametrize("n", [2, 17, 18, 500])
def test_an_evaluation_is_the_mean_over_every_token(model, n):
    data = torch.randint(0, 30, (n,))
    logits = model(data[None, :-1])[0]  # a bigram needs no windows: its figures are known
    loss = F.cross_entropy(logits, data[1:]).item()
    scores = evaluate(model, data, torch.ones(30).long())
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["bits_per_char"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert scores["accuracy"] == pytest.approx((logits.argmax(-1) == data[1:]).float().mean().item(), abs=1e-6)
    assert scores["tokens"] == scores["characters"] == n - 1


def test_the_context_of_a_window_is_the_window(model):
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    evaluate(model, torch.randint(0, 30, (100,)), torch.ones(30).long())
    assert [shape[1] for shape in seen] == [16, 3]  # six whole windows in one batch, and what is left


def test_bits_per_character_compare_across_tokenizers():
    metric = BitsPerCharacter()
    metric.update(torch.tensor(10 * math.log(2)), characters=40)  # ten tokens of one bit, four characters each
    metric.update(torch.tensor(20 * math.log(2)), characters=10)
    assert metric.compute().item() == pytest.approx(30 / 50)


def test_a_reset_forgets():
    metrics = TextMetrics(torch.ones(5).long())
    metrics.update(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.long))
    metrics.reset()
    metrics.update(torch.zeros(1, 4, 5), torch.zeros(1, 4, dtype=torch.long))
    assert metrics.compute()["loss"].item() == pytest.approx(math.log(5))


def test_half_a_character_is_nothing_to_score(model):
    with pytest.raises(MiniGPTError, match="no whole character"):
        evaluate(model, torch.tensor([1, 2]), torch.tensor([1, 1, 0] + [1] * 27))


def test_the_mode_of_the_model_is_given_back(model):
    model.train()
    evaluate(model, torch.randint(0, 30, (40,)), torch.ones(30).long())
    assert model.training


def test_baselines_are_what_they_say():
    train_text, val_text = "abab" * 100 + "abac", "ababac"
    tokenizer = minigpt.CharTokenizer("abcd")
    bits = baselines(*(torch.tensor(tokenizer.encode(text)) for text in (train_text, val_text)), tokenizer)
    counts = {"a": 202, "b": 201, "c": 1, "d": 0}
    unigram = {c: (n + 1) / 408 for c, n in counts.items()}
    pairs = {"ab": 201, "ba": 201, "ac": 1}
    scored = list(itertools.pairwise(val_text))
    after = {x: sum(n for pair, n in pairs.items() if pair[0] == x) for x in "ab"}
    assert bits["uniform"] == 2
    assert bits["unigram"] == pytest.approx(-sum(math.log2(unigram[y]) for _, y in scored) / 5)
    bigram = [(pairs.get(x + y, 0) + unigram[y]) / (after[x] + 1) for x, y in scored]
    assert bits["bigram"] == pytest.approx(-sum(map(math.log2, bigram)) / 5)
    assert bits["xz"] >= 0


def test_baselines_hold_what_was_never_seen():
    bits = baselines(torch.tensor([0, 1, 0, 1]), torch.tensor([2, 3, 3]), minigpt.CharTokenizer("abcd"))
    assert all(math.isfinite(value) for value in bits.values())


def test_a_trained_bigram_comes_down_to_its_baseline():
    data = minigpt.TextDataModule(lower=True, strip=True)
    counts = torch.zeros(data.vocab_size, data.vocab_size)
    counts.index_put_((data.train_ids[:-1], data.train_ids[1:]), torch.ones(()), accumulate=True)
    model = TinyGPT(data.vocab_size, n_embd=data.vocab_size)
    with torch.no_grad():  # the logits of the smoothed table, written into the weights
        unigram = (counts.sum(0) + 1) / (counts.sum() + data.vocab_size)
        model.embed.weight.copy_(torch.eye(data.vocab_size))
        model.lm_head.weight.copy_(((counts + unigram) / (counts.sum(1, keepdim=True) + 1)).log().T)
        model.lm_head.bias.zero_()
    scores = evaluate(model, data.val_ids, data.tokenizer.lengths)
    assert scores["bits_per_char"] == pytest.approx(data.baselines["bigram"], abs=2e-3)
    assert data.baselines["bigram"] < data.baselines["unigram"] < data.baselines["uniform"]


def test_longest_overlap_finds_the_longest_passage_and_the_share_of_spans():
    source = "abcdefghijklmnopqrstuvwxyz" * 2
    own = "zyx" + source[3:28] + "!" + source[:10]
    expected = sum(own[n : n + 20] in source for n in range(len(own) - 19)) / (len(own) - 19)
    scores = longest_overlap(["no", own], source)
    assert scores == {"longest_overlap": 25, "share": round(expected, 6), "overlap": source[3:28]}
    assert 0 < scores["share"] < 1
    assert longest_overlap([source], source)["share"] == 1
    assert longest_overlap([], source) == {"longest_overlap": 0, "share": 0, "overlap": ""}
