"""A model that was changed generates the text of its plain forward, whatever faster path the stock model has."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import generate_ids
from test_engine import disturbed, lively, plainly, rows
from torch import nn
from torch.nn import functional as F

from minigpt import GPT, MiniGPTError, TinyGPT, generate
from minigpt.cpu import int8
from minigpt.cpu.decoding import CompiledDecoder, compile_decoding
from minigpt.export.gguf import files as gguf_files
from minigpt.export.hugging_face import to_hugging_face
from minigpt.generation import checks
from minigpt.generation.checks import compiled_step, state_of, usable_paths
from minigpt.generation.text import LanguageModel
from minigpt.inspection.introspection import attention, is_bigram
from minigpt.loading import for_inference
from minigpt.models import gpt, summary
from minigpt.models.gpt import Block
from minigpt.models.settings import CHOICES, PRESETS

BLOCK = 48


class ConvBlock(Block):
    """A block with a depthwise causal convolution over the last three positions."""

    def __init__(self, *args):
        super().__init__(*args)
        self.conv = nn.Conv1d(32, 32, 3, groups=32)

    def forward(self, x, rope, cache):
        x = x + self.conv(F.pad(x.mT, (2, 0))).mT
        return super().forward(x, rope, cache)


class ZeroConvBlock(ConvBlock):
    """One whose convolution starts at zero."""


class MeanBlock(Block):
    """A block that adds a thousandth of the mean of all positions so far."""

    def forward(self, x, rope, cache):
        positions = torch.arange(1, x.shape[1] + 1)[:, None]
        return super().forward(x + 0.001 * x.cumsum(1) / positions, rope, cache)


class LateBlock(Block):
    """A block in which positions from 40 on look back by 40."""

    def forward(self, x, rope, cache):
        late = F.pad(x[:, :-40], (0, 0, 40, 0)) if x.shape[1] > 40 else torch.zeros_like(x)
        return super().forward(x + late, rope, cache)


class ScaledBlock(Block):
    """A block with a change that no name shows; a cache does not mind it."""

    def forward(self, x, rope, cache):
        return 1.01 * super().forward(x, rope, cache)


def changed(block: type[Block], monkeypatch, preset: str = "gpt2", fresh: bool = False, **settings) -> GPT:
    """A GPT made of other blocks, as if models/gpt.py had been changed; `fresh` as at the start of a training."""
    monkeypatch.setattr(gpt, "Block", block)
    torch.manual_seed(3)
    model = GPT(30, BLOCK, 3, 4, 32, preset, **settings)
    monkeypatch.undo()
    if block is ZeroConvBlock:
        for layer in model.blocks:
            nn.init.zeros_(layer.conv.weight)
            nn.init.zeros_(layer.conv.bias)
    return model.eval() if fresh else disturbed(model)


def assert_plain_text(model: nn.Module, length: int = 60) -> None:
    prompts = [[3, 1, 4], [15, 9, 2, 6, 5], list(range(30)) + list(range(20))]
    with torch.no_grad():
        expected = [plainly(model, prompt, length, temperature=0.0) for prompt in prompts]
    assert rows(generate_ids(model, prompts, length, temperature=0.0)) == expected


BLOCKS = [ConvBlock, ZeroConvBlock, MeanBlock, LateBlock]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_block_that_looks_back_is_generated_from_by_the_whole_window(block, fresh, monkeypatch, capfd):
    model = changed(block, monkeypatch, fresh=fresh)
    assert usable_paths(model, BLOCK) == set()
    assert_plain_text(model)
    assert_plain_text(model)
    said = capfd.readouterr().err
    assert said.count("without the key-value cache of this GPT, by its plain forward: its logits differ by") == 1


def test_without_the_check_a_convolution_would_be_off_by_as_much_as_was_found(monkeypatch):
    model = changed(ConvBlock, monkeypatch)
    with torch.no_grad():
        ids = checks.random_ids(model, BLOCK)
        plain, cache = model(ids), model.new_cache(2)
        stepped = torch.cat([model(ids[:, n : n + 1], cache) for n in range(BLOCK)], dim=1)
    assert (stepped - plain).abs().max() > 2.0


def test_a_zero_convolution_that_was_trained_is_found_again_and_passes_no_fresh_copy(monkeypatch):
    model = changed(ZeroConvBlock, monkeypatch, fresh=True)
    idx = checks.random_ids(model, BLOCK)
    with torch.no_grad():  # as it is, fresh, nothing shows: this is why zeros are perturbed
        assert checks.cache_differs(model, idx, model(idx)) is None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        F.cross_entropy(model(idx)[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).backward()
        optimizer.step()
    assert model.blocks[0].conv.weight.any()
    with torch.no_grad():
        assert "logits differ" in checks.cache_differs(model, idx, model(idx))
    assert_plain_text(model)


def test_a_change_that_begins_late_is_missed_by_sixteen_ids_and_found_over_the_length_that_is_generated(monkeypatch):
    model = changed(LateBlock, monkeypatch)
    assert usable_paths(model, 16) == {"cache"}  # rightly: up to there the texts are the same
    assert usable_paths(model, BLOCK) == set()
    assert usable_paths(model, 16) == set()


def test_the_noise_of_bfloat16_would_hide_a_running_mean(monkeypatch):
    model = changed(MeanBlock, monkeypatch).bfloat16()
    ids = checks.random_ids(model, BLOCK)
    with torch.no_grad():
        # Within what bfloat16 may differ by (on some processors by nothing at all), the mean is not seen.
        assert checks.cache_differs(model, ids, model(ids), checks.ROUNDED) is None
    assert usable_paths(model, BLOCK) == set()
    assert usable_paths(lively(block_size=BLOCK).bfloat16(), BLOCK) == {"cache"}


@pytest.mark.parametrize("precision", ["32", "bf16", "int8"])
@pytest.mark.parametrize("preset", PRESETS)
def test_stock_models_keep_their_cache_in_every_precision_fresh_or_not(preset, precision, capfd):
    for model in (lively(preset, BLOCK, ngrams=50), GPT(30, BLOCK, 2, 4, 32, preset).eval()):
        for_inference(model, precision=precision)
        assert usable_paths(model, BLOCK) == {"cache"}
    assert capfd.readouterr().err == ""


def test_a_forward_hook_is_not_run_by_a_check_and_drops_every_faster_path(capfd):
    model, seen = lively(block_size=BLOCK), []

    def late(module, inputs, output):
        seen.append(output.shape[1])
        return output * torch.arange(output.shape[1])[:, None].clamp(max=9)

    compile_decoding(model)
    handle = model.blocks[1].mlp.register_forward_hook(late)
    assert_plain_text(model)
    assert compiled_step(model) is None
    assert max(seen) == BLOCK
    assert "blocks.1.mlp has a forward hook" in capfd.readouterr().err
    with pytest.raises(MiniGPTError, match=r"the forward hook of blocks\.1\.mlp"):
        compile_decoding(model)
    handle.remove()
    assert usable_paths(model, BLOCK) == {"cache"}


def with_silu(monkeypatch) -> GPT:
    """A GPT as after adding an MLP kind in models/gpt.py alone."""
    monkeypatch.setitem(CHOICES, "mlp", (*CHOICES["mlp"], "silu"))
    monkeypatch.setitem(gpt.ACTIVATIONS, "silu", nn.SiLU)
    return lively("gpt2", BLOCK, mlp="silu")


def test_an_mlp_kind_that_only_gpt_py_knows_is_refused_by_name_wherever_it_is_written_a_second_time(monkeypatch):
    model = with_silu(monkeypatch)
    with pytest.raises(MiniGPTError, match="does not know mlp silu"):
        compile_decoding(model)
    assert usable_paths(model, BLOCK) == {"cache"}
    assert_plain_text(model)
    for to_others in (to_hugging_face, lambda model: gguf_files({}, LanguageModel(model, None))):
        with pytest.raises(MiniGPTError, match="mlp silu"):
            to_others(model)
    assert "silu, and back" in summary.as_text(summary.parts(model))
    assert "ReLU" not in summary.as_text(summary.parts(model))


@torch.no_grad()
def test_the_compiled_gelu_is_far_from_silu_and_within_rounding_of_its_own(monkeypatch):
    stock, model = lively("gpt2", BLOCK), with_silu(monkeypatch)
    ids = checks.random_ids(stock, BLOCK)
    for of_weights, plain, least, most in ((stock, stock(ids), 0.0, 1e-5), (model, model(ids), 0.1, math.inf)):
        stepped = copy.deepcopy(stock)
        stepped.load_state_dict(of_weights.state_dict())
        step = CompiledDecoder(stepped)
        cache = stepped.new_cache(2)
        logits = torch.cat([step(ids[:, n : n + 1], cache) for n in range(BLOCK)], dim=1)
        assert least <= (logits - plain).abs().max() / plain.std() <= most


@pytest.mark.parametrize("block", [*BLOCKS, ScaledBlock])
def test_a_class_that_the_compiled_code_does_not_know_is_refused_by_name(block, monkeypatch):
    model = changed(block, monkeypatch)
    with pytest.raises(MiniGPTError, match=rf"the module blocks\.0 \({block.__name__}\)"):
        compile_decoding(model)
    with pytest.raises(MiniGPTError, match=r"(does|do) not have"):
        to_hugging_face(model)
    assert_plain_text(model)


@pytest.mark.slow
def test_a_change_that_no_name_shows_is_found_in_the_logits_of_the_compiled_code(monkeypatch, capfd):
    model = lively(block_size=BLOCK)
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, rope, cache: 1.01 * forward(self, x, rope, cache))
    with pytest.raises(MiniGPTError, match="without the compiled step of this model: its logits differ by"):
        compile_decoding(model)
    assert compiled_step(model) is None
    assert_plain_text(model)
    monkeypatch.undo()
    compile_decoding(model)
    monkeypatch.setattr(Block, "forward", lambda self, x, rope, cache: 1.01 * forward(self, x, rope, cache))
    assert_plain_text(model)  # a change after it was compiled
    assert "the model has changed since it was compiled" in capfd.readouterr().err


CHANGES = {
    "the norm's eps": lambda model: setattr(model.norm, "eps", 1e-2),
    "a module more": lambda model: model.blocks[1].add_module("gate", nn.Linear(32, 32)),
    "a wider MLP": lambda model: setattr(model.blocks[1], "mlp", gpt.MLP(replace(model.settings, mlp_width=512))),
    "an adapter": lambda model: setattr(model.blocks[0].attn, "proj", Adapter(32, 32)),
    "another activation": lambda model: setattr(model.blocks[1].mlp, "activation", nn.SiLU()),
    "another GELU": lambda model: setattr(model.blocks[1].mlp, "activation", nn.GELU()),
    "another order": lambda model: setattr(model, "blocks", nn.ModuleList(reversed(model.blocks))),
    "a replaced forward": lambda model: setattr(model.blocks[0].mlp, "forward", lambda x: x),
}


class Adapter(nn.Linear):
    """A linear layer that adds something to what its weights give."""

    def forward(self, x):
        return super().forward(x) + 0.3 * x.roll(1, -1)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_parts_and_shapes_of_another_kind_are_refused(change):
    model = lively(block_size=BLOCK)
    change(model)
    with pytest.raises(MiniGPTError, match="does not know"):
        compile_decoding(model)


CHANGES_OF_WEIGHTS = {
    "in place": lambda model: model.lm_head.weight.detach().mul_(-1),
    "through data": lambda model: model.lm_head.weight.data.mul_(-1),
    "loaded": lambda model: model.load_state_dict(lively("modern", BLOCK, mlp="swiglu", softcap=0.0).state_dict()),
    "a setting": lambda model: setattr(model, "softcap", 0.5),
}


@pytest.mark.parametrize("change", CHANGES_OF_WEIGHTS.values(), ids=CHANGES_OF_WEIGHTS)
def test_the_compiled_step_is_given_up_when_the_weights_change(change):
    model = lively("llama", BLOCK)
    compile_decoding(model)
    list(generate_ids(model, [[1, 2, 3]], 5, temperature=0.0))
    assert compiled_step(model) is not None
    change(model)
    drawn = rows(generate_ids(model, [[1, 2, 3]], 9, temperature=0.0))
    assert compiled_step(model) is None
    with torch.no_grad():
        assert drawn == [plainly(copy.deepcopy(model), [1, 2, 3], 9, temperature=0.0)]


def test_the_compiled_step_is_kept_when_the_number_of_threads_changes():
    """A sum of floats depends on how threads share it out; the weights of 10 M parameters are added up so."""
    weights = torch.randn(3_000_001)
    sums = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sums.add(state_of(torch.nn.ParameterList([weights]))[2])
    assert len(sums) == 1
    assert state_of(torch.nn.ParameterList([weights[1:]]))[2] not in sums  # not aligned to eight bytes either


class Wrapped(nn.Module):
    """A network of another class, with a cache, and with an attribute `compiled` that means something else."""

    block_size, compiled = BLOCK, True

    def __init__(self):
        super().__init__()
        self.gpt = lively(block_size=BLOCK)

    def forward(self, idx, cache=None):
        return self.gpt(idx, cache)

    def new_cache(self, batch_size):
        return self.gpt.new_cache(batch_size)


def test_only_a_gpt_has_a_compiled_step():
    model = Wrapped().eval()
    assert usable_paths(model, BLOCK) == {"cache"}
    assert_plain_text(model)


class Remembering(TinyGPT):
    """A bigram model that learned to look one id further back, and says that it did not."""

    def __init__(self, *args):
        super().__init__(*args)
        self.before = nn.Parameter(torch.zeros(()))

    def forward(self, idx):
        x = self.embed(idx)
        return self.lm_head(x + self.before * F.pad(x[:, :-1], (0, 0, 1, 0)))


@pytest.mark.parametrize("before", [0.0, 0.5])
@pytest.mark.parametrize("repetition_penalty", [None, 1.5])
def test_a_model_that_is_no_bigram_any_more_is_asked_with_its_window(before, repetition_penalty, capfd):
    torch.manual_seed(5)
    model = Remembering(30, 8, 16).eval()
    model.before.data.fill_(before)
    prompts = [[3, 1, 4], [15]]
    options = {"temperature": 0.0, "repetition_penalty": repetition_penalty}
    with torch.no_grad():
        expected = [plainly(model, prompt, 40, **options) for prompt in prompts]
    assert rows(generate_ids(model, prompts, 40, **options)) == expected
    assert not is_bigram(model)
    assert "without the table of transitions of this Remembering" in capfd.readouterr().err
    assert is_bigram(TinyGPT(30, 8))


@torch.no_grad()
def test_int8_is_not_put_where_a_layer_computes_something_else(capfd):
    model = lively(block_size=BLOCK)
    model.blocks[0].attn.proj = Adapter(32, 32)
    plain = copy.deepcopy(model)
    for_inference(model, precision="int8")
    assert type(model.blocks[0].attn.proj) is Adapter  # it keeps its own weights and its forward
    assert type(model.blocks[0].attn.qkv) is int8.Int8Linear
    assert_plain_text(model)

    class Functional(GPT):
        def forward(self, idx, cache=None):
            return F.linear(super().forward(idx, cache), self.blocks[0].attn.proj.weight[:30, :30].float())

    model = Functional(**plain.config).eval()
    before = copy.deepcopy(model)
    for_inference(model, precision="int8")
    ids = checks.random_ids(model, BLOCK)
    torch.testing.assert_close(model(ids), before(ids))
    assert (
        "The weights of this Functional stay in float32. With 8-bit weights its logits differ" in capfd.readouterr().err
    )


@torch.no_grad()
def test_an_int8_kernel_that_computes_something_else_is_not_used(monkeypatch, capfd):
    model = lively(block_size=BLOCK)
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda x, weight, scale: x @ weight.to(x.dtype).mT)
    for_inference(model, precision="int8")
    assert "8-bit kernel is not used" in capfd.readouterr().err
    wide = copy.deepcopy(model)
    monkeypatch.undo()
    assert all(layer.exact for layer in wide.modules() if isinstance(layer, int8.Int8Linear))


def test_a_check_leaves_the_model_and_the_draws_as_they_were():
    model = lively("modern", BLOCK).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    usable_paths(model, BLOCK)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_model_that_cannot_be_copied_is_generated_from_by_its_plain_forward(capfd):
    model = lively(block_size=BLOCK)
    model.__deepcopy__ = lambda memo: 1 / 0
    assert_plain_text(model)
    assert "it cannot be checked (ZeroDivisionError: division by zero)" in capfd.readouterr().err


def test_an_attention_map_of_a_layer_that_was_changed_is_not_shown(monkeypatch):
    model = lively(block_size=BLOCK)
    assert attention(model, [1, 2, 3]).shape == (3, 4, 3, 3)
    attend = gpt.Attention.attend
    monkeypatch.setattr(gpt.Attention, "attend", lambda self, q, k, v, mask: attend(self, 2 * q, k, v, mask))
    with pytest.raises(MiniGPTError, match="attention of layer 1 cannot be shown"):
        attention(model, [1, 2, 3])


class Counts(nn.Module):
    """A network with nothing but a forward: the scores of an id are how often it came, and came last."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.vocab_size = vocab_size

    def forward(self, idx):
        one_hot = F.one_hot(idx, self.vocab_size).float()
        return self.scale * one_hot.cumsum(1) - 2 * one_hot


