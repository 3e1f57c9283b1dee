"""Callbacks that log and show a training: metrics, throughput, baselines, samples, figures and progress."""

import math
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from minigpt import processes
from minigpt.errors import check_number
from minigpt.generation.sampling import SamplingParams
from minigpt.generation.text import LanguageModel
from minigpt.inspection.introspection import name_of
from minigpt.terminal import GAP, Bar, compact, on_one_line
from minigpt.training.distributed import full_network
from minigpt.training.optim import full_tensor
from minigpt.training.resume import validation_due
from minigpt.training.typed import C, callbacks_of, lit, needed_text_data, text_data
from minigpt.words import COLUMNS, message

DRAWING_SHARE = 0.03  # of the training time, which figures may take
FIRST_DRAWING = 0.5  # seconds that the first figures are expected to take
PROJECTED = 10_000  # the largest vocabulary for the projector
INDENT = " " * 4  # before a sample under the metrics of a validation
LENGTH = COLUMNS - len(INDENT) - 4  # characters of that sample
WIDTH = 100  # characters of a line in TensorBoard's text tab, which does not wrap
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


def callback_of(trainer: Trainer, kind: type[C]) -> C:
    """Return the callback of a class that a training of `LitLanguageModel` has."""
    return callbacks_of(trainer, kind)[0]


def wrapped(text: str) -> str:
    """Return a text with long lines broken and continued with an indent, which tells the breaks from the text's own."""
    wrap = textwrap.TextWrapper(WIDTH, subsequent_indent="  ", replace_whitespace=False, break_on_hyphens=False)
    return "\n".join(wrap.fill(line) for line in text.split("\n"))


