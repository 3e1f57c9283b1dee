import json
import sys

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT, read

import minigpt
from minigpt import GPT, BPETokenizer, CharTokenizer, LanguageModel, MiniGPTError, TinyGPT
from minigpt.data import tokenizers
from minigpt.export import files_of

NANO = [
    "--model.network.n_layer",
    "2",
    "--model.network.n_head",
    "2",
    "--model.network.n_embd",
    "32",
    "--trainer.max_steps",
    "30",
]


def trained(call, preset: str, *flags: str):
    """A small trained transformer, in the current folder."""
    config = str(ROOT / "configs" / "gpt_nano.yaml")
    flags = ("--model.network.preset", preset, "--model.network.bias", "null", "--model.warmup_steps", "5", *flags)
    result = call("train", "--config", config, *QUICK, *NANO, *flags)
    assert result.status == 0, result.err
    return minigpt.load("last")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "flags"),
    [
        ("gpt2", []), ("llama", []), ("llama", ["--data.lower", "true"]), ("llama", ["--data.byte_fallback", "true"]),
        ("gpt2", ["--data.tokenizer", "bpe", "--data.max_vocab_size", "400"]),
    ],
)  # fmt: skip
def test_transformers_loads_an_export_and_writes_the_same_text(call, preset, flags):
    transformers = pytest.importorskip("transformers")
    lm = trained(call, preset, *flags)
    result = call("export", "--format", "hf", "--out", "out")
    assert (result.status, result.out) == (0, "out\n"), result.err
    model = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")

    text = "Un matin, l'œuf…\nOù ?  — « Là »  "
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == lm.tokenizer.encode(lm.tokenizer.clean(text))
    assert tokenizer.decode(ids[0]) == lm.tokenizer.clean(text)
    if flags and flags[0] != "--data.lower":
        text = "œuf e\u0301 👩‍👩‍👧 ẞ"
        assert tokenizer(text).input_ids == lm.tokenizer.encode(lm.tokenizer.clean(text))
        assert tokenizer.decode(tokenizer(text).input_ids) == lm.tokenizer.clean(text)
    with torch.no_grad():
        assert (model(ids).logits - lm.model(ids)).abs().max() < 1e-5

    prompt = tokenizer("Un matin,", return_tensors="pt").input_ids
    room = lm.model.block_size - prompt.shape[1]
    theirs = model.generate(prompt, max_new_tokens=room, min_new_tokens=room, do_sample=False)
    assert tokenizer.decode(theirs[0]) == lm.generate("Un matin,", room, temperature=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "tokenizer"),
    [("gpt2", "char"), ("modern", "word"), pytest.param("llama", "bpe", marks=pytest.mark.full)],
)
def test_an_export_in_safetensors_is_read_back(call, folder, preset, tokenizer):
    lm = trained(call, preset, "--data.tokenizer", tokenizer)
    assert call("export", "--format", "safetensors", "--out", "out").status == 0
    again = minigpt.load("out")
    assert again.tokenizer.to_dict() == lm.tokenizer.to_dict()
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert call("generate", "--ckpt_path", "out", "--seed", "1").out == call("generate", "--seed", "1").out
    config = str(ROOT / "configs" / "gpt_nano.yaml")
    resumed = call("train", "--config", config, *QUICK, "--model.warmup_steps", "0", "--ckpt_path", "out")
    assert resumed.status == 2
    assert "is an export" in resumed.err
    (folder / "out" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(MiniGPTError, match="damaged"):
        minigpt.load("out")


@pytest.mark.slow
def test_what_hugging_face_has_no_class_for_is_said(call, folder, trained_run):
    result = call("export", "--ckpt_path", str(trained_run), "--format", "hf", "--out", "out")
    assert result.status == 2
    assert "no class for this TinyGPT" in result.err
    trained(call, "llama", "--data.tokenizer", "word")
    result = call("export", "--format", "hf", "--out", "out")
    assert result.status == 2
    assert "no word tokenizer" in result.err
    trained(call, "modern")
    result = call("export", "--format", "hf", "--out", "out")
    assert result.status == 2
    assert "no class for this GPT" in result.err
    assert "--format safetensors" in result.err
    assert not (folder / "out").exists()


def test_a_folder_that_is_taken_is_left_alone(call, folder, trained_run):
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("mine")
    result = call("export", "--ckpt_path", str(trained_run), "--format", "safetensors", "--out", "out")
    assert result.status == 2
    assert "not empty" in result.err
    assert [path.name for path in (folder / "out").iterdir()] == ["mine.txt"]


def test_an_export_of_a_newer_version_is_named(folder):
    (folder / "new").mkdir()
    (folder / "new" / "minigpt.json").write_text('{"version": "99.0"}', encoding="utf-8")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"x": torch.zeros(1)}, folder / "new" / "model.safetensors")
    with pytest.raises(MiniGPTError, match=r"written by minigpt 99\.0"):
        minigpt.load("new")


