"""The models by name: any `nn.Module` from `(B, T)` ids to `(B, T, V)` logits that has a `block_size`."""

from torch import nn

from minigpt.errors import MiniGPTError
from minigpt.models.tinygpt import TinyGPT


def build_model(name: str, vocab_size: int, block_size: int, n_embd: int) -> nn.Module:
    """The model called `name`.

    Raises:
        MiniGPTError: No model has this name, or a size is not a positive number.
    """
    if name != "tinygpt":
        raise MiniGPTError(f"There is no model '{name}'. Set model.name to 'tinygpt'.")
    for key, size in {"vocab_size": vocab_size, "block_size": block_size, "n_embd": n_embd}.items():
        if size < 1:
            raise MiniGPTError(f"{key} is {size}. Give it a whole number of 1 or more.")
    return TinyGPT(vocab_size, n_embd=n_embd, block_size=block_size)
