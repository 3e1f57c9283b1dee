import math

import pytest
import torch
from torch.nn import functional as F

from minigpt import TinyGPT
from minigpt.evaluation import BitsPerCharacter, TextMetrics, evaluate


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyGPT(30, block_size=16)


@pytest.mark.parametrize("n", [2, 17, 18, 500])
def test_an_evaluation_is_the_mean_over_every_token(model, n):
    data = torch.randint(0, 30, (n,))
    logits = model(data[None, :-1])[0]  # a bigram needs no windows: its figures are known
    loss = F.cross_entropy(logits, data[1:]).item()
    scores = evaluate(model, data, vocab_size=30)
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["bits_per_char"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert scores["accuracy"] == pytest.approx((logits.argmax(-1) == data[1:]).float().mean().item(), abs=1e-6)
    assert scores["tokens"] == scores["characters"] == n - 1


def test_the_context_of_a_window_is_the_window(model):
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    evaluate(model, torch.randint(0, 30, (100,)), vocab_size=30)
    assert [shape[1] for shape in seen] == [16, 3]  # six whole windows in one batch, and what is left


def test_bits_per_character_compare_across_tokenizers():
    metric = BitsPerCharacter()
    metric.update(torch.tensor(10 * math.log(2)), characters=40)  # ten tokens of one bit, four characters each
    metric.update(torch.tensor(20 * math.log(2)), characters=10)
    assert metric.compute().item() == pytest.approx(30 / 50)


def test_a_reset_forgets():
    metrics = TextMetrics(5)
    metrics.update(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.long))
    metrics.reset()
    metrics.update(torch.zeros(1, 4, 5), torch.zeros(1, 4, dtype=torch.long))
    assert metrics.compute()["loss"].item() == pytest.approx(math.log(5))


def test_the_mode_of_the_model_is_given_back(model):
    model.train()
    evaluate(model, torch.randint(0, 30, (40,)), vocab_size=30)
    assert model.training
