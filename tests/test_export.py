import pytest
import torch
from conftest import QUICK, ROOT

import minigpt
from minigpt import MiniGPTError

NANO = ["--model.n_layer", "2", "--model.n_head", "2", "--model.n_embd", "32", "--trainer.max_steps", "30"]


def trained(call, preset: str, *flags: str):
    """A small trained transformer, in the current folder."""
    config = str(ROOT / "configs" / "gpt_nano.yaml")
    flags = ("--model.preset", preset, "--model.bias", "null", "--model.warmup_steps", "5", *flags)
    result = call("train", "--config", config, *QUICK, *NANO, *flags)
    assert result.status == 0, result.err
    return minigpt.load("last")


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


@pytest.mark.parametrize(("preset", "tokenizer"), [("gpt2", "char"), ("modern", "word"), ("llama", "bpe")])
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


def test_what_hugging_face_has_no_class_for_is_said(call, folder, trained_run):
    result = call("export", "--ckpt_path", str(trained_run), "--format", "hf", "--out", "out")
    assert result.status == 2
    assert "no class for this TinyGPT" in result.err
    trained(call, "llama", "--data.tokenizer", "word")
    result = call("export", "--format", "hf", "--out", "out")
    assert result.status == 2
    assert "no tokenizer of words" in result.err
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
    with pytest.raises(MiniGPTError, match=r"made by minigpt 99\.0"):
        minigpt.load("new")
