import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt import MiniGPTError
from minigpt.generation.sampling import draw, filter_logits


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_top_k_keeps_the_best_and_every_tie_with_the_last():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 5.0, 5.0, 1.0]])
    assert kept(filter_logits(logits, top_k=2)) == [[1, 3], [0, 1, 2]]
    assert torch.equal(filter_logits(logits, top_k=99), logits)


def test_top_p_keeps_the_token_that_crosses_the_threshold():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(filter_logits(logits, top_p=0.4)) == [[0]]
    assert kept(filter_logits(logits, top_p=0.6)) == [[0, 1]]
    assert kept(filter_logits(logits, top_p=0.9)) == [[0, 1, 2]]
    assert torch.equal(filter_logits(logits, top_p=1.0), logits)


def test_top_p_counts_what_temperature_and_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert kept(filter_logits(logits, top_k=2, top_p=0.5)) == [[0]]  # 0.4 of 0.7 is past one half
    assert kept(filter_logits(logits, temperature=100.0, top_p=0.6)) == [[0, 1, 2]]  # nearly flat


def test_rows_do_not_see_each_other():
    torch.manual_seed(0)
    logits = torch.randn(16, 50) * 3
    together = filter_logits(logits, 0.7, 12, 0.8)
    alone = torch.cat([filter_logits(row[None], 0.7, 12, 0.8) for row in logits])
    assert torch.equal(together, alone)


def test_infinite_logits_stay_out():
    logits = torch.tensor([[1.0, -math.inf, 2.0, -math.inf]])
    assert kept(filter_logits(logits, 0.5, 3, 0.99)) == [[0, 2]]


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_no_temperature_is_greedy_with_the_first_of_equals(temperature):
    logits = torch.tensor([[1.0, 4.0, 4.0], [9.0, 2.0, 9.0]])
    assert kept(filter_logits(logits, temperature)) == [[1], [0]]


def test_the_input_is_left_as_it_was_and_the_work_done_in_float32():
    logits = torch.randn(2, 10).bfloat16()
    before = logits.clone()
    assert filter_logits(logits, 0.5, 3, 0.5).dtype == torch.float32
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("control", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
    ],
)
def test_what_a_control_cannot_mean_is_refused(control, value):
    with pytest.raises(MiniGPTError, match=control):
        filter_logits(torch.zeros(1, 5), **{control: value})


def test_draws_are_those_of_torch_multinomial():
    probabilities = filter_logits(torch.randn(5, 65), top_k=30).softmax(dim=-1)

    def generators(number: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(7 + n) for n in range(number)]

    ((ours,), (theirs,)) = generators(1), generators(1)
    for _ in range(50):
        assert torch.equal(draw(probabilities, ours), torch.multinomial(probabilities, 1, generator=theirs))
    ours, theirs = generators(5), generators(5)
    for _ in range(50):
        alone = [
            torch.multinomial(row, 1, generator=own) for row, own in zip(probabilities.split(1), theirs, strict=True)
        ]
        assert torch.equal(draw(probabilities, ours), torch.cat(alone))


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    n = 20_000
    generator = torch.Generator().manual_seed(11)
    draws = draw(probabilities.expand(n, 4), generator).flatten()
    expected = probabilities * n
    chi2 = ((torch.bincount(draws, minlength=4) - expected) ** 2 / expected).sum()
    assert chi2 < 16.27  # 3 degrees of freedom, p = 0.001


@st.composite
def controls(draw):
    """Logits of a few rows, some of them infinite, ids so far, and any combination of the controls."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 60))
    logits = torch.randn(rows, vocab, generator=generator) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    cut = torch.rand(rows, vocab, generator=generator) < draw(st.sampled_from([0.0, 0.3]))
    cut[:, 0] = False
    generated = torch.randint(0, vocab, (rows, draw(st.integers(1, 10))), generator=generator)
    settings = {
        "temperature": draw(st.sampled_from([0.3, 0.8, 1.0, 2.5])),
        "top_k": draw(st.none() | st.integers(1, 80)),
        "top_p": draw(st.none() | st.floats(0.01, 0.999)),
        "min_p": draw(st.none() | st.floats(0.0, 1.0)),
        "repetition_penalty": draw(st.none() | st.floats(0.5, 3.0)),
    }
    return logits.masked_fill(cut, -math.inf), generated, settings


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(controls())
def test_every_combination_is_hugging_faces(drawn):
    transformers = pytest.importorskip("transformers")
    logits, generated, given_ = drawn
    ours = filter_logits(logits, **given_, generated=generated)
    theirs = logits.clone()
    if given_["repetition_penalty"] is not None:
        theirs = transformers.RepetitionPenaltyLogitsProcessor(given_["repetition_penalty"])(generated, theirs)
    theirs = theirs / given_["temperature"]
    if given_["top_k"] is not None:
        theirs = transformers.TopKLogitsWarper(given_["top_k"])(generated, theirs)
    if given_["top_p"] is not None:
        # At the edge of the mass rounding decides: such draws are set aside, and held to the article's rule elsewhere.
        mass = theirs.sort(descending=True).values.softmax(-1).cumsum(-1)
        if ((mass - given_["top_p"]).abs() < 1e-5).any():
            return
        theirs = transformers.TopPLogitsWarper(given_["top_p"])(generated, theirs)
    if given_["min_p"] is not None:
        probabilities = theirs.softmax(-1)
        edge = given_["min_p"] * probabilities.max(-1, keepdim=True).values
        if ((probabilities - edge).abs() < 1e-7).logical_and(probabilities < probabilities.max()).any():
            return
        theirs = transformers.MinPLogitsWarper(given_["min_p"])(generated, theirs)
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    kept_ = ours.isfinite()
    torch.testing.assert_close(ours[kept_], theirs[kept_])
