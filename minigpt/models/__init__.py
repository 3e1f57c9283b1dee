"""The models by name, and what a network must have.

A network is any `nn.Module` whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits, each of which depends on
no later id. All else is optional:

- `block_size`, the longest window it takes; without one it is given all ids so far.
- `context_size`, how many of the last ids its prediction depends on, if fewer.
- `new_cache(batch_size)`, with which each id is computed once in generation; see `GPT.new_cache`.
- `config`, the arguments that build it again, in plain values, as GPT and TinyGPT have it.
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
    """A network whose prediction depends on the last `context_size` ids alone."""

    context_size: int

    def __call__(self, idx: torch.Tensor) -> torch.Tensor: ...


class Cache(Protocol):
    """The cache of a network, as far as generation knows it; see `GPT.new_cache`."""

    columns: int
    length: torch.Tensor


class HasCache(Protocol):
    """A network that computes each id once in generation."""

    def new_cache(self, batch_size: int) -> Cache: ...

    def __call__(self, idx: torch.Tensor, cache: Any = None) -> torch.Tensor: ...


NETWORKS: dict[str, type[nn.Module]] = {"minigpt.GPT": GPT, "minigpt.TinyGPT": TinyGPT}
_INIT_ARGS = "_minigpt_init_args"


def class_path_of(network: nn.Module) -> str:
    """Return the name by which the class of a network is imported: `minigpt.GPT`, `my_models.GRU`."""
    kind = type(network)
    known = {other: path for path, other in NETWORKS.items()}
    return known.get(kind, f"{kind.__module__}.{kind.__qualname__}")


def describe(network: nn.Module) -> dict[str, Any]:
    """Return the `class_path` and the `init_args` of a network, in plain values; `init_args` is None if not known."""
    known = getattr(network, "config", None) if type(network) in NETWORKS.values() else None
    return {"class_path": class_path_of(network), "init_args": known or vars(network).get(_INIT_ARGS)}


def instantiate(kind: type[nn.Module], **init_args: Any) -> nn.Module:
    """Make a network and remember its arguments for `describe`.

    Raises:
        MiniGPTError: It does not fit into memory, or its arguments are wrong.
    """
    try:
        network = kind(**init_args)
    except MiniGPTError:
        raise
    except Exception as error:  # of anyone's code
        if kind in NETWORKS.values() and isinstance(error, (RuntimeError, MemoryError)):
            raise MiniGPTError(
                f"A network with these sizes does not fit into memory: {init_args}. Lower one."
            ) from error
        raise MiniGPTError(
            f"The network {kind.__name__} cannot be made with {init_args}: {with_location(error)}."
        ) from error
    vars(network)[_INIT_ARGS] = init_args
    return network


def build_network(description: dict[str, Any], allow_code: Collection[str] = ()) -> nn.Module:
    """Make the network that `describe` described.

    Args:
        description: `class_path` and `init_args`.
        allow_code: The modules outside minigpt whose classes may be imported; they are looked for in the working
            folder too.

    Raises:
        MiniGPTError: The class is not allowed or not there, or its arguments are wrong or not known.
    """
    path, init_args = description["class_path"], description["init_args"]
    kind = NETWORKS.get(path) or _import(path, allow_code)
    if init_args is None:
        raise MiniGPTError(
            f"The network {path} was made in Python, so its arguments are not known. Pass an instance: "
            "minigpt.load(RUN, network=...)."
        )
    return instantiate(kind, **init_args)


def _import(path: str, allow_code: Collection[str]) -> type[nn.Module]:
    module = path.rpartition(".")[0]
    if not any(f"{path}.".startswith(f"{allowed}.") for allowed in allow_code):
        raise MiniGPTError(
            f"The network of this run is {path}, which is code that minigpt does not know. If you trust it, pass "
            f"--allow_code {module} (in Python allow_code='{module}'), or an instance as network=."
        )
    return import_network(path)


def import_network(path: str) -> type[nn.Module]:
    """Import the class of a network by its name, such as `my_models.GRU`; the working folder is searched too.

    Raises:
        MiniGPTError: It cannot be imported, or is not a class of networks.
    """
    module, _, name = path.rpartition(".")
    look_in_working_folder()
    try:
        kind = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        if (imported := sys.modules.get(module)) is None or hasattr(imported, name):
            raise _not_imported(path, error) from error
        raise MiniGPTError(f"The module {module} has no class {name}.{did_you_mean(name, vars(imported))}") from error
    except Exception as error:  # of anyone's code
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise MiniGPTError(
                f"The network {path} cannot be imported: there is no module {error.name}. Start where its file is, or "
                "add its folder to PYTHONPATH."
            ) from error
        raise _not_imported(path, error) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise MiniGPTError(f"{path} is not a network: it is not a class that derives from torch.nn.Module.")
    return kind


def _not_imported(path: str, error: Exception) -> MiniGPTError:
    return MiniGPTError(f"The network {path} cannot be imported: {with_location(error)}.")


def with_location(error: Exception) -> str:
    """Return what an error in anyone's code says, and in which line of it; a syntax error says that itself."""
    says = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    elsewhere = ("<frozen", os.path.dirname(torch.__file__), os.path.dirname(minigpt.__file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(elsewhere)]
    if isinstance(error, SyntaxError) or not frames:
        return says
    return f"{says} ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"


def look_in_working_folder() -> None:
    """Have imports look in the working folder too, after all other places, as for a script that lies there."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def has_context(network: nn.Module) -> TypeGuard[HasContext]:
    """Return whether a network has a `context_size`; `checks.usable_paths` finds out whether that is true."""
    return hasattr(network, "context_size")


def has_cache(network: nn.Module) -> TypeGuard[HasCache]:
    """Return whether a network has `new_cache`; `checks.usable_paths` finds out whether that can be used."""
    return hasattr(network, "new_cache")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are; the CPU for a model without any."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device


def n_parameters(network: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in network.parameters())
