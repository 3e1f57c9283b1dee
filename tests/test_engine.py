import math

import pytest
import torch
from conftest import generate_ids

from minigpt import GPT, MiniGPTError, TinyGPT
from minigpt.generation.sampling import draw, filter_logits
from minigpt.models import kv_cache
from minigpt.models.kv_cache import KVCache
from minigpt.models.settings import PRESETS

SHAPES = {"plain": {}, "grouped": {"n_kv_head": 2}}


def lively(preset: str = "gpt2", block_size: int = 16, n_embd: int = 32, **settings) -> GPT:
    """A model that is far from its initial weights, so that every part of it shows in the logits."""
    return disturbed(GPT(30, block_size, 3, 4, n_embd, preset, **settings))


def disturbed(model: GPT) -> GPT:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@torch.no_grad()
def plainly(model, prompt: list[int], max_new_tokens: int, generator=None, **controls) -> list[int]:
    """What generation means: at each step the logits after the last block_size ids, computed anew."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([ids[-model.block_size :]]))[:, -1]
        ids.append(draw(filter_logits(logits, generated=torch.tensor([ids]), **controls).softmax(-1), generator).item())
    return ids[len(prompt) :]


def rows(steps) -> list[list[int]]:
    return torch.stack(list(steps), dim=1).tolist()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_cached_logits_are_the_uncached_ones_at_every_position(preset, shape):
    model = lively(preset, **SHAPES[shape])
    idx = torch.randint(30, (3, 16), generator=torch.Generator().manual_seed(2))
    whole = model(idx)
    for first in (1, 5, 16):
        cache = KVCache(model, 3)
        pieces = [model(idx[:, :first], cache)] + [model(idx[:, t : t + 1], cache) for t in range(first, 16)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"preset": "gpt2"}, {"preset": "modern", "ngrams": 50}])
def test_a_cache_grows_with_its_rows(monkeypatch, settings):
    monkeypatch.setattr(kv_cache, "FIRST_COLUMNS", 3)
    model = disturbed(GPT(30, 16, 2, 2, 16, **settings)).eval()
    idx = torch.randint(30, (2, 16), generator=torch.Generator().manual_seed(1))
    cache, rooms = model.new_cache(2), []
    for part in (idx[:, :2], idx[:, 2:9], *idx[:, 9:].split(1, dim=1)):
        logits = model(part, cache)
        rooms.append(cache.room)
        torch.testing.assert_close(logits, model(idx[:, : cache.columns])[:, -part.shape[1] :], rtol=1e-4, atol=1e-4)
    assert rooms == [3, 9, 16, 16, 16, 16, 16, 16, 16]
    assert cache.keys[0].shape[2] == 16


@torch.no_grad()
def test_a_cache_takes_several_ids_at_once_and_forgets_when_its_length_is_lowered():
    model = lively("llama", ngrams=50)
    idx = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(3))
    cache = KVCache(model, 2)
    model(idx[:, :4], cache)
    model(torch.zeros(2, 5, dtype=torch.int64), cache)  # a guess that was wrong
    cache.length -= 5
    torch.testing.assert_close(model(idx[:, 4:9], cache), model(idx[:, :9])[:, 4:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ngrams", [0, 50])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("controls", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 9, "top_p": 0.95}])
def test_a_batch_of_unequal_prompts_gives_the_plain_text_of_each_also_past_the_block(preset, controls, ngrams):
    model = lively(preset, ngrams=ngrams)
    ids = torch.randint(30, (40,), generator=torch.Generator().manual_seed(4)).tolist()
    prompts = [ids[:1], ids[3:12], ids[5:21], ids]  # short, medium, exactly a block, longer than a block
    expected = [plainly(model, p, 30, torch.Generator().manual_seed(n), **controls) for n, p in enumerate(prompts)]
    generators = [torch.Generator().manual_seed(n) for n in range(4)]
    assert rows(generate_ids(model, prompts, 30, **controls, generators=generators)) == expected


def test_a_repetition_penalty_counts_the_ids_of_its_own_row_alone():
    model = lively()
    prompts = [[1, 2, 3, 4, 5], [6]]
    expected = [plainly(model, p, 20, temperature=0.0, repetition_penalty=3.0) for p in prompts]
    assert rows(generate_ids(model, prompts, 20, temperature=0.0, repetition_penalty=3.0)) == expected


@pytest.mark.parametrize("repetition_penalty", [None, 1.0])  # with and without the table
def test_a_bigram_draws_what_the_plain_loop_draws(repetition_penalty):
    torch.manual_seed(5)
    model = TinyGPT(30, 8)
    controls = {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": repetition_penalty}
    prompts = [[3, 1, 4], [15]]
    expected = [plainly(model, p, 60, torch.Generator().manual_seed(n), **controls) for n, p in enumerate(prompts)]
    for n, prompt in enumerate(prompts):
        alone = generate_ids(model, [prompt], 60, **controls, generators=[torch.Generator().manual_seed(n)])
        assert rows(alone) == [expected[n]]
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    assert rows(generate_ids(model, prompts, 60, **controls, generators=generators)) == expected


def test_a_bigram_with_many_ids_needs_no_table(monkeypatch):
    monkeypatch.setattr("minigpt.generation.table.LARGEST_TABLE", 20)
    torch.manual_seed(5)
    model = TinyGPT(30, 8)
    assert rows(generate_ids(model, [[3, 1]], 20, temperature=0.0)) == [plainly(model, [3, 1], 20, temperature=0.0)]


def test_predictions_that_are_no_numbers_are_named():
    model = lively()
    with torch.no_grad():
        model.embed.weight.fill_(math.nan)
    with pytest.raises(MiniGPTError, match="training diverged"):
        next(generate_ids(model, [[1]], 5))


def test_what_a_hook_or_a_model_keeps_of_a_step_can_be_trained_on():
    model, kept = lively(), []
    handle = model.blocks[0].mlp.register_forward_hook(lambda module, args, out: kept.append(out))
    list(generate_ids(model, [[1, 2]], 3))
    probe = torch.nn.Linear(kept[-1].shape[-1], 2)
    probe(kept[-1]).sum().backward()
    handle.remove()

    class Lazy(GPT):
        scale = None

        def forward(self, idx, cache=None):
            self.scale = torch.full((1,), 0.5) if self.scale is None else self.scale
            return super().forward(idx, cache) * self.scale

    lazy = Lazy(**model.config)
    list(generate_ids(lazy, [[1, 2]], 3))
    lazy(torch.tensor([[1, 2]])).sum().backward()
    assert lazy.embed.weight.grad is not None


def test_ids_that_were_drawn_can_be_trained_on():
    model = lively()
    for drawn in generate_ids(model, [[1, 2], [3]], 3):
        model(drawn[:, None]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_text_may_be_asked_for_without_end():
    steps = generate_ids(lively(), [[1, 2], [3]], 10**12)
    assert len([next(steps) for _ in range(100)]) == 100
