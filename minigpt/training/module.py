"""LitLanguageModel: what a training step is, what is written of it, and how the weights are updated."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.nn import functional as F

import minigpt
from minigpt.evaluation import TextMetrics
from minigpt.models import build_model
from minigpt.seeds import derive_seed
from minigpt.training.datamodule import TextDataModule


class LitLanguageModel(LightningModule):
    """Trains a model to predict the next token with cross-entropy and AdamW.

    Args:
        vocab_size: The number of distinct tokens, as the tokenizer found them.
        block_size: The longest window of tokens.
        name: The model: `tinygpt`, the article's embedding and linear layer.
        n_embd: The width of the embedding.
        learning_rate: AdamW's step size.
        weight_decay: AdamW's decay of the weights (0.01, torch's own default, in the article).
        seed: Where the randomness of a step comes from; always the same as seed_everything.

    Raises:
        MiniGPTError: There is no such model, or a size or rate is out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 64,
        name: str = "tinygpt",
        n_embd: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        seed: int = 1337,
    ):
        super().__init__()
        for key, value in {"learning_rate": learning_rate, "weight_decay": weight_decay}.items():
            if not (math.isfinite(value) and value >= 0):
                raise minigpt.MiniGPTError(f"model.{key} is {value}. Give it a number of 0 or more.")
        self.save_hyperparameters()
        self.architecture = {"name": name, "vocab_size": vocab_size, "block_size": block_size, "n_embd": n_embd}
        self.model = build_model(**self.architecture)
        self.val_metrics = TextMetrics(vocab_size)
        self._losses: list[torch.Tensor] = []
        self.last_record: dict = {}  # the last training metrics written, and their step

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """`(B, T)` ids to `(B, T, V)` logits."""
        return self.model(idx)

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook it is in some 40 times a step. A torch module looks at each assignment for parameters
        # and buffers, which for these alone took a tenth of a small model's step (benchmarks/train_overhead.py).
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, in the form that updates all parameters in one call."""
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams.learning_rate, weight_decay=self.hparams.weight_decay, fused=True
        )

    def on_train_start(self) -> None:
        """After a resume: this run's rates win over the checkpoint's, and its last record is written again."""
        rates = {"lr": self.hparams.learning_rate, "weight_decay": self.hparams.weight_decay}
        for group in self.optimizers(use_pl_optimizer=False).param_groups:
            group.update(rates)
        datamodule = self.trainer.datamodule
        self.val_metrics.chars_per_token = getattr(datamodule, "chars_per_token", 1.0)
        if self.last_record.get("step") == self.global_step:  # purge_step hides what was written at this step
            self._write(self.last_record["metrics"], self.global_step)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The mean cross-entropy of a batch of windows."""
        # The randomness of a step is a function of (seed, step) as its batch is, so a resume has nothing to restore.
        _seed_generators(self.device, derive_seed(self.hparams.seed, "step", batch_idx))
        x, y = batch
        loss = F.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
        # Logging costs as much as a step of a small model: it is done on the steps that are written, on no other.
        trainer = self.trainer
        step = batch_idx // trainer.accumulate_grad_batches + 1
        if step == 1 or (trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0):
            self._losses.append(loss.detach())
            if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                self._record_train(torch.stack(self._losses).mean(), step)
                self._losses.clear()
        return loss

    def _record_train(self, loss: torch.Tensor, step: int) -> None:
        self.log("train/loss", loss, prog_bar=True, logger=False)
        bits = loss.item() / math.log(2) / self.val_metrics.chars_per_token
        metrics = {"train/loss": loss.item(), "train/perplexity": loss.exp().item(), "train/bits_per_char": bits}
        self.last_record = {"step": step, "metrics": metrics}
        self._write(metrics, step)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Score a batch of validation windows in float32, whatever precision training runs in."""
        x, y = batch
        with torch.autocast(self.device.type, enabled=False):
            self.val_metrics.update(self.model(x), y)

    def on_validation_epoch_end(self) -> None:
        """Write the figures of the whole validation text."""
        metrics = {f"val/{name}": value for name, value in self.val_metrics.compute().items()}
        self.val_metrics.reset()
        self.log_dict(metrics, logger=False)
        self._write({name: value.item() for name, value in metrics.items()}, self.global_step)

    def _write(self, metrics: dict[str, float], step: int) -> None:
        """Write to the loggers at once, under the number of optimizer steps done.

        Lightning writes what `self.log` was given after the hooks of a step, so that a run that is stopped there
        would lose what it logged, and numbers the steps from 0.
        """
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add what sampling, evaluating and resuming need, in plain values, unless the data are not the project's."""
        datamodule = self.trainer.datamodule
        if not isinstance(datamodule, TextDataModule):
            return
        checkpoint["minigpt"] = {
            "version": minigpt.__version__,
            "model": self.architecture,
            "data": datamodule.describe(self.trainer.log_dir),
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "last_record": self.last_record,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take back what was last written, for `on_train_start`."""
        self.last_record = checkpoint.get("minigpt", {}).get("last_record", {})


def _seed_generators(device: torch.device, seed: int) -> None:
    torch.random.default_generator.manual_seed(seed)  # a hundred times cheaper than torch.manual_seed
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
