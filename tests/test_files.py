"""What commands leave on disk: who may read it, and what they say where they cannot write it."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import QUICK, TINY

from minigpt import shards
from minigpt.training.checkpointing import save_sharded


@pytest.fixture
def umask():
    """Sets the umask, until the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def wrong_modes(folder: Path, umask: int) -> list[str]:
    """What in a folder has other permissions than a plain file or folder made under this umask."""
    wrong = []
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode & 0o777
        if not path.is_symlink() and mode != (0o777 if path.is_dir() else 0o666) & ~umask:
            wrong.append(f"{mode:o} {path.relative_to(folder)}")
    return wrong


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002], ids=oct)
def test_every_file_that_a_command_leaves_obeys_the_umask(call, folder, trained_run, monkeypatch, umask, mask):
    umask(mask)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"un matin, il fit beau. " * 200)))
    (folder / "space.yaml").write_text("model.learning_rate: [1e-3, 1e-2]\n", encoding="utf-8")
    few = ["--config", TINY, *QUICK, "--trainer.max_steps", "4"]
    run, sweep = ["--ckpt_path", str(trained_run)], ["sweep", *few, "--space", "space.yaml", "--trials", "2"]
    for args in (
        ["evaluate", *run, "--figures", "figures"],
        ["export", *run, "--format", "safetensors", "--out", "one"],
        ["export", *run, "--format", "checkpoint", "--out", "two"],
        [*sweep], [*sweep, "--storage", "sweeps/study.db"],
        ["train", *few, "--data.path", "-", "--data.in_memory_mb", "0", "--samples.every_n_steps", "2"],
    ):  # fmt: skip
        result = call(*args)
        assert result.status == 0, result.err
    assert wrong_modes(folder, mask) == []
    names = {path.name for path in folder.rglob("*")}
    assert {"last.ckpt", "best.ckpt", "ids.bin", "stdin", ".lock", "study.db", "model.ckpt"} <= names


def test_shards_obey_the_umask(folder, umask):
    umask(0o027)

    def save(path):
        (path / shards.REST).write_text("whole", encoding="utf-8")

    strategy = SimpleNamespace(broadcast=lambda path: path)
    save_sharded(SimpleNamespace(is_global_zero=True, strategy=strategy, save_checkpoint=save), folder / "a" / "x.ckpt")
    assert wrong_modes(folder, 0o027) == []
    assert (folder / "a" / "x.ckpt" / shards.REST).exists()
