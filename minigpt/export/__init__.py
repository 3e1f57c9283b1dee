"""Export of trained models: one module per format, whose `files` function returns the files of a folder."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minigpt.errors import MiniGPTError, writing

if TYPE_CHECKING:
    from minigpt.generation.text import LanguageModel


class Format(NamedTuple):
    """A format: the module with its `files(checkpoint, lm)` function, and its description in `--help`.

    A format with more than one precision, of which the first is the default, has a third argument,
    `files(checkpoint, lm, precision)`. Its own options are further arguments.
    """

    module: str
    help: str
    precisions: tuple[str, ...] = ("32",)
    options: tuple[str, ...] = ()


FORMATS = {
    "hf": Format("hugging_face", "for transformers"),
    "peft": Format("peft", "the adapters of --lora.rank alone, for peft"),
    "onnx": Format("onnx", "for onnxruntime"),
    "gguf": Format("gguf", "for llama.cpp", ("32", "bf16", "int8")),
    "html": Format("html", "one page that writes and explains itself, without a network", ("int8", "32"), ("max_mb",)),
    "safetensors": Format("safetensors", "for minigpt.load, without pickle"),
}


def files_of(
    form: str, checkpoint: dict[str, Any], lm: "LanguageModel", precision: str | None = None, **options: Any
) -> dict[str, bytes]:
    """Return the files of an export by name; arguments and errors as in `export`."""
    module, _, precisions, known = FORMATS[form]
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in known:
            others = [other for other, each in FORMATS.items() if name in each.options]
            raise MiniGPTError(f"--{name} is for --format {' or '.join(others)}, not {form}. Leave it out.")
    precision = precisions[0] if precision is None else precision
    if precision not in precisions:
        others = [name for name, other in FORMATS.items() if precision in other.precisions]
        hint = f", or take --format {others[0]}" if others else ""
        raise MiniGPTError(
            f"--format {form} has --precision {' or '.join(precisions)}, not {precision}. Leave it out{hint}."
        )
    chosen = {"precision": precision} if len(precisions) > 1 else {}
    return import_module(f"minigpt.export.{module}").files(checkpoint, lm, **chosen, **options)


def export(
    checkpoint: dict[str, Any],
    lm: "LanguageModel",
    out: str | Path,
    form: str,
    precision: str | None = None,
    **options: Any,
) -> None:
    """Write a trained model into a new folder.

    Args:
        checkpoint: The checkpoint, as `loading.read_checkpoint` returns it.
        lm: The model and the tokenizer of the checkpoint.
        out: The folder to write, which must not exist or must be empty.
        form: `hf` for transformers and compatible libraries, `peft` for adapters alone, `onnx` for onnxruntime, `gguf`
            for llama.cpp, `html` for a page, or `safetensors` for `minigpt.load`.
        precision: `32` for float32; with `gguf` also `bf16` or `int8` for the matrices. None for int8 with `html`, and
            for `32` with other formats.
        **options: With `html` max_mb, the largest size of the page in megabytes; None for 8.

    Raises:
        MiniGPTError: The folder is not empty, the format does not support the model, or a library is missing.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MiniGPTError(f"'{out}' already exists and is not empty. Pass a new folder with --out.")
    files = files_of(form, checkpoint, lm, precision, **options)
    with writing(out, "--out"):
        for name, content in files.items():
            (out / name).write_bytes(content)
