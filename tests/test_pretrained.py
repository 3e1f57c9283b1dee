"""Folders of Hugging Face are read exactly, or refused in a sentence."""

import json
import shutil

import pytest
import torch
from conftest import made_once
from safetensors.torch import load_file, save_file
from test_export import as_llama_cpp_computes, in_gguf, run, session

import minigpt
from minigpt import MiniGPTError, loading, runs
from minigpt.data.pretrained_tokenizer import PretrainedTokenizer
from minigpt.export import files_of
from minigpt.models import pretrained
from minigpt.models.pretrained import build_around, read_pretrained

transformers = pytest.importorskip("transformers")

TEXT = "Le chat dort, le chien mange et l'œuf roule. It's 42 o'clock!\n\n  Ça va ? Été, dès 1999…\n"
SMALL = {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
LITTLE = {
    "vocab_size": 300, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
FOLDERS = {
    "gpt2": ("GPT2", SMALL),
    "gpt2 of other sizes": ("GPT2", SMALL | {"n_inner": 50, "layer_norm_epsilon": 1e-3, "n_head": 2}),
    "gpt2 untied": ("GPT2", SMALL | {"tie_word_embeddings": False}),
    "llama": ("Llama", LITTLE),
    "llama of grouped heads": ("Llama", LITTLE | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama of one head": ("Llama", LITTLE | {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama of wide heads": ("Llama", LITTLE | {"head_dim": 12, "num_key_value_heads": 2}),
    "llama of another base": (
        "Llama", LITTLE | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "num_key_value_heads": 4},
    ),
    "llama with biases": ("Llama", LITTLE | {"attention_bias": True, "mlp_bias": True}),
    "llama with biases in attention": ("Llama", LITTLE | {"attention_bias": True, "num_key_value_heads": 2}),
    "llama with biases in the mlp": ("Llama", LITTLE | {"mlp_bias": True}),
}  # fmt: skip


def tokenizer():
    """A byte-level tokenizer with special tokens, as transformers has them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    theirs.train_from_iterator([TEXT] * 3, trainer)
    theirs.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=theirs, bos_token="<|begin|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )


def write(folder, kind, sizes, **saving):
    """Write a random model, whose logits are far apart, as transformers does, with its tokenizer."""
    torch.manual_seed(3)
    suffix = {"GPT2": "LMHeadModel", "Llama": "ForCausalLM"}[kind]
    config = getattr(transformers, f"{kind}Config")(**sizes, bos_token_id=0, eos_token_id=1)
    model = getattr(transformers, f"{kind}{suffix}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # ones and zeros too
            parameter += 0.2 * torch.randn_like(parameter)
    model.to(saving.pop("dtype", torch.float32)).save_pretrained(folder, **saving)
    tokenizer().save_pretrained(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders of all shapes. Not to be written to."""

    def make(place):
        for name, (kind, sizes) in FOLDERS.items():
            write(place / name, kind, sizes)
        write(place / "several files", "Llama", LITTLE, max_shard_size="20KB")
        write(place / "bfloat16", "Llama", LITTLE, dtype=torch.bfloat16)
        write(place / "float16", "GPT2", SMALL, dtype=torch.float16)

    return made_once(tmp_path_factory, "hugging face", make)


ALL = [*FOLDERS, "several files", "bfloat16", "float16"]


@pytest.mark.parametrize("name", ALL)
def test_the_logits_and_the_greedy_text_are_those_of_transformers(folders, name):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders / name, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folders / name)
    lm = minigpt.load(folders / name)
    ids = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert (lm.model(ids) - expected).abs().max() < 1e-4
        assert expected.std() > 0.1
    prompt = their_tokenizer("Le chat", return_tensors="pt").input_ids
    assert prompt[0].tolist() == [0, *lm.encode_prompt("Le chat")]
    theirs.generation_config.eos_token_id = None  # ours draws on after the end token
    drawn = theirs.generate(prompt, max_new_tokens=30, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert "".join(lm.stream("Le chat", 30, temperature=0)) == lm.tokenizer.decode(drawn[0, prompt.shape[1] :])


@pytest.mark.parametrize("name", ["gpt2", "gpt2 untied", "llama with biases", "llama of grouped heads", "bfloat16"])
def test_an_imported_model_is_exported_to_the_same_logits(call, folder, folders, name):
    result = call("export", "--ckpt_path", str(folders / name), "--format", "hf", "--out", "out")
    assert result.status == 0, result.err
    first, second = (
        transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval()
        for f in (folders / name, folder / "out")
    )
    ids = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (first(ids).logits - second(ids).logits).abs().max() < 1e-4
    for key in ("bos_token_id", "eos_token_id", "tie_word_embeddings"):
        assert getattr(second.config, key) == getattr(first.config, key)
    theirs, ours = (transformers.AutoTokenizer.from_pretrained(f) for f in (folders / name, folder / "out"))
    for text in (TEXT, "<|end|> été<|begin|>"):
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.decode(ours(text).input_ids) == theirs.decode(theirs(text).input_ids)
    assert (ours.bos_token, ours.eos_token) == ("<|begin|>", "<|end|>")
    again = minigpt.load(folder / "out")
    assert again.tokenizer.to_dict() == minigpt.load(folders / name).tokenizer.to_dict()


@pytest.mark.parametrize("name", ["llama of grouped heads", "llama of another base"])
def test_a_gguf_of_an_imported_model_has_its_tokenizer(folder, folders, name):
    gguf = pytest.importorskip("gguf")
    lm = minigpt.load(folders / name)
    about, weights = in_gguf(folder, lm)
    assert ("output.weight" in weights) is (name == "llama of another base")
    weights.setdefault("output.weight", weights["token_embd.weight"])
    ids = lm.tokenizer.encode(TEXT)[:40]
    with torch.no_grad():
        ours = lm.model(torch.tensor([ids]))[0]
    assert abs(as_llama_cpp_computes(about, weights, ids) - ours.numpy()).max() < 1e-4 * ours.abs().max()
    types, tokens = about["tokenizer.ggml.token_type"], about["tokenizer.ggml.tokens"]
    assert tokens[:2] == ["<|begin|>", "<|end|>"]
    assert types[:3] == [gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.NORMAL]
    used = sum(map(bool, lm.tokenizer.tokens))
    assert (set(types[used:]), len(tokens)) == ({gguf.TokenType.UNUSED}, 300)
    assert [about[f"tokenizer.ggml.{key}"] for key in ("pre", "bos_token_id", "eos_token_id", "add_bos_token")] == [
        "gpt-2", 0, 1, True,
    ]  # fmt: skip


@pytest.mark.slow
def test_llama_cpp_draws_the_same_ids(folder, folders):
    xllamacpp = pytest.importorskip("xllamacpp")
    lm = minigpt.load(folders / "llama of grouped heads")
    in_gguf(folder, lm)
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "model.gguf")
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 256, 1, -1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    request = {"prompt": "Le chat", "max_tokens": 30, "temperature": 0, "cache_prompt": False, "return_tokens": True}
    theirs = server.handle_completions(request)["choices"][0]["text"]
    ours = "".join(lm.stream("Le chat", 30, temperature=0, stop="<|end|>"))
    assert len(ours) > 5
    assert theirs.replace("\ufffd", "") == ours.replace("\ufffd", "")


def test_what_llama_cpp_does_not_cut_is_refused(folders):
    pytest.importorskip("gguf")
    lm = minigpt.load(folders / "llama")
    content = json.loads(lm.tokenizer.definition)
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": False}, content["pre_tokenizer"],
    ]}  # fmt: skip
    lm.tokenizer = PretrainedTokenizer(json.dumps(content), 300)
    with pytest.raises(MiniGPTError, match=r"cut texts as GPT-2, SmolLM or Llama 3"):
        files_of("gguf", {}, lm)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama of grouped heads"])
