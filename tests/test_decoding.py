import copy
import math
import platform

import pytest
import torch
from conftest import generate_ids
from test_engine import disturbed, lively, plainly, rows

from minigpt import GPT, CharTokenizer, LanguageModel, MiniGPTError, TinyGPT
from minigpt.cpu import compiler, decoding
from minigpt.cpu.compiler import library
from minigpt.cpu.decoding import CompiledDecoder, compile_decoding
from minigpt.cpu.int8 import Int8Linear, quantize
from minigpt.cpu.sampling import CompiledParams, fastest_params
from minigpt.generation import checks
from minigpt.generation.checks import CompiledStep, compiled_step, usable_paths
from minigpt.generation.sampling import SamplingParams, draw
from minigpt.loading import for_inference
from minigpt.models import kv_cache
from minigpt.models.kv_cache import KVCache

BLOCK = 37  # no whole number of vectors
MODELS = {
    "gpt2": {"preset": "gpt2"},
    "without biases": {"preset": "gpt2", "bias": False, "tie_weights": False},
    "llama": {"preset": "llama"},
    "modern": {"preset": "modern"},
    "grouped": {"preset": "llama", "n_kv_head": 2, "n_embd": 128},  # from here on some have several threads
    "one head of keys": {"preset": "modern", "n_kv_head": 1, "mlp": "gelu", "norm": "layernorm", "bias": True},
    "with n-grams": {"preset": "modern", "ngrams": 50},
    "other heads": {"preset": "llama", "head_size": 24, "mlp_width": 50, "norm_eps": 1e-3, "rope_base": 1e5},
    "odd sizes": {"preset": "gpt2", "n_embd": 183, "n_head": 3, "qk_norm": True},  # heads of 61, blocks half empty
    "heads of several vectors": {"preset": "modern", "n_embd": 376, "mlp": "swiglu"},  # of 94: 64 and 16 and 14
    "a larger vocabulary": {"preset": "modern", "vocab_size": 77},
    "one position": {"preset": "gpt2", "block_size": 1},
}


def made(vocab_size: int = 30, block_size: int = BLOCK, n_head: int = 4, n_embd: int = 32, **settings) -> GPT:
    return disturbed(GPT(vocab_size, block_size, 3, n_head, n_embd, **settings))


def compiled(model: GPT) -> CompiledStep:
    """The compiled step of a model, which gives the logits of one id a row."""
    compile_decoding(model)
    return compiled_step(model)


@pytest.fixture(scope="module", autouse=True)
def needs_a_compiler():
    try:
        compile_decoding(lively())
    except MiniGPTError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("n_rows", [1, 2, 15])  # of which 8, 4, 2 and 1 go together
@torch.no_grad()
def test_the_compiled_step_gives_the_plain_logits_at_every_position(settings, n_rows):
    torch.manual_seed(0)
    model = made(**settings)
    idx = torch.randint(30, (model.block_size, n_rows), generator=torch.Generator().manual_seed(2)).T  # not contiguous
    whole = model(idx)
    step = compiled(model)
    cache = KVCache(model, n_rows)
    pieces = [model(idx[:, :3], cache)] + [step(idx[:, t : t + 1], cache) for t in range(3, model.block_size)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())


@pytest.mark.parametrize("precision", ["32", "bf16", "int8"])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 8])
@torch.no_grad()
def test_more_weights_than_the_caches_hold_give_the_same_logits(monkeypatch, precision, n_rows):
    model = made(preset="llama", n_embd=128)
    for_inference(model, precision=precision)
    monkeypatch.setattr(decoding, "last_caches", lambda threads: math.inf)
    few = CompiledDecoder(model)
    monkeypatch.setattr(decoding, "last_caches", lambda threads: 1000)
    many = CompiledDecoder(model)
    idx = torch.randint(30, (n_rows, 5), generator=torch.Generator().manual_seed(2))
    caches = KVCache(model, n_rows), KVCache(model, n_rows)
    for t in range(5):
        assert torch.equal(*(step(idx[:, t : t + 1], cache) for step, cache in zip((few, many), caches, strict=True)))
    assert (few._model.stream, many._model.stream) == (0, 1)


