"""A folder for `minigpt.load` without pickle: the weights in safetensors, and everything else in JSON."""

import json
from typing import Any

import torch
from safetensors.torch import save

from minigpt.checkpoints import EXPORTED
from minigpt.generation.text import LanguageModel


def files(checkpoint: dict[str, Any], lm: LanguageModel) -> dict[str, bytes]:
    """Return the files that `minigpt.load` reads; arguments and errors as in `export`."""
    return {"model.safetensors": as_safetensors(lm.model.state_dict()), EXPORTED: as_json(checkpoint["minigpt"])}


def as_json(content: dict[str, Any]) -> bytes:
    """Return plain values as a JSON file."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def as_safetensors(weights: dict[str, torch.Tensor]) -> bytes:
    """Return weights as a safetensors file."""
    return save({name: weight.clone().contiguous() for name, weight in weights.items()}, metadata={"format": "pt"})
