"""Callbacks that show the model while it trains: samples of its text; figures, with its settings and embedding."""

import textwrap
import time
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard.summary import hparams

from minigpt.errors import check_number
from minigpt.generation.sampling import SamplingParams
from minigpt.generation.text import LanguageModel
from minigpt.inspection.introspection import name_of
from minigpt.training.distributed import full_network
from minigpt.training.metrics import Throughput, summary_writers
from minigpt.training.typed import callback_of, lit, needed_text_data
from minigpt.words import COLUMNS

DRAWING_SHARE = 0.03  # of the training time, which figures may take
FIRST_DRAWING = 0.5  # seconds that the first figures are expected to take
PROJECTED = 10_000  # the largest vocabulary for the projector
INDENT = " " * 4  # before a sample on the terminal; see progress.py
LENGTH = COLUMNS - len(INDENT) - 4  # characters of that sample
WIDTH = 100  # characters of a line in TensorBoard's text tab, which does not wrap


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