def test_only_weights_that_every_token_reads_count_for_the_caches(monkeypatch):
    monkeypatch.setattr(decoding, "last_caches", lambda threads: 1e6)
    assert CompiledDecoder(made(preset="modern", ngrams=10_000))._model.stream == 0  # 2.6 MB of tables
    assert CompiledDecoder(made(preset="modern", n_embd=128))._model.stream == 1  # 2.4 MB of matrices


def test_int8_weights_are_prefetched_from_fewer_bytes_on(monkeypatch):
    for precision, stream in (("32", 0), ("bf16", 0), ("int8", 1)):
        model = made(preset="modern", n_embd=128)
        for_inference(model, precision=precision)
        read = CompiledDecoder(model)._read
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "last_caches", lambda threads, read=read: 2 * read)
            assert CompiledDecoder(model)._model.stream == stream


def test_the_size_of_the_last_caches_is_linuxs_or_infinite(monkeypatch, folder):
    monkeypatch.setattr(compiler, "CPUS", folder)
    assert compiler.last_caches(2) == math.inf
    for n, shared in enumerate(("0-1", "0-1", "2-3", "2-3")):
        cache = folder / f"cpu{n}/cache/index3"
        cache.mkdir(parents=True)
        (cache / "size").write_text("16384K\n")
        (cache / "shared_cpu_list").write_text(f"{shared}\n")
    assert [compiler.last_caches(threads) for threads in (1, 2, 4)] == [2**24, 2**25, 2**25]
    (cache / "size").write_text("\n")
    assert compiler.last_caches(2) == math.inf


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("n_rows", [2, 13])
@torch.no_grad()
def test_bfloat16_is_nearer_to_its_float32_than_pytorchs(settings, n_rows):
    torch.manual_seed(0)
    model = made(**settings).bfloat16()
    idx = torch.randint(30, (n_rows, model.block_size), generator=torch.Generator().manual_seed(2))
    whole = copy.deepcopy(model).float()(idx)

    def away(step):
        cache = KVCache(model, n_rows)
        logits = torch.cat([step(idx[:, t : t + 1], cache) for t in range(model.block_size)], dim=1)
        return (logits - whole).square().mean().sqrt()

    step = compiled(model)
    assert away(step) < away(model)
    assert away(step) < 0.03 * whole.square().mean().sqrt()


def multiplied_out(model: GPT) -> GPT:
    """The model in float32 whose weights are those that one in int8 rounds to."""
    rounded, whole = copy.deepcopy(model), copy.deepcopy(model)
    quantize(rounded)
    for name, layer in rounded.named_modules():
        if isinstance(layer, Int8Linear):
            whole.get_submodule(name).weight = torch.nn.Parameter(layer.weight * layer.scale.float()[:, None])
    return whole


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("n_rows", [1, 13])
@torch.no_grad()
def test_in_int8_the_compiled_step_rounds_weights_and_nothing_else(settings, n_rows):
    torch.manual_seed(0)
    model = made(**settings)
    idx = torch.randint(30, (n_rows, model.block_size), generator=torch.Generator().manual_seed(2))
    whole = multiplied_out(model)(idx)
    assert not torch.allclose(whole, model(idx), rtol=1e-3, atol=1e-3)
    quantize(model)
    step = compiled(model)
    cache = KVCache(model, n_rows)
    logits = torch.cat([step(idx[:, t : t + 1], cache) for t in range(model.block_size)], dim=1)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4 * whole.abs().max().item())


@pytest.mark.parametrize("precision", ["32", "int8"])
def test_tables_are_not_held_twice(precision):
    model = lively("modern", ngrams=50)
    for_inference(model, precision=precision)
    held = {tensor.data_ptr() for tensor in compiled(model)._kept}
    assert {model.embed.weight.data_ptr(), model.ngrams[0].weight.data_ptr()} <= held