def test_onnxruntime_gives_the_logits_of_an_imported_model(folders, name):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    lm = minigpt.load(folders / name)
    files = files_of("onnx", {}, lm)
    ids = torch.tensor([lm.tokenizer.encode(TEXT)[:40]])
    with torch.no_grad():
        ours = lm.model(ids)
    assert (run(session(files["model.onnx"]), ids) - ours).abs().max() < 1e-4 * ours.abs().max()
    assert files["tokenizer.json"].decode() == lm.tokenizer.definition


def test_names_without_their_prefix_and_old_buffers_are_read(folder, folders):
    shutil.copytree(folders / "gpt2", folder / "old")
    weights = load_file(folder / "old" / "model.safetensors")
    old = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    old |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(old, folder / "old" / "model.safetensors")
    new, again = (read_pretrained(f) for f in (folders / "gpt2", folder / "old"))
    assert all(torch.equal(weight, again.weights[name]) for name, weight in new.weights.items())


@pytest.mark.parametrize("scaling", [None, {"type": "default"}])
def test_a_config_of_transformers_4_is_read(folder, folders, scaling):
    shutil.copytree(folders / "llama of another base", folder / "four")
    change(folder / "four", rope_parameters=None, rope_theta=500.0, rope_scaling=scaling)
    args = [read_pretrained(f).init_args for f in (folders / "llama of another base", folder / "four")]
    assert args[0] == args[1]
    assert args[0]["rope_base"] == 500.0


