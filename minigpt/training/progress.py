"""The progress of a training on the terminal."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from minigpt import processes
from minigpt.errors import check_number
from minigpt.terminal import GAP, Bar, compact, on_one_line
from minigpt.training.callbacks import INDENT, LENGTH, Samples
from minigpt.training.metrics import Throughput, TrainMetrics
from minigpt.training.resume import validation_due
from minigpt.training.typed import callback_of, callbacks_of, needed_text_data
from minigpt.words import COLUMNS, message


class Progress(ProgressBar):
    """Shows the progress of a run on stderr: plain lines, and on a terminal also a bar.

    Args:
        every_n_steps: Optimizer steps between two lines; the first step and each validation have a line, too.
    """

    def __init__(self, every_n_steps: int = 100):
        super().__init__()
        check_number("progress.every_n_steps", every_n_steps, at_least=1, whole=True)
        self.every_n_steps = every_n_steps
        self._bar: Bar | None = None
        self._silent = False

    def disable(self) -> None:
        """Write nothing, as in all processes but the first."""
        self._silent = True

    def enable(self) -> None:
        """Write again, for example after Lightning's learning-rate finder, which disables the progress."""
        self._silent = processes.rank() > 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at the current step of the training."""
        data = needed_text_data(trainer, "Progress")
        self._tokens_per_step = data.batch_size * data.block_size * trainer.accumulate_grad_batches
        self._clock, self._metrics = callback_of(trainer, Throughput), callback_of(trainer, TrainMetrics)
        self._step, self._mark = trainer.global_step, (trainer.global_step, self._clock.seconds())
        self._bar = Bar(
            message("tokens"), trainer.max_steps if trainer.max_steps > 0 else None, self._step, self._tokens_per_step,
            figures=self._figures, silent=self._silent,
        )  # fmt: skip
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance the bar, and write a line if it is due and no validation is about to write one."""
        step = trainer.global_step
        if self._bar is None or step == self._step:
            return
        self._step = step
        self._bar.move(step)
        if (step == 1 or step % self.every_n_steps == 0) and not validation_due(trainer):
            self._line(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the bar, which does not move during the validation."""
        if self._bar and not trainer.sanity_checking:
            self._bar.move(self._step, at_once=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a line with the validation's metrics, and below it a sample of the model."""
        if self._bar is None or trainer.sanity_checking:  # in `Trainer.validate` there is no bar
            return
        loss, bits = (trainer.callback_metrics[f"val/{name}"].item() for name in ("loss", "bits_per_char"))
        self._line(trainer, message("val_loss", loss), message("bits", bits))
        for samples in callbacks_of(trainer, Samples):
            text = samples.beginning(trainer, pl_module)
            if text and not self._silent:
                print(INDENT + on_one_line(text, LENGTH), file=sys.stderr, flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar; the lines stay."""
        if self._bar:
            self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self.on_train_end(trainer, pl_module)

    def _line(self, trainer: Trainer, *validation: str) -> None:
        if self._silent:
            return
        now = self._clock.seconds()
        (from_step, then), self._mark = self._mark, (self._step, now)
        of_total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        parts = [message("step", f"{self._step}{of_total}")]
        if record := self._metrics.last_record:
            train, step = message("train_loss", record["metrics"]["train/loss"]), record["step"]
            parts.append(train if step == self._step else message("of_step", train, step))
        line = GAP.join([*parts, *validation])
        if self._step > from_step:  # a resume may validate before any step
            speed = (self._step - from_step) * self._tokens_per_step / (now - then)
            longer = f"{line}{GAP}{message('speed', compact(speed))}"
            line = longer if len(longer) <= COLUMNS else line
        print(line, file=sys.stderr, flush=True)

    def _figures(self) -> list[str]:
        """Return the metrics of the last record, as the bar shows them."""
        if not (metrics := self._metrics.last_record.get("metrics")):
            return []
        return [message("bar_loss", metrics["train/loss"]), message("bar_bits", metrics["train/bits_per_char"])]