@pytest.mark.full
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of another kind of processor")
@pytest.mark.parametrize(("simdlen", "march"), [(256, "x86-64-v3"), (1, "x86-64")])
@torch.no_grad()
def test_older_processors_compute_the_same(monkeypatch, simdlen, march):
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, f"-march={march}", "-Wno-psabi"))
    monkeypatch.setattr(decoding, "library", library.__wrapped__)  # not what was compiled before
    for precision, tolerance in (("32", 1e-4), ("bf16", 0.05), ("int8", 1e-4)):
        model = made(**MODELS["odd sizes"])
        idx = torch.randint(30, (9, 6), generator=torch.Generator().manual_seed(2))
        whole = (multiplied_out(model) if precision == "int8" else model)(idx)
        for_inference(model, precision=precision)
        native = compiled(model)
        with torch._inductor.config.patch({"cpp.simdlen": simdlen}):
            step = compiled(model)
        assert step.columns < native.columns or native.columns < 32
        cache = KVCache(model, 9)
        logits = torch.cat([step(idx[:, t : t + 1], cache) for t in range(6)], dim=1)
        torch.testing.assert_close(logits, whole, rtol=tolerance, atol=tolerance * whole.abs().max().item())


@torch.no_grad()
def test_compiled_models_give_the_plain_texts_each_its_own_also_past_the_block():
    models = [lively("modern"), lively("modern")]
    models[1].embed.weight.add_(torch.randn(30, 32, generator=torch.Generator().manual_seed(8)))
    ids = torch.randint(30, (40,), generator=torch.Generator().manual_seed(4)).tolist()
    prompts = [ids[:1], ids[3:12], ids]
    for controls in ({"temperature": 0.0}, {"temperature": 0.9, "top_k": 9, "top_p": 0.95}):

        def drawn(model, controls=controls):
            generators = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
            return rows(generate_ids(model, prompts, 30, **controls, generators=generators))

        expected = [drawn(model) for model in models]
        assert expected[0] != expected[1]
        for model in models:
            compile_decoding(model)
            assert compiled_step(model) is not None
        assert [drawn(model) for model in models] == expected
        for model in models:
            del checks._compiled[model]


