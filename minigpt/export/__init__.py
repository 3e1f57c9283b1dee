"""Trained models in the formats that others load: one module a format, each giving the files of a folder."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minigpt.errors import MiniGPTError, writing

if TYPE_CHECKING:
    from minigpt.generation.text import LanguageModel


class Format(NamedTuple):
    """A format: the module whose `files(checkpoint, lm)` gives a folder's files, and what `--help` says of it."""

    module: str
    help: str


FORMATS = {
    "hf": Format("hugging_face", "Hugging Face's"),
    "onnx": Format("onnx", "onnxruntime's"),
    "gguf": Format("gguf", "llama.cpp's"),
    "safetensors": Format("safetensors", "minigpt's without pickle"),
}


def files_of(form: str, checkpoint: dict[str, Any], lm: "LanguageModel") -> dict[str, bytes]:
    """The files of a folder in a format, by their names; arguments and errors as in `export`."""
    return import_module(f"minigpt.export.{FORMATS[form].module}").files(checkpoint, lm)


def export(checkpoint: dict[str, Any], lm: "LanguageModel", out: str | Path, form: str) -> None:
    """Write a trained model into a new folder.

    Args:
        checkpoint: What `runs.read_checkpoint` gave.
        lm: Its model and tokenizer.
        out: The folder; it must not exist, or be empty.
        form: `hf`, for transformers and all that reads its folders; `onnx`, for onnxruntime; `gguf`, for llama.cpp;
            `safetensors`, for `minigpt.load`.

    Raises:
        MiniGPTError: The folder is taken, the model does not fit the format, or a library is missing.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MiniGPTError(f"'{out}' is there already and not empty. Give --out a new folder.")
    files = files_of(form, checkpoint, lm)
    with writing(out, "--out"):
        for name, content in files.items():
            (out / name).write_bytes(content)
