"""The formats of checkpoints: files and snapshots of a training, exports of minigpt, and folders of Hugging Face.

A snapshot, `snapshots/step_NNNNNN.safetensors`, holds the weights of one step alone, in bfloat16 and under the names of
an export. The header of the file has the checkpoint's metadata, so that it can be read without its run.
"""

import json
import re
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

import minigpt
from minigpt import processes
from minigpt.command_line import command
from minigpt.data import tokenizers
from minigpt.errors import MiniGPTError
from minigpt.models.pretrained import CONFIG, read_pretrained

EXPORTED = "minigpt.json"  # beside model.safetensors, in a folder that `minigpt export` wrote
USUAL_BLOCK = 1024  # tokens in a window, unless asked for more, of models that take longer ones: attention costs T ** 2
SNAPSHOT = re.compile(r"step_([0-9]{6,18})\.safetensors")


def read(file: Path) -> dict:
    """Load a checkpoint or snapshot, an export, or a model of Hugging Face, on the CPU without unpickling code.

    Args:
        file: The checkpoint, as `runs.find_checkpoint` returns it.

    Raises:
        MiniGPTError: The file is truncated, holds more than plain values and tensors, or does not come from a supported
            version of minigpt; it is a folder, as version 0.1 wrote from several processes; a snapshot does not fit
            into memory; or `read_pretrained` or the tokenizer of Hugging Face refuses the model.
    """
    if file.is_dir():
        raise MiniGPTError(
            f"The checkpoint '{file}' is a folder with one part per process, which minigpt {minigpt.__version__} does "
            "not read. Train again, or convert it to one file with the version of minigpt that wrote it."
        )
    read_own = _read_snapshot if is_snapshot(file) else _read_own
    read_format = {EXPORTED: _read_export, CONFIG: _read_hugging_face}.get(file.name, read_own)
    checkpoint = read_format(file)
    try:
        made_by = Version(checkpoint["minigpt"]["version"])
    except (KeyError, TypeError, InvalidVersion) as error:
        raise MiniGPTError(f"'{file}' is not a checkpoint of minigpt. Pass one that a training wrote.") from error
    if made_by < Version("0.2.0"):
        raise MiniGPTError(
            f"'{file}' was written by minigpt {made_by}, whose checkpoints minigpt {minigpt.__version__} does not "
            "read. Train again, or install minigpt 0.1."
        )
    if made_by > Version(minigpt.__version__):
        raise MiniGPTError(
            f"'{file}' was written by minigpt {made_by}, and this is {minigpt.__version__}. Upgrade minigpt."
        )
    return checkpoint


def _read_own(file: Path) -> dict:
    try:
        with zipfile.ZipFile(file) as archive:  # torch does not verify the checksums that it writes
            if archive.testzip() or any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("wrong checksum, or a member that torch.save does not write")
        return torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise MiniGPTError(f"You may not read '{file}'. Change its permissions, or pass a different file.") from error
    except Exception as error:  # torch.load has a different exception for each way a file can be broken
        raise MiniGPTError(
            f"'{file}' cannot be read as a checkpoint: it is damaged, or not a checkpoint. Pass a different file."
        ) from error


def is_snapshot(file: Path) -> bool:
    """Return whether a file is a snapshot: by its name or, if it has another, by its header."""
    if file.suffix != ".safetensors" or not file.is_file():
        return False
    if SNAPSHOT.fullmatch(file.name):
        return True
    try:
        with safe_open(file, framework="pt") as stored:
            return "minigpt" in (stored.metadata() or {})
    except (SafetensorError, OSError):
        return False


def as_snapshot(checkpoint: dict[str, Any], val_loss: float) -> bytes:
    """Return the content of a snapshot.

    Args:
        checkpoint: The checkpoint that Lightning would write at this step.
        val_loss: The validation loss, in nats per token.
    """
    weights = {
        name.removeprefix("network."): weight.to(
            device="cpu", dtype=torch.bfloat16 if weight.is_floating_point() else weight.dtype, copy=True
        ).contiguous()  # copies, since safetensors refuses two names for the same memory
        for name, weight in checkpoint["state_dict"].items()
    }
    header = {
        "format": "pt", "minigpt": json.dumps(checkpoint.get("minigpt"), ensure_ascii=False),
        "step": str(checkpoint["global_step"]), "val_loss": str(val_loss),
    }  # fmt: skip
    return save(weights, header | {"sha256": _digest(weights, header)})


