"""LitLanguageModel: the training of a language model as a LightningModule."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from minigpt.errors import MiniGPTError, check_number
from minigpt.evaluation import LoaderMetrics
from minigpt.generation.contract import check_network
from minigpt.models import describe, recompute_activations, set_block_size
from minigpt.training import compiling, resume
from minigpt.training.callbacks import Baselines, Throughput, TrainMetrics
from minigpt.training.optim import OPTIMIZERS, Schedule, parameter_groups
from minigpt.training.typed import text_data


class LitLanguageModel(LightningModule):
    """Trains a network to predict the next token with cross-entropy.

    Args:
        network: Any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits; see `minigpt.models`.
        optimizer: `adamw`; or `muon`, which updates the matrices in a transformer's blocks with Muon (see `optim.py`)
            and everything else with AdamW.
        learning_rate: AdamW's step size.
        muon_learning_rate: Muon's step size.
        weight_decay: The weight decay of matrices and embeddings.
        decay_vectors: Apply weight decay to biases and norms too, as plain AdamW does.
        beta2: The decay rate of AdamW's mean of squared gradients.
        lr_schedule: `constant`, `cosine`, or `wsd` (warm-up, stable, then a linear decay).
        warmup_steps: Steps in which the learning rates rise from zero; shortened if the training is shorter.
        min_lr: The learning rate at the end of cosine and wsd; Muon's falls by the same factor.
        decay_steps: The step at which cosine and wsd reach min_lr; None (null in a recipe) for the training's last.
        cooldown: The share of all steps over which wsd decays.
        activation_checkpointing: Store only the activations between blocks and recompute the others in the backward
            pass: less memory for a third more computation, with the same results. The network needs an attribute of
            this name, as GPT has.
        compile: Compile the training step, which takes up to a minute; training continues without if that fails.
        seed: The seed of dropout: at each step a callback seeds the random numbers with it and the step's number, so
            that a resumed training draws the same ones. The command line passes its seed_everything.

    Raises:
        MiniGPTError: A setting is out of range.
    """

    hparams: Any  # the arguments of __init__, by name

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
        self.save_hyperparameters(ignore=["network"])  # fills self.hparams
        for key in ("learning_rate", "muon_learning_rate", "weight_decay", "min_lr"):
            check_number(f"model.{key}", self.hparams[key], at_least=0)
        check_number("model.beta2", beta2, at_least=0, below=1)
        if not isinstance(network, nn.Module):
            raise MiniGPTError(f"The network is a {type(network).__name__}. Pass an instance of a torch.nn.Module.")
        if activation_checkpointing:
            recompute_activations(network)
        self.network = network
        self.metrics = LoaderMetrics()  # of a validation or test: loss, bits per character, perplexity, accuracy
        # Stored in checkpoints: the network's class and arguments, and the class that `--optimizer` names, if any.
        self.architecture = describe(network)
        self.optimizer_class: str | None = None
        self.origin: dict[str, Any] | None = None  # the model that the weights came from; see `training.start`
        # Built here only so that a wrong setting raises an error now rather than when training starts.
        self.build_optimizer()
        self.build_schedule(steps=10)

    def forward(self, idx: Tensor) -> Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids."""
        return self.network(idx)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of the `(B, T)` next ids y, given the ids x."""
        return F.cross_entropy(self.network(x).flatten(0, 1), y.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of windows.

        Lightning then calls `zero_grad` and `backward`, clips the gradients and calls the optimizer's `step`. The
        callback `TrainMetrics` logs the loss.
        """
        return self.loss(*batch)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and a LambdaLR, which multiplies its rates by the schedule's factor after each step."""
        optimizer = self.build_optimizer()
        schedule = self.build_schedule(resume.schedule_steps(self.trainer))  # as many steps as the Trainer will do
        if schedule.constant:
            return optimizer  # a scheduler takes some 40 microseconds a step
        scheduler = LambdaLR(optimizer, schedule.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the settings, with the network's parameters in groups.

        Raises:
            MiniGPTError: The optimizer is unknown, or the network has no parameters for it.
        """
        settings = self.hparams
        groups = parameter_groups(
            self.network, settings.optimizer, settings.learning_rate, settings.muon_learning_rate,
            settings.weight_decay, settings.decay_vectors,
        )  # fmt: skip
        return OPTIMIZERS[settings.optimizer](groups, betas=(0.9, settings.beta2))

    def build_schedule(self, steps: int) -> Schedule:
        """Return the schedule of the learning rates, which ends after `decay_steps` or, without them, after `steps`.

        Raises:
            MiniGPTError: The schedule is unknown, or does not fit the steps.
        """
        settings = self.hparams
        last_factor = min(1.0, settings.min_lr / settings.learning_rate) if settings.learning_rate else 0.0
        return Schedule(
            settings.lr_schedule, settings.warmup_steps, steps, last_factor, settings.cooldown, settings.decay_steps
        )

    def on_validation_epoch_start(self) -> None:
        """Start from empty metrics."""
        self.metrics.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of windows to the metrics of its loader: a Trainer may be given several, each with a number."""
        x, y = batch
        self.metrics.update(dataloader_idx, self.predict_step(x, batch_idx), y)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation text."""
        self.log_dict(self.metrics.compute("val"))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test text."""
        self.log_dict(self.metrics.compute("test"))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids, which may come with their targets."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        # Switch the mixed precision of training off, so that scores do not depend on it.
        with torch.autocast(self.device.type, enabled=False):
            return self.network(x)

    # The rest serves everything around the lesson: speed, resuming, logs, and networks and data of other kinds.

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks that Lightning adds to every training of this module.

        They speed the network up or compile it; make a resumed training end with exactly the weights of one that was
        never interrupted; and log the metrics of training steps, the speed, and the scores of simple models to compare
        with. Validation alone (`trainer.validate`) needs none of them.
        """
        if self.trainer.state.fn != "fit":
            return []
        speed = compiling.callbacks(self.hparams.compile)
        return [*speed, *resume.callbacks(self.trainer), TrainMetrics(), Throughput(), Baselines()]

    def setup(self, stage: str) -> None:
        """Check that the network fits the data.

        Raises:
            MiniGPTError: The network does not take the data's windows or tokens, or does not return logits.
        """
        if data := text_data(self.trainer):  # None if the loaders are not a TextDataModule's
            check_network(self.network, data.vocab_size, data.block_size)
            set_block_size(self.network, data.block_size)  # for generation, if the network has none
            self.metrics.first.lengths = data.tokenizer.lengths  # characters in each token, for bits per character

    @property
    def block_size(self) -> int:
        """The longest window that the network takes, so that this module can be evaluated as its network can."""
        return self.network.block_size  # type: ignore[return-value]  # a number, not a tensor
