"""What commands leave on disk: who may read it, and what they say where they cannot write it."""

import errno
import io
import os
from pathlib import Path

import pytest
from conftest import QUICK, TINY

from minigpt import MiniGPTError
from minigpt.data.corpus import locate
from minigpt.training.checkpointing import WholeFileCheckpointIO


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


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0o027, pytest.param(0o002, marks=pytest.mark.full)], ids=oct)
def test_every_file_that_a_command_leaves_obeys_the_umask(call, folder, trained_run, monkeypatch, umask, mask):
    umask(mask)
    (folder / "space.yaml").write_text("model.learning_rate: [1e-3, 1e-2]\n", encoding="utf-8")
    few = ["--config", TINY, *QUICK, "--trainer.max_steps", "4"]
    run, sweep = ["--ckpt_path", str(trained_run)], ["sweep", *few, "--space", "space.yaml", "--trials", "2"]
    for args in (
        ["evaluate", *run, "--figures", "figures"],
        ["export", *run, "--format", "safetensors", "--out", "one"],
        [*sweep], [*sweep, "--storage", "sweeps/study.db"],
        ["train", *few, "--data.in_memory_mb", "0", "--samples.every_n_steps", "2"],
    ):  # fmt: skip
        result = call(*args)
        assert result.status == 0, result.err
    assert wrong_modes(folder, mask) == []
    names = {path.name for path in folder.rglob("*")}
    assert {"last.ckpt", "best.ckpt", "ids.bin", ".lock", "study.db", "model.safetensors"} <= names


@pytest.fixture
def forbid(monkeypatch):
    """`forbid(path)`: from then on this user may not write there, nor read what is `secret`, whoever runs the tests."""
    forbidden, hidden = [], []

    def denies(path, writes: bool) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        path = Path(os.path.abspath(path))
        return path in hidden or (writes and any(path.is_relative_to(folder) for folder in forbidden))

    def checked(call, writes):
        def wrapper(path, *args, **options):
            if denies(path, writes(*args, **options)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *args, **options)

        return wrapper

    def text_mode(mode="r", *_, **__):
        return mode.strip("bt") != "r"

    flags = checked(os.open, lambda flags, *_, **__: bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
    opened = checked(io.open, text_mode)
    for target, function in (("os.open", flags), ("io.open", opened), ("builtins.open", opened)):
        monkeypatch.setattr(target, function)
    monkeypatch.setattr("os.mkdir", checked(os.mkdir, lambda *_, **__: True))
    monkeypatch.setattr("os.replace", checked(os.replace, lambda *_, **__: True))

    def forbid(path: Path, secret: bool = False) -> None:
        (hidden if secret else forbidden).append(Path(os.path.abspath(path)))

    return forbid


def ends_with(result, *words: str) -> None:
    """The command was refused, and its last line has these words."""
    assert result.status == 2, result.err
    for word in words:
        assert word in result.err.splitlines()[-1]


RUN = Path("lightning_logs/tiny/version_0")


@pytest.mark.parametrize("part", ["", "checkpoints", ".lock"])
def test_a_run_that_this_user_may_not_write_is_refused_before_it_trains(train, forbid, part):
    assert train("--trainer.max_steps", "4").status == 0
    forbid(RUN / part)
    result = train("--trainer.max_steps", "8", "--ckpt_path", "last")
    words = ["cannot be used", "Make it writable"] if part == ".lock" else ["cannot be written to", "--ckpt_path"]
    ends_with(result, str(RUN / part), "Permission denied", *words)
    assert "step " not in result.err


def test_a_new_run_whose_settings_cannot_be_written_is_refused(train, forbid):
    forbid(RUN / "config.yaml")
    ends_with(train("--trainer.max_steps", "4"), str(RUN), "cannot be written to", "--trainer.default_root_dir")


def test_a_checkpoint_that_may_no_longer_be_written_says_so(folder, forbid):
    path = folder / "checkpoints" / "last.ckpt"
    WholeFileCheckpointIO().save_checkpoint({"step": 1}, path)
    forbid(path.parent)
    with pytest.raises(MiniGPTError, match=r"Permission denied.* Make it writable, then continue"):
        WholeFileCheckpointIO().save_checkpoint({"step": 2}, path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("command", ["generate", "evaluate", "train"])
def test_a_checkpoint_that_this_user_may_not_read_is_not_called_damaged(call, train, forbid, command):
    assert train("--trainer.max_steps", "4").status == 0
    for name in ("best", "last"):
        forbid(RUN / "checkpoints" / f"{name}.ckpt", secret=True)
    ends_with(call(command, "--ckpt_path", str(RUN)), "You may not read", str(RUN))


def test_a_folder_that_this_user_may_not_search_is_named(call, monkeypatch, trained_run):
    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("minigpt.runs._is_checkpoint", denied)
    ends_with(call("generate", "--ckpt_path", str(trained_run)), f"'{trained_run}' cannot be used", "Permission")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["study.db.lock", "study.db", "slice.png"])
def test_what_a_sweep_may_not_write_is_named(call, folder, forbid, part):
    (folder / "space.yaml").write_text("model.learning_rate: [1e-3, 1e-2]\n", encoding="utf-8")
    args = ["--config", TINY, *QUICK, "--trainer.max_steps", "4", "--space", "space.yaml"]
    assert call("sweep", *args, "--trials", "1").status == 0
    forbid(folder / "lightning_logs" / "tiny-space" / part)
    result = call("sweep", *args, "--trials", "1")
    ends_with(result, "Permission denied", str(Path("lightning_logs/tiny-space")))


def test_a_cache_that_this_user_may_not_write_is_named_before_a_download(folder, forbid):
    forbid(folder / "user cache")
    with pytest.raises(MiniGPTError, match=r"user cache.* cannot be written to.*XDG_CACHE_HOME"):
        locate("tinyshakespeare")
