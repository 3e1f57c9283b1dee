"""Snapshots: the weights of earlier steps, small, whole or absent, evenly spread, and read as `RUN@STEP`."""

import json
import os
import re
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import QUICK, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from safetensors import safe_open
from safetensors.torch import load_file
from test_lora import LORA, write_texts
from test_resume import MODERN, SHORT, Interrupt, fit, same, state
from test_trust import DAMAGE, damaged

import minigpt
from minigpt import LitLanguageModel, MiniGPTError, TextDataModule, TinyGPT, checkpoints, loading, runs
from minigpt.training.checkpointing import Checkpoints, WholeFileCheckpointIO
from minigpt.training.snapshots import snapshot_file, surplus, thin_out

RUN = "lightning_logs/tiny/version_0"
KEEP = [*SHORT, "--checkpoint.snapshots"]  # validations at 20, 40 and 60


def steps(run: str | Path = RUN) -> list[int]:
    return [*runs.snapshots(Path(run))]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run with snapshots of steps 20, 40 and 60. Not to be written to."""
    return fit(*KEEP, "5", "--trainer.default_root_dir", str(tmp_path_factory.mktemp("snapshots"))).run_dir


@pytest.fixture
def run(whole_run, folder):
    """A copy of that run, as lightning_logs/tiny/version_0."""
    return shutil.copytree(whole_run, folder / RUN)


# Which are kept.


def after(n: int, most: int, step: int = 1) -> list[int]:
    """The steps that are kept after n validations."""
    kept: list[int] = []
    for k in range(1, n + 1):
        kept.append(k * step)
        if len(kept) > most:
            kept.remove(surplus(kept))
    return kept


@given(n=st.integers(1, 400), most=st.integers(3, 20), step=st.integers(1, 100))
def test_after_any_number_of_validations_the_kept_steps_are_evenly_spread(n, most, step):
    kept = after(n, most, step)
    assert len(kept) == min(n, most)
    assert (kept[0], kept[-1]) == (step, n * step)
    gaps = [after - before for before, after in pairwise(kept)]
    assert all(gap <= 2 * (n - 1) * step / len(gaps) for gap in gaps)
    assert not gaps[:-1] or max(gaps) <= 3 * min(gaps[:-1])  # the last gap is still growing


@given(most=st.integers(3, 12), later=st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_validations_at_any_steps_keep_the_first_and_the_last(most, later):
    kept, step, longest = [1], 1, max(later)
    for gap in later:
        step += gap
        kept.append(step)
        if len(kept) > most:
            kept.remove(surplus(kept))
    assert (kept[0], kept[-1]) == (1, step)
    assert max(b - a for a, b in pairwise(kept)) <= 2 * (step - 1) / (len(kept) - 1) + longest


def test_one_snapshot_is_the_last_and_two_are_the_ends():
    assert [after(n, 1) for n in (1, 2, 9)] == [[1], [2], [9]]
    assert [after(n, 2) for n in (1, 2, 9)] == [[1], [1, 2], [1, 9]]
    assert after(5, 5) == [1, 2, 3, 4, 5]
    assert after(17, 5) == [1, 5, 9, 13, 17]


def test_other_files_in_the_folder_are_left_alone(folder):
    others = ["step_000001.safetensors.old", ".step_000002.safetensors.0123abcd", "note.txt", "step_1.safetensors"]
    names = others + [snapshot_file(folder, step).name for step in (1, 2, 3, 1_000_000)]
    (folder / "snapshots").mkdir()
    for name in names:
        (folder / "snapshots" / name).touch()
    assert [*runs.snapshots(folder)] == [1, 2, 3, 1_000_000]
    thin_out(folder, 2)
    assert [*runs.snapshots(folder)] == [1, 1_000_000]
    assert {*others} < {file.name for file in (folder / "snapshots").iterdir()}


# In a training.


@pytest.mark.parametrize(("most", "kept"), [(0, []), (1, [60]), (2, [20, 60]), (5, [20, 40, 60])])
def test_a_run_keeps_as_many_as_asked_for(folder, most, kept):
    fit(*KEEP, str(most))
    assert steps() == kept
    assert (folder / RUN / "snapshots").exists() == bool(most)


@pytest.mark.parametrize("extra", [[], MODERN], ids=["tiny", "modern"])
def test_training_has_the_same_bits_with_and_without(folder, extra):
    runs_of = [fit(*KEEP, most, *extra).run_dir for most in ("0", "2")]
    assert same(*map(state, runs_of))
    best = [torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"] for run in runs_of]
    assert same(*best)


@pytest.mark.parametrize("extra", [[], MODERN], ids=["tiny", "averaged"])
def test_a_snapshot_has_the_weights_of_the_checkpoint_of_its_step_in_bfloat16(folder, extra):
    run = fit(*KEEP, "5", *extra).run_dir
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    content = loading.read_checkpoint(snapshot_file(run, 60))
    assert content["minigpt"] == last["minigpt"]
    assert content["global_step"] == 60
    assert content["val_loss"] == last["callbacks"]["DueValidation"]["metrics"]["val/loss"]
    rounded = {name: weight.bfloat16().float() for name, weight in last["state_dict"].items()}
    assert same(content["state_dict"], rounded)
    stored = load_file(snapshot_file(run, 60))
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    n_bytes = 2 * sum(weight.numel() for weight in rounded.values())
    assert snapshot_file(run, 60).stat().st_size - n_bytes < 10_000  # the header, most of it the tokenizer


@pytest.mark.parametrize("stop", [Interrupt(30), Interrupt(40), Interrupt(40, "validation"), Interrupt(60)])
def test_a_resume_goes_on_with_the_same_snapshots(folder, whole_run, stop):
    fit(*KEEP, "5", stop=stop)
    assert 20 in steps()
    fit(*KEEP, "5", "--ckpt_path", "last")
    assert steps() == steps(whole_run)
    for step in steps():
        ours, theirs = (loading.read_checkpoint(snapshot_file(path, step)) for path in (Path(RUN), whole_run))
        assert same(ours["state_dict"], theirs["state_dict"])
        assert ours["val_loss"] == theirs["val_loss"]


def test_more_steps_and_a_smaller_number_thin_out_what_is_there(run):
    fit(*KEEP, "3", "--trainer.max_steps", "100", "--ckpt_path", RUN)
    assert steps() == [20, 60, 100]
    fit(*KEEP, "0", "--trainer.max_steps", "120", "--ckpt_path", RUN)
    assert steps() == [20, 60, 100]


def test_a_write_that_fails_leaves_the_others_and_names_the_remedy(call, run, monkeypatch):
    """The resume first repeats the validation of step 60."""

    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    before = {file.name: file.read_bytes() for file in (run / "snapshots").iterdir()}
    monkeypatch.setattr("minigpt.training.checkpointing.as_snapshot", full)
    result = call("train", "--config", TINY, *KEEP, "2", "--trainer.max_steps", "80", "--ckpt_path", RUN)
    assert result.status == 2
    assert re.search(r"The snapshot .*step_000060\.safetensors could not be written \(.*No space left", result.err)
    assert "Free some space, then continue with --ckpt_path" in result.err
    assert {file.name: file.read_bytes() for file in (run / "snapshots").iterdir()} == before


def test_a_plain_trainer_keeps_snapshots_with_the_plugin_and_is_told_so_without(folder):
    (folder / "a.txt").write_text("le chat dort sur le toit, et le chien le sait. " * 60, encoding="utf-8")

    def train(*plugins):
        data = TextDataModule("a.txt", block_size=16, batch_size=4)
        trainer = Trainer(
            max_steps=4, accelerator="cpu", logger=False, plugins=list(plugins), enable_progress_bar=False,
            callbacks=[Checkpoints(snapshots=2)], default_root_dir=folder / "run",
        )  # fmt: skip
        trainer.fit(LitLanguageModel(TinyGPT(data.vocab_size)), data)

    with pytest.raises(MiniGPTError, match=r"plugin WholeFileCheckpointIO\(\)"):
        train()
    train(WholeFileCheckpointIO())
    assert steps("run") == [4]
    assert minigpt.load("run@4").generate("le chat", 5).startswith("le chat")


def test_snapshots_that_a_link_would_lead_elsewhere_are_not_written(call, run, folder):
    shutil.move(run / "snapshots", folder / "outside")
    (run / "snapshots").symlink_to(folder / "outside")
    before = {file.name: file.read_bytes() for file in (folder / "outside").iterdir()}
    result = call("train", "--config", TINY, *KEEP, "2", "--trainer.max_steps", "80", "--ckpt_path", RUN)
    assert result.status == 2
    assert "snapshots' is a link out of its run folder" in result.err
    assert {file.name: file.read_bytes() for file in (folder / "outside").iterdir()} == before


@pytest.mark.parametrize("value", ["-1", "1.5"])
def test_a_wrong_number_is_a_sentence(call, value):
    result = call("train", "--config", TINY, *KEEP, value)
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith("checkpoint.snapshots is ")


# RUN@STEP.


def test_a_step_a_checkpoint_and_the_newest_run_are_found(run):
    assert runs.find_checkpoint(f"{RUN}@40") == runs.find_checkpoint("last@000040") == snapshot_file(Path(RUN), 40)
    assert runs.find_checkpoint(f"{RUN}@best") == Path(RUN, "checkpoints/best.ckpt")
    assert runs.find_checkpoint("last@last") == Path(RUN, "checkpoints/last.ckpt")
    assert runs.find_source(f"{RUN}@40") == runs.find_checkpoint(snapshot_file(Path(RUN), 40))
    assert runs.run_of(snapshot_file(Path(RUN), 40)) == Path(RUN)


@pytest.mark.parametrize("name", ["a@b/version_0", "version_0@40", "lightning_logs/moi@ici/version_0@60"])
def test_a_folder_whose_name_has_an_at_is_a_folder(run, name):
    shutil.copytree(run, name)
    assert runs.find_checkpoint(name) == Path(name, "checkpoints/best.ckpt")
    assert runs.find_checkpoint(f"{name}@20") == snapshot_file(Path(name), 20)


def test_a_snapshot_is_generated_from_evaluated_and_exported(call, run, folder):
    flags = ["--max_new_tokens", "20", "--seed", "1"]
    texts = {step: call("generate", "--ckpt_path", f"{RUN}@{step}", *flags) for step in (20, 60, "last")}
    assert [result.status for result in texts.values()] == [0, 0, 0]
    assert "snapshots/step_000020.safetensors" in texts[20].err
    assert texts[20].out != texts["last"].out
    scores = {point: json.loads(call("evaluate", "--ckpt_path", f"{RUN}@{point}").out) for point in (20, 60, "last")}
    assert scores[20]["loss"] > scores[60]["loss"]
    assert scores[60]["loss"] == pytest.approx(scores["last"]["loss"], abs=1e-3)  # bfloat16 has eight binary digits
    assert scores[60]["baselines"] == scores["last"]["baselines"]
    assert scores[60]["loss"] == pytest.approx(loading.read_checkpoint(snapshot_file(run, 60))["val_loss"], abs=1e-3)
    result = call("export", "--format", "safetensors", "--ckpt_path", f"{RUN}@20", "--out", "out")
    assert result.status == 0, result.err
    exported, stored = load_file("out/model.safetensors"), load_file(snapshot_file(run, 20))
    assert same(exported, {name: weight.float() for name, weight in stored.items()})
    assert minigpt.load("out").generate("le ", 9, seed=0) == minigpt.load(f"{RUN}@20").generate("le ", 9, seed=0)


def test_a_snapshot_is_loaded_from_python_with_its_run_also_under_another_name(run, folder):
    lm = minigpt.load(f"{RUN}@20")
    assert lm.run_dir == run
    assert {weight.dtype for weight in lm.model.parameters()} == {torch.float32}
    shutil.copy(snapshot_file(run, 20), folder / "mine.safetensors")
    shutil.rmtree(run)
    assert minigpt.load("mine.safetensors").generate("le ", 9, seed=0) == lm.generate("le ", 9, seed=0)


def test_a_run_starts_from_a_snapshot(call, run):
    flags = ["--init_from", f"{RUN}@20", "--trainer.max_steps", "1", "--model.learning_rate", "0", *QUICK]
    result = call("train", "--config", TINY, *flags, "--model.weight_decay", "0")
    assert result.status == 0, result.err
    assert f"The weights come from '{RUN}@20'." in result.err
    started = loading.read_checkpoint(Path("lightning_logs/tiny/version_1/checkpoints/last.ckpt"))
    snapshot = loading.read_checkpoint(snapshot_file(run, 20))
    assert same(started["state_dict"], snapshot["state_dict"])
    assert started["minigpt"]["origin"]["sha256"] == checkpoints.checksum(snapshot_file(run, 20))


def test_adapters_alone_are_in_a_snapshot_and_are_merged(call, folder):
    write_texts(folder)
    source, kept = "lightning_logs/a/version_0", "lightning_logs/b/version_0"
    assert call("train", "--config", "a.yaml", *QUICK, "--checkpoint.snapshots", "1").status == 0
    flags = ["--init_from", f"{source}@4", *LORA, "--checkpoint.snapshots", "3", *QUICK]
    result = call("train", "--config", "b.yaml", *flags)
    assert result.status == 0, result.err
    assert steps(kept) == [3, 6]
    with safe_open(snapshot_file(Path(kept), 6), framework="pt") as stored:
        assert all(".lora_" in name or ".new_rows." in name for name in stored.keys())  # noqa: SIM118
    of_snapshot, of_checkpoint = (minigpt.load(f"{kept}@{point}").model.state_dict() for point in (6, "last"))
    for name, weight in of_checkpoint.items():
        torch.testing.assert_close(of_snapshot[name], weight, atol=0.01, rtol=0.01)
    assert call("train", "--config", "b.yaml", *flags[2:], "--trainer.max_steps", "7", "--ckpt_path", kept).status == 0
    snapshot_file(Path(source), 4).unlink()
    with pytest.raises(loading.MissingBase, match=f"the model {source}@4"):
        minigpt.load(f"{kept}@6")


# Mistakes.


@pytest.mark.parametrize(
    ("ckpt_path", "sentence"),
    [
        (f"{RUN}@50", f"The run '{RUN}' has no snapshot of step 50. The nearest is of step 40: pass {RUN}@40."),
        ("last@1000", f"The run '{RUN}' has no snapshot of step 1000. The nearest is of step 60: pass last@60."),
        ("plain@20", "The run 'plain' has no snapshots, so its weights of step 20 are lost. Train with"),
        ("plain@best", "The folder 'plain' holds no checkpoints/best.ckpt."),
        (f"{RUN}@soon", f"'soon' after the @ of '{RUN}@soon' is not a step. Pass a number, best or last."),
        (f"{RUN}@-20", "'-20' after the @ of"), (f"{RUN}@", "'' after the @ of"), (f"{RUN}@{'9' * 99}", "not a step"),
        ("nowhere@20", "There is no run or checkpoint at 'nowhere@20'."),
        ("@20", "There is no run or checkpoint at '@20'."),
        (f"{RUN}/checkpoints/last.ckpt@20", "There is no run or checkpoint at"),
        (f"{RUN}/snapshots", f"The folder '{RUN}/snapshots' holds snapshots of 3 steps. Pass one, such as {RUN}@20."),
    ],
)  # fmt: skip
def test_a_step_that_is_not_there_is_a_sentence(call, run, folder, ckpt_path, sentence):
    (folder / "plain/checkpoints").mkdir(parents=True)
    for name in ("generate", "evaluate"):
        result = call(name, "--ckpt_path", ckpt_path)
        assert (result.status, result.out) == (2, "")
        assert sentence in result.err.splitlines()[-1]
    result = call("train", "--config", TINY, "--init_from", ckpt_path)
    assert result.status == 2
    assert sentence.replace("--ckpt_path", "--init_from") in result.err.splitlines()[-1]


def test_without_any_run_a_step_of_the_last_one_is_a_sentence(call):
    result = call("generate", "--ckpt_path", "last@20")
    assert result.status == 2
    assert "There is no run under lightning_logs/ yet." in result.err


@pytest.mark.parametrize("config", [["--config", TINY], []])
@pytest.mark.parametrize("ckpt_path", [f"{RUN}@20", f"{RUN}/snapshots/step_000020.safetensors"])
def test_a_snapshot_cannot_be_resumed(call, run, config, ckpt_path):
    result = call("train", *config, "--ckpt_path", ckpt_path)
    assert result.status == 2
    assert "is a snapshot, which has weights and no optimizer state to resume" in result.err
    assert f"--ckpt_path {RUN}, or start a new run from it: --init_from {RUN}/snapshots/step_000020.saf" in result.err
    assert sorted(path.name for path in run.parent.iterdir()) == ["version_0"]


# Files from strangers.


def with_header(file: Path, change) -> None:
    """Let `change` edit the header of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    edited = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(edited)) + edited + content[8 + length :])