def test_the_weights_are_in_memory_once(folders):
    read = read_pretrained(folders / "llama of grouped heads")
    model = build_around(read.init_args, read.weights)
    for name, weight in read.weights.items():
        assert model.state_dict()[name].data_ptr() == weight.data_ptr()
    assert model.lm_head.weight is model.embed.weight
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in model.parameters())


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


LLAMA_REFUSED = [
    ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
    ({"model_type": None, "architectures": None}, "architecture None"),
    ({"model_type": ["llama"]}, "architecture"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"architectures": "x"}, "architecture"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2}}, "yarn"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_scaling": "linear"}, "rope_scaling"),
    ({"rope_parameters": {"rope_type": ["x"]}}, "rope scaling"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"num_local_experts": 8}, "num_local_experts 8"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"sliding_window": 32}, "sliding_window"),
    ({"hidden_size": 10**9}, "hidden_size"),
    ({"hidden_size": 2**24}, "head_dim|not those of its config|too large"),
    ({"num_hidden_layers": 10**7}, "layers cannot have"),
    ({"num_hidden_layers": 3}, "layers.2.* is missing"),
    ({"num_hidden_layers": 1}, "layers.1"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_attention_heads": "4"}, "num_attention_heads"),
    ({"num_attention_heads": True}, "num_attention_heads"),
    ({"num_attention_heads": 2**24, "head_dim": 2**24, "hidden_size": 2**24}, "too large"),
    ({"num_attention_heads": 3, "head_dim": None, "num_key_value_heads": None}, "n_head"),
    ({"num_key_value_heads": 3}, "fit together"),
    ({"head_dim": 16}, "shape"),
    ({"head_dim": 7}, "fit together"),
    ({"vocab_size": 301}, "has the shape .* instead of .301, 32."),
    ({"intermediate_size": 47}, "shape"),
    ({"max_position_embeddings": 10**9}, "max_position_embeddings"),
    ({"max_position_embeddings": None}, "max_position_embeddings"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rms_norm_eps": "x"}, "rms_norm_eps"),
    ({"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta"),
    ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta"),
    ({"attention_bias": 1}, "attention_bias"),
    ({"attention_bias": True}, "bias is missing"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
]  # fmt: skip
GPT2_REFUSED = [
    ({"activation_function": "gelu"}, "activation_function"),
    ({"activation_function": "relu"}, "activation_function"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"scale_attn_weights": False}, "scale_attn_weights"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"n_positions": 63}, "wpe.weight has the shape"),
    ({"n_inner": 47}, "shape"),
    ({"n_head": 5}, "n_head"),
    ({"n_layer": -1}, "n_layer"),
    ({"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
]


@pytest.mark.parametrize(
    ("name", "values", "named"),
    [("llama", *each) for each in LLAMA_REFUSED] + [("gpt2", *each) for each in GPT2_REFUSED],
)
def test_what_gpt_cannot_represent_is_refused_by_name(folder, folders, name, values, named):
    shutil.copytree(folders / name, folder / "it")
    change(folder / "it", **values)
    with pytest.raises(MiniGPTError, match=named) as refused:
        loading.read_checkpoint(runs.find_checkpoint(folder / "it"))
    assert str(refused.value).count("\n") == 0
    assert len(str(refused.value)) < 500


BROKEN = {
    "config.json": [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10**6, b'{"model_type": "llama"}', b"null"],
    "model.safetensors": [
        b"", b"x" * 100, (10**9).to_bytes(8, "little") + b"{}", (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (71).to_bytes(8, "little") + b'{"a": {"dtype": "F32", "shape": [9999999], "data_offsets": [0, 4]}}    xxxx',
    ],
    "tokenizer.json": [
        b"", b"{}", b"[]", b"null", b"\xff", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"normalizer": null, "pre_tokenizer": null, "added_tokens": [], "model": {"type": "BPE", "vocab": 3}}',
        b"[" * 10**6,
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, contents in BROKEN.items() for c in contents])
def test_a_broken_file_is_refused_in_a_sentence(folder, folders, name, content):
    shutil.copytree(folders / "llama", folder / "it")
    (folder / "it" / name).write_bytes(content)
    with pytest.raises(MiniGPTError, match=r"ownload|architecture|not those of its config|vocab_size"):
        loading.read_checkpoint(runs.find_checkpoint(folder / "it"))


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def pickle_alone(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


def other_dtype(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.to(torch.int8) for name, weight in weights.items()}, folder / "model.safetensors")


def a_tensor_more(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.router.weight": torch.zeros(3)}, folder / "model.safetensors")


def index_leading_out(folder):
    (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
    index = {"weight_map": {"model.norm.weight": "../out.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "model.bin")
    index = {"weight_map": {"model.norm.weight": "model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def index_of_missing_files(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weights_are_a_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("config.json"), "no config.json"),
        (without("model.safetensors"), "no model.safetensors, the weights"),
        (without("tokenizer.json"), "no tokenizer.json"),
        (pickle_alone, "pytorch_model.bin alone(.|\n)*save_pretrained"),
        (other_dtype, "stored as I8"),
        (a_tensor_more, "router"),
        (index_leading_out, "does not name the files"),
        (index_of_a_pickle, "does not name the files"),
        (index_of_missing_files, "no model-00001-of-00002.safetensors"),
        (weights_are_a_folder, "damaged, or cannot be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, folders, spoil, said):
    shutil.copytree(folders / "llama", folder / "it")
    spoil(folder / "it")
    with pytest.raises(MiniGPTError, match=said):
        loading.read_checkpoint(runs.find_checkpoint(folder / "it"))


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(folders, monkeypatch):
    monkeypatch.setattr(pretrained.processes, "available_memory", lambda: 50_000)
    monkeypatch.setattr(pretrained.Source, "read", lambda self, stored: pytest.fail("it was read"))
    with pytest.raises(MiniGPTError, match=r"takes 0\.0 GB of memory"):
        read_pretrained(folders / "llama")


def test_the_memory_that_is_available_is_known_on_linux():
    from minigpt import processes

    available = processes.available_memory()
    assert available is None or 1 << 20 < available < 1 << 50


def test_the_limit_of_a_control_group_counts(folder, monkeypatch):
    from minigpt import processes

    names = ("memory.max", "memory.current", "inactive_file")
    for name, content in zip(names[:2], ("1000000", "600000"), strict=True):
        (folder / name).write_text(f"{content}\n")
    (folder / "memory.stat").write_text("anon 1\ninactive_file 50000\nactive_file 7\n")
    monkeypatch.setattr(processes, "_control_groups", lambda: [(folder, names), (folder / "absent", names)])
    assert processes.available_memory() == 450_000
    (folder / "memory.max").write_text("max\n")
    assert processes.available_memory() != 450_000


def test_commands_take_a_folder(call, folders):
    flags = ["--ckpt_path", str(folders / "llama")]
    done = call("generate", *flags, "--prompt", "Le chat", "--max_new_tokens", "5", "--temperature", "0")
    assert done.status == 0, done.err
    assert done.out.startswith("Le chat")
    refused = call("evaluate", *flags)
    assert refused.status == 2
    assert "--data.path" in refused.err
    scored = call("evaluate", *flags, "--data.path", "exemple")
    assert scored.status == 0, scored.err
    assert json.loads(scored.out)["bits_per_char"] > 0
    resumed = call("train", "--config", "tiny", *flags)
    assert resumed.status == 2
    assert "--init_from" in resumed.err


def test_a_name_of_the_hub_is_downloaded(folders, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        return str(folders / "llama")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert runs.find_source("some-one/a.model") == folders / "llama" / "config.json"
    assert asked == ["some-one/a.model"]
    assert runs.find_source(str(folders / "gpt2")) == folders / "gpt2" / "config.json"
    assert asked == ["some-one/a.model"]


def test_a_hub_that_does_not_answer_is_a_sentence(monkeypatch):
    from huggingface_hub import errors

    def fail_with(error):
        def download(name, allow_patterns):
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    fail_with(errors.LocalEntryNotFoundError("no network"))
    with pytest.raises(MiniGPTError, match=r"'some/one'.*cannot be reached"):
        runs.find_source("some/one")
    fail_with(ConnectionError("no network"))
    with pytest.raises(MiniGPTError, match="cannot be reached"):
        runs.find_source("gpt2")
    fail_with(errors.HFValidationError("bad name"))
    with pytest.raises(MiniGPTError, match="nor a model of the Hugging Face hub"):
        runs.find_source("--x")


def test_each_option_names_the_other(folder):
    with pytest.raises(MiniGPTError, match=r"--ckpt_path.*--init_from some/model"):
        runs.find_checkpoint("some/model")
    with pytest.raises(MiniGPTError, match=r"Pass --init_from a run folder"):
        runs.find_source("no/such/folder")