def test_a_network_needs_nothing_but_its_forward_and_sees_all_ids(distinct_model):
    _, tokenizer = distinct_model
    model = Counts(tokenizer.vocab_size)
    drawn = generate(model, tokenizer, "abcabc", 40, temperature=0.0)
    ids = tokenizer.encode("abcabc")
    for _ in range(40):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    assert drawn == tokenizer.decode(ids)


class Pair(Counts):
    def forward(self, idx):
        return super().forward(idx), None


class Last(Counts):
    def forward(self, idx):
        return super().forward(idx)[:, -1]


@pytest.mark.parametrize(
    ("kind", "message"), [(Pair, "Pair returns a tuple"), (Last, r"Last returns \(1, 40\) for \(1, 2\) ids")]
)
def test_a_forward_that_returns_something_else_is_named_with_the_rule(kind, message, distinct_model):
    _, tokenizer = distinct_model
    with pytest.raises(MiniGPTError, match=message + r".*\(B, T, V\) logits"):
        generate(kind(tokenizer.vocab_size), tokenizer, "ab", 3)


def test_a_window_longer_than_the_block_is_named():
    for preset in PRESETS:
        with pytest.raises(MiniGPTError, match="has 17 ids, and this model's block_size is 16"):
            lively(preset)(torch.zeros(1, 17, dtype=torch.int64))