def claim_bytes(header):
    header["embed.weight"] |= {"shape": [10**9, 64], "data_offsets": [0, 128 * 10**9]}


def claim_no_bytes(header):
    header["embed.bias"] = {"dtype": "F32", "shape": [0, 10**15], "data_offsets": [0, 0]}


def claim_network(header):
    metadata = json.loads(header["__metadata__"]["minigpt"])
    metadata["model"]["init_args"]["n_embd"] = 10**12
    header["__metadata__"]["minigpt"] = json.dumps(metadata)


def without_metadata(header):
    del header["__metadata__"]


@pytest.mark.parametrize("change", [claim_bytes, claim_no_bytes, claim_network, without_metadata])
def test_an_edited_snapshot_is_refused_before_memory_is_taken(run, change):
    with_header(snapshot_file(run, 20), change)
    with pytest.raises(MiniGPTError, match=r"step_000020\.safetensors' cannot be read as a snapshot: it is damaged"):
        minigpt.load(f"{RUN}@20")


def test_a_claim_with_the_right_checksum_is_held_against_the_weights(run):
    content = loading.read_checkpoint(snapshot_file(run, 20))
    content["minigpt"]["model"]["init_args"]["n_embd"] = 10**12
    snapshot_file(run, 20).write_bytes(checkpoints.as_snapshot(content, 1.0))
    with pytest.raises(MiniGPTError, match="its weights are not those of"):
        minigpt.load(f"{RUN}@20")


