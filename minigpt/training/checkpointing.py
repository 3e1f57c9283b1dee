"""Checkpoints that are never half-written, and the handling of signals that stop a run."""

import errno
import math
import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from filelock import Timeout
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from minigpt import files
from minigpt.checkpoints import as_snapshot
from minigpt.errors import MiniGPTError, check_number, note
from minigpt.training.distributed import local
from minigpt.training.metrics import is_written
from minigpt.training.resume import validation_due
from minigpt.training.snapshots import snapshot_file, thin_out


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, flushes it to disk and renames it, so that it is never half-written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; its weights alone, as a snapshot, if `path` ends in .safetensors.

        Args:
            checkpoint: The content of the checkpoint.
            path: The file to write or to replace.
            storage_options: For a snapshot, the arguments of `as_snapshot`.

        Raises:
            MiniGPTError: The file cannot be written, for example on a full disk; an older file at `path` is kept.
        """
        path = Path(path)
        temporary = files.fresh(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                if path.suffix == ".safetensors":
                    file.write(as_snapshot(checkpoint, **storage_options))
                else:
                    torch.save(checkpoint, file)
                files.sync_file(file)
            os.replace(temporary, path)
            files.sync(path.parent)
        except BaseException as error:
            with suppress(OSError):  # the folder may be read-only
                temporary.unlink(missing_ok=True)
            if isinstance(error, (OSError, RuntimeError)):  # torch reports a failed write as a RuntimeError
                raise _not_written(path, error) from error
            raise


def _not_written(path: Path, error: BaseException) -> MiniGPTError:
    reason = " ".join(str(error).split())[:300]
    denied = getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS)
    remedy = "Make it writable" if denied else "Free some space"
    kind = "snapshot" if path.suffix == ".safetensors" else "checkpoint"
    return MiniGPTError(
        f"The {kind} {path} could not be written ({reason}). {remedy}, then continue with --ckpt_path, or repeat "
        "the command of a sweep."
    )


def check_writable(run_dir: Path) -> None:
    """Check before a training that its checkpoints and snapshots can be written.

    Raises:
        MiniGPTError: The run folder, or its folder of checkpoints or of snapshots, cannot be written to.
    """
    for folder in (run_dir, run_dir / "checkpoints", run_dir / "snapshots"):
        try:
            if folder.exists():
                with TemporaryFile(dir=folder):
                    pass
        except OSError as error:
            raise MiniGPTError(
                f"The run folder '{os.path.relpath(folder)}' cannot be written to ({error.strerror}). Change its "
                "permissions, or copy the run and pass the copy to --ckpt_path."
            ) from error


def _drop_closed_terminal() -> None:
    """Discard further output to a closed terminal, whose errors would prevent the checkpoint."""
    for stream in (1, 2):
        try:
            os.get_terminal_size(stream)
        except OSError as error:
            if error.errno == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


class Checkpoints(Checkpoint):
    """Keeps `checkpoints/last.ckpt` and, by validation loss, `checkpoints/best.ckpt` in the run folder, and snapshots.

    `last` is written at the end of an optimizer step, before a validation. Only for the final step it is written after
    the validation, so that a checkpoint at max_steps means a finished run.

    After Ctrl-C or SIGTERM the current step is completed, `last` is written, and the process exits with status 130 or
    143. A second signal exits at once. In the final step and its validation, `last` stays one step behind, and a resume
    repeats the final step to equal bits. A closed terminal (SIGHUP) is handled alike with status 129, unless SIGHUP is
    ignored, as under nohup. So is SLURM's requeue signal, which also queues the job again.

    Args:
        every_n_steps: Optimizer steps between two writes of last.ckpt, which is also written at each validation and
            before the final step.
        snapshots: The number of snapshots to keep in `snapshots/`, for `RUN@STEP`: the weights after a validation, in
            bfloat16 and without the optimizer's state, spread evenly over all validations. 0 for none.
    """

    def __init__(self, every_n_steps: int = 100, snapshots: int = 0):
        check_number("checkpoint.every_n_steps", every_n_steps, at_least=1, whole=True)
        check_number("checkpoint.snapshots", snapshots, at_least=0, whole=True, hint="where 0 means none")
        self.every_n_steps = every_n_steps
        self.snapshots = snapshots
        self.best_loss = math.inf
        self.signal: int | None = None
        self.run_dir: Path | None = None  # None means the folder of the trainer's logger
        self._folder: Path | None = None
        self._step = 0
        self._previous_handlers: dict[int, Any] = {}
        self._lock = ExitStack()
        self._requeue_signal: int | None = None

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints, available from `setup` on."""
        assert self._folder is not None, "setup has been called"
        return self._folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Determine and lock the run folder, and install handlers for Ctrl-C, SIGTERM and SIGHUP.

        Raises:
            MiniGPTError: Another process is training this run, its folder of checkpoints or of snapshots is a link to
                another place, or the Trainer has another plugin for checkpoints, which cannot write snapshots.
        """
        if self.snapshots and not isinstance(trainer.strategy.checkpoint_io, WholeFileCheckpointIO):
            raise MiniGPTError(
                "Snapshots need the Trainer's plugin WholeFileCheckpointIO() from minigpt.training.checkpointing. Pass "
                "it in plugins, or set checkpoint.snapshots to 0."
            )
        log_dir = trainer.log_dir  # a collective call in all processes
        run_dir = Path(self.run_dir or log_dir or trainer.default_root_dir).absolute()
        self._folder = run_dir / "checkpoints"
        for folder in (self.folder, run_dir / "snapshots"):
            if folder.resolve() != run_dir.resolve() / folder.name:
                raise MiniGPTError(f"'{folder}' is a link out of its run folder. Replace it by a folder.")
        if trainer.is_global_zero:
            run_dir.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = files.lock(run_dir / ".lock", blocking=False)
            except Timeout as error:
                raise MiniGPTError(
                    f"Another process is training {os.path.relpath(run_dir)}. Wait until it ends, or start a new run."
                ) from error
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue_signal = environment.requeue_signal
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup and signal.getsignal(hangup) == signal.SIG_IGN:  # by nohup
            hangup = None
        for number in filter(None, (signal.SIGINT, signal.SIGTERM, hangup, self._requeue_signal)):
            self._previous_handlers[number] = signal.signal(number, self._note_signal)

    def state_dict(self) -> dict[str, Any]:
        """Return the best validation loss."""
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best validation loss if its checkpoint is in this run folder."""
        if (self.folder / "best.ckpt").exists():
            self.best_loss = state_dict["best_loss"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's SIGTERM handler, and exit if a signal came since `setup`."""
        if number := self._agreed_signal(trainer):  # there is nothing to save yet
            self._leave(trainer, number)
        signal.signal(signal.SIGTERM, self._note_signal)
        self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's SIGTERM handler also before a validation that precedes training (`DueValidation`)."""
        if self._previous_handlers and self.signal is None:
            signal.signal(signal.SIGTERM, self._note_signal)

    def _note_signal(self, number: int, frame: Any) -> None:
        self.signal = number
        hung_up = number == getattr(signal, "SIGHUP", None)
        # The kernel and the shell may each send a SIGHUP for one closed terminal.
        signal.signal(number, signal.SIG_IGN if hung_up else signal.SIG_DFL)
        if hung_up:
            _drop_closed_terminal()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Write `last` if it is due, then exit if a signal came.

        Raises:
            MiniGPTError: The loss or a weight is NaN or infinite; the last good checkpoint is not overwritten.
        """
        step = trainer.global_step
        if step == self._step:  # in the middle of gradient accumulation
            return
        self._step = step
        number = self._agreed_signal(trainer)
        final = step == trainer.max_steps
        written = step % self.every_n_steps == 0 or step == trainer.max_steps - 1
        due = final or number or written or validation_due(trainer)
        if due or is_written(trainer, step):
            self._check_numbers(trainer, pl_module, outputs["loss"])
        if due and not (final and trainer.enable_validation):  # the final step is saved after its validation
            self._save(trainer, "last.ckpt")
        if number:
            self._leave(trainer, number)

    def _agreed_signal(self, trainer: Trainer) -> int | None:
        """Return the signal that any process received, so that all of them stop at the same step."""
        if trainer.world_size == 1:
            return self.signal
        number = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)

    def _leave(self, trainer: Trainer, number: int) -> None:
        """Exit; on SLURM's requeue signal, first queue the job again, as Lightning's handler would."""
        if number == self._requeue_signal and trainer.is_global_zero:
            array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
            job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
            try:
                subprocess.run(["scontrol", "requeue", job], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                note(f"The job could not be queued again: {error}.")
        raise SystemExit(128 + number)

    def _check_numbers(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        if loss.isfinite() and all(local(parameter).isfinite().all() for parameter in pl_module.parameters()):
            return
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        raise MiniGPTError(
            f"The training diverged at step {self._step}, at learning rate {rate:.4g}: the loss ({loss.item():.4g}) or "
            f"a weight is NaN or infinite. Lower the learning rates or set trainer.gradient_clip_val; "
            f"{self._last_good()}."
        )

    def _last_good(self) -> str:
        last = self.folder / "last.ckpt"
        return f"the last good checkpoint is {os.path.relpath(last)}" if last.exists() else "there is no checkpoint yet"

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Exit during a validation if a signal came; several processes exit after it."""
        if self.signal and trainer.world_size == 1:
            self._leave(trainer, self.signal)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `best` if the validation loss is the lowest so far, a snapshot, and the final `last`."""
        if number := self._agreed_signal(trainer):
            self._leave(trainer, number)
        if trainer.sanity_checking:
            return
        loss = trainer.callback_metrics["val/loss"].item()
        if loss < self.best_loss:
            self.best_loss = loss
            self._save(trainer, "best.ckpt")
        if self.snapshots:
            run_dir = self.folder.parent
            trainer.save_checkpoint(snapshot_file(run_dir, trainer.global_step), storage_options={"val_loss": loss})
            if trainer.is_global_zero:
                thin_out(run_dir, self.snapshots)
        if trainer.should_stop:
            self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        for logger in trainer.loggers:
            logger.save()  # flush the logs before the checkpoint is written
        trainer.save_checkpoint(self.folder / name)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers and release the lock of the run."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        trainer._signal_connector._original_handlers.update(self._previous_handlers)  # Lightning restores these later
        self._previous_handlers.clear()
        self._lock.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tear down, since Lightning calls no other hook now; after an error, name the last good checkpoint."""
        if self._folder and isinstance(exception, Exception) and not isinstance(exception, MiniGPTError):
            note(f"The training failed in step {self._step + 1}; {self._last_good()}.")
        self.teardown(trainer, pl_module, "fit")