class Samples(Callback):
    """Writes samples of the model to TensorBoard's text tab: at the start, on an interval and at the end, with the same
    prompts and seed, and with top-k, with top-p and with both.

    The draws have their own random generator, so the training has equal bits with and without samples.

    Args:
        every_n_steps: Optimizer steps between two samples; 0 for none.
        prompts: The texts to continue; characters that do not occur in the corpus are left out.
        max_new_tokens: The number of tokens to draw after each prompt.
        temperature: Below 1 likely tokens become likelier, above 1 rare tokens become less rare; 0 is greedy.
        top_k: Draw from the k likeliest tokens.
        top_p: Draw from the likeliest tokens that together reach this probability.
        seed: The seed of the draws.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        prompts: list[str] = ["un matin,"],  # noqa: B006 (shown as the default in --help)
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 30,
        top_p: float = 0.9,
        seed: int = 0,
    ):
        check_number("samples.every_n_steps", every_n_steps, at_least=0, whole=True, hint="where 0 means no samples")
        check_number("samples.max_new_tokens", max_new_tokens, at_least=0, whole=True)
        self.every_n_steps = every_n_steps
        self.prompts = prompts
        self.sampling = {
            "samples/top_k": SamplingParams(temperature, top_k=top_k),
            "samples/top_p": SamplingParams(temperature, top_p=top_p),
            "samples/top_k_top_p": SamplingParams(temperature, top_k, top_p),
        }
        self.draw: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed, "unknown": "skip"}
        self._step, self._text = -1, ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample the initial model, or the model of a resumed step again, since `purge_step` hides that record."""
        self._step = -1
        self._sample_if_due(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Sample on the interval."""
        self._sample_if_due(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample the final model, unless it has just been sampled."""
        if self.every_n_steps:
            self._sample(trainer, pl_module)

    def beginning(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Return the beginning of the first prompt's sample with top-k and top-p at this step.

        All processes must call this together. The text is empty if samples are off, and in all processes but the first.
        """
        if not (self.every_n_steps and self.prompts):
            return ""
        if self._step == trainer.global_step:  # already drawn on the interval
            return self._text
        if (model := full_network(trainer)) is None:
            return ""
        draw = self.draw | {"max_new_tokens": min(self.draw["max_new_tokens"], LENGTH)}
        lm = LanguageModel(model, needed_text_data(trainer, "Samples").tokenizer)
        return lm.generate(self.prompts[0], **draw, **asdict(self.sampling["samples/top_k_top_p"]))

    def _sample_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._sample(trainer, pl_module)

    def _sample(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self._step:
            return
        self._step, self._text = trainer.global_step, ""
        with callback_of(trainer, Throughput).excluded():
            if (model := full_network(trainer)) is None:
                return
            lm = LanguageModel(model, needed_text_data(trainer, "Samples").tokenizer)
            for tag, params in self.sampling.items():
                texts = [lm.generate(prompt, **self.draw, **asdict(params)) for prompt in self.prompts]
                # Indented, so that Markdown shows a code block and keeps the line breaks.
                block = textwrap.indent("\n\n---\n\n".join(map(wrapped, texts)), "    ", lambda line: True)
                for writer in summary_writers(trainer):
                    writer.add_text(tag, block, self._step)
                self._text = texts[0] if texts else ""  # in the end, with top-k and top-p


class Figures(Callback):
    """Draws figures of the model at validations, and writes the settings and the embedding (for the projector).

    Args:
        every_n_steps: Draw figures at validations whose step is a multiple of this, and at the last step; 0 for none.
            By default they are drawn at the last step, and at a validation if drawing, including that at the last
            step, then takes at most 3 % of the training time so far.
    """

    def __init__(self, every_n_steps: int | None = None):
        check_number(
            "figures.every_n_steps", every_n_steps, at_least=0, whole=True, optional=True,
            hint="where 0 means no figures",
        )  # fmt: skip
        self.every_n_steps = every_n_steps
        self._began = self._drawing = self._longest = 0.0  # when training began, seconds of all drawings, and of one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings."""
        self._began, self._drawing, self._longest = time.monotonic(), 0.0, FIRST_DRAWING
        self._log_settings(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw figures if they are due, with the weights that were validated."""
        if trainer.sanity_checking or not self._is_due(trainer):
            return
        began = time.monotonic()
        self._draw(trainer, pl_module)
        took = time.monotonic() - began
        self._longest = max(took, self._longest if self._drawing else 0.0)
        self._drawing += took

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the embedding for the projector, each vector with the name of its token."""
        tokenizer = needed_text_data(trainer, "Figures").tokenizer
        if self.every_n_steps == 0 or tokenizer.vocab_size > PROJECTED:
            return
        embedding = getattr(full_network(trainer), "embed", None)
        if not isinstance(embedding, nn.Embedding):
            return
        weights = embedding.weight
        names = [name_of(tokenizer.decode([i])) for i in range(len(weights))]
        for writer in summary_writers(trainer):
            writer.add_embedding(weights, names, global_step=trainer.global_step, tag="embedding")

    def _is_due(self, trainer: Trainer) -> bool:
        """Return whether to draw at this validation, which all processes ask at once and answer alike."""
        step = trainer.global_step
        if self.every_n_steps == 0 or step == trainer.max_steps:
            return self.every_n_steps != 0
        if self.every_n_steps:
            return step % self.every_n_steps == 0
        # Twice: now, and at the last step, where figures are drawn in any case.
        affordable = self._drawing + 2 * self._longest <= DRAWING_SHARE * (time.monotonic() - self._began)
        return trainer.strategy.reduce_boolean_decision(affordable)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metric = lit(pl_module).metrics.first.by_position
        length = torch.tensor(len(metric.nats), device=pl_module.device)  # a process may have short windows only
        metric.grow(int(trainer.strategy.reduce(length, reduce_op="max")))
        by_position = metric.compute().cpu()  # sums over all processes
        model = full_network(trainer)
        if model is not None and summary_writers(trainer):
            from minigpt.inspection.figures import draw_all  # imports matplotlib

            data = needed_text_data(trainer, "Figures")
            for name, picture in draw_all(model, data.tokenizer, data.val_ids, by_position).items():
                width, height = picture.pixels
                image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=picture.png())
                self._write(trainer, Summary(value=[Summary.Value(tag=f"val_figures/{name}", image=image)]))

    def _log_settings(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the settings for TensorBoard's table of runs.

        Without a description of the experiment beside them, TensorBoard compares the settings of all runs, and the
        table begins with those that differ.
        """
        data, module = needed_text_data(trainer, "Figures"), lit(pl_module)
        network = module.architecture
        settings = {"model.network": network["class_path"]}
        settings |= {f"model.network.{key}": value for key, value in (network["init_args"] or {}).items()}
        settings |= {f"model.{key}": value for key, value in module.hparams.items() if key != "seed"}
        settings = {key: value for key, value in settings.items() if isinstance(value, (bool, int, float, str))}
        settings |= {
            "seed_everything": data.seed,
            "data.tokenizer": data.tokenizer.kind,
            "data.batch_size": data.batch_size,
        }
        for key in ("max_steps", "accumulate_grad_batches"):
            settings[f"trainer.{key}"] = getattr(trainer, key)
        for summary in hparams(settings, {})[1:]:
            self._write(trainer, summary)

    def _write(self, trainer: Trainer, summary: Summary) -> None:
        for writer in summary_writers(trainer):
            writer._get_file_writer().add_summary(summary, trainer.global_step)


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
