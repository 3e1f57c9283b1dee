"""The models by name, and what a network must have.

A network is any `nn.Module` whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits, each of which depends on
no later id. All else is optional:

- `block_size`, the longest window it takes; without one it is given all ids so far.
- `context_size`, how many of the last ids its prediction depends on, if fewer.
- `new_cache(batch_size)`, with which each id is computed once in generation; see `GPT.new_cache`.
- `config`, for `build_model`: the arguments that build it again, in plain values.
"""

from itertools import chain
from typing import Any

import torch
from torch import nn

from minigpt.errors import MiniGPTError, did_you_mean
from minigpt.models.gpt import GPT
from minigpt.models.tinygpt import TinyGPT

MODELS: dict[str, type[nn.Module]] = {"tinygpt": TinyGPT, "gpt": GPT}
_OF_TINYGPT = {"vocab_size", "block_size", "n_embd"}


def build_model(name: str, **settings: Any) -> nn.Module:
    """The model called `name`; a setting that is None is left to the model's own default.

    Raises:
        MiniGPTError: No model has this name, a size is not a positive number, or a setting means nothing to it.
    """
    if name not in MODELS:
        raise MiniGPTError(f"model.name is '{name}'. It takes {' or '.join(MODELS)}.{did_you_mean(name, MODELS)}")
    settings = {key: value for key, value in settings.items() if value is not None}
    if name == "tinygpt":
        for key, value in settings.items():
            if key not in _OF_TINYGPT:
                raise MiniGPTError(f"model.{key} means nothing to tinygpt. Leave it out, or set model.name to 'gpt'.")
            if value < 1:
                raise MiniGPTError(f"model.{key} is {value}. Give it a whole number of 1 or more.")
    try:
        return MODELS[name](**settings)
    except (RuntimeError, MemoryError) as error:
        raise MiniGPTError(f"A model with these sizes does not fit into memory: {settings}. Lower one.") from error


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the CPU for a model without any."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device


def n_parameters(architecture: dict[str, Any]) -> int:
    """How many parameters `build_model(**architecture)` would have; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(**architecture).parameters())
