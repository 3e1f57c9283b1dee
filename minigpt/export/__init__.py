"""Export of trained models: one module per format, whose `files` function returns the files of a folder."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minigpt.errors import MiniGPTError, writing

if TYPE_CHECKING:
    from minigpt.generation.text import LanguageModel


class Format(NamedTuple):
    """A format: the module with its `files(checkpoint, lm)` function, and its description in `--help`."""

    module: str
    help: str


FORMATS = {
    "hf": Format("hugging_face", "for transformers"),
    "onnx": Format("onnx", "for onnxruntime"),
    "gguf": Format("gguf", "for llama.cpp"),
    "safetensors": Format("safetensors", "for minigpt.load, without pickle"),
}


def files_of(form: str, checkpoint: dict[str, Any], lm: "LanguageModel") -> dict[str, bytes]:
    """Return the files of an export by name; arguments and errors as in `export`."""
    return import_module(f"minigpt.export.{FORMATS[form].module}").files(checkpoint, lm)


def export(checkpoint: dict[str, Any], lm: "LanguageModel", out: str | Path, form: str) -> None:
    """Write a trained model into a new folder.

    Args:
        checkpoint: The checkpoint, as `runs.read_checkpoint` returns it.
        lm: The model and the tokenizer of the checkpoint.
        out: The folder to write, which must not exist or must be empty.
        form: `hf` for transformers and compatible libraries, `onnx` for onnxruntime, `gguf` for llama.cpp, or
            `safetensors` for `minigpt.load`.

    Raises:
        MiniGPTError: The folder is not empty, the format does not support the model, or a library is missing.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MiniGPTError(f"'{out}' already exists and is not empty. Pass a new folder with --out.")
    files = files_of(form, checkpoint, lm)
    with writing(out, "--out"):
        for name, content in files.items():
            (out / name).write_bytes(content)
