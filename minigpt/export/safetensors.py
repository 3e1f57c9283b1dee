"""minigpt's own folder, without pickle: the weights in safetensors, and a JSON of the rest."""

import json
from typing import Any

import torch

from minigpt import runs
from minigpt.errors import needs
from minigpt.generation.text import LanguageModel


def files(checkpoint: dict[str, Any], lm: LanguageModel) -> dict[str, bytes]:
    """The files of a folder that `minigpt.load` reads; arguments and errors as in `export`."""
    return {"model.safetensors": as_safetensors(lm.model.state_dict()), runs.EXPORTED: as_json(checkpoint["minigpt"])}


def as_json(content: dict[str, Any]) -> bytes:
    """Plain values as a file of JSON."""
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def as_safetensors(weights: dict[str, torch.Tensor]) -> bytes:
    """Weights as a file of safetensors.

    Raises:
        MiniGPTError: The library is not installed.
    """
    with needs("An export needs", "export", "safetensors"):
        from safetensors.torch import save
    return save({name: weight.clone().contiguous() for name, weight in weights.items()}, metadata={"format": "pt"})