def test_a_snapshot_larger_than_the_memory_is_refused_unread(run):
    with snapshot_file(run, 20).open("r+b") as file:
        file.truncate(10**13)  # sparse: it takes no room on the disk
    with pytest.raises(MiniGPTError, match=r"takes 20000\.0 GB of memory"):
        minigpt.load(f"{RUN}@20")


def test_a_snapshot_of_a_newer_minigpt_or_of_other_data_is_refused(run):
    content = loading.read_checkpoint(snapshot_file(run, 20))
    content["minigpt"]["version"] = "99.1.0"
    snapshot_file(run, 20).write_bytes(checkpoints.as_snapshot(content, 1.0))
    with pytest.raises(MiniGPTError, match=r"written by minigpt 99\.1\.0"):
        minigpt.load(f"{RUN}@20")
    del content["minigpt"]
    snapshot_file(run, 20).write_bytes(checkpoints.as_snapshot(content, 1.0))
    with pytest.raises(MiniGPTError, match="is not a checkpoint of minigpt"):
        minigpt.load(f"{RUN}@20")


def test_tensors_of_any_kind_survive(folder):
    weights = {
        "network.a": torch.arange(6).view(2, 3).T, "network.b": torch.tensor(True), "network.c": torch.zeros(0, 4),
        "network.d": torch.ones(2, dtype=torch.float64), "network.e": torch.tensor(3),
    }  # fmt: skip
    weights["network.f"] = weights["network.d"]  # shared
    content = {"minigpt": {"version": minigpt.__version__}, "global_step": 7, "state_dict": weights}
    Path("step_000007.safetensors").write_bytes(checkpoints.as_snapshot(content, float("nan")))
    read = loading.read_checkpoint(runs.find_checkpoint("step_000007.safetensors"))
    assert same(read["state_dict"], weights | {"network.d": torch.ones(2), "network.f": torch.ones(2)})


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE)
def test_a_damaged_snapshot_is_an_error_of_ours_or_loads_right(whole_run, folder, damage):
    whole, file = snapshot_file(whole_run, 20), folder / "step_000020.safetensors"
    file.write_bytes(damaged(whole.read_bytes(), damage))
    good = loading.read_checkpoint(whole)
    try:
        content = loading.read_checkpoint(file)
    except MiniGPTError:
        return
    assert same(content, good)
