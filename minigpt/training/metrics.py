"""Callbacks that write the curves of a training: metrics, throughput, and baselines beside them."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from minigpt.training.optim import full_tensor
from minigpt.training.typed import lit, text_data

# TensorBoard's tab of combined charts. It gives all lines of a run one colour, so a chart has two lines, or one line in
# a band between two baselines: counts of pairs of tokens above, a compressor below.
CHARTS = {
    "loss (nats per token)": {"train and validation": ["Multiline", ["train/loss", "val/loss"]]},
    "bits per character": {
        "validation, in a band between the baselines bigram (above) and xz (below)": [
            "Margin",
            ["val/bits_per_char", "val_baselines/xz", "val_baselines/bigram"],
        ],
        "train and validation": ["Multiline", ["train/bits_per_char", "val/bits_per_char"]],
    },
}


def summary_writers(trainer: Trainer) -> list[SummaryWriter]:
    """Return the summary writers of all TensorBoard loggers of a training."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def is_written(trainer: Trainer, step: int) -> bool:
    """Return whether the metrics of a step are written: at the first step and on Lightning's interval."""
    interval = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it from outside
    return step == 1 or bool(interval and step % interval == 0)


def write(trainer: Trainer, metrics: dict[str, float], step: int) -> None:
    """Write metrics to all loggers under the number of finished steps.

    Lightning writes values from `self.log` after all hooks of a step, so they would be lost when a hook stops the run,
    and it numbers the steps from 0. Lightning's own LearningRateMonitor writes to the loggers directly, too.
    """
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step)


def targets_of(batch: Any) -> torch.Tensor | None:
    """Return the `(B, T)` targets of a batch of windows; None if the batch has another form, such as a dict."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], torch.Tensor):
        return batch[1]
    return None


class TrainMetrics(Callback):
    """Logs loss, perplexity, bits per character, learning rate and gradient norm of a training step.

    Only the steps chosen by `is_written` are logged, since logging takes as long as a step of a small model. The loss
    is the mean over accumulated batches and over processes.
    """

    def __init__(self) -> None:
        self.last_record: dict[str, Any] = {}  # the metrics written last, and their step
        self._written = False
        self._losses: list[torch.Tensor] = []
        self._characters: list[torch.Tensor] = []  # per token, in each accumulated batch

    def state_dict(self) -> dict[str, Any]:
        """Return the last record."""
        return {"last_record": self.last_record}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last record."""
        self.last_record = state_dict["last_record"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record of the step from which a run is resumed again, since `purge_step` hides it."""
        if self.last_record.get("step") == trainer.global_step:
            write(trainer, self.last_record["metrics"], trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Store the number of characters of the targets."""
        step, targets, metrics = trainer.global_step + 1, targets_of(batch), lit(pl_module).metrics.first
        # If an optimizer such as L-BFGS evaluates a step several times, the first evaluation is written.
        self._written = is_written(trainer, step) and self.last_record.get("step") != step
        if self._written and targets is not None and metrics.lengths is not None:
            self._characters.append(metrics.characters(targets) / targets.numel())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of finished steps, which Lightning takes for the x axis; its own numbers begin with 0."""
        if trainer.state.fn == "fit":
            pl_module.log("step", float(trainer.global_step))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Store the loss, which Lightning has divided by the number of accumulated batches."""
        if self._written:
            scaler = getattr(trainer.precision_plugin, "scaler", None)  # in float16
            loss = loss.detach() * trainer.accumulate_grad_batches
            self._losses.append(loss / scaler.get_scale() if scaler else loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the record, before gradients are clipped. A skipped step has no loss and thus no record."""
        losses, characters = self._losses, self._characters
        self._losses, self._characters = [], []
        if not losses:
            return
        self._written = False
        means = torch.stack([torch.stack(values).mean() for values in (losses, characters) if values])
        loss, *characters = trainer.strategy.reduce(means, reduce_op="mean")
        pl_module.log("train/loss", loss, prog_bar=True, logger=False)
        metrics = {"train/loss": loss.item(), "train/perplexity": loss.exp().item()}
        if characters:
            metrics["train/bits_per_char"] = loss.item() / math.log(2) / characters[0].item()
        metrics["train_step/learning_rate"] = optimizer.param_groups[-1]["lr"]
        norm = nn.utils.get_total_norm([p.grad for p in lit(pl_module).network.parameters() if p.grad is not None])
        metrics["train_step/gradient_norm"] = full_tensor(norm).item()
        self.last_record = {"step": trainer.global_step + 1, "metrics": metrics}
        write(trainer, **self.last_record)


class Throughput(Callback):
    """Logs tokens per second of training, on the steps whose metrics are written.

    Time from the start of a validation to the next batch, and time within `excluded`, does not count.
    """

    def __init__(self) -> None:
        self.excluded_seconds = 0.0
        self._stopped_at: float | None = None
        self._mark: tuple[int, float] | None = None  # the step and the time of the last record

    def seconds(self) -> float:
        """Return the seconds of training since an arbitrary start."""
        now = time.monotonic() if self._stopped_at is None else self._stopped_at
        return now - self.excluded_seconds

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Exclude the time within the context from the measurement."""
        began = time.monotonic()
        yield
        if self._stopped_at is None:  # else this time is excluded already
            self.excluded_seconds += time.monotonic() - began

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stopped_at = time.monotonic()

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock again after a validation and its figures and checkpoints."""
        if self._stopped_at is not None:
            self.excluded_seconds += time.monotonic() - self._stopped_at
            self._stopped_at = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the speed since the last record."""
        step = trainer.global_step
        if not is_written(trainer, step) or (self._mark and self._mark[0] == step):
            return
        if self._mark and (targets := targets_of(batch)) is not None:
            then, since = self._mark
            tokens = (step - then) * targets.numel() * trainer.accumulate_grad_batches * trainer.world_size
            write(trainer, {"train_step/tokens_per_second": tokens / (self.seconds() - since)}, step)
        self._mark = (step, self.seconds())


class Baselines(Callback):
    """Logs the scores of simple models on the validation text, as horizontal lines beside the validation curves."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Score the simple models."""
        if stage == "fit" and (data := text_data(trainer)):
            self.values = {f"val_baselines/{name}": bits for name, bits in data.baselines.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make TensorBoard draw curves and baselines in one chart."""
        for writer in summary_writers(trainer):
            writer.add_custom_scalars(CHARTS)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the baselines with each validation of a training."""
        if trainer.state.fn == "fit":
            pl_module.log_dict(self.values)
