"""What a mistake gets: exit status 2, one or two plain sentences that name the thing, and nothing changed on disk."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from backports import zstd
from conftest import QUICK, ROOT, TINY
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning_utilities.core.imports import RequirementCache
from test_training import curves

from minigpt import processes
from minigpt.errors import MiniGPTError, needs, note

TRAIN = ["train", "--config", TINY, *QUICK, "--trainer.max_steps", "5"]
NANO = ["train", "--config", TINY.replace("tiny", "gpt_nano"), *QUICK, "--trainer.max_steps", "5"]
SWEEP = ["sweep", "--config", TINY, *QUICK, "--trainer.max_steps", "5"]
ES = [*TRAIN, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
BNB = "lightning.pytorch.plugins.precision.bitsandbytes"
RUN = "lightning_logs/tiny/version_0"
DUMP = re.compile(r"Traceback|Namespace|NestedArg|Union subtypes|<class|--allow_code lightning\.$")


@pytest.fixture
def place(folder, trained_run):
    """A folder with a finished run and with files that are wrong in every way."""
    shutil.copytree(trained_run, folder / RUN)
    checkpoint = (folder / RUN / "checkpoints" / "last.ckpt").read_bytes()
    (folder / "truncated.ckpt").write_bytes(checkpoint[: len(checkpoint) // 2])
    torch.save({"minigpt": {"version": "99.1.0"}}, folder / "newer.ckpt")
    (folder / "empty.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    (folder / "no_run").mkdir()
    (folder / "no_run" / "a.csv").write_text("a")
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("un matin de mai !", encoding="utf-8")
    (folder / "poem.txt").write_text("un matin, il fit beau.", encoding="utf-8")
    (folder / "damaged.txt").write_bytes("été ".encode() * 99 + b"\xe9t\xe9")
    (folder / "cut.txt.gz").write_bytes(gzip.compress(b"un matin, il fit beau. " * 99)[:-12])
    (folder / "cut.txt.zst").write_bytes(zstd.compress(b"un matin, il fit beau. " * 99)[:-2])
    (folder / "other.jsonl").write_text('{"text": "un matin"}\n{"texte": "un soir"}\n')
    (folder / "settings.json").write_text('{"n_embd": 64}')
    (folder / "report.pdf").write_bytes(b"%PDF-1.7\n1 0 obj")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.writestr("a.png", b"")
    (folder / "binary.txt").write_bytes(bytes(range(8)) * 50)
    (folder / "other.txt").write_text("un autre texte, tout autre. " * 60, encoding="utf-8")
    (folder / "broken.yaml").write_text("model: {n_embd: 64\n  x: [1\n")
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "empty.yaml").write_text("")
    (folder / "init_args.yaml").write_text("model: {network: {class_path: minigpt.TinyGPT, init_args: [64]}}")
    (folder / "print.yaml").write_text("print_config: true")
    (folder / "key.yaml").write_text("model:\n  n_emb: 64\n")
    (folder / "group.yaml").write_text("modle:\n  learning_rate: 64\n")
    (folder / "group_value.yaml").write_text("model: [1, 2]\n")
    (folder / "type.yaml").write_text(
        "model:\n  network:\n    class_path: minigpt.TinyGPT\n    init_args: {n_embd: wide}\n"
    )
    (folder / "linked.yaml").write_text("model: {network: {class_path: minigpt.GPT, init_args: {block_size: 8}}}\n")
    (folder / "old.yaml").write_text("model: {name: gpt, n_embd: 32, learning_rate: 1.0e-3}\n")
    (folder / "space.yaml").write_text("model.network.n_embd: [8, 16]\n")
    (folder / "callback.yaml").write_text(
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: a, patience: abc}}]}"
    )
    (folder / "latin1.yaml").write_bytes("model: # été\n".encode("latin-1"))
    return folder


MISTAKES = [
    # the corpus
    ([*TRAIN, "--data.path", "nowhere.txt"], ["nowhere.txt", "does not exist", "--data.path"]),
    ([*TRAIN, "--data.path", "exmple"], ["exmple", "Did you mean 'exemple'"]),
    ([*TRAIN, "--data.path", "no_run"], ["no_run", "holds no .txt or .md file"]),
    ([*TRAIN, "--data.path", "no_run/*.txt"], ["no_run/*.txt", "No file matches"]),
    ([*TRAIN, "--data.path", "empty.txt"], ["empty.txt", "is empty"]),
    ([*TRAIN, "--data.path", "short.txt"], ["short.txt", "too short", "17 characters", "18 tokens"]),
    ([*TRAIN, "--data.path", "poem.txt", "--data.batch_size", "64"], ["data.batch_size is 64", "13 tokens"]),
    ([*TRAIN, "--data.path", "damaged.txt"], ["damaged.txt", "not whole UTF-8", "byte 594 is 0xe9", "--data.encoding"]),
    ([*TRAIN, "--data.path", "settings.json"], ["Record 1 of 'settings.json' is not a JSON object with a text"]),
    ([*TRAIN, "--data.path", "report.pdf"], ["'report.pdf' is a PDF", "Save it as a .txt file"]),
    ([*TRAIN, "--data.path", "binary.txt"], ["binary.txt", "not text", "byte 0 is NUL, as in a binary file"]),
    ([*TRAIN, "--data.path", "cut.txt.gz"], ["cut.txt", "cannot be read"]),
    ([*TRAIN, "--data.path", "cut.txt.zst"], ["cut.txt", "cannot be read"]),
    ([*TRAIN, "--data.path", "other.jsonl"], ["Line 2 of 'other.jsonl'", '"text"']),
    ([*TRAIN, "--data.path", "images.zip"], ["images.zip", "holds no .txt"]),
    ([*TRAIN, "--data.encoding", "lattin-1"], ["data.encoding is 'lattin-1'", "Did you mean 'latin-1'"]),
    ([*TRAIN, "--data.encoding", "utf-16"], ["is not utf-16", "--data.encoding, such as utf-16-le"]),
    ([*TRAIN, "--data.tokenizer", "wrod"], ["data.tokenizer is 'wrod'", "Did you mean 'word'"]),
    ([*TRAIN, "--data.tokenizer", "bpe", "--data.max_vocab_size", "99"], ["data.max_vocab_size is 99", "256 or more"]),
    ([*TRAIN, "--data.max_vocab_size", "99"], ["data.max_vocab_size means nothing to characters"]),
    ([*TRAIN, "--data.tokenizer", "word", "--data.byte_fallback", "true"], ["data.byte_fallback is for"]),
    ([*TRAIN, "--data.in_memory_mb", "-1"], ["data.in_memory_mb is -1"]),
    ([*TRAIN, "--data.in_memory_mb", "0", "--data.cache_dir", "empty.txt"], ["empty.txt", "--data.cache_dir"]),
    # flags, keys and values
    ([*TRAIN, "--model.n_emb", "3"], ["--model.n_emb'", "Did you mean '--model.network.n_embd'"]),
    ([*TRAIN, "--n_embd=3"], ["--n_embd", "Did you mean '--model.network.n_embd'"]),
    ([*TRAIN, "--zzz"], ["Unknown option '--zzz'"]),
    ([*TRAIN, "tiny"], ["Unexpected argument 'tiny'", "--trainer.max_steps"]),
    ([*TRAIN, "--model.network.n_embd"], ["--model.network.n_embd needs a value"]),
    ([*TRAIN, "--model.network.n_embd", "wide"], ["n_embd is 'wide'", "a whole number"]),
    ([*TRAIN, "--model.network.n_embd", "0"], ["n_embd is 0"]),
    ([*TRAIN, "--model.learning_rate", "fast"], ["model.learning_rate is 'fast'", "a number"]),
    ([*TRAIN, "--model.learning_rate", "-1"], ["model.learning_rate is -1"]),
    ([*TRAIN, "--model.name", "gpt"], ["'--model.name'", "--model.network GPT"]),
    ([*TRAIN, "--model.network", "TinyGTP"], ["model.network is 'TinyGTP'", "Did you mean 'TinyGPT'"]),
    (["train", "--config", "old.yaml"], ["old.yaml", "minigpt 0.1", "model.network", "modern_nano.yaml"]),
    ([*TRAIN, "--model.network.vocab_size", "5"], ["model.network.vocab_size always equals data.vocab_size"]),
    (["train", "--config", "linked.yaml"], ["linked.yaml", "model.network.block_size always equals data.block_size"]),
    ([*TRAIN, "--data.seed", "5"], ["data.seed always equals seed_everything"]),
    ([*TRAIN, "--data.lower", "perhaps"], ["data.lower is 'perhaps'", "true or false"]),
    ([*TRAIN, "--data.block_size", "0"], ["data.block_size is 0"]),
    ([*TRAIN, "--data.batch_size", "-4"], ["data.batch_size is -4"]),
    ([*TRAIN, "--data.val_fraction", "1"], ["data.val_fraction is 1"]),
    ([*TRAIN, "--data.max_val_tokens", "0"], ["data.max_val_tokens is 0"]),
    ([*TRAIN, "--trainer.max_steps", "1.5"], ["trainer.max_steps is '1.5'", "a whole number"]),
    ([*TRAIN, "--trainer.max_steps", "0"], ["trainer.max_steps"]),
    ([*TRAIN, "--trainer.accelerator", "abacus"], ["abacus"]),
    (
        [*TRAIN, "--trainer.devices", "2", "--data.batch_size", "5"],
        ["data.batch_size is 5", "2 processes", "Make it 6"],
    ),
    ([*TRAIN, "--trainer.devices", "2", "--data.val_fraction", "0.0005"], ["76 tokens", "2 processes"]),
    ([*TRAIN, "--trainer.precision", "7"], ["trainer.precision is '7'", "bf16-mixed"]),
    ([*TRAIN, "--trainer.accumulate_grad_batches", "0"], ["trainer.accumulate_grad_batches"]),
    ([*TRAIN, "--validation.every_n_steps", "-1"], ["validation.every_n_steps is -1"]),
    ([*TRAIN, "--checkpoint.every_n_steps", "0"], ["checkpoint.every_n_steps is 0"]),
    ([*TRAIN, "--samples.every_n_steps", "-1"], ["samples.every_n_steps is -1"]),
    ([*TRAIN, "--figures.every_n_steps", "-1"], ["figures.every_n_steps is -1"]),
    ([*TRAIN, "--samples.top_p", "2"], ["top_p is 2"]),
    ([*TRAIN, "--progress.every_n_steps", "0"], ["progress.every_n_steps is 0"]),
    ([*TRAIN, "--seed_everything", "-5"], ["seed_everything is -5"]),
    ([*TRAIN, "--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"], ["--trainer.strategy ddp"]),
    ([*TRAIN, "--trainer.devices", "many"], ["Trainer refuses"]),
    ([*TRAIN, "--trainer.log_every_n_steps", "-1"], ["trainer.log_every_n_steps is -1"]),
    ([*TRAIN, "--trainer.default_root_dir", "other.txt"], ["cannot be written to", "--trainer.default"]),
    ([*TRAIN, "--data.batch_size", "999999999"], ["data.batch_size is 999999999"]),
    ([*TRAIN, "--data.overfit_batches", "0"], ["data.overfit_batches is 0"]),
    ([*TRAIN, "--model.network.n_embd", "99999999999999"], ["does not fit into memory"]),
    ([*TRAIN, "--samples.max_new_tokens", "-1"], ["samples.max_new_tokens is -1"]),
    ([*TRAIN, "--model", "gpt"], ["model is a group of settings"]),
    ([*TRAIN, "--model.network.n_layer", "2"], ["The network has no setting 'n_layer'", "--model.network GPT"]),
    # values that the shell or the parser takes for something else
    (
        [*TRAIN, "--samples.prompts", "-bonjour"],
        ["--samples.prompts needs a value", "--samples.prompts=-bonjour"],
    ),
    ([*TRAIN, "--data.path", "-x"], ["Unknown option '-x'", "write --data.path=-x"]),
    ([*TRAIN, "--data.path", "-x.txt"], ["--data.path needs a value", "write --data.path=-x.txt"]),
    (["generate", "--prompt", "-bonjour"], ["--prompt needs a value", "write --prompt=-bonjour"]),
    (["generate", "--prompt", "--seed", "3"], ["The option --prompt needs a value.\n"]),
    (["evaluate", "--data.path", "-x.txt"], ["--data.path needs a value", "write --data.path=-x.txt"]),
    (["export", "--format", "hf", "--out", "-out"], ["--out needs a value", "write --out=-out"]),
    ([*SWEEP, "--space", "space.yaml", "--study", "-x"], ["--study needs a value", "write --study=-x"]),
    (
        [*TRAIN, "--data.path", "empty.txt", "other.txt"],
        ["after --data.path empty.txt", "--data.path '*.txt'"],
    ),
    ([*TRAIN, "--data.path=no_run/a.csv", "no_run/a.csv"], ["after --data.path=no_run/a.csv", "'no_run/*.csv'"]),
    (["evaluate", "--data.path", "empty.txt", "other.txt"], ["'other.txt'", "Quote a pattern: --data.path '*.txt'"]),
    (["generate", "--prompt", "un", "matin", "de", "mai"], ["'matin' after --prompt un", "--prompt 'un matin'"]),
    ([*SWEEP, "--space", "space.yaml", "key.yaml"], ["'key.yaml' after --space space.yaml", "one path"]),
    (["train", *QUICK, "--config", TINY, "key.yaml"], ["'key.yaml' after --config", "--config takes one path"]),
    # parts of Lightning
    ([*ES, "--trainer.callbacks.monitr=val/loss"], ["has no setting 'monitr'", "Did you mean 'monitor'"]),
    ([*TRAIN, "--trainer.callbacks+=EarlyStopping"], ["lacks the setting 'monitor'", "--trainer.callbacks.monitor"]),
    ([*ES, "--trainer.callbacks.patience", "abc"], ["trainer.callbacks.patience is 'abc'", "a whole number"]),
    ([*ES, "--trainer.callbacks.mode=maxi"], ["min, max, got maxi"]),
    ([*TRAIN, "--trainer.callbacks+=EarlyStoping"], ["'EarlyStoping'", "Did you mean 'EarlyStopping'"]),
    ([*TRAIN, "--trainer.callbacks.monitor=a"], ["callbacks.monitor does not belong to a class", "+ EarlyStopping"]),
    ([*TRAIN, "--trainer.callbacks={class_path:Timer}"], ["trainer.callbacks", "does not fit"]),
    ([*TRAIN, "--config", "callback.yaml"], ["trainer.callbacks.patience is 'abc'", "a whole number"]),
    ([*TRAIN, "--trainer.callbacks+=Timer", "--trainer.callbacks.duration=x"], ["not a valid duration", "DD:HH:MM:SS"]),
    ([*TRAIN, "--trainer.strategy=DDPStrategy", "--trainer.strategy.foo=3"], ["trainer.strategy has no setting 'foo'"]),
    ([*TRAIN, "--trainer.devices", "foo"], ["`devices`", "should be an int > 0"]),
    ([*TRAIN, "--trainer.profiler", "xla"], ["needs the package torch_xla, which is not installed"]),
    ([*TRAIN, "--trainer.accelerator", "tpu"], ["needs the package torch_xla"]),
    ([*TRAIN, "--trainer.precision", "transformer-engine"], ["needs the package transformer_engine"]),
    ([*TRAIN, f"--trainer.plugins={BNB}.BitsandbytesPrecision", "--trainer.plugins.mode=nf4"], ["bitsandbytes, which"]),
    # the transformer
    ([*NANO, "--model.network.n_embd", "130"], ["n_embd is 130", "n_head 4"]),
    ([*NANO, "--model.network.n_kv_head", "3"], ["not divisible by n_kv_head 3"]),
    ([*NANO, "--model.network.position", "rope", "--model.network.n_embd", "12"], ["even head size"]),
    ([*NANO, "--model.network.preset", "lama"], ["preset is 'lama'", "Did you mean 'llama'"]),
    ([*NANO, "--model.network.norm", "batch"], ["norm is 'batch'", "layernorm or rmsnorm"]),
    ([*NANO, "--model.network.mlp", "relu"], ["mlp is 'relu'", "relu2"]),
    ([*NANO, "--model.optimizer", "sgd"], ["model.optimizer is 'sgd'", "muon"]),
    ([*NANO, "--model.lr_schedule", "linear"], ["model.lr_schedule is 'linear'"]),
    ([*NANO, "--model.warmup_steps", "-1"], ["model.warmup_steps is -1"]),
    # config files
    (["train"], ["--config", "configs/tiny.yaml"]),
    (["train", "--config"], ["--config needs a value"]),
    (["train", "--config", "nothing.yaml"], ["nothing.yaml", "cannot be read", "it does not exist", "tiny"]),
    (["train", "--config", "no_run"], ["no recipe 'no_run' in 'configs' or "]),
    (["train", "--config", "no_run/"], ["'no_run/' cannot be read"]),
    (["train", "--config", ""], ["'' cannot be read"]),
    (["train", "--config", "brokn.yaml"], ["brokn.yaml", "Did you mean 'broken.yaml'"]),
    (["train", "--config", "broken.yaml"], ["broken.yaml", "not valid YAML at line 2"]),
    (["train", "--config", "list.yaml"], ["list.yaml", "has no settings"]),
    (["train", "--config", "empty.yaml"], ["empty.yaml", "has no settings"]),
    (["train", "--config", "group_value.yaml"], ["group_value.yaml", "no settings under 'model'"]),
    (["train", "--config", "latin1.yaml"], ["latin1.yaml", "cannot be read: it is not UTF-8"]),
    (["train", "--config", "key.yaml"], ["key.yaml", "'model.n_emb'", "Did you mean 'model.network.n_embd'"]),
    (
        ["train", "--config", "group.yaml"],
        ["group.yaml", "'modle.learning_rate'", "Did you mean 'model.learning_rate'"],
    ),
    (["train", "--config", "type.yaml"], ["n_embd is 'wide'", "a whole number"]),
    # what to continue
    ([*TRAIN, "--ckpt_path", "lightning_logs/tiny/version_9"], ["version_9", "no run or checkpoint"]),
    ([*TRAIN, "--ckpt_path", ""], ["--ckpt_path is empty"]),
    ([*TRAIN, "--ckpt_path", "no_run"], ["no_run", "holds no checkpoint"]),
    ([*TRAIN, "--ckpt_path", "truncated.ckpt"], ["truncated.ckpt", "damaged"]),
    ([*TRAIN, "--ckpt_path", "empty.ckpt"], ["empty.ckpt", "damaged"]),
    ([*TRAIN, "--ckpt_path", "foreign.ckpt"], ["foreign.ckpt", "not a checkpoint of minigpt"]),
    ([*TRAIN, "--ckpt_path", "other.txt"], ["other.txt", "damaged, or not a checkpoint"]),
    ([*TRAIN, "--ckpt_path", RUN, "--data.path", "other.txt"], ["SHA-256", "a resume cannot change"]),
    ([*TRAIN, "--ckpt_path", RUN, "--data.tokenizer", "bpe"], ["data.tokenizer is bpe here and char in"]),
    ([*TRAIN, "--ckpt_path", RUN, "--data.byte_fallback", "true"], ["data.byte_fallback is True here and False in"]),
    ([*TRAIN, "--ckpt_path", RUN, "--data.lower", "false"], ["data.lower is False here and True in"]),
    ([*TRAIN, "--ckpt_path", RUN, "--data.block_size", "32"], ["data.block_size is 32 here and 64 in"]),
    ([*TRAIN, "--ckpt_path", RUN, "--data.val_fraction", "0.2"], ["data.val_fraction is 0.2 here and 0.1 in"]),
    ([*TRAIN, "--ckpt_path", RUN, "--model.network.n_embd", "32"], ["model.network.n_embd is 32 here and 64 in"]),
    ([*TRAIN, "--ckpt_path", RUN, "--trainer.accumulate_grad_batches", "2"], ["accumulate_grad_batches is 2 here"]),
    ([*TRAIN, "--ckpt_path", RUN, "--model.decay_vectors", "false"], ["model.decay_vectors is False here and True"]),
    # generating
    (["generate", "--ckpt_path", "nowhere"], ["nowhere", "no run or checkpoint"]),
    (["generate", "--ckpt_path", "truncated.ckpt"], ["truncated.ckpt", "damaged"]),
    (["generate", "--ckpt_path", "no_run"], ["no_run", "holds no checkpoint"]),
    (["generate", "--prompt", "a@b£"], ["'@', '£'", "--unknown skip"]),
    (["evaluate", "--data.encoding", "cp1252"], ["--data.encoding is for a text given with --data.path"]),
    (["generate", "--temperature", "-1"], ["temperature is -1"]),
    (["generate", "--temperature", "nan"], ["temperature is nan"]),
    (["generate", "--temperature", "hot"], ["--temperature", "hot"]),
    (["generate", "--top_k", "0"], ["top_k is 0"]),
    (["generate", "--top_k", "many"], ["--top_k", "many"]),
    (["generate", "--top_p", "0"], ["top_p is 0"]),
    (["generate", "--top_p", "1.5"], ["top_p is 1.5"]),
    (["generate", "--max_new_tokens", "-1"], ["max_new_tokens is -1"]),
    (["generate", "--min_p", "2"], ["min_p is 2"]),
    (["generate", "--repetition_penalty", "0"], ["repetition_penalty is 0"]),
    (["generate", "--repetition_penalty", "much"], ["--repetition_penalty", "much"]),
    (["generate", "--num_samples", "0"], ["num_samples is 0"]),
    (["generate", "--stop", ""], ["stop string is empty"]),
    (["generate", "--precision", "16"], ["--precision", "bf16"]),
    (["generate", "--ckpt_path", "newer.ckpt"], ["newer.ckpt", "written by minigpt 99.1.0", "Upgrade minigpt"]),
    (["generate", "--unknown", "drop"], ["--unknown", "skip"]),
    (["generate", "--promt", "a"], ["--promt", "Did you mean '--prompt'"]),
    (["generate", "--device", "abacus"], ["abacus", "--device auto"]),
    # the page
    (["app", "--auth", "anne"], ["--auth takes a name and a password", "anne:secret"]),
    (["app", "--port", "70000"], ["port 70000", "--port"]),
    (["app", "--port", "many"], ["--port", "many"]),
    (["app", "--host", "203.0.113.9"], ["203.0.113.9"]),
    (["app", "--ckpt_path", "nowhere"], ["no run or checkpoint at 'nowhere'"]),
    # exporting
    (["export", "--format", "hf", "--out", "new"], ["no class for this TinyGPT", "--format safetensors"]),
    (["export", "--format", "gguf", "--out", "new"], ["does not run a TinyGPT", "preset llama", "--format onnx"]),
    (["export", "--format", "gif", "--out", "new"], ["--format", "gif"]),
    (["export", "--format", "onnx", "--out", "no_run"], ["no_run", "new folder"]),
    (["export", "--out", "new"], ["--format"]),
    (["export", "--format", "safetensors", "--out", "no_run"], ["no_run", "new folder"]),
    # sweeping
    (["sweep", "--config", TINY], ["--space"]),
    ([*SWEEP, "--space", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
    ([*SWEEP, "--space", "broken.yaml"], ["broken.yaml", "not valid YAML at line 2"]),
    ([*SWEEP, "--space", "space.yaml", "--trails", "3"], ["--trails", "Did you mean '--trials'"]),
    ([*SWEEP, "--space", "space.yaml", "--trials", "0"], ["trials is 0"]),
    (
        [*SWEEP, "--space", "space.yaml", "--model.n_emb", "3"],
        ["--model.n_emb'", "Did you mean '--model.network.n_embd'"],
    ),
    ([*SWEEP, "--space", "space.yaml", "--ckpt_path", "last"], ["omit --ckpt_path"]),
    ([*SWEEP, "--space", "space.yaml", "--trainer.devices", "2"], ["one process", "--trainer.devices"]),
    ([*SWEEP, "--space", "space.yaml", "--study", "a/b"], ["a/b", "letters, digits"]),
    ([*SWEEP, "--space", "space.yaml", "--storage", "other.txt/a.db"], ["cannot be written to", "--storage"]),
    ([*SWEEP, "--space", "space.yaml", "--data.path", "-"], ["'-' is not a regular file"]),
    ([*TRAIN, "--trainer.val_check_interval", "0"], ["trainer.val_check_interval is 0", "validation.every_n_steps"]),
    ([*TRAIN, "--trainer.check_val_every_n_epoch", "0"], ["trainer.check_val_every_n_epoch is 0"]),
    (
        [
            *TRAIN,
            "--trainer.callbacks+=GradientAccumulationScheduler",
            "--trainer.callbacks.scheduling={0: 2}",
            "--trainer.accumulate_grad_batches=2",
        ],
        ["trainer.accumulate_grad_batches and GradientAccumulationScheduler", "Omit one of them"],
    ),
    (["train", "--config", "init_args.yaml"], ["init_args.yaml' has no settings under 'model.network.init_args'"]),
    (["train", "--config", "print.yaml"], ["print.yaml' sets print_config", "only the command line"]),
    # evaluating
    (["evaluate", "--figures", "poem.txt"], ["poem.txt' cannot be written to", "--figures"]),
    (["evaluate", "--ckpt_path", "nowhere"], ["nowhere", "no run or checkpoint"]),
    (["evaluate", "--data.path", "nowhere.txt"], ["nowhere.txt", "does not exist"]),
    (["evaluate", "--memorisation", "0"], ["memorisation is 0"]),
    (["evaluate", "--data.pth", "other.txt"], ["--data.pth", "Did you mean '--data.path'"]),
]


@pytest.mark.parametrize(("given", "words"), MISTAKES, ids=[" ".join(given).split("/")[-1] for given, _ in MISTAKES])
def test_a_mistake_is_answered_and_nothing_is_lost(place, call, given, words):
    before = {path: (path.is_dir() or path.read_bytes()) for path in place.rglob("*")}
    result = call(*given)
    assert result.status == 2
    assert result.out == ""
    for word in words:
        assert word in result.err
    said = [line for line in result.err.strip().splitlines() if not line.startswith("Loading ")]
    assert len(said) == 1, result.err
    assert len(said[0]) < 500
    assert not DUMP.search(result.err)
    assert {path: (path.is_dir() or path.read_bytes()) for path in place.rglob("*")} == before


def test_without_a_run_the_next_command_is_named_and_runs(call, folder):
    for command in ("generate", "evaluate"):
        result = call(command)
        assert result.status == 2
        words = shlex.split(result.err.partition("Start one: ")[2])
        assert Path(words[1]).name == "train.py"
        assert Path(words[1]).is_file()
    assert call("train", *words[2:], *QUICK, "--trainer.max_steps", "1").status == 0
    assert call("generate").status == 0
    example = call("train").err.split()[-1]
    assert Path(example.removesuffix(".")).is_file()


def test_a_callback_that_needs_a_missing_package_or_metric_says_so(train, monkeypatch):
    missing = RequirementCache("a_package_that_nobody_has")
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", missing)
    result = train("--trainer.max_steps", "2", "--trainer.callbacks+=DeviceStatsMonitor")
    assert result.status == 2
    assert "needs the package a_package_that_nobody_has, which is not installed" in result.err.splitlines()[-1]
    result = train("--trainer.max_steps=2", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/los")
    assert result.status == 2
    assert "EarlyStopping monitors 'val/los'" in result.err.splitlines()[-1]
    assert "val/bits_per_char" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    "flags", [["--prompt", ""], ["--temperature", "0"], ["--top_k", "9999"], ["--top_k", "none", "--top_p", "none"],
              ["--top_p", "1"], ["--prompt", "a@", "--unknown", "skip"], ["--max_new_tokens", "0"]],
)  # fmt: skip
def test_what_is_no_mistake_is_answered_with_text(place, call, flags):
    result = call("generate", *flags)
    assert result.status == 0, result.err
    assert result.out.endswith("\n")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which nobody can make a file")
def test_where_nobody_may_write_another_folder_is_asked_for(call, trained_run, folder):
    (folder / "lightning_logs").mkdir()
    (folder / "lightning_logs" / "tiny").symlink_to("/proc/self")
    result = call("train", "--config", TINY, *QUICK)
    assert result.status == 2
    assert "lightning_logs/tiny' cannot be written to" in result.err
    assert "--trainer.default_root_dir" in result.err
    result = call("evaluate", "--ckpt_path", str(trained_run), "--figures", "/proc/self")
    assert (result.status, result.out) == (2, "")
    assert "--figures" in result.err
    result = call("export", "--ckpt_path", str(trained_run), "--format", "safetensors", "--out", "/proc/self/out")
    assert result.status == 2
    assert "--out" in result.err


def test_a_corpus_that_changed_since_is_not_scored(place, call):
    assert call("train", "--config", TINY, *QUICK, "--trainer.max_steps", "5", "--data.path", "other.txt").status == 0
    assert call("evaluate").status == 0
    (place / "other.txt").write_text("un texte. " * 100, encoding="utf-8")
    result = call("evaluate")
    assert result.status == 2
    assert "has changed" in result.err
    result = call(
        "evaluate", "--data.path", "other.txt", "--unknown", "skip"
    )  # which needs the old one for baselines alone
    assert result.status == 0
    assert "No baselines" in result.err
    assert json.loads(result.out)["baselines"] is None


BROKEN = [
    (
        "raise ImportError('libfar.so.1: cannot open\\nshared object file.')",
        "libfar.so.1: cannot open shared object file",
    ),
    ("import nowhere", "No module named 'nowhere'"),
    ("from json import nothing", "cannot import name 'nothing' from 'json'"),
    ("import broken.part", "No module named 'broken.part'"),
]


@pytest.mark.parametrize(("code", "reason"), BROKEN, ids=[code for code, _ in BROKEN])
def test_a_library_that_is_installed_and_broken_is_not_called_missing(folder, monkeypatch, code, reason):
    (folder / "broken").mkdir()
    (folder / "broken" / "__init__.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(MiniGPTError) as caught, needs("A test needs", "dev", "other", "broken"):
        import broken  # noqa: F401
    assert str(caught.value).startswith(f"A test needs broken, which is installed but cannot be imported: {reason}")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_with_its_extra_and_our_own_faults_stay_faults():
    missing = pytest.raises(MiniGPTError, match=r"needs nowhere, which is not installed: pip install .*\[dev\]")
    with missing, needs("A test needs", "dev", "nowhere"):
        import nowhere  # noqa: F401
    with pytest.raises(ModuleNotFoundError), needs("A test needs", "dev", "nowhere"):
        import minigpt.nowhere  # noqa: F401


@pytest.mark.parametrize(
    ("command", "library", "own"),
    [
        (["app"], "gradio", "minigpt.app"),
        ([*SWEEP, "--space", "space.yaml"], "optuna", "minigpt.training.sweep"),
        (["export", "--format", "onnx", "--out", "new"], "onnxscript", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_command_says_why_a_library_cannot_be_imported(place, call, monkeypatch, command, library, own):
    for name in [name for name in sys.modules if name == own or name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    (place / library).mkdir()
    (place / library / "__init__.py").write_text("import nowhere", encoding="utf-8")
    monkeypatch.syspath_prepend(place)
    result = call(*command)
    assert result.status == 2
    assert f"{library}, which is installed but cannot be imported: No module named 'nowhere'." in result.err
    assert "pip install" not in result.err


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a"}
SRUN = {f"SLURM_{name}": value for name, value in (
    ("NTASKS", "2"), ("NTASKS_PER_NODE", "2"), ("PROCID", "1"), ("LOCALID", "1"), ("NODEID", "0"), ("JOB_ID", "7"),
)}  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """Sets variables of a launcher, as Lightning would find them when it is imported."""

    def launched(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(rank_zero_only, "rank", 1)

    monkeypatch.setattr(processes, "known", None)
    return launched


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"}, {"LOCAL_RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        {"LOCAL_RANK": ""}, {"RANK": "one"}, {"TORCHELASTIC_RUN_ID": "a"}, {"SLURM_PROCID": "1"},
        {"SLURM_NTASKS": "2"}, {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1"}, SRUN,
    ],
    ids=" ".join,
)  # fmt: skip
def test_variables_that_a_launcher_left_over_neither_stop_nor_silence_a_training(call, launched, variables):
    launched(variables)
    result = call(*TRAIN, "--trainer.max_steps", "2")
    assert result.status == 0, result.err
    assert "in the environment: " in result.err
    assert "Ignoring " in result.err
    assert "parameters, on cpu" in result.err
    assert len(curves(Path(RUN))["train/loss"]) == 1


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN | {"SLURM_STEP_ID": "0"}], ids=["torchrun", "srun"])
def test_a_launcher_of_more_processes_than_the_training_has_is_refused(call, launched, variables):
    launched(variables)
    result = call(*TRAIN)
    assert result.status == 2
    assert result.err.startswith("A launcher started 2 processes, but the training has one.")
    assert "--trainer.devices 2" in result.err
    assert not Path(RUN).exists()


def test_one_task_of_a_launcher_is_left_as_it_is(call, launched, monkeypatch):
    launched(SRUN | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    result = call(*TRAIN, "--trainer.max_steps", "2")
    assert result.status == 0, result.err
    assert "Ignoring" not in result.err
    assert os.environ["SLURM_NTASKS"] == "1"


def test_of_several_processes_the_first_speaks(launched, capfd):
    launched({"LOCAL_RANK": "1", "WORLD_SIZE": "2"})
    assert not processes.forget_leftovers(alone=False)
    note("from the second")
    launched({"LOCAL_RANK": "0"})
    note("from the first")
    assert capfd.readouterr().err == "from the first\n"


def test_a_command_that_is_no_training_always_speaks(place, call, launched):
    launched(TORCHRUN)
    assert RUN in call("generate", "--max_new_tokens", "0").err


@pytest.mark.full
def test_a_rank_that_is_no_number_does_not_keep_libraries_from_being_imported(place):
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py")]
    done = subprocess.run(command, env=os.environ | {"LOCAL_RANK": "", "RANK": "x"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
