"""LitLanguageModel: the training of a language model as a LightningModule."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from minigpt.errors import MiniGPTError, check_number
from minigpt.evaluation import TextMetrics
from minigpt.generation.contract import check_network
from minigpt.models import describe
from minigpt.training import compiling, resume
from minigpt.training.callbacks import Baselines, Throughput, TrainMetrics
from minigpt.training.optim import OPTIMIZERS, Schedule, parameter_groups
from minigpt.training.typed import text_data


class LitLanguageModel(LightningModule):
    """Trains a network to predict the next token with cross-entropy.

    Args:
        network: Any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits; see `minigpt.models`.
        optimizer: `adamw`; or `muon`, which orthogonalises the updates of the blocks' matrices (Muon) and updates all
            other parameters with AdamW.
        learning_rate: AdamW's step size.
        muon_learning_rate: Muon's step size.
        weight_decay: The weight decay of matrices and embeddings.
        decay_vectors: Apply weight decay to biases and norms too, as plain AdamW does.
        beta2: The decay rate of AdamW's mean of squared gradients.
        lr_schedule: `constant`, `cosine`, or `wsd` (warm-up, stable, then a linear decay).
        warmup_steps: Steps in which the learning rates rise from zero; shortened if the training is shorter.
        min_lr: The learning rate at the end of cosine and wsd; Muon's falls by the same factor.
        decay_steps: The step at which cosine and wsd reach min_lr; null for the last step, also after a resume.
        cooldown: The share of all steps over which wsd decays.
        activation_checkpointing: Store only the activations between blocks and recompute the others in the backward
            pass: less memory for a third more computation, and equal bits. For networks with this attribute, as GPT.
        compile: Compile the training step, which takes up to a minute; training continues without if that fails.
        seed: The seed of dropout; the command line sets it to seed_everything.

    Raises:
        MiniGPTError: A setting is out of range.
    """

    hparams: Any  # the arguments of __init__ by name, without the network
    val_metrics: list[TextMetrics]  # one for each validation loader

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
        self.save_hyperparameters(ignore=["network"])
        for key in ("learning_rate", "muon_learning_rate", "weight_decay", "min_lr"):
            check_number(f"model.{key}", self.hparams[key], at_least=0)
        check_number("model.beta2", beta2, at_least=0, below=1)
        if not isinstance(network, nn.Module):
            raise MiniGPTError(f"The network is a {type(network).__name__}. Pass an instance of a torch.nn.Module.")
        if activation_checkpointing:
            if not hasattr(network, "activation_checkpointing"):
                raise MiniGPTError(f"{type(network).__name__} has no activation_checkpointing. Omit the setting.")
            network.activation_checkpointing = True  # type: ignore[assignment]  # a plain attribute, not a tensor
        self.network = network
        self.architecture = describe(network)  # class and arguments, for checkpoints
        self.val_metrics = nn.ModuleList([TextMetrics()])  # type: ignore[assignment]  # a list, as annotated above
        self.optimizer_class: str | None = None  # the class given by --optimizer, which replaces `optimizer`
        self.schedule_steps = 0  # the length of the schedule
        self.configured: tuple[list[torch.optim.Optimizer], list[LambdaLR]] = ([], [])  # by `configure_optimizers`
        self.optimizer()  # raises on a wrong setting now rather than when training starts
        self.schedule(10)

    def forward(self, idx: Tensor) -> Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids."""
        return self.network(idx)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of the `(B, T)` next ids y, given the ids x."""
        return F.cross_entropy(self.network(x).flatten(0, 1), y.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of windows.

        Lightning then does `zero_grad`, `backward`, clips the gradients and does the optimizer's `step`. The callback
        `TrainMetrics` logs the loss.
        """
        return self.loss(*batch)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics in the mode of this pass, since tensors of inference mode cannot be updated outside it."""
        del self.val_metrics[1:]
        self.val_metrics[0].reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of windows in the precision of the weights, float32 as a rule: autocast is switched off."""
        x, y = batch
        while dataloader_idx >= len(self.val_metrics):  # a loop, since loaders without batches have been skipped
            self.val_metrics.append(TextMetrics(self.val_metrics[0].lengths).to(self.device))
        with torch.autocast(self.device.type, enabled=False):
            self.val_metrics[dataloader_idx].update(self.network(x), y)

    def on_validation_epoch_end(self) -> None:
        """Log loss, bits per character, perplexity and accuracy of the whole validation text."""
        self._log_scores("val")

    on_test_epoch_start = on_validation_epoch_start

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch as `validation_step` does."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log the same metrics for the test text."""
        self._log_scores("test")

    def _log_scores(self, part: str) -> None:
        for n, metrics in enumerate(self.val_metrics):
            group = part if n == 0 else f"{part}_{n}"
            if metrics.loss.update_called:  # a loader may have no batches
                self.log_dict({f"{group}/{name}": value for name, value in metrics.compute().items()})
        if self.trainer.state.fn == "fit":
            self.log("step", float(self.global_step))  # curves carry the number of finished steps

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids, which may come with their targets."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        with torch.autocast(self.device.type, enabled=False):
            return self.network(x)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the settings, with the network's parameters in groups.

        Raises:
            MiniGPTError: The optimizer is unknown, or the network has no parameters for it.
        """
        rates = self.hparams
        groups = parameter_groups(
            self.network, rates.optimizer, rates.learning_rate, rates.muon_learning_rate, rates.weight_decay,
            rates.decay_vectors,
        )  # fmt: skip
        return OPTIMIZERS[rates.optimizer](groups, betas=(0.9, rates.beta2))

    def schedule(self, steps: int) -> Schedule:
        """Return the learning-rate schedule over `decay_steps`, or over so many steps if that is not set.

        Raises:
            MiniGPTError: The schedule is unknown, or does not fit the steps.
        """
        rates = self.hparams
        end = min(1.0, rates.min_lr / rates.learning_rate) if rates.learning_rate else 0.0
        return Schedule(rates.lr_schedule, rates.warmup_steps, steps, end, rates.cooldown, rates.decay_steps)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, unless the rates are constant, a LambdaLR with the schedule's factor."""
        optimizer = self.optimizer()
        schedule = self.schedule(max(self.schedule_steps, resume.total_steps(self.trainer)))
        self.schedule_steps, self.configured = schedule.steps, ([optimizer], [])
        if schedule.constant:
            return optimizer
        scheduler = LambdaLR(optimizer, schedule.factor)
        self.configured[1].append(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks of every training: metrics, and an exact resume, to equal bits."""
        exact = [*compiling.callbacks(self.hparams.compile), *resume.callbacks(self.trainer)]
        metrics = [TrainMetrics(), Throughput(), Baselines()]
        return [*exact, *metrics] if self.trainer.state.fn == "fit" else []

    def setup(self, stage: str) -> None:
        """Check that the network fits the data, and give the metrics the number of characters of each token.

        Raises:
            MiniGPTError: The network does not take the data's windows or tokens, or does not return logits.
        """
        if data := text_data(self.trainer):
            check_network(self.network, data.vocab_size, data.block_size)
            if getattr(self.network, "block_size", None) is None:
                self.network.block_size = data.block_size  # type: ignore[assignment]  # generation takes such windows
            for metrics in self.val_metrics:
                metrics.lengths = data.tokenizer.lengths

    @property
    def block_size(self) -> int:
        """The longest window that the network takes; an AttributeError if the network has no `block_size`."""
        return self.network.block_size  # type: ignore[return-value]  # a number, not a tensor