def _digest(weights: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """Return the SHA-256 of the weights and the header, since safetensors has no checksum."""
    digest = sha256(json.dumps(sorted(header.items())).encode())
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_snapshot(file: Path) -> dict:
    needed, available = 2 * file.stat().st_size, processes.available_memory()  # in float32
    if available is not None and needed > available:
        raise MiniGPTError(
            f"The snapshot '{file}' takes {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available. "
            "Close other programs, or pass a smaller model."
        )
    try:
        with safe_open(file, framework="pt") as stored:
            header = stored.metadata()
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (the file is no dict)
        if header.pop("sha256") != _digest(weights, header):
            raise ValueError("wrong checksum")
        return {
            "minigpt": json.loads(header["minigpt"]),
            "global_step": int(header["step"]),
            "val_loss": float(header["val_loss"]),
            "state_dict": {
                f"network.{name}": weight.to(torch.float32 if weight.is_floating_point() else weight.dtype, copy=True)
                for name, weight in weights.items()
            },
        }
    except PermissionError as error:
        raise MiniGPTError(f"You may not read '{file}'. Change its permissions, or pass a different file.") from error
    except Exception as error:  # like a checkpoint, a snapshot can be broken in many ways
        raise MiniGPTError(
            f"'{file}' cannot be read as a snapshot: it is damaged, or not a snapshot. Pass a different file."
        ) from error


def _read_export(file: Path) -> dict:
    try:
        weights = load_file(file.with_name("model.safetensors"))
        return {
            "minigpt": json.loads(file.read_text(encoding="utf-8")),
            "state_dict": {f"network.{name}": weight for name, weight in weights.items()},
        }
    except Exception as error:  # like a checkpoint, an export can be broken in many ways
        raise MiniGPTError(
            f"The export in '{file.parent}' is damaged. Export the model again with `{command('export')}`."
        ) from error


def _read_hugging_face(file: Path) -> dict:
    """Return a folder of Hugging Face as a checkpoint: of a model that was trained on a text that is not there."""
    folder = file.parent
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        raise MiniGPTError(
            f"The folder '{folder}' has no tokenizer.json, the tokenizer. Write it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})."
        )
    init_args, weights, config = read_pretrained(folder)
    bos, eos = (_token_ids(config.get(f"{end}_token_id"), init_args["vocab_size"]) for end in ("bos", "eos"))
    try:
        definition = tokenizer_file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise MiniGPTError(f"'{tokenizer_file}' cannot be read. Download the folder again.") from error
    tokenizer = tokenizers.from_definition(
        definition, init_args["vocab_size"], bos if isinstance(bos, int) else None, eos
    )
    data = {
        "tokenizer": tokenizer.to_dict(), "block_size": min(init_args["block_size"], USUAL_BLOCK), "path": None,
        "encoding": None, "lower": tokenizer.lower, "strip": False, "nfc": tokenizer.nfc,
    }  # fmt: skip
    model = {"class_path": "minigpt.GPT", "init_args": init_args}
    return {
        "minigpt": {"version": minigpt.__version__, "model": model, "data": data},
        "state_dict": {f"network.{name}": weight for name, weight in weights.items()},
    }


def _token_ids(value: object, vocab_size: int) -> int | list[int] | None:
    """Return an id of a config, or several, if the vocabulary has them."""
    ids = value if isinstance(value, list) else [value]
    known = [i for i in ids if type(i) is int and 0 <= i < vocab_size]
    return None if not known else known[0] if len(known) == 1 else known


def checksum(file: Path) -> str:
    """Return the SHA-256 of the weights of a checkpoint as found by `runs.find_checkpoint`, in hexadecimal.

    Args:
        file: A checkpoint file, whose bytes are hashed; or the .json file of a folder with weights in safetensors, of
            which all .safetensors files are hashed, in the order of their names.
    """
    weights = sorted(file.parent.glob("*.safetensors")) if file.suffix == ".json" else [file]
    digest = sha256()
    for each in weights:
        with each.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
