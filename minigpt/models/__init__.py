"""The models by name, and the interface of a network.

A network is any `nn.Module` whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits that do not depend on
later ids. Everything else is optional:

- `block_size`: the longest window that the network takes; without it, generation passes all ids so far.
- `context_size`: the number of last ids that the prediction depends on, if smaller.
- `new_cache(batch_size)`: makes a cache with which generation computes each id once; see `HasCache`.
- `activation_checkpointing`: set to True to recompute activations in the backward pass; see `LitLanguageModel`.
- `config`: the arguments that build GPT or TinyGPT again, in plain values.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Collection
from itertools import chain
from typing import Any, Protocol, TypeGuard

import torch
from torch import nn

import minigpt
from minigpt.errors import MiniGPTError, did_you_mean
from minigpt.models.gpt import GPT
from minigpt.models.tinygpt import TinyGPT


class HasContext(Protocol):
    """A network whose prediction depends on the last `context_size` ids only."""

    context_size: int

    def __call__(self, idx: torch.Tensor) -> torch.Tensor: ...


class Cache(Protocol):
    """The attributes of a cache that generation uses; see `HasCache`."""

    columns: int
    length: torch.Tensor


class HasCache(Protocol):
    """A network with a cache, so that generation computes each id once.

    `new_cache(batch_size)` makes an empty cache. `forward(idx, cache)` returns the logits of `(B, n)` ids that continue
    the rows of the cache, and adds these ids to it. `cache.columns` is the largest number of ids that a row has had, 0
    at first. `cache.length`, `(B,)`, is the number of ids in each row. It may be lowered: the row then forgets its last
    ids. Rows of unequal length are thus read at once: padded on the right, and then their lengths are set.
    """

    def new_cache(self, batch_size: int) -> Cache: ...

    def __call__(self, idx: torch.Tensor, cache: Any = None) -> torch.Tensor: ...


NETWORKS: dict[str, type[nn.Module]] = {"minigpt.GPT": GPT, "minigpt.TinyGPT": TinyGPT}
_INIT_ARGS = "_minigpt_init_args"


def class_path_of(network: nn.Module) -> str:
    """Return the import path of a network's class, such as `minigpt.GPT` or `my_models.GRU`."""
    kind = type(network)
    known = {other: path for path, other in NETWORKS.items()}
    return known.get(kind, f"{kind.__module__}.{kind.__qualname__}")


def describe(network: nn.Module) -> dict[str, Any]:
    """Return the `class_path` and `init_args` of a network, in plain values; `init_args` is None if unknown."""
    known = getattr(network, "config", None) if type(network) in NETWORKS.values() else None
    return {"class_path": class_path_of(network), "init_args": known or vars(network).get(_INIT_ARGS)}


def instantiate(kind: type[nn.Module], **init_args: Any) -> nn.Module:
    """Build a network and store its arguments for `describe`.

    Raises:
        MiniGPTError: The network does not fit into memory, or its arguments are wrong.
    """
    try:
        network = kind(**init_args)
    except MiniGPTError:
        raise
    except Exception as error:  # user code can raise anything
        if kind in NETWORKS.values() and isinstance(error, (RuntimeError, MemoryError)):
            raise MiniGPTError(
                f"A network with these sizes does not fit into memory: {init_args}. Lower one of them."
            ) from error
        raise MiniGPTError(
            f"The network {kind.__name__} cannot be built with {init_args}: {with_location(error)}."
        ) from error
    vars(network)[_INIT_ARGS] = init_args
    return network


def set_block_size(network: nn.Module, block_size: int) -> None:
    """Give a network without a `block_size` this one, so that generation passes it windows of at most that length."""
    if getattr(network, "block_size", None) is None:
        network.block_size = block_size  # type: ignore[assignment]  # a number, not a tensor


def recompute_activations(network: nn.Module) -> None:
    """Switch a network's `activation_checkpointing` on.

    Raises:
        MiniGPTError: The network has no such attribute.
    """
    if not hasattr(network, "activation_checkpointing"):
        raise MiniGPTError(f"{type(network).__name__} has no activation_checkpointing. Omit the setting.")
    network.activation_checkpointing = True  # type: ignore[assignment]  # a boolean, not a tensor


def build_network(description: dict[str, Any], allow_code: Collection[str] = ()) -> nn.Module:
    """Build a network from its description.

    Args:
        description: `class_path` and `init_args`, as `describe` returns them.
        allow_code: The modules outside minigpt whose classes may be imported. The working folder is searched too.

    Raises:
        MiniGPTError: The class is not allowed or does not exist, or its arguments are wrong or unknown.
    """
    path, init_args = description["class_path"], description["init_args"]
    check_allowed(path, allow_code)
    kind = NETWORKS.get(path) or import_network(path)
    if init_args is None:
        raise MiniGPTError(
            f"The network {path} was created in Python, so its arguments are unknown. Pass an instance: "
            "minigpt.load(RUN, network=...)."
        )
    return instantiate(kind, **init_args)


def check_allowed(path: str, allow_code: Collection[str]) -> None:
    """Check that a network that a file names is minigpt's, or may be imported.

    Args:
        path: The import path of the class.
        allow_code: The modules outside minigpt whose classes may be imported.

    Raises:
        MiniGPTError: The class is not allowed.
    """
    module = path.rpartition(".")[0]
    if path not in NETWORKS and not any(f"{path}.".startswith(f"{allowed}.") for allowed in allow_code):
        raise MiniGPTError(
            f"The network of this run is {path}, which is code that minigpt does not know. If you trust it, pass "
            f"--allow_code {module} (in Python allow_code='{module}'), or an instance as network=."
        )


def import_network(path: str) -> type[nn.Module]:
    """Import the class of a network by its path, such as `my_models.GRU`, also from the working folder.

    Raises:
        MiniGPTError: The class cannot be imported, or does not derive from `nn.Module`.
    """
    module, _, name = path.rpartition(".")
    look_in_working_folder()
    try:
        kind = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        if (imported := sys.modules.get(module)) is None or hasattr(imported, name):
            raise _not_imported(path, error) from error
        raise MiniGPTError(f"The module {module} has no class {name}.{did_you_mean(name, vars(imported))}") from error
    except Exception as error:  # user code can raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise MiniGPTError(
                f"The network {path} cannot be imported: there is no module {error.name}. Run the command in the "
                "folder of its file, or add that folder to PYTHONPATH."
            ) from error
        raise _not_imported(path, error) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise MiniGPTError(f"{path} is not a network: a network is a class that derives from torch.nn.Module.")
    return kind


def _not_imported(path: str, error: Exception) -> MiniGPTError:
    return MiniGPTError(f"The network {path} cannot be imported: {with_location(error)}.")


def with_location(error: Exception) -> str:
    """Return the message of an error in user code, with its file and line unless it is a syntax error."""
    says = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    elsewhere = ("<frozen", os.path.dirname(torch.__file__), os.path.dirname(minigpt.__file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(elsewhere)]
    if isinstance(error, SyntaxError) or not frames:
        return says
    return f"{says} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


def look_in_working_folder() -> None:
    """Add the working folder to the end of Python's search path."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def has_context(network: nn.Module) -> TypeGuard[HasContext]:
    """Return whether a network has a `context_size`; `checks.usable_paths` checks that it is correct."""
    return hasattr(network, "context_size")


def has_cache(network: nn.Module) -> TypeGuard[HasCache]:
    """Return whether a network has `new_cache`; `checks.usable_paths` checks that it is correct."""
    return hasattr(network, "new_cache")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's weights; the CPU if it has none."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device


def n_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
