"""The callbacks, checks and checkpoint metadata of LitLanguageModel."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from torch import nn

from minigpt.errors import MiniGPTError, check_number
from minigpt.evaluation import LoaderMetrics
from minigpt.generation.contract import check_network
from minigpt.models import recompute_activations, set_block_size
from minigpt.training import compiling, resume
from minigpt.training.description import RunDescription
from minigpt.training.metrics import Baselines, Throughput, TrainMetrics
from minigpt.training.typed import lit, text_data


class NetworkModule(LightningModule):
    """A LightningModule around a network, which fits any network, data and Trainer."""

    hparams: Any  # the arguments of __init__ except the network, such as `self.hparams.learning_rate`
    network: nn.Module
    metrics: LoaderMetrics

    # Stored in checkpoints.
    optimizer_class: str | None = None  # the class that `--optimizer` names, in place of the settings' optimizer
    origin: dict[str, Any] | None = None  # the model that the weights came from; see `training.start`

    def check_settings(self) -> None:
        """Check all settings, so that a mistake is reported now rather than when training starts.

        Raises:
            MiniGPTError: A setting is out of range, or the network is not a module.
        """
        for key in ("learning_rate", "muon_learning_rate", "weight_decay", "min_lr"):
            check_number(f"model.{key}", self.hparams[key], at_least=0)
        check_number("model.beta2", self.hparams.beta2, at_least=0, below=1)
        if not isinstance(self.network, nn.Module):
            raise MiniGPTError(
                f"The network is a {type(self.network).__name__}. Pass an instance of a torch.nn.Module."
            )
        if self.hparams.activation_checkpointing:
            recompute_activations(self.network)
        lit(self).build_optimizer()
        lit(self).build_schedule(steps=1)  # any number of steps will do: only the settings are checked

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks that Lightning adds to every training of this module."""
        if self.trainer.state.fn != "fit":  # "fit" is `trainer.fit`; the others are validate, test and predict
            return []
        return [
            *compiling.callbacks(self.hparams.compile),  # on a CPU faster layers that compute the same; compilation
            *resume.callbacks(self.trainer),  # a resumed training ends with the weights of an uninterrupted one
            RunDescription(),  # adds to checkpoints what sampling, evaluation and a resume need to know
            TrainMetrics(),  # logs the loss, learning rate and gradient norm of training steps
            Throughput(),  # logs tokens per second
            Baselines(),  # logs the scores of simple models, to compare with
        ]

    def setup(self, stage: str) -> None:
        """Check that the network fits the data.

        Raises:
            MiniGPTError: The network does not take the data's windows or tokens, or does not return logits.
        """
        if data := text_data(self.trainer):  # None if the loaders are not a TextDataModule's
            check_network(self.network, data.vocab_size, data.block_size)
            set_block_size(self.network, data.block_size)  # for generation, if the network has none
            self.metrics.count_characters(data.tokenizer.lengths)  # for bits per character

    @property
    def block_size(self) -> int:
        """The network's `block_size`, which evaluation and generation read when this module is passed to them."""
        return self.network.block_size  # type: ignore[return-value]  # a number, not a tensor