@torch.no_grad()
def test_the_compiled_step_follows_a_cache_that_grows(monkeypatch):
    monkeypatch.setattr(kv_cache, "FIRST_COLUMNS", 3)
    model = made(preset="llama", n_kv_head=2).eval()
    step, cache = compiled(model), model.new_cache(2)
    idx = torch.randint(30, (2, BLOCK), generator=torch.Generator().manual_seed(2))
    model(idx[:, :2], cache)
    logits = [step(new, cache) for new in idx[:, 2:].split(1, dim=1)]
    assert cache.room == BLOCK
    torch.testing.assert_close(torch.cat(logits, 1), model(idx)[:, 2:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_compiled_step_goes_on_after_a_cache_has_forgotten():
    model = lively("llama", ngrams=50)
    idx = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(3))
    expected = model(idx[:, :7])[:, -1]
    step = compiled(model)
    cache = KVCache(model, 2)
    model(idx[:, :6], cache)
    for _ in range(3):
        step(torch.zeros(2, 1, dtype=torch.int64), cache)  # a guess that was wrong
    cache.length -= 3
    torch.testing.assert_close(step(idx[:, 6:7], cache)[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_rounded_rows_of_unequal_length_go_past_the_block(precision):
    model = lively("modern")
    for_inference(model, precision=precision)
    compile_decoding(model)
    assert torch.tensor(rows(generate_ids(model, [[1], [2, 3, 4]], 20, temperature=0.0))).shape == (2, 20)


@pytest.mark.parametrize("precision", ["32", "int8"])
@pytest.mark.parametrize("name", ["embed.weight", "blocks.0.mlp.up.weight"])
def test_predictions_that_are_no_numbers_stay_none(name, precision):
    model = lively("modern")
    with torch.no_grad():
        model.get_parameter(name).fill_(math.nan)
    for_inference(model, precision=precision)
    step = compiled(model)
    cache = KVCache(model, 1)
    assert step(torch.tensor([[1]]), cache).isnan().all()


def test_an_id_outside_the_vocabulary_or_the_block_is_refused():
    model = lively()
    step = compiled(model)
    cache = KVCache(model, 2)
    for wrong in (30, -1):
        with pytest.raises(IndexError):
            step(torch.tensor([[1], [wrong]]), cache)
    cache = KVCache(model, 1)
    cache.length += 16
    with pytest.raises(IndexError):
        step(torch.tensor([[1]]), cache)


def test_a_model_that_is_cast_is_compiled_no_more():
    model = lively()
    compile_decoding(model)
    usable_paths(model.bfloat16(), 5)
    assert compiled_step(model) is None
    model = lively()
    quantize(model)
    with pytest.raises(MiniGPTError, match="float32, bfloat16 or int8"):
        compile_decoding(model.bfloat16())  # whose cache is not what the code for int8 takes


def test_a_model_that_cannot_be_compiled_is_left_as_it_was(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no compiler")

    with pytest.raises(MiniGPTError, match="for the class GPT, but this model is a TinyGPT"):
        compile_decoding(TinyGPT(30))
    model = lively().double()
    with pytest.raises(MiniGPTError, match="float32, bfloat16 or int8"):
        compile_decoding(model)
    monkeypatch.setattr("torch._inductor.codecache.CppCodeCache.load", fails)
    library.cache_clear()
    model = lively()
    with pytest.raises(MiniGPTError, match="cannot be compiled here"):
        compile_decoding(model)
    assert compiled_step(model) is None
    assert rows(generate_ids(model, [[1]], 5, temperature=0.0)) == [plainly(model, [1], 5, temperature=0.0)]


@pytest.mark.parametrize("vocab_size", [1, 2, 65, 300])
@pytest.mark.parametrize("penalty", [None, 1.3, 0.5])
@pytest.mark.parametrize("top_k", [None, 1, 3, 400])
def test_the_compiled_filter_cuts_what_the_plain_one_cuts(vocab_size, penalty, top_k):
    torch.manual_seed(0)
    for top_p in (None, 0.1, 0.9, 1.0):
        for min_p in (None, 0.0, 0.05, 1.0):
            settings = (0.7, top_k, top_p, min_p, penalty)
            logits, ids = torch.randn(3, vocab_size) * 3, torch.randint(vocab_size, (3, 7))
            logits[0] = logits[0].round()  # with ties
            logits[1, 1::2] = -math.inf
            given = logits.clone()
            plain = SamplingParams(*settings).filter(logits, ids)
            assert torch.equal(CompiledParams(*settings).filter(logits, ids), plain), settings
            assert torch.equal(logits, given)
    assert torch.equal(CompiledParams(0).filter(logits, ids), SamplingParams(0).filter(logits, ids))


def test_logits_that_are_no_numbers_pass_the_compiled_filter():
    logits = torch.tensor([[1.0, math.nan, 2.0], [1.0, 2.0, 3.0]])
    filtered = CompiledParams(1.0, top_k=1, top_p=0.5).filter(logits)
    assert filtered[0].isnan().any()
    assert filtered[1].tolist() == [-math.inf, -math.inf, 3.0]
    with pytest.raises(MiniGPTError, match="produced NaN"):
        draw(filtered.softmax(-1))
    for outside in (3, -1):
        with pytest.raises(IndexError):
            CompiledParams(1.0, repetition_penalty=2.0).filter(logits, torch.tensor([[0], [outside]]))


def test_a_compiled_model_filters_in_compiled_code_unless_the_filters_differ(monkeypatch):
    calls = []
    plain = CompiledParams.filter
    monkeypatch.setattr(CompiledParams, "filter", lambda self, *given: calls.append(1) or plain(self, *given))
    lm = LanguageModel(lively(), CharTokenizer.from_text("".join(map(chr, range(65, 95)))))
    sampling = {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 3}
    text = lm.generate("A", 12, **sampling)
    assert not calls
    compile_decoding(lm.model)
    calls.clear()
    assert lm.generate("A", 12, **sampling) == text
    assert len(calls) == 12
    fastest_params.cache_clear()
    monkeypatch.setattr(CompiledParams, "filter", lambda self, logits, generated=None: logits)
    compile_decoding(lm.model)
    assert lm.generate("A", 12, **sampling) == text
    fastest_params.cache_clear()
