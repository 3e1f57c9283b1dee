"""Two processes train as one does, and what stops them leaves no trace either."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, free_port, read
from test_resume import same, state
from test_training import curves, fit

pytestmark = pytest.mark.slow

MODEL = [
    "--model.network", "GPT", "--model.network.preset", "modern", "--model.network.n_layer", "1",
    "--model.network.n_head", "2",
    "--model.network.n_embd", "16", "--data.block_size", "32", "--data.batch_size", "8", "--trainer.accelerator", "cpu",
    "--validation.every_n_steps", "50", "--checkpoint.every_n_steps", "20", "--samples.every_n_steps", "0",
    "--trainer.log_every_n_steps", "10",
]  # fmt: skip
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
EXACT = [
    *MODEL, *TWO, "--trainer.max_steps", "120", "--model.network.dropout", "0.2", "--model.optimizer", "muon",
    "--trainer.accumulate_grad_batches", "2", "--progress.every_n_steps", "10",
    "--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging",
]  # fmt: skip


def start(*flags: str, launcher: Sequence[str] = (sys.executable,)) -> subprocess.Popen:
    command = [*launcher, str(ROOT / "scripts" / "train.py"), "--config", TINY, *flags]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread, start_new_session=True
    )


def finish(process: subprocess.Popen, root: str = ".") -> Path:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("validation loss") == 1, "the first process speaks for all"
    assert err.count("parameters, on cpu") == 1
    return max(Path(root, "lightning_logs/tiny").iterdir())


def torchrun() -> list[str]:
    """The command that starts two processes, which meet at a free port."""
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]


def test_two_processes_see_the_same_batches_and_give_the_same_losses():
    flags = [*MODEL, "--trainer.max_steps", "200"]
    one, two = curves(fit(*flags).run_dir), curves(finish(start(*flags, *TWO)))
    assert one.keys() == two.keys()
    for tag in ("train/loss", "val/loss", "val/bits_per_char", "val/accuracy"):
        assert len(one[tag]) == len(two[tag]) > 3
        for (step, value), (other_step, other) in zip(one[tag], two[tag], strict=True):
            assert step == other_step
            assert value == pytest.approx(other, abs=1e-5), (tag, step)


@pytest.mark.full
def test_a_process_of_torchruns_may_have_the_short_last_window_alone_to_validate(folder):
    (folder / "short.txt").write_text(read("exemple")[:3600], encoding="utf-8")
    flags = [*MODEL, "--trainer.max_steps", "3", "--data.path", "short.txt"]
    one, two = fit(*flags).run_dir, finish(start(*flags, *TWO, launcher=torchrun()))
    ((_, value),), ((_, other),) = curves(one)["val/loss"], curves(two)["val/loss"]
    assert value == pytest.approx(other, abs=1e-5)
    assert state(two)["global_step"] == 3
    assert len(list(one.parent.iterdir())) == 2, "torchrun's processes share one run folder"


SRUN = """#!/bin/bash
trap 'kill -USR1 $(jobs -p)' USR1
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
wait; wait
"""


@pytest.mark.full
def test_a_slurm_job_whose_time_is_up_is_queued_again_and_goes_on(folder, monkeypatch):
    bin_ = folder / "bin"
    bin_.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho "$@" >> "$QUEUE"\n')):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "minigpt", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0",
        "MASTER_PORT": str(free_port()), "QUEUE": str(folder / "queue"), "OMP_NUM_THREADS": "1",
        "PATH": f"{bin_}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    flags = ["--config", TINY, *MODEL, "--trainer.max_steps", "60", "--progress.every_n_steps", "10"]
    flags += ["--trainer.default_root_dir", str(folder)]

    def submit() -> subprocess.Popen:
        command = ["bash", "scripts/slurm.sh", *flags]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | job)

    process = submit()
    for text in process.stderr:
        if text.startswith("step 10/"):
            process.send_signal(signal.SIGUSR1)
            break
    rest = process.communicate(timeout=120)[1]
    assert (folder / "queue").read_text() == "requeue 77\n", rest
    (run,) = (folder / "lightning_logs" / "tiny").iterdir()
    assert 10 <= state(run)["global_step"] < 60
    process = submit()
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 0, rest
    assert state(run)["global_step"] == 60


@pytest.mark.full
def test_two_processes_that_are_stopped_end_with_the_same_bits():
    whole = finish(start(*EXACT))
    line = [*EXACT, "--ckpt_path", "last", "--trainer.default_root_dir", "stopped"]
    process = start(*line)
    for text in process.stderr:
        if text.startswith("step 30/"):
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGKILL)
            break
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 2, rest
    assert "Traceback" not in rest
    assert rest.count("Another process of this training has ended") == 1
    for number, step in ((signal.SIGTERM, 50), (signal.SIGINT, 70), (signal.SIGKILL, 90)):
        process = start(*line)
        for text in process.stderr:
            if text.startswith(f"step {step}/"):
                os.killpg(process.pid, number) if number != signal.SIGTERM else process.send_signal(number)
                break
        rest = process.communicate(timeout=120)[1]
        assert process.returncode == {signal.SIGKILL: -9}.get(number, 128 + number), rest
        if number != signal.SIGKILL:
            assert "Traceback" not in rest
            assert rest.count("Continue with:") == 1
    process = start(*line)
    assert process.communicate(timeout=120) is not None
    assert process.returncode == 0
    (run,) = Path("stopped/lightning_logs/tiny").iterdir()
    assert same(state(run), state(whole))
    assert curves(run) == curves(whole)
    best = [torch.load(r / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for r in (run, whole)]
    assert same(*best)
