"""A network as a description and one block of bytes, which the JavaScript engine of the HTML page reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from minigpt.cpu.int8 import round_rows
from minigpt.errors import MiniGPTError, check_choice
from minigpt.models.gpt import GPT
from minigpt.models.stock import PARTS, hooked, unknown_part
from minigpt.models.tinygpt import TinyGPT

# The output layer is not stored if it equals the embedding, as it does with tie_weights.
EMBEDDING, OUTPUT = "embed.weight", "lm_head.weight"


def description(model: nn.Module) -> dict[str, Any]:
    """Return the class and the settings of a network, in plain values.

    Raises:
        MiniGPTError: The engine does not compute this network, or not all of it; the message names the part.
    """
    name = type(model).__name__
    if not isinstance(model, GPT | TinyGPT):
        raise MiniGPTError(
            f"The HTML page has no engine for a {name}, only for GPT and TinyGPT. Use --format safetensors or onnx."
        )
    if part := unknown_part(model) if isinstance(model, GPT) else _unknown_part(model):
        raise MiniGPTError(f"The HTML page does not have {part} of this {name}. Use --format safetensors or onnx.")
    if not all(weight.is_floating_point() for weight in model.state_dict().values()):
        raise MiniGPTError(f"The weights of this {name} are rounded to 8 bits already. Load it in precision 32.")
    return {"class": name, "settings": model.config}


def _unknown_part(model: TinyGPT) -> str | None:
    """Return the first part that differs from the stock TinyGPT; None if there is none."""
    if type(model) is not TinyGPT:
        return f"the class {type(model).__name__}"
    if name := hooked(model):
        return f"the forward hook of {name}"
    V, C = model.config["vocab_size"], model.config["n_embd"]
    shapes = {EMBEDDING: (V, C), OUTPUT: (V, C), "lm_head.bias": (V,)}
    found = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    others = [name for name in {**found, **shapes} if found.get(name) != shapes.get(name)]
    if others:
        return f"{others[0]} with the shape {found.get(others[0])}"
    known = {"": TinyGPT, "embed": nn.Embedding, "lm_head": nn.Linear}
    for name, module in model.named_modules():
        stock = type(module) in (TinyGPT, *PARTS)  # a subclass may compute something else
        if not (stock and isinstance(module, known.get(name, ()))):
            return f"the module {name} ({type(module).__name__})"
        if "forward" in vars(module):
            return f"the replaced forward of {name or 'the model'}"
    return None


def pack(weights: Mapping[str, torch.Tensor], precision: str) -> tuple[list[dict[str, Any]], bytes]:
    """Return the description of each weight, and the bytes of all weights, little endian.

    Each description has the `name`, the `shape`, the `precision` and the `offset` of the first byte, a multiple of 4.
    A float32 weight is stored row after row. An int8 matrix is stored as the float32 scales of its rows, then the
    whole numbers from -127 to 127 that the scales multiply.

    Args:
        weights: The `state_dict` of a network.
        precision: `32`, or `int8` for 8-bit matrices (linear layers and embeddings); vectors stay float32.

    Raises:
        MiniGPTError: The precision is another word.
    """
    check_choice("precision", precision, ("32", "int8"))
    specs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    offset = 0
    for name, tensor in weights.items():
        if name == OUTPUT and EMBEDDING in weights and torch.equal(tensor, weights[EMBEDDING]):
            continue
        weight = tensor.detach().cpu().float()
        rounded = precision == "int8" and weight.dim() == 2
        spec = {"name": name, "shape": list(weight.shape), "precision": "int8" if rounded else "float32"}
        specs.append(spec | {"offset": offset})
        if rounded:
            values, scales = round_rows(weight)
            parts += [_bytes(scales.float()), _bytes(values), bytes(-values.numel() % 4)]
        else:
            parts.append(_bytes(weight))
        offset = sum(map(len, parts))
    return specs, b"".join(parts)


def _bytes(tensor: torch.Tensor) -> bytes:
    array = tensor.contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def unpacked(specs: Sequence[Mapping[str, Any]], data: bytes) -> dict[str, torch.Tensor]:
    """Return the float32 weights that `pack` stored, by name, as the engine computes with them.

    Args:
        specs: The descriptions of the weights.
        data: The bytes.
    """
    weights = {}
    for spec in specs:
        shape, offset = spec["shape"], spec["offset"]
        n, rows = int(np.prod(shape)), shape[0]
        if spec["precision"] == "int8":
            scales = np.frombuffer(data, "<f4", rows, offset).astype(np.float32)
            values = np.frombuffer(data, np.int8, n, offset + 4 * rows).reshape(shape)
            weight = values * scales[:, None]
        else:
            weight = np.frombuffer(data, "<f4", n, offset).astype(np.float32).reshape(shape)
        weights[spec["name"]] = torch.from_numpy(weight)
    if EMBEDDING in weights:
        weights.setdefault(OUTPUT, weights[EMBEDDING])
    return weights