TEXT = "Un matin, l'œuf…\nOù ?  — « Là »  \n\n  et 12 « 𝄞 » d'été\u202f!"


def untrained(tokenizer, **settings) -> LanguageModel:
    """A transformer whose weights, and with them its logits, are far from zero everywhere."""
    torch.manual_seed(5)
    sizes = {"block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}
    model = GPT(tokenizer.vocab_size, **(sizes | settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return LanguageModel(model, tokenizer)


def characters() -> LanguageModel:
    tokenizer = CharTokenizer.from_text(TEXT)
    return LanguageModel(TinyGPT(tokenizer.vocab_size, n_embd=8).eval(), tokenizer)


def session(content: bytes):
    return pytest.importorskip("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])


def run(theirs, ids: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(theirs.run(["logits"], {"ids": ids.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"preset": "gpt2", "dropout": 0.1},
        {"preset": "modern", "n_kv_head": 2, "ngrams": 64, "block_size": 600},
        {"preset": "llama", "n_kv_head": 1, "n_embd": 256, "n_layer": 1, "tie_weights": True},
    ],
)
def test_onnxruntime_gives_the_logits_of_every_model(settings):
    pytest.importorskip("onnxscript")
    tokenizer = CharTokenizer.from_text(TEXT)
    lm = characters() if settings is None else untrained(tokenizer, **settings)
    with torch.no_grad():
        lm.model(torch.zeros(1, 1, dtype=torch.int64))  # a model that has written something can be exported
        files = files_of("onnx", {}, lm)
    assert sorted(files) == ["model.onnx", "tokenizer.json"]
    assert str(ROOT).encode() not in files["model.onnx"]
    gelu = lm.model.settings.mlp == "gelu" if settings else False
    assert (b"Gelu" in files["model.onnx"]) == gelu  # the operation that runtimes have a kernel for
    theirs = session(files["model.onnx"])
    assert [(x.name, x.type, x.shape) for x in theirs.get_inputs()] == [("ids", "tensor(int64)", ["batch", "length"])]
    assert theirs.get_modelmeta().custom_metadata_map["block_size"] == str(lm.model.block_size)
    for batch, length in ((1, 1), (1, 2), (3, 1), (2, 7), (1, lm.model.block_size), (5, lm.model.block_size)):
        ids = torch.randint(tokenizer.vocab_size, (batch, length))
        with torch.no_grad():
            ours = lm.model(ids)
        assert (run(theirs, ids) - ours).abs().max() < 1e-4 * ours.abs().max()


@pytest.mark.full
def test_onnxruntime_writes_the_same_text_over_words(call, folder):
    pytest.importorskip("onnxscript")
    lm = trained(call, "modern", "--data.tokenizer", "word")
    result = call("export", "--format", "onnx", "--out", "out")
    assert (result.status, result.out) == (0, "out\n"), result.err
    assert sorted(file.name for file in (folder / "out").iterdir()) == ["model.onnx", "words.json"]
    words = tokenizers.from_dict(json.loads((folder / "out" / "words.json").read_text(encoding="utf-8")))
    ids = words.encode("Un matin,")
    theirs = session((folder / "out" / "model.onnx").read_bytes())
    while len(ids) < lm.model.block_size:
        ids.append(run(theirs, torch.tensor([ids]))[0, -1].argmax().item())
    room = lm.model.block_size - len(words.encode("Un matin,"))
    assert words.decode(ids) == lm.generate("Un matin,", room, temperature=0)


def in_gguf(folder, lm: LanguageModel):
    """What gguf's own reader finds in an export: the settings, and the weights as arrays."""
    gguf = pytest.importorskip("gguf")
    (folder / "model.gguf").write_bytes(files_of("gguf", {}, lm)["model.gguf"])
    reader = gguf.GGUFReader(folder / "model.gguf")
    weights = {t.name: np.array(t.data, np.float32) for t in reader.tensors}
    assert all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in reader.tensors)
    return {name: field.contents() for name, field in reader.fields.items()}, weights


def as_llama_cpp_computes(about: dict, weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """The logits of ids by the formulas of llama.cpp, whose RoPE turns each pair of neighbours."""

    def norm(x, name):
        return (
            x
            / np.sqrt((x * x).mean(-1, keepdims=True) + about["llama.attention.layer_norm_rms_epsilon"])
            * weights[name]
        )

    def turned(x):
        size = about["llama.rope.dimension_count"]
        rates = about["llama.rope.freq_base"] ** (-np.arange(0, size, 2) / size)
        turns = np.exp(1j * np.arange(len(ids))[:, None] * rates)[:, None]
        pairs = (x[..., ::2] + 1j * x[..., 1::2]) * turns
        return np.stack((pairs.real, pairs.imag), -1).reshape(x.shape)

    heads, kv_heads = about["llama.attention.head_count"], about["llama.attention.head_count_kv"]
    hidden = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    x = weights["token_embd.weight"][ids]
    for layer in range(about["llama.block_count"]):
        at = f"blk.{layer}."
        y = norm(x, at + "attn_norm.weight")
        q, k, v = ((y @ weights[f"{at}attn_{part}.weight"].T).reshape(len(ids), n, -1)
                   for part, n in (("q", heads), ("k", kv_heads), ("v", kv_heads)))  # fmt: skip
        q, k, v = turned(q), turned(k).repeat(heads // kv_heads, 1), v.repeat(heads // kv_heads, 1)
        scores = np.exp(np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1]) + hidden)
        y = np.einsum("hts,shd->thd", scores / scores.sum(-1, keepdims=True), v).reshape(len(ids), -1)
        x = x + y @ weights[at + "attn_output.weight"].T
        y = norm(x, at + "ffn_norm.weight")
        gate = y @ weights[at + "ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ weights[at + "ffn_up.weight"].T)) @ weights[at + "ffn_down.weight"].T
    return norm(x, "output_norm.weight") @ weights["output.weight"].T


@pytest.mark.parametrize("settings", [{"n_kv_head": 2}, {"tie_weights": True, "zero_init": True, "dropout": 0.1}])
def test_a_gguf_holds_the_model_as_llama_cpp_computes_it(folder, settings):
    lm = untrained(CharTokenizer.from_text(TEXT), preset="llama", **settings)
    about, weights = in_gguf(folder, lm)
    assert about["general.architecture"] == "llama"
    assert about["llama.context_length"] == 24
    ids = lm.tokenizer.encode(TEXT)[:24]
    theirs = as_llama_cpp_computes(about, weights, ids)
    with torch.no_grad():
        ours = lm.model(torch.tensor([ids]))[0].numpy()
    assert np.abs(theirs[:, :-1] - ours).max() < 1e-4 * np.abs(ours).max()
    # The token that ends a text, which the model does not have, is never the likeliest.
    assert about["tokenizer.ggml.eos_token_id"] == len(about["tokenizer.ggml.tokens"]) - 1 == lm.tokenizer.vocab_size
    assert (theirs.argmax(-1) < lm.tokenizer.vocab_size).all()


@pytest.mark.parametrize(("precision", "kind", "tolerance"), [("bf16", "BF16", 2**-8), ("int8", "Q8_0", 2**-7)])
def test_a_gguf_in_bf16_or_8_bits_holds_the_rounded_matrices(folder, precision, kind, tolerance):
    gguf = pytest.importorskip("gguf")
    lm = untrained(CharTokenizer.from_text(TEXT), preset="llama", n_embd=32)
    _, exact = in_gguf(folder, lm)
    (folder / "small.gguf").write_bytes(files_of("gguf", {}, lm, precision)["model.gguf"])
    reader = gguf.GGUFReader(folder / "small.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{kind}"]
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    matrices = {name for name, weight in exact.items() if weight.ndim == 2 and weight.shape[1] % 32 == 0}
    assert {name for name, of in kinds.items() if of == kind} == (
        matrices if precision == "int8" else {name for name, weight in exact.items() if weight.ndim == 2}
    )
    for tensor in reader.tensors:
        stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.abs(stored - exact[tensor.name]).max() <= tolerance * np.abs(exact[tensor.name]).max()


def test_a_precision_that_a_format_lacks_is_refused():
    with pytest.raises(
        MiniGPTError, match=r"--format onnx has --precision 32, not int8\. Leave it out, or take --format gguf"
    ):
        files_of("onnx", {}, untrained(CharTokenizer.from_text(TEXT)), "int8")


@pytest.mark.parametrize("kind", [CharTokenizer, BPETokenizer])
@pytest.mark.parametrize("text", [TEXT * 9, "ascii alone, and no pair that comes twice"])
def test_the_tokenizer_in_a_gguf_is_byte_pairs_that_give_the_same_ids(folder, kind, text):
    theirs = pytest.importorskip("tokenizers")
    lm = untrained(kind.from_text(text), preset="llama")
    about, _ = in_gguf(folder, lm)
    vocabulary = {token: i for i, token in enumerate(about["tokenizer.ggml.tokens"])}
    # llama.cpp merges without looking whether there is such a token; here there must be one.
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    for part in {part for pair in merges for part in (*pair, "".join(pair))} - vocabulary.keys():
        vocabulary[part] = len(vocabulary)
    byte_pairs = theirs.Tokenizer(theirs.models.BPE(vocabulary, merges))
    byte_pairs.pre_tokenizer = theirs.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert byte_pairs.encode(text).ids == lm.tokenizer.encode(text)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--data.tokenizer", "bpe", "--data.max_vocab_size", "400"]])
def test_llama_cpp_writes_the_same_text(call, flags):
    llama_cpp = pytest.importorskip("llama_cpp")
    lm = trained(call, "llama", *flags)
    result = call("export", "--format", "gguf", "--out", "out")
    assert (result.status, result.out) == (0, "out\n"), result.err
    theirs = llama_cpp.Llama("out/model.gguf", n_ctx=0, type_k=0, type_v=0, logits_all=True, verbose=False)

    text = read("exemple")[:3000] + "\nOù ?  — « Là »  \n\n  et\u202f€12 ñ ‱ 🦊.\n"  # with characters never seen
    ids = lm.tokenizer.encode(text, unknown="skip")
    assert theirs.tokenize(text.encode()) == ids
    assert theirs.detokenize(ids).decode() == lm.tokenizer.decode(ids)
    ids = ids[: lm.model.block_size]
    theirs.eval(ids)
    with torch.no_grad():
        ours = lm.model(torch.tensor([ids]))[0].numpy()
    assert np.abs(theirs.scores[: len(ids), :-1] - ours).max() < 1e-3 * np.abs(ours).max()

    room = lm.model.block_size - len(lm.tokenizer.encode("Un matin,")) - 1
    written = theirs("Un matin,", max_tokens=room, temperature=0, repeat_penalty=1.0)["choices"][0]["text"]
    assert "Un matin," + written == lm.generate("Un matin,", room, temperature=0)


@pytest.mark.parametrize(
    ("tokenizer", "settings", "words"),
    [
        (CharTokenizer.from_text(TEXT), {"preset": "modern"},
         ["mlp relu2", "qk_norm True", "softcap 15.0", "--format onnx",
         "--model.network.preset llama"]),
        (CharTokenizer.from_text(TEXT), {"preset": "llama", "ngrams": 8}, ["this model has ngrams 8."]),
        (CharTokenizer.from_text(TEXT, byte_fallback=True), {"preset": "llama"}, ["data.byte_fallback", "bpe"]),
        (minigpt.WordTokenizer.from_text(TEXT), {"preset": "llama"}, ["no word tokenizer", "bpe"]),
    ],
)  # fmt: skip
def test_what_llama_cpp_cannot_run_is_said(tokenizer, settings, words):
    with pytest.raises(MiniGPTError) as error:
        files_of("gguf", {}, untrained(tokenizer, **settings))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("form", "library"), [("onnx", "onnxscript"), ("gguf", "gguf")])
def test_a_library_that_is_missing_is_named(monkeypatch, form, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MiniGPTError, match=rf"needs {library}, .*pip install 'minigpt-lightning\[{form}\]'"):
        files_of(form, {}, untrained(CharTokenizer.from_text(TEXT), preset="llama"))
