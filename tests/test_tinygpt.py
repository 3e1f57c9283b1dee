import math

import pytest
import torch
from torch.nn import functional as F

from minigpt import MiniGPTError, TinyGPT


def test_it_is_the_articles_model():
    model = TinyGPT(vocab_size=50, n_embd=64)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {"embed.weight": (50, 64), "lm_head.weight": (50, 64), "lm_head.bias": (50,)}
    idx = torch.randint(0, 50, (4, 64))
    logits = model(idx)
    assert logits.shape == (4, 64, 50)
    expected = model.embed.weight[idx] @ model.lm_head.weight.T + model.lm_head.bias
    torch.testing.assert_close(logits, expected)


def test_a_token_changes_no_logits_before_it():
    model = TinyGPT(20)
    idx = torch.randint(0, 20, (1, 16))
    changed = idx.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 20
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9], after[:, 9])


def test_the_first_loss_is_about_that_of_a_guess():
    torch.manual_seed(0)
    idx = torch.randint(0, 60, (64, 65))
    loss = F.cross_entropy(TinyGPT(60)(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
    assert abs(loss.item() - math.log(60)) < 0.3


def test_one_deterministic_text_can_be_learned_by_heart():
    torch.manual_seed(0)
    idx = torch.arange(10).repeat(7)[None]  # each character has one successor
    model = TinyGPT(10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(200):
        loss = F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


@pytest.mark.parametrize(("key", "value"), [("n_embd", 0), ("vocab_size", -3), ("block_size", 0)])
def test_a_size_that_is_not_positive_is_refused_by_name(key, value):
    with pytest.raises(MiniGPTError, match=f"{key} is {value}"):
        TinyGPT(**{"vocab_size": 10, "block_size": 8, "n_embd": 4, key: value})
