"""Trained models in the formats that others load: one module a format, each giving the files of a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.errors import MiniGPTError, writing
from minigpt.export import checkpoint as one_file
from minigpt.export import gguf, hugging_face, onnx, safetensors
from minigpt.generation.text import LanguageModel

FORMATS: dict[str, Callable[[dict[str, Any], LanguageModel], dict[str, bytes]]] = {
    "hf": hugging_face.files, "onnx": onnx.files, "gguf": gguf.files, "safetensors": safetensors.files,
    "checkpoint": one_file.files,
}  # fmt: skip


def export(checkpoint: dict[str, Any], lm: LanguageModel, out: str | Path, form: str) -> None:
    """Write a trained model into a new folder.

    Args:
        checkpoint: What `runs.read_checkpoint` gave.
        lm: Its model and tokenizer.
        out: The folder; it must not exist, or be empty.
        form: `hf`, for transformers and all that reads its folders; `onnx`, for onnxruntime; `gguf`, for llama.cpp;
            `safetensors`, for `minigpt.load`; `checkpoint`, one file to load or to train on, also from shards.

    Raises:
        MiniGPTError: The folder is taken, the model does not fit the format, or a library is missing.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MiniGPTError(f"'{out}' is there already and not empty. Give --out a new folder.")
    files = FORMATS[form](checkpoint, lm)
    with writing(out, "--out"):
        for name, content in files.items():
            (out / name).write_bytes(content)
