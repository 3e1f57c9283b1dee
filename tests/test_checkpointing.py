"""Checkpoints are whole or absent, and a run that cannot go on leaves the last good one."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from test_resume import SHORT, state

from minigpt import MiniGPTError, files
from minigpt.training.checkpointing import WholeFileCheckpointIO
from minigpt.training.cli import MiniGPTCLI


@pytest.mark.slow
def test_a_run_is_trained_by_one_process_at_a_time(train, folder):
    train("--trainer.max_steps", "10")
    run_dir = folder / "lightning_logs" / "tiny" / "version_0"
    with FileLock(run_dir / ".lock"):
        before = (run_dir / "checkpoints" / "last.ckpt").read_bytes()
        result = train("--trainer.max_steps", "20", "--ckpt_path", "last")
        assert result.status == 2
        assert "Another process is training lightning_logs/tiny/version_0" in result.err
        assert (run_dir / "checkpoints" / "last.ckpt").read_bytes() == before
    assert train("--trainer.max_steps", "20", "--ckpt_path", "last").status == 0


def test_a_best_score_without_its_file_counts_for_nothing(train, folder):
    train("--trainer.max_steps", "10")
    best = folder / "lightning_logs" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"
    best.unlink()
    train("--trainer.max_steps", "11", "--model.learning_rate", "3", "--ckpt_path", "last")  # worse than before
    assert best.exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(train, folder):
    train("--trainer.max_steps", "10")
    last = folder / "lightning_logs" / "tiny" / "version_0" / "checkpoints" / "last.ckpt"
    good = last.read_bytes()
    broken = ["--model.learning_rate", "1e38", "--checkpoint.every_n_steps", "1"]
    result = train("--trainer.max_steps", "100", "--ckpt_path", "last", *broken)
    assert result.status == 2
    assert "step 1" in result.err
    assert "1e+38" in result.err
    assert "lightning_logs/tiny/version_0/checkpoints/last.ckpt" in result.err
    assert "Traceback" not in result.err
    weights = torch.load(last, weights_only=True)["state_dict"].values()
    assert last.read_bytes() == good or all(w.isfinite().all() for w in weights)


def test_a_fault_writes_nothing_and_names_the_last_good_checkpoint(folder, capfd):
    class Fault(Callback):
        def on_before_optimizer_step(self, trainer, *_):
            if trainer.global_step == 14:
                raise RuntimeError("a fault")

    cli = MiniGPTCLI(["--config", TINY, *SHORT])
    cli.trainer.callbacks.insert(0, Fault())
    with pytest.raises(RuntimeError, match="a fault"):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    last = "lightning_logs/tiny/version_0/checkpoints/last.ckpt"
    assert f"The training failed in step 15; the last good checkpoint is {last}." in capfd.readouterr().err
    assert state(cli.run_dir)["global_step"] == 10


def test_a_write_that_fails_leaves_the_old_checkpoint(folder, monkeypatch):
    path = folder / "checkpoints" / "last.ckpt"
    WholeFileCheckpointIO().save_checkpoint({"step": 1}, path)

    def full_disk(checkpoint, file):
        file.write(b"half of ")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(MiniGPTError, match="No space left"):
        WholeFileCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_a_second_signal_stops_at_once(folder):
    program = (
        "import os, signal, time\n"
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from minigpt.training.checkpointing import Checkpoints\n"
        "callback = Checkpoints()\n"
        "signal.signal(signal.SIGINT, callback._note_signal)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('still here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(30)\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "still here\n"
    assert done.returncode == -signal.SIGINT
    assert time.monotonic() - start < 25


def fails(number: int):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture
def nothing_noted(monkeypatch):
    """No note has been given yet in this process."""
    monkeypatch.setattr(files, "_noted", set())


IN_FILE = ["--data.in_memory_mb", "0", "--checkpoint.every_n_steps", "1", "--trainer.max_steps", "4"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_where_nothing_can_be_flushed_to_disk_training_goes_on_with_one_note(train, monkeypatch, nothing_noted, number):
    monkeypatch.setattr(os, "fsync", fails(number))
    result = train(*IN_FILE)
    assert result.status == 0, result.err
    assert result.err.count("cannot flush to disk") == 1
    assert os.strerror(number) in result.err
    assert state(Path("lightning_logs/tiny/version_0"))["global_step"] == 4


def test_a_disk_that_fails_while_it_is_flushed_is_no_such_file_system(train, monkeypatch, nothing_noted):
    monkeypatch.setattr(os, "fsync", fails(errno.EIO))
    result = train("--trainer.max_steps", "4")
    assert result.status == 2
    assert "could not be written" in result.err


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, 524])
def test_where_no_file_can_be_locked_training_goes_on_with_one_note(train, monkeypatch, nothing_noted, number):
    monkeypatch.setattr("fcntl.flock", fails(number))
    result = train(*IN_FILE)
    assert result.status == 0, result.err
    assert result.err.count("cannot lock files") == 1
    assert "Warning" not in result.err
    assert train(*IN_FILE, "--trainer.max_steps", "5", "--ckpt_path", "last").status == 0
