"""LitLanguageModel: the training of a language model as a LightningModule."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from minigpt.evaluation import LoaderMetrics
from minigpt.models import describe
from minigpt.training import resume
from minigpt.training.base import NetworkModule
from minigpt.training.optim import OPTIMIZERS, Schedule, parameter_groups


class LitLanguageModel(NetworkModule):
    """Trains a network to predict the next token with cross-entropy.

    It is a LightningModule, whose methods Lightning's Trainer calls; `self.trainer`, `self.hparams` and `self.log_dict`
    are Lightning's. `NetworkModule`, its base class here, also checks the settings, and adds callbacks for speed,
    resuming and logs. A callback is an object whose methods the Trainer calls too, for example after each step.

    The first four arguments are enough for a training like the article's. Those from `muon_learning_rate` to `cooldown`
    refine the optimizer and let its learning rate change over the steps. The last three are for memory, speed and
    resuming, and are used in `NetworkModule`.

    Args:
        network: Any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits; see `minigpt.models`.
        optimizer: `adamw`; or `muon`, which trains the matrices in a transformer's blocks with Muon (an optimizer whose
            updates change a matrix equally in all directions, see `optim.py`), and everything else with AdamW.
        learning_rate: AdamW's step size.
        weight_decay: The weight decay of matrices and embeddings.
        muon_learning_rate: Muon's step size.
        decay_vectors: Apply weight decay to biases and norms too, as plain AdamW does.
        beta2: The decay rate of AdamW's mean of squared gradients.
        lr_schedule: `constant`, `cosine`, or `wsd` (warm-up, stable, then a linear decay).
        warmup_steps: Steps in which the learning rates rise from zero; shortened if the training is shorter.
        min_lr: The learning rate at the end of cosine and wsd; Muon's falls by the same factor.
        decay_steps: The step at which cosine and wsd reach min_lr; None (`null` in YAML) for the last step.
        cooldown: For wsd, the share of the steps in which the rate falls: 0.4 for the last 40 % before decay_steps.
        activation_checkpointing: Store only the activations between blocks and recompute the others in the backward
            pass: less memory for a third more computation, with the same results. The network needs an attribute of
            this name, as GPT has.
        compile: Compile the training step, which takes up to a minute; training continues without it if that fails.
        seed: The seed of dropout; on a command line `--seed_everything` sets it. Before each step the generator is
            seeded with this seed and the number of the step, so that a resumed training draws the same.

    Raises:
        MiniGPTError: A setting is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: str = "adamw",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        muon_learning_rate: float = 0.02,
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
        self.save_hyperparameters(ignore=["network"])  # fills self.hparams with the other arguments
        self.network = network
        self.metrics = LoaderMetrics()  # computes loss, bits per character, perplexity and accuracy of a whole text
        self.check_settings()
        self.architecture = describe(network)  # its class and arguments, with which a checkpoint builds it again

    def forward(self, idx: Tensor) -> Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids."""
        return self.network(idx)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy of the `(B, T)` next ids y, given the ids x."""
        logits = self.network(x)  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())  # of B * T predictions

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of windows.

        Lightning then calls `zero_grad` and `backward`, clips the gradients if the Trainer has a `gradient_clip_val`,
        and calls the optimizer's `step`. The callback `TrainMetrics` logs the loss.
        """
        return self.loss(*batch)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, unless the learning rate is constant, a scheduler.

        After each step the scheduler, a LambdaLR, sets each learning rate to its first value times a factor.
        """
        optimizer = self.build_optimizer()
        # The number of steps of the training; `schedule_steps` says which, if it was resumed with another number.
        schedule = self.build_schedule(resume.schedule_steps(self.trainer))
        if schedule.constant:  # as in the article; a scheduler would only cost time
            return optimizer
        scheduler = LambdaLR(optimizer, schedule.factor)
        # The interval tells Lightning to call the scheduler after each step, and not after each epoch.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the settings, for `adamw` the article's `torch.optim.AdamW`.

        The network's parameters come in groups. A group is a list of parameters with its own learning rate and weight
        decay. Matrices and embeddings are one (with `muon` two). Vectors (biases and norms) are another: they do not
        decay, unless `decay_vectors` is set. In the article they do.

        Raises:
            MiniGPTError: The optimizer is unknown, or the network has no parameters for it.
        """
        settings = self.hparams
        groups = parameter_groups(
            self.network, settings.optimizer, settings.learning_rate, settings.muon_learning_rate,
            settings.weight_decay, settings.decay_vectors,
        )  # fmt: skip
        return OPTIMIZERS[settings.optimizer](groups, betas=(0.9, settings.beta2))  # adamw: AdamW(groups, betas=...)

    def build_schedule(self, steps: int) -> Schedule:
        """Return the schedule of the learning rates, which ends after `decay_steps` or, without them, after `steps`.

        Raises:
            MiniGPTError: The schedule is unknown, or does not fit the steps.
        """
        settings = self.hparams
        # A schedule multiplies the learning rate by a factor. Its last value is min_lr / learning_rate, at most 1.
        last_factor = 0.0
        if settings.learning_rate > 0:
            last_factor = min(1.0, settings.min_lr / settings.learning_rate)
        return Schedule(
            settings.lr_schedule, settings.warmup_steps, steps, last_factor, settings.cooldown, settings.decay_steps
        )

    def on_validation_epoch_start(self) -> None:
        """Start from empty metrics."""
        self.metrics.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch of windows to the metrics of its loader: a Trainer may be given several, each with a number."""
        x, y = batch
        self.metrics.update(dataloader_idx, self.exact_logits(x), y)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation text."""
        self.log_dict(self.metrics.compute("val"))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole test text."""
        self.log_dict(self.metrics.compute("test"))

    # `Trainer.validate`, `test` and `predict` call the methods of their name, in eval mode and without gradients.
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids, which may come with their targets."""
        return self.exact_logits(batch if isinstance(batch, Tensor) else batch[0])

    def exact_logits(self, x: Tensor) -> Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids in the precision of the weights.

        Training may use mixed precision, with 16 bits for some operations. It is off here, so that scores do not depend
        on it.
        """
        with torch.autocast(self.device.type, enabled=False):
            return self.network(x)
