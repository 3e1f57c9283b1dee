"""LitLanguageModel: what a training step is, what is written of it, and how the weights are updated."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, LearningRateFinder
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

import minigpt
from minigpt.errors import MiniGPTError, note
from minigpt.evaluation import TextMetrics
from minigpt.generation.engine import check_network
from minigpt.models import describe
from minigpt.seeds import derive_seed
from minigpt.training.callbacks import FinalValidation, boards
from minigpt.training.checkpointing import made_with
from minigpt.training.datamodule import TextDataModule
from minigpt.training.optim import OPTIMIZERS, full_tensor, parameter_groups, schedule

# TensorBoard's tab of combined charts: the two curves, and in bits with the floors as lines beside them.
CHARTS = {
    "loss": {"train and validation, nats per token": ["Multiline", ["train/loss", "val/loss"]]},
    "bits per character": {
        "train, validation and floors": [
            "Multiline",
            [f"{part}/bits_per_char" for part in ("train", "val")]
            + [f"floors/{name}" for name in ("uniform", "unigram", "bigram", "xz")],
        ]
    },
}


class LitLanguageModel(LightningModule):
    """Trains a network to predict the next token with cross-entropy.

    Args:
        network: Any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits: `minigpt.GPT`,
            `minigpt.TinyGPT` or a class of one's own; see `minigpt.models`.
        optimizer: `adamw`, or `muon`: Muon for the blocks' matrices and AdamW for the rest.
        learning_rate: AdamW's step size.
        muon_learning_rate: Muon's step size.
        weight_decay: The decay of matrices and embeddings.
        decay_vectors: Decay biases and norms too, as plain AdamW does.
        beta2: AdamW's second moment's memory.
        lr_schedule: `constant`, `cosine`, or `wsd` (stable, then a straight line down).
        warmup_steps: Steps in which the learning rates rise from zero; fewer where the training is shorter.
        min_lr: The value to which cosine and wsd lower learning_rate; Muon's falls by the same factor.
        decay_steps: The step at which they are there; null for the end of the training. A run that is resumed with more
            steps has its schedule laid anew over all of them.
        cooldown: The share of those steps in which wsd goes down.
        activation_checkpointing: Keep only what goes from block to block, and compute the rest again for the gradients:
            less memory for a third more work, and the same bits. For networks that have such a flag, as GPT does.
        compile: Spend up to a minute before the first step on faster code for all others; where that cannot be done,
            train without, and say so.
        seed: Where the randomness of a step comes from; always the same as seed_everything.

    Raises:
        MiniGPTError: A switch or rate is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        muon_learning_rate: float = 0.02,
        weight_decay: float = 0.01,
        decay_vectors: bool = False,
        beta2: float = 0.999,
        lr_schedule: str = "constant",
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        decay_steps: int | None = None,
        cooldown: float = 0.4,
        activation_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 1337,
    ):
        super().__init__()
        rates = {"learning_rate": learning_rate, "muon_learning_rate": muon_learning_rate}
        for key, value in (rates | {"weight_decay": weight_decay, "min_lr": min_lr}).items():
            if not (math.isfinite(value) and value >= 0):
                raise MiniGPTError(f"model.{key} is {value}. Give it a number of 0 or more.")
        if not 0 <= beta2 < 1:
            raise MiniGPTError(f"model.beta2 is {beta2}. Give it a number from 0 up to, but not, 1.")
        if not isinstance(network, nn.Module):
            raise MiniGPTError(f"The network is a {type(network).__name__}. Give an instance of a torch.nn.Module.")
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        if activation_checkpointing:
            if not hasattr(network, "activation_checkpointing"):
                raise MiniGPTError(f"{type(network).__name__} has no activation_checkpointing. Leave the setting out.")
            network.activation_checkpointing = True
        self.architecture = describe(network)
        self.optimizer_class: str | None = None  # the class that --optimizer names in place of `optimizer`
        self.val_metrics = TextMetrics()
        self._more_metrics: list[TextMetrics] = []  # of further validation loaders
        self._losses: list[torch.Tensor] = []
        self._loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None  # compiled, where that is asked
        self.last_record: dict = {}  # the last training metrics written, and their step
        self.paused = 0.0  # seconds since training began that went into validations and samples
        self._mark: tuple[int, float] | None = None  # the step and the second of the last measure of speed
        self._floors: dict[str, float] = {}
        self.horizon: int | None = None  # the step at which the schedule ends
        self._kept_horizon: int | None = None  # as it is in the checkpoint that training goes on from
        self._optimizer: torch.optim.Optimizer | None = None
        self._scheduler: LambdaLR | None = None
        self.optimizer()  # a mistake in its settings is answered now, not when training starts
        self.set_schedule(10)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """`(B, T)` ids to `(B, T, V)` logits."""
        return self.network(idx)

    @property
    def block_size(self) -> int:
        """The longest window that the network takes, for generation and evaluation; absent where it names none."""
        return self.network.block_size

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook it is in some 40 times a step. A torch module looks at each assignment for parameters
        # and buffers, which for these alone took a tenth of a small model's step (benchmarks/train_overhead.py).
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the settings, over the parameters in their groups.

        Raises:
            MiniGPTError: There is no such optimizer, or nothing for it to do.
        """
        rates = self.hparams
        groups = parameter_groups(
            self.network, rates.optimizer, rates.learning_rate, rates.muon_learning_rate, rates.weight_decay,
            rates.decay_vectors,
        )  # fmt: skip
        return OPTIMIZERS[rates.optimizer](groups, betas=(0.9, rates.beta2))

    def configure_optimizers(self) -> Any:
        """The optimizer and, unless the rates are constant, a LambdaLR with the schedule's factor at each step."""
        self._optimizer = optimizer = self.optimizer()
        self.set_schedule(max(self._kept_horizon or 0, self._total_steps()))
        if not self._scheduled:
            return optimizer
        self._scheduler = LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """The callback that every training takes: a validation at its last step."""
        return [FinalValidation()]

    def _total_steps(self) -> int:
        """The optimizer steps that the Trainer will do; -1 where only time ends them."""
        trainer = self.trainer
        if trainer.max_steps < 0 and (trainer.max_epochs or -1) > 0:
            return int(trainer.estimated_stepping_batches)
        return trainer.max_steps

    def setup(self, stage: str) -> None:
        """Learn from the data how many characters each token stands for and, to train, what the floors are.

        Raises:
            MiniGPTError: The network does not take the windows or the tokens of the data, or returns something else
                than logits; or Lightning's search for a learning rate is asked of two optimizers in one.
        """
        datamodule = self.trainer.datamodule
        if isinstance(datamodule, TextDataModule):
            check_network(self.network, datamodule.vocab_size, datamodule.block_size)
            if getattr(self.network, "block_size", None) is None:
                self.network.block_size = datamodule.block_size  # text is generated from windows as it was trained on
            for metrics in (self.val_metrics, *self._more_metrics):
                metrics.lengths = datamodule.tokenizer.lengths
            if stage == "fit":
                self._floors = {f"floors/{name}": bits for name, bits in datamodule.floors.items()}
        if self.hparams.optimizer == "muon" and any(isinstance(c, LearningRateFinder) for c in self.trainer.callbacks):
            raise MiniGPTError(
                "lr_find gives one learning rate to all parameters, and muon takes two (learning_rate and "
                "muon_learning_rate). Search with optimizer='adamw', or with scripts/sweep.py."
            )

    def on_train_start(self) -> None:
        """Compute rates and schedule anew, which a checkpoint does not know; write its last record again."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        own = [self._scheduler] if self._scheduled else []
        if self.trainer.optimizers == [self._optimizer] and schedulers == own:  # not another's, such as lr_find's
            self._resume_schedule()
            self._apply_rates()
        self._kept_horizon = None  # a later training of this module may be a new one
        self._mark = None
        for board in boards(self.trainer):
            board.add_custom_scalars(CHARTS)
        if self.last_record.get("step") == self.global_step:  # purge_step hides what was written at this step
            self._write(self.last_record["metrics"], self.global_step)

    def _apply_rates(self) -> None:
        """Have this start's rates and schedule win over the checkpoint's, before the first step."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        groups = self.optimizer().param_groups
        for group, given in zip(optimizer.param_groups, groups, strict=True):
            group.update({key: given[key] for key in ("lr", "weight_decay")})
            if self._scheduled:
                group["initial_lr"] = given["lr"]
            if "betas" in group:  # MuonAdamW's groups have them from their first step on
                group["betas"] = (0.9, self.hparams.beta2)
        if self._scheduled:
            scheduler = self._scheduler
            scheduler.base_lrs = [group["lr"] for group in groups]
            scheduler.lr_lambdas = [self._factor] * len(groups)
            scheduler.last_epoch = self.global_step
            for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = base * self._factor(self.global_step)

    def _resume_schedule(self) -> None:
        """Lay the schedule over the checkpoint's steps or this run's, whichever are more, and say what follows."""
        kept, last, step = self._kept_horizon, self._total_steps(), self.global_step
        self.set_schedule(max(kept or 0, last))
        if not self._scheduled:
            return
        if shortened := self._shortened:
            note(f"The learning-rate schedule has {self.horizon} steps, for which {shortened}.")
        if step and kept and self.horizon != kept:
            rate = self.hparams.learning_rate * self._factor(step)
            note(
                f"The learning-rate schedule is laid anew over {self.horizon} steps, {kept} before: training goes on "
                f"after step {step} at learning rate {rate:.3g}."
            )
        if (last < 0 or last > self.horizon) and self._factor(self.horizon) == 0:
            end = f" to {last}" if last > 0 else " on"
            note(
                f"From step {max(step, self.horizon)}{end} the learning rate is 0, so nothing is learned. Raise "
                "model.decay_steps or model.min_lr."
            )

    def set_schedule(self, steps: int) -> None:
        """Lay the learning rates' schedule over so many steps, unless the settings name the number.

        A warm-up that is as long as the whole is shortened to a tenth of it.

        Raises:
            MiniGPTError: The schedule is unknown, or has no end.
        """
        rates = self.hparams
        self.horizon = rates.decay_steps or steps
        self._scheduled = rates.lr_schedule != "constant" or rates.warmup_steps > 0
        warmup, self._shortened = rates.warmup_steps, ""
        if self._scheduled and 0 < self.horizon <= warmup:
            warmup = self.horizon // 10
            self._shortened = f"model.warmup_steps is {warmup} in place of {rates.warmup_steps}"
        floor = min(1.0, rates.min_lr / rates.learning_rate) if rates.learning_rate else 0.0
        self._factor = schedule(rates.lr_schedule, warmup, self.horizon, floor, rates.cooldown)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The mean cross-entropy of a batch of windows."""
        if self._loss is None:
            self._loss = self._compile(*batch) if self.hparams.compile else self.loss
        # The randomness of a step is a function of (seed, step) as its batch is, so a resume has nothing to restore.
        rank = [self.trainer.global_rank] * (self.trainer.world_size > 1)
        place = ("step", self.trainer.fit_loop.total_batch_idx, *rank)
        _seed_generators(self.device, derive_seed(self.hparams.seed, *place))
        x, y = batch
        loss = self._loss(x, y)
        trainer = self.trainer
        step = trainer.global_step + 1
        # Logging costs as much as a step of a small model: it is done on the steps that are written, on no other.
        if step == 1 or (trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0):
            known = self.val_metrics.lengths is not None
            characters = self.val_metrics.characters(y) / y.numel() if known else loss.new_tensor(math.nan)
            self._losses.append(torch.stack([loss.detach(), characters]))
            if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                means = torch.stack(self._losses).mean(0)
                self._record_train(*trainer.strategy.reduce(means, reduce_op="mean"), step)
                self._record_speed(y.numel() * trainer.accumulate_grad_batches * trainer.world_size, step)
                self._losses.clear()
        return loss

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of `(B, T)` next ids y after the ids x."""
        return F.cross_entropy(self.network(x).flatten(0, 1), y.flatten())

    def _compile(self, x: torch.Tensor, y: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """`loss` as compiled code, or `loss` itself where that fails or gives other gradients, with a note."""
        note("(compiling the training step, for up to a minute)")
        torch.compiler.reset()  # it compiles a function for a few models only, and trainings before may have used them
        compiled, began = torch.compile(self.loss), time.monotonic()
        try:
            right = self._same_gradients(compiled, x, y)
        except Exception:  # each stage of the compiler has its own
            note("The step cannot be compiled here, for want of a C++ compiler perhaps; training goes on without.")
            return self.loss
        if not right:
            note("The compiled step gives other gradients than the model here; training goes on without it.")
            return self.loss
        note(f"(compiled in {time.monotonic() - began:.0f} s)")
        return compiled

    def _same_gradients(self, compiled: Callable, x: torch.Tensor, y: torch.Tensor) -> bool:
        """Whether compiled code gives the gradients of `loss`, up to rounding and to what dropout changes in them."""
        # Unlike `backward` this leaves no gradients and wakes none of the hooks by which processes add theirs up.
        weights = [p for p in self.network.parameters() if p.requires_grad]

        def gradients(loss: Callable) -> list[torch.Tensor | None]:  # FSDP2 computes with copies of its own: None
            return torch.autograd.grad(loss(x, y), weights, allow_unused=True)

        found = zip(gradients(self.loss), gradients(self.loss), gradients(compiled), strict=True)
        found = [each for each in found if each[0] is not None and each[0].isfinite().all()]
        all_of_them = sum(one.norm() for one, _, _ in found)
        return all(
            (other - one).norm() <= 3 * (two - one).norm() + 0.1 * one.norm() + 1e-3 * all_of_them
            for one, two, other in found
        )

    def _record_train(self, loss: torch.Tensor, chars_per_token: torch.Tensor, step: int) -> None:
        self.log("train/loss", loss, prog_bar=True, logger=False)
        metrics = {"train/loss": loss.item(), "train/perplexity": loss.exp().item()}
        if self.val_metrics.lengths is not None:
            metrics["train/bits_per_char"] = loss.item() / math.log(2) / chars_per_token.item()
        metrics["train/learning_rate"] = self.trainer.optimizers[0].param_groups[-1]["lr"]
        self.last_record = {"step": step, "metrics": metrics}
        self._write(metrics, step)

    def _record_speed(self, tokens_per_step: int, step: int) -> None:
        """Tokens per second of training since the last measure; not part of the record, since no two runs agree."""
        now = time.monotonic() - self.paused
        if self._mark:
            then, since = self._mark
            self._write({"train/tokens_per_second": (step - then) * tokens_per_step / (now - since)}, step)
        self._mark = (step, now)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the norm of the gradients, before they are clipped, to the record of a step that has one."""
        step = self.global_step + 1
        if self.last_record.get("step") == step:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
            gradient = {"train/gradient_norm": full_tensor(norm).item()}
            self.last_record["metrics"] |= gradient
            self._write(gradient, step)

    def on_validation_start(self) -> None:
        """A validation is no time of training."""
        self._validation_began = time.monotonic()

    def on_validation_end(self) -> None:
        """Nor is what was drawn of it."""
        self.paused += time.monotonic() - self._validation_began

    def validation_step(
        self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Score a batch of windows without autocast: in float32, unless the weights themselves are not."""
        x, y = batch
        while dataloader_idx > len(self._more_metrics):
            self._more_metrics.append(TextMetrics(self.val_metrics.lengths).to(self.device))
        metrics = (self.val_metrics, *self._more_metrics)[dataloader_idx]
        with torch.autocast(self.device.type, enabled=False):
            metrics.update(self.network(x), y)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch as a validation does."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:
        """The `(B, T, V)` logits of `(B, T)` ids, which may come with their targets."""
        x = batch if isinstance(batch, torch.Tensor) else batch[0]
        with torch.autocast(self.device.type, enabled=False):
            return self.network(x)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole validation text, in a training with the floors as straight lines beside them."""
        self._log_scores("val")
        if self.trainer.state.fn == "fit" and self._floors:
            self.log_dict(self._floors)

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole test text."""
        self._log_scores("test")

    def _log_scores(self, part: str) -> None:
        self.val_loss_by_position = self.val_metrics.by_position.compute()
        scores = {f"{part}/{name}": value for name, value in self.val_metrics.compute().items()}
        for n, metrics in enumerate(self._more_metrics, 1):
            scores |= {f"{part}_{n}/{name}": value for name, value in metrics.compute().items()}
        for metrics in (self.val_metrics, *self._more_metrics):
            metrics.reset()
        if self.trainer.state.fn == "fit":
            scores["step"] = torch.tensor(float(self.global_step))  # curves carry the number of finished steps
        self.log_dict(scores)

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
            "optimizer": self.optimizer_class,
            "data": datamodule.describe(self.trainer.log_dir),
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "horizon": self.horizon,
            "made_with": made_with(self.trainer),
            "last_record": self.last_record,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Take back what was last written and where the schedule ends, for `on_train_start`."""
        about = checkpoint.get("minigpt", {})
        self.last_record, self.horizon = about.get("last_record", {}), about.get("horizon")
        self._kept_horizon = self.horizon


def _seed_generators(device: torch.device, seed: int) -> None:
    torch.random.default_generator.manual_seed(seed)  # a hundred times cheaper than torch.manual_seed
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
