"""Typed access to parts of a training that Lightning does not annotate: callbacks, data and the module."""

from typing import TYPE_CHECKING, TypeVar, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from minigpt.errors import MiniGPTError
from minigpt.training.datamodule import TextDataModule

if TYPE_CHECKING:  # the module imports the callbacks, which import this file
    from minigpt.training.module import LitLanguageModel

C = TypeVar("C", bound=Callback)


def lit(pl_module: LightningModule) -> "LitLanguageModel":
    """Return the module of a hook as a `LitLanguageModel`, for which minigpt's callbacks are made."""
    return cast("LitLanguageModel", pl_module)


def network_of(trainer: Trainer) -> nn.Module:
    """Return the network of the `LitLanguageModel` that a Trainer trains."""
    module = trainer.lightning_module
    assert module is not None, "a module is attached"
    return lit(module).network


def callbacks_of(trainer: Trainer, kind: type[C]) -> list[C]:
    """Return the callbacks of a class that a Trainer has."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it from outside
    return [callback for callback in callbacks if isinstance(callback, kind)]


def callback_of(trainer: Trainer, kind: type[C]) -> C:
    """Return the callback of a class that a training of `LitLanguageModel` has."""
    return callbacks_of(trainer, kind)[0]


def text_data(trainer: Trainer) -> TextDataModule | None:
    """Return the data of a training if they are a TextDataModule, else None."""
    data = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it from outside
    return data if isinstance(data, TextDataModule) else None


def needed_text_data(trainer: Trainer, who: str) -> TextDataModule:
    """Return the data of a training for a callback that needs a TextDataModule.

    Args:
        trainer: The Trainer.
        who: The name of the callback.

    Raises:
        MiniGPTError: The data are not a TextDataModule's.
    """
    data = text_data(trainer)
    if data is None:
        raise MiniGPTError(f"The callback {who} needs a TextDataModule. Pass one to fit, or omit the callback.")
    return data
