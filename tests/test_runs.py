import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY

import minigpt
from minigpt import MiniGPTError, loading, runs


@pytest.fixture
def logs(folder, trained_run):
    """Two runs of `tiny` and a newer one of `gros`."""
    for n, name in enumerate(["tiny/version_0", "tiny/version_1", "gros/version_0"]):
        shutil.copytree(trained_run, folder / "lightning_logs" / name)
        last = folder / "lightning_logs" / name / "checkpoints" / "last.ckpt"
        os.utime(last, (1_000_000 + n, 1_000_000 + n))
    return folder / "lightning_logs"


def test_last_is_the_newest_run(logs):
    assert runs.newest_run() == Path("lightning_logs/gros/version_0")
    assert runs.newest_run("tiny").name == "version_1"
    assert runs.newest_run("absent") is None


@pytest.mark.parametrize("name", ["ma recette [v2]", "t*", "t?ny", "[gt]*"])
def test_a_name_is_never_a_pattern(logs, trained_run, name):
    assert runs.newest_run(name) is None
    shutil.copytree(trained_run, logs / name / "version_0")
    os.utime(logs / name / "version_0/checkpoints/last.ckpt", (1000, 1000))
    assert runs.newest_run(name) == Path("lightning_logs") / name / "version_0"
    assert runs.newest_run() == Path("lightning_logs/gros/version_0")


def test_a_run_means_its_best_checkpoint_unless_asked_otherwise(logs):
    run = "lightning_logs/tiny/version_0"
    assert runs.find_checkpoint(run).name == "best.ckpt"
    assert runs.find_checkpoint(run, prefer=("last",)).name == "last.ckpt"
    (logs / "tiny/version_0/checkpoints/best.ckpt").unlink()
    assert runs.find_checkpoint(run).name == "last.ckpt"


def test_a_run_folder_alone_gives_the_trained_model(logs):
    lm = minigpt.load("lightning_logs/tiny/version_0")
    checkpoint = torch.load(logs / "tiny/version_0/checkpoints/best.ckpt", weights_only=True)
    assert torch.equal(lm.model.embed.weight, checkpoint["state_dict"]["network.embed.weight"])
    assert not lm.model.training
    text = lm.generate("Un matin,", max_new_tokens=20, temperature=0.8, top_k=30, top_p=0.9, seed=0)
    assert text.startswith("un matin,")
    assert len(text) == len("un matin,") + 20


def test_a_crafted_pickle_is_refused_and_runs_nothing(folder):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(folder / "sprung"),)

    torch.save({"minigpt": Trap()}, folder / "trap.ckpt")
    with pytest.raises(MiniGPTError, match=r"trap\.ckpt"):
        minigpt.load("trap.ckpt")
    assert not (folder / "sprung").exists()


def test_a_checkpoint_of_0_1_is_answered_in_a_sentence(folder):
    torch.save({"minigpt": {"version": "0.1.0", "model": {"name": "gpt"}}, "state_dict": {}}, "old.ckpt")
    with pytest.raises(
        MiniGPTError, match=r"written by minigpt 0\.1\.0, whose checkpoints minigpt 0\.2\.\d+ does not read"
    ):
        loading.read_checkpoint(folder / "old.ckpt")


@pytest.mark.parametrize("name", ["train", "generate", "evaluate"])
@pytest.mark.parametrize("ckpt_path", ["last", "lightning_logs/tiny/version_0", "shards"])
def test_a_checkpoint_that_is_a_folder_is_answered_in_a_sentence(logs, call, name, ckpt_path):
    Path("shards").mkdir()
    Path("shards/.metadata").touch()
    for file in (logs / "tiny/version_0/checkpoints").iterdir():
        shutil.copytree("shards", file.with_name(f".{file.name}.0123abcd"))
        file.unlink()
        file.symlink_to(f".{file.name}.0123abcd")  # as several processes used to write it
    config = ["--config", TINY] if name == "train" else []
    result = call(name, *config, "--ckpt_path", ckpt_path)
    assert (result.status, result.out) == (2, "")
    assert "is a folder with one part per process, which minigpt" in result.err
    assert result.err.count("\n") == 1
