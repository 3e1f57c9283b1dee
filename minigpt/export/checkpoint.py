"""A checkpoint in one file, whatever it was: to move it, to load it, to train on from it."""

import io
from typing import Any

import torch

from minigpt.errors import MiniGPTError
from minigpt.generation.text import LanguageModel


def files(checkpoint: dict[str, Any], lm: LanguageModel) -> dict[str, bytes]:
    """The one file of a folder that holds a whole checkpoint; arguments as in `export`.

    Raises:
        MiniGPTError: It is an export, which has no moments to train on.
    """
    if "optimizer_states" not in checkpoint:
        raise MiniGPTError("This is an export already, and cannot be trained on. Name the run that it came from.")
    file = io.BytesIO()
    torch.save(checkpoint, file)
    return {"model.ckpt": file.getvalue()}
