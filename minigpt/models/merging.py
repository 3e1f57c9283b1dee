"""Merging of adapters on the level of state dicts, without the network."""

import torch
from torch import Tensor


def is_adapter(name: str) -> bool:
    """Return whether a name in a state dict is that of an adapter, or of the rows of new tokens."""
    return ".lora_a." in name or ".lora_b." in name or ".new_rows." in name


def merged(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the state dict that a network has after `lora.merge`, from the one before.

    Args:
        weights: The state dict with adapters; it may be that of a module around the network. It is emptied on the way,
            so that memory holds the weights once.
        scale: The factor of the products B A, alpha / r.
    """
    adapters = {name: weights.pop(name) for name in [*weights] if is_adapter(name)}
    plain: dict[str, Tensor] = {}
    for name in [*weights]:
        weight = weights.pop(name)
        layer, _, kind = name.rpartition(".")
        if (a := adapters.get(f"{layer}.lora_a.weight")) is not None and kind == "weight":
            weight = weight + scale * adapters[f"{layer}.lora_b.weight"] @ a
        if (rows := adapters.get(f"{layer}.new_rows.{kind}")) is not None:
            weight = torch.cat((weight, rows))
        plain[name] = weight
    return plain
