"""LoRA in a training: its settings, and the adapters of a new or a resumed run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy

from minigpt import loading
from minigpt.errors import MiniGPTError, check_number, note
from minigpt.models import lora, n_parameters
from minigpt.training.continuation import Continuation
from minigpt.training.module import LitLanguageModel
from minigpt.training.start import Start
from minigpt.training.typed import callbacks_of
from minigpt.words import message


@dataclass
class LoRA:
    """Train low-rank adapters instead of all weights of a model from --init_from; see `minigpt.models.lora`.

    Args:
        rank: The rank of the adapters of the linear layers, such as 8; 0 or null to train all weights.
        alpha: The adapters' product is multiplied by alpha / rank; null for rank, as in peft's defaults.
        dropout: The share of a layer's inputs that are hidden from its adapter in training.
    """

    rank: int | None = 0
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_number("lora.rank", self.rank, at_least=0, whole=True, optional=True, hint="where 0 means no adapters")
        check_number("lora.alpha", self.alpha, above=0, optional=True)
        check_number("lora.dropout", self.dropout, at_least=0, below=1)

    def resolved(self) -> dict[str, Any] | None:
        """Return the settings as a checkpoint keeps them, with alpha filled in; None without adapters."""
        if not self.rank:
            return None
        return {"rank": self.rank, "alpha": self.alpha or self.rank, "dropout": self.dropout}


def adapt(
    model: LitLanguageModel, trainer: Trainer, settings: LoRA, vocab_size: int, source: Start | Continuation | None
) -> None:
    """Give the network of a run adapters, if there is a rank, over the weights that the run starts or started from.

    Args:
        model: The module; the network of a new run has the weights of its source already.
        trainer: The Trainer of the run.
        settings: The settings of the adapters.
        vocab_size: The size of the vocabulary of the run.
        source: The source of a new run, or the checkpoint that the run continues.

    Raises:
        MiniGPTError: There is no source; the network has no layers to adapt; the optimizer, the strategy or a callback
            does not support adapters; or the source of a resumed run is missing or has changed.
    """
    if not settings.rank:
        return
    if source is None:
        raise MiniGPTError(
            "--lora.rank adapts a trained model to a text, and this training starts from nothing. Pass the model with "
            "--init_from, or omit --lora.rank."
        )
    if model.optimizer_class:
        raise MiniGPTError(
            f"--lora.rank trains with model.optimizer, not with --optimizer {model.optimizer_class}. Omit one of them."
        )
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise MiniGPTError("--lora.rank does not support --trainer.strategy fsdp2. Use --trainer.strategy ddp.")
    if callbacks_of(trainer, WeightAveraging):
        raise MiniGPTError("--lora.rank does not support weight averaging. Omit one of them.")
    if isinstance(source, Continuation):
        n_new = source.content["minigpt"]["lora"]["n_new"]
    else:
        n_new = vocab_size - source.tokenizer.vocab_size
    lora.add(model.network, settings.rank, settings.alpha, settings.dropout, n_new)
    model.strict_loading = False  # checkpoints lack the frozen weights
    model.build_optimizer()  # raises an error if it does not support adapters
    if isinstance(source, Continuation):
        load_base(model, source.file, source.content["minigpt"])
    n_trained = sum(weight.numel() for weight in model.network.parameters() if weight.requires_grad)
    note(message("lora", n_trained, n_parameters(model.network)))


@torch.no_grad()
def load_base(model: LitLanguageModel, file: Path, metadata: dict[str, Any]) -> None:
    """Load the frozen weights of a resumed run, unless its checkpoint holds them.

    Args:
        model: The module, whose network has adapters.
        file: The checkpoint to continue from.
        metadata: The checkpoint's metadata.

    Raises:
        MiniGPTError: The base is missing or has other weights.
    """
    if base := loading.find_base(file, metadata):
        own = model.state_dict()
        for name, weight in loading.base_weights(base, metadata).items():
            own[name].copy_(weight)
        model.origin = metadata["origin"] | {"path": str(base.absolute())}  # the base may have been moved
