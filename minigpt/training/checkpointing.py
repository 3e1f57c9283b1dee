"""Checkpoints that are whole or absent, and what a run does when it is stopped."""

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
from minigpt.errors import MiniGPTError, check_number, note
from minigpt.training.callbacks import is_written
from minigpt.training.distributed import local
from minigpt.training.resume import validation_due


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to disk and moves it there: it is never half-written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            MiniGPTError: The file system refuses, a full disk for one; what stood at `path` is still there.
        """
        path = Path(path)
        temporary = files.fresh(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                torch.save(checkpoint, file)
                files.sync_file(file)
            os.replace(temporary, path)
            files.sync(path.parent)
        except BaseException as error:
            with suppress(OSError):  # the folder may be one that cannot be written to
                temporary.unlink(missing_ok=True)
            if isinstance(error, (OSError, RuntimeError)):  # torch reports a failed write as a RuntimeError
                raise _not_written(path, error) from error
            raise


def _not_written(path: Path, error: BaseException) -> MiniGPTError:
    reason = " ".join(str(error).split())[:300]
    denied = getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS)
    return MiniGPTError(
        f"The checkpoint {path} could not be written ({reason}). {'Make it writable' if denied else 'Make room'}, then "
        "go on with --ckpt_path, or, with a sweep, by the same command."
    )


def check_writable(run_dir: Path) -> None:
    """Make sure, before a training, that its checkpoints can be written.

    Raises:
        MiniGPTError: The run folder or the one of its checkpoints cannot be written to.
    """
    for folder in (run_dir, run_dir / "checkpoints"):
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
    """Discard what is still written to a terminal that is gone: the error would come before the checkpoint."""
    for stream in (1, 2):
        try:
            os.get_terminal_size(stream)
        except OSError as error:
            if error.errno == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


class Checkpoints(Checkpoint):
    """Keeps `checkpoints/last.ckpt` and, by validation loss, `checkpoints/best.ckpt` in the run folder.

    `last` is written at the end of an optimizer step and before the validation that follows it; only that of the
    final step comes after its validation, so that a checkpoint at max_steps means a run with nothing left to do.
    Ctrl-C or SIGTERM ends the step, writes `last` and leaves with status 130 or 143; a second one stops at once. In the
    final step and its validation the first leaves `last` as it was, one step before: a resume repeats that, to the same
    bits. A closed terminal (SIGHUP) does the same with status 129, unless SIGHUP is ignored, as under nohup. So does
    SLURM's requeue signal, which also has the job queued again.

    Args:
        every_n_steps: Optimizer steps between two writes of last.ckpt; it is also written at each validation and before
            the final step.
    """

    def __init__(self, every_n_steps: int = 100):
        check_number("checkpoint.every_n_steps", every_n_steps, at_least=1, whole=True)
        self.every_n_steps = every_n_steps
        self.best_loss = math.inf
        self.signal: int | None = None
        self.run_dir: Path | None = None  # None for the folder of the trainer's logger
        self._folder: Path | None = None
        self._step = 0
        self._previous_handlers: dict[int, Any] = {}
        self._lock = ExitStack()
        self._requeue_signal: int | None = None

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints, which is known from `setup` on."""
        assert self._folder is not None, "setup has been called"
        return self._folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder, hold it for this process alone, and take over Ctrl-C, SIGTERM and SIGHUP.

        Raises:
            MiniGPTError: Another process is training this run, or its checkpoints would be written elsewhere.
        """
        log_dir = trainer.log_dir  # of several processes all have to ask
        run_dir = Path(self.run_dir or log_dir or trainer.default_root_dir).absolute()
        self._folder = run_dir / "checkpoints"
        if self.folder.resolve() != run_dir.resolve() / "checkpoints":
            raise MiniGPTError(f"'{self.folder}' leads out of its run folder. Put a real folder in its place.")
        if trainer.is_global_zero:
            run_dir.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = files.lock(run_dir / ".lock", blocking=False)
            except Timeout as error:
                raise MiniGPTError(
                    f"Another process is training {os.path.relpath(run_dir)}. Wait for its end, or start a new run."
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
        """The loss to beat."""
        return {"best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the loss to beat, if the checkpoint that reached it is in this run folder."""
        if (self.folder / "best.ckpt").exists():
            self.best_loss = state_dict["best_loss"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back from Lightning, and leave if a signal came since `setup`."""
        if number := self._agreed_signal(trainer):  # nothing has been done that could be saved
            self._leave(trainer, number)
        signal.signal(signal.SIGTERM, self._note_signal)
        self._step = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back also before a validation that comes first: `resume.DueValidation`'s."""
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
        """Write `last` when it is due, then leave if a signal came.

        Raises:
            MiniGPTError: The loss or a weight is no longer a number; nothing is written over the last good checkpoint.
        """
        step = trainer.global_step
        if step == self._step:  # in the middle of gradient accumulation: not a state to save
            return
        self._step = step
        number = self._agreed_signal(trainer)
        final = step == trainer.max_steps
        written = step % self.every_n_steps == 0 or step == trainer.max_steps - 1
        due = final or number or written or validation_due(trainer)
        if due or is_written(trainer, step):
            self._check_numbers(trainer, pl_module, outputs["loss"])
        if due and not (final and trainer.enable_validation):  # the final one is saved with its validation
            self._save(trainer, "last.ckpt")
        if number:
            self._leave(trainer, number)

    def _agreed_signal(self, trainer: Trainer) -> int | None:
        """The signal to leave by; one that one of several processes got stops all of them, at the same step."""
        if trainer.world_size == 1:
            return self.signal
        number = torch.tensor(self.signal or 0, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return int(number)

    def _leave(self, trainer: Trainer, number: int) -> None:
        """End the process; on SLURM's requeue signal, have the job queued again first, as Lightning's plugin would."""
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
            f"The training broke at step {self._step}, at learning rate {rate:.4g}: the loss ({loss.item():.4g}) or a "
            f"weight is no number. Lower the learning rates or set trainer.gradient_clip_val; {self._last_good()}."
        )

    def _last_good(self) -> str:
        last = self.folder / "last.ckpt"
        return f"the last good checkpoint is {os.path.relpath(last)}" if last.exists() else "there is no checkpoint yet"

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Leave in mid-validation if a signal came; there is nothing new to save. Several processes leave after it."""
        if self.signal and trainer.world_size == 1:
            self._leave(trainer, self.signal)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `best` if the validation loss is the lowest so far, and the final `last`."""
        if number := self._agreed_signal(trainer):
            self._leave(trainer, number)
        if trainer.sanity_checking:
            return
        loss = trainer.callback_metrics["val/loss"].item()
        if loss < self.best_loss:
            self.best_loss = loss
            self._save(trainer, "best.ckpt")
        if trainer.should_stop:
            self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        for logger in trainer.loggers:
            logger.save()  # what was logged up to a checkpoint is on disk when the checkpoint is
        trainer.save_checkpoint(self.folder / name)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals and the run back."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        trainer._signal_connector._original_handlers.update(self._previous_handlers)  # it sets them once more
        self._previous_handlers.clear()
        self._lock.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give them back, since Lightning calls no other hook now; after a fault, say where the run can go on from."""
        if self._folder and isinstance(exception, Exception) and not isinstance(exception, MiniGPTError):
            note(f"The training broke in step {self._step + 1}; {self._last_good()}.")
        self.teardown(trainer, pl_module, "fit")
