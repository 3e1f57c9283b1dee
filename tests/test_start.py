"""Starting from a model: a new run takes over network, weights and tokenizer, on any text."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import QUICK

import minigpt
from minigpt import checkpoints, loading, runs

TEXT = "Le chat dort sur le banc, et la lune monte au-dessus du toit. " * 40
NEW = "Où est le café ? Le garçon rêve près de la fenêtre. " * 40
RECIPE = "data: {path: b.txt, batch_size: 2}\nmodel: {learning_rate: 1.0e-3}\ntrainer: {max_steps: 4}\n"
GPT = ["--model.network", "GPT", "--model.network.n_layer", "1", "--model.network.n_head", "2",
       "--model.network.n_embd", "16"]  # fmt: skip
SOURCE = "lightning_logs/a/version_0"
RUN = "lightning_logs/b/version_0"


@pytest.fixture
def start(call, folder):
    """`source(*flags)` trains a model on one text; `start(*flags)` starts from it on another one."""
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    (folder / "b.txt").write_text(NEW, encoding="utf-8")
    (folder / "a.yaml").write_text("data: {path: a.txt, batch_size: 2, block_size: 16}\ntrainer: {max_steps: 2}\n")
    (folder / "b.yaml").write_text(RECIPE)

    def start(*flags: str, source: str | None = SOURCE):
        chosen = [] if source is None else ["--init_from", source]
        return call("train", "--config", "b.yaml", *chosen, *QUICK, *flags)

    def train_source(*flags: str):
        assert call("train", "--config", "a.yaml", *QUICK, *(flags or GPT)).status == 0

    start.source = train_source
    return start


def weights(run: str, name: str = "last") -> dict[str, torch.Tensor]:
    return loading.read_checkpoint(Path(run) / "checkpoints" / f"{name}.ckpt")["state_dict"]


def test_old_tokens_keep_their_weights_and_new_ones_start_at_the_mean(start):
    start.source()
    result = start("--model.learning_rate", "0", "--model.weight_decay", "0")
    assert result.status == 0, result.err
    before, after = minigpt.load(SOURCE), minigpt.load(RUN)
    new = sorted(set(NEW) - set(TEXT))
    assert after.tokenizer.characters == [*before.tokenizer.characters, *new]
    assert f"{len(new)} characters of the text are new to the model" in result.err
    n = before.tokenizer.vocab_size
    old_rows, rows = before.model.embed.weight, after.model.embed.weight
    assert torch.equal(rows[:n], old_rows)
    torch.testing.assert_close(rows[n:], old_rows.mean(0).expand(len(new), -1))
    ids = torch.tensor([before.tokenizer.encode("le chat")])
    torch.testing.assert_close(after.model(ids)[..., :n], before.model(ids))
    assert after.model.config | {"vocab_size": n} == before.model.config


def test_the_articles_model_gets_rows_and_a_bias_for_new_characters(start):
    start.source("--model.network", "TinyGPT", "--model.network.n_embd", "8")
    assert start("--model.learning_rate", "0", "--model.weight_decay", "0").status == 0
    before, after = weights(SOURCE), weights(RUN)
    bias, n = after["network.lm_head.bias"], len(before["network.lm_head.bias"])
    torch.testing.assert_close(bias[n:], before["network.lm_head.bias"].mean().expand(len(bias) - n))


def test_unknown_characters_can_be_left_out(start, call):
    start.source()
    assert start("--data.unknown", "skip").status == 0
    lm = minigpt.load(RUN)
    assert lm.tokenizer.to_dict() == minigpt.load(SOURCE).tokenizer.to_dict()
    scores = json.loads(call("evaluate", "--ckpt_path", RUN).out)
    assert scores["characters"] < 0.1 * len(NEW)
    wrong = start("--data.unknown", "drop")
    assert (wrong.status, wrong.err.splitlines()[-1]) == (2, "data.unknown is 'drop'. It takes add or skip.")


@pytest.mark.parametrize("how", ["alone", "with its recipe"])
def test_a_resume_needs_the_source_no_more_and_gives_the_same_bits(start, call, how):
    start.source()
    dropout = ["--model.network.dropout", "0.2"]
    assert start(*dropout).status == 0
    assert start(*dropout, "--trainer.max_steps", "2").status == 0
    shutil.rmtree("lightning_logs/a")
    run = "lightning_logs/b/version_1"
    if how == "alone":
        resumed = call("train", "--ckpt_path", run, "--trainer.max_steps", "4")
    else:
        resumed = start(*dropout, "--ckpt_path", "last", source=None)
    assert resumed.status == 0, resumed.err
    assert not Path("lightning_logs/b/version_2").exists()
    whole, pieces = weights(RUN), weights(run)
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert call("evaluate", "--ckpt_path", run).status == 0


def test_a_run_says_where_it_came_from(start, call):
    start.source()
    (Path(SOURCE) / "LICENSE.txt").write_text("Free for all.")
    assert start().status == 0
    file = Path(SOURCE, "checkpoints", "best.ckpt").absolute()
    origin = {"source": SOURCE, "path": str(file), "sha256": checkpoints.checksum(file), "licence": "LICENSE.txt"}
    checkpoint = loading.read_checkpoint(runs.find_checkpoint(RUN))
    assert checkpoint["minigpt"]["origin"] == origin
    assert (Path(RUN) / "LICENSE.txt").read_text() == "Free for all."
    assert call("train", "--ckpt_path", RUN, "--trainer.max_steps", "6").status == 0
    assert loading.read_checkpoint(Path(RUN, "checkpoints", "last.ckpt"))["minigpt"]["origin"] == origin


def test_windows_may_be_shorter_and_with_rotary_positions_longer(start):
    start.source()
    assert start("--data.block_size", "8").status == 0
    shorter = minigpt.load(RUN)
    assert (shorter.model.block_size, shorter.model.position.weight.shape) == (8, (8, 16))
    refused = start("--data.block_size", "32")
    assert refused.status == 2
    assert "has learned 16 positions. Pass --data.block_size 16 or less." in refused.err
    start.source(*GPT, "--model.network.preset", "llama")
    longer = start("--data.block_size", "32", source="lightning_logs/a/version_1")
    assert longer.status == 0
    assert "windows are of 32 tokens, and the model has learned from windows of 16" in longer.err
    assert minigpt.load("lightning_logs/b/version_1").model.block_size == 32


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_tokenizer_is_the_sources(start, call, kind):
    start.source(*GPT, "--data.tokenizer", kind, "--data.lower", "true")
    assert start().status == 0
    lm, source = minigpt.load(RUN), minigpt.load(SOURCE)
    assert lm.tokenizer.to_dict() == source.tokenizer.to_dict()
    assert lm.generate("LE CHAT", 3, seed=0).startswith("le chat")
    in_file = start("--data.in_memory_mb", "0", "--data.cache_dir", "cache")
    assert in_file.status == 0
    same = weights(RUN), weights("lightning_logs/b/version_1")
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert call("evaluate", "--ckpt_path", RUN).status == 0


def test_it_starts_from_python_too(start, folder):
    start.source()
    lm = minigpt.train("b.yaml", init_from=SOURCE, max_steps=3, accelerator="cpu")
    assert lm.run_dir == (folder / RUN).absolute()
    assert lm.tokenizer.encode("é")


def test_a_network_of_ones_own_starts_from_its_run_if_its_code_is_allowed(start, folder):
    (folder / "nets.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Sequential):\n    def __init__(self, vocab_size, width=8):\n"
        "        super().__init__(torch.nn.Embedding(vocab_size, width), torch.nn.Linear(width, vocab_size))\n"
    )
    start.source("--model.network", "nets.Net", "--model.network.width", "12")
    refused = start()
    assert refused.status == 2
    assert "--allow_code nets" in refused.err
    assert start("--allow_code", "nets").status == 0
    assert weights(RUN)["network.0.weight"].shape[1] == 12


def test_a_recipe_for_a_start_is_proposed_where_there_is_none(start, call):
    start.source()
    alone = call("train", "--init_from", SOURCE)
    assert alone.status == 2
    assert "--config" in alone.err.splitlines()[-1]
    assert "finetune" in alone.err.splitlines()[-1]
    without = start(source=None)
    assert without.status == 2
    assert without.err.splitlines()[-1] == (
        "The recipe 'b.yaml' names no network. Start from a model with --init_from, or set --model.network."
    )


MISTAKES = {
    ("--ckpt_path", "last"): "--init_from begins a new run and --ckpt_path continues an old one. Pass one of them.",
    ("--model.network", "TinyGPT"): f"model.network is minigpt.TinyGPT here and minigpt.GPT in '{SOURCE}'",
    ("--model.network.n_layer", "2"): f"model.network.n_layer is 2 here and 1 in '{SOURCE}'",
    ("--model.network.preset", "llama"): f"model.network.position is rope here and learned in '{SOURCE}'",
    ("--data.tokenizer", "bpe"): f"data.tokenizer is bpe here and char in '{SOURCE}'",
    ("--data.lower", "true"): f"data.lower is True here and False in '{SOURCE}'",
    ("--data.max_vocab_size", "300"): f"since the tokenizer is that of '{SOURCE}'. Omit it.",
}


@pytest.mark.parametrize("flags", MISTAKES, ids=lambda flags: flags[0])
def test_a_setting_that_contradicts_the_source_is_refused_and_nothing_is_written(start, flags):
    start.source()
    refused = start(*flags)
    assert refused.status == 2
    assert MISTAKES[flags] in refused.err.splitlines()[-1]
    assert not Path("lightning_logs/b").exists()
    agreeing = start("--model.network", "GPT", "--model.network.n_embd", "16", "--data.tokenizer", "char")
    assert agreeing.status == 0
