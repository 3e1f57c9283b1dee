"""Merging of adapters on the level of state dicts, without the network."""

from collections.abc import Mapping

import torch
from torch import Tensor


def is_adapter(name: str) -> bool:
    """Return whether a name in a state dict is that of an adapter, or of the rows of new tokens."""
    return ".lora_a." in name or ".lora_b." in name or ".new_rows." in name


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the state dict that a network has after `lora.merge`, from the one before.

    Args:
        weights: The state dict with adapters; it may be that of a module around the network.
        scale: The factor of the products B A, alpha / r.
    """
    plain = {name: weight for name, weight in weights.items() if not is_adapter(name)}
    for name in weights.keys() - plain.keys():
        layer, _, part = name.partition(".lora_a.")
        if part:
            plain[f"{layer}.weight"] = (
                plain[f"{layer}.weight"] + scale * weights[f"{layer}.lora_b.weight"] @ weights[name]
            )
        elif ".new_rows." in name:
            old = name.replace(".new_rows.", ".")
            plain[old] = torch.cat((plain[old], weights[name]))
    return plain
