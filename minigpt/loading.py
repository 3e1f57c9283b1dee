"""Loading models, and the texts of their runs, from checkpoints, without Lightning."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from minigpt.checkpoints import checksum, read
from minigpt.cpu.int8 import quantize_checked
from minigpt.cpu.layers import order_weights
from minigpt.data import tokenizers
from minigpt.data.corpus import NAMES, Corpus
from minigpt.data.prepare import TokenizedCorpus, tokenize
from minigpt.errors import MiniGPTError, check_choice
from minigpt.generation.text import LanguageModel
from minigpt.models import NETWORKS, build_network, device_of
from minigpt.models.families import LARGEST_BLOCK
from minigpt.models.gpt import GPT
from minigpt.models.merging import merged
from minigpt.models.pretrained import build_around
from minigpt.runs import find_checkpoint, run_of

# The type of a model's tensors; for int8, of all tensors but the weights of linear layers.
PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


class MissingBase(MiniGPTError):
    """The model to which the adapters of a checkpoint belong is not there, or has other weights."""


def read_checkpoint(file: Path, merge: bool = True) -> dict:
    """Load a checkpoint or snapshot, an export, or a model of Hugging Face, on the CPU without unpickling code.

    Args:
        file: The checkpoint, as `find_checkpoint` returns it.
        merge: Whether to read the base of a checkpoint with adapters, and to add the adapters to its weights.
            The adapters and their settings are then under `adapters`.

    Raises:
        MiniGPTError: The file is truncated, holds more than plain values and tensors, or does not come from a supported
            version of minigpt; it is a folder, as version 0.1 wrote from several processes; `read_pretrained` or the
            tokenizer of Hugging Face refuses the model; or the base of the adapters is missing or has other weights.
    """
    checkpoint = read(file)
    if merge and checkpoint["minigpt"].get("lora"):
        try:
            _merge_adapters(checkpoint, file)
        except MiniGPTError:
            raise
        except Exception as error:  # an altered file can fail in many ways
            raise MiniGPTError(
                f"The adapters in '{file}' do not fit their base. Pass a different checkpoint."
            ) from error
    return checkpoint


def _merge_adapters(checkpoint: dict, file: Path) -> None:
    metadata = checkpoint["minigpt"]
    settings, adapters = metadata["lora"], checkpoint["state_dict"]
    base = find_base(file, metadata)
    checkpoint["adapters"] = settings | {"state_dict": adapters, "file": base}
    weights = {**(base_weights(base, metadata) if base else {}), **adapters}
    checkpoint["state_dict"] = merged(weights, settings["alpha"] / settings["rank"])
    metadata["lora"] = None


def find_base(file: Path, metadata: dict) -> Path | None:
    """Return the checkpoint that the adapters in a checkpoint belong to.

    It is searched for as `base` in the run folder, where a user can put it or a link to it; under its absolute path;
    and under its path relative to the run, which stays the same if both are moved together.

    Args:
        file: The checkpoint.
        metadata: The checkpoint's metadata, which has `origin` and `lora`.

    Returns:
        The checkpoint, as `find_checkpoint` returns it; None if the weights are beside the adapters.

    Raises:
        MissingBase: It is not there, or has other weights.
    """
    origin, relative = metadata["origin"], metadata["lora"]["base"]
    if relative is None:
        return None
    run = (run_of(file.absolute()) or file.absolute().parent).resolve()
    link = run / "base"
    paths = [link.resolve() if link.is_file() else link, Path(origin["path"]), Path(os.path.normpath(run / relative))]
    names = (Path(origin["path"]).stem, "best", "last")
    bases = [find_checkpoint(path, prefer=names) for path in paths if path.exists()]
    for base in bases:
        if checksum(base) == origin["sha256"]:
            return base
    state = f"has other weights in '{bases[0]}' now" if bases else f"is not at '{origin['path']}' any more"
    raise MissingBase(
        f"'{file}' holds adapters for the model {origin['source']}, which {state}. Restore it, or put the original, or "
        f"a link to it, at '{os.path.relpath(link)}'."
    )


def base_weights(base: Path, metadata: dict) -> dict[str, torch.Tensor]:
    """Return the frozen weights of a network with adapters, under the names in its checkpoint's state dict.

    Args:
        base: The checkpoint of the base.
        metadata: The metadata of the checkpoint with the adapters.
    """
    weights = read_checkpoint(base)["state_dict"]
    # A run with shorter windows than its base has the vectors of the first positions only.
    return {name: weights[name][:rows] for name, rows in metadata["lora"]["frozen"].items()}


def language_model(
    checkpoint: dict,
    device: str | torch.device = "cpu",
    precision: str = "32",
    allow_code: str | Collection[str] = (),
    network: nn.Module | None = None,
) -> LanguageModel:
    """Return the model and the tokenizer of a checkpoint, in eval mode on `device`; arguments as in `load`.

    The weights move from the checkpoint into the model, so that memory holds them once.
    """
    check_choice("precision", precision, PRECISIONS)
    allow_code = [allow_code] if isinstance(allow_code, str) else allow_code
    try:
        description, data = checkpoint["minigpt"]["model"], checkpoint["minigpt"]["data"]
        weights = {key.removeprefix("network."): value for key, value in checkpoint.pop("state_dict").items()}
        tokenizer = tokenizers.from_dict(data["tokenizer"])
        if network is None and description["class_path"] in NETWORKS:
            _check_sizes(description, weights, tokenizer.vocab_size)
        if network is None and NETWORKS.get(description["class_path"]) is GPT:
            model: nn.Module = build_around(description["init_args"], weights)
        else:
            model = build_network(description, allow_code) if network is None else network
            _load_weights(model, weights)
        weights.clear()
        if getattr(model, "block_size", None) is None:
            model.block_size = data["block_size"]  # the longest window that it was trained with
    except MiniGPTError:
        raise
    except Exception as error:  # an altered file can fail in many ways
        raise MiniGPTError("The checkpoint is damaged: its parts do not fit together. Pass a different one.") from error
    for_inference(model, device, precision)
    return LanguageModel(model, tokenizer)


def _load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise MiniGPTError(
            f"The weights of the checkpoint do not fit {type(model).__name__}: "
            f"{' '.join(str(error).split())[:200]}. Has the class changed since the training?"
        ) from error


def for_inference(model: nn.Module, device: str | torch.device = "cpu", precision: str = "32") -> None:
    """Move a model to its device and precision for inference, in place; arguments as in `load`."""
    model.to(device, PRECISIONS[precision]).eval()
    if precision == "int8":
        quantize_checked(model)
    elif precision == "32" and device_of(model).type == "cpu":
        order_weights(model)


def _check_sizes(description: dict, weights: dict[str, torch.Tensor], vocab_size: int) -> None:
    """Compare a checkpoint's description of its model with its weights, before memory is allocated for the model.

    Raises:
        MiniGPTError: A layer, a shape or the size of the vocabulary differs.
    """
    wrong = MiniGPTError(
        f"The checkpoint is damaged: its weights are not those of {description}. Pass a different one."
    )
    init_args = description["init_args"]
    if init_args.get("vocab_size", vocab_size) != vocab_size or init_args.get("block_size", 1) > LARGEST_BLOCK:
        raise wrong
    if init_args.get("n_layer", 0) > len(weights):
        raise wrong
    with torch.device("meta"):
        expected = {name: weight.shape for name, weight in build_network(description).state_dict().items()}
    if expected != {name: weight.shape for name, weight in weights.items()}:
        raise wrong


def load(
    ckpt_path: str | Path = "last",
    device: str | torch.device = "cpu",
    precision: str = "32",
    allow_code: str | Collection[str] = (),
    network: nn.Module | None = None,
) -> LanguageModel:
    """Load a trained model from its run folder.

    Args:
        ckpt_path: `last` for the newest run, a run folder (its best checkpoint if it has one), `RUN@STEP` for a
            snapshot, a file, or a folder of an export or of Hugging Face.
        device: The device of the model; `auto` for a GPU if there is one.
        precision: `32`; `bf16`, which keeps two to three digits of the weights in half the memory; or `int8`, which
            rounds the weights of linear layers to 255 steps per output in a quarter of the memory. With both, the
            probabilities and thus the texts differ a little.
        allow_code: One or several modules outside minigpt whose networks may be imported, also from the working folder.
        network: An instance to load the weights into, instead of the class that the run names.

    Raises:
        MiniGPTError: The run does not exist, its checkpoint cannot be read, its network is not allowed, or the device
            or the precision is unknown.
    """
    return open_checkpoint(ckpt_path, device, precision, allow_code, network).lm


class OpenedCheckpoint(NamedTuple):
    """A checkpoint's file, its content, and its model."""

    file: Path
    checkpoint: dict[str, Any]
    lm: LanguageModel


def open_checkpoint(
    ckpt_path: str | Path = "last",
    device: str | torch.device = "cpu",
    precision: str = "32",
    allow_code: str | Collection[str] = (),
    network: nn.Module | None = None,
) -> OpenedCheckpoint:
    """Find a checkpoint, read it, and build its model; arguments and errors as in `load`."""
    file = find_checkpoint(ckpt_path)
    checkpoint = read_checkpoint(file)
    lm = language_model(checkpoint, pick_device(device), precision, allow_code, network)
    lm.run_dir = run_of(file.absolute())
    return OpenedCheckpoint(file, checkpoint, lm)


def pick_device(name: str | torch.device) -> str:
    """Return the name of an available device; `auto` is a GPU if there is one, else the CPU.

    Raises:
        MiniGPTError: The device is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise MiniGPTError(f"There is no device '{name}' here. Use --device auto, or cpu.") from error
    return str(name)


def corpus_of(file: Path, metadata: dict) -> str:
    """Return the path of a checkpoint's corpus, which is stored relative to the run.

    Args:
        file: The checkpoint.
        metadata: The checkpoint's metadata about its data.

    Raises:
        MiniGPTError: The model came without its corpus.
    """
    if metadata["path"] is None:
        raise MiniGPTError(
            f"The text on which the model in '{file.parent}' was trained is not there. Pass a text with --data.path."
        )
    if metadata["path"] in NAMES:
        return metadata["path"]
    run = (run_of(file.absolute()) or file.absolute().parent).resolve()
    return os.path.normpath(
        run / metadata["path"]
    )  # not resolved, since the name of a link may have the extension by which it is read


def tokens_of(file: Path, metadata: dict, cache_dir: str | None = None) -> TokenizedCorpus:
    """Return the corpus that a checkpoint was trained on, as token ids.

    Args:
        file: The checkpoint.
        metadata: The checkpoint's metadata about its data.
        cache_dir: The folder for the ids of large texts; None for the user's cache folder.

    Raises:
        MiniGPTError: The corpus is missing or has changed, or gives a different tokenizer.
    """
    corpus = Corpus(corpus_of(file, metadata), **{key: metadata[key] for key in ("encoding", "lower", "strip", "nfc")})
    settings = {key: metadata[key] for key in ("max_vocab_size", "byte_fallback", "val_fraction", "unknown")}
    tokenizer = tokenizers.from_dict(metadata["tokenizer"])
    kind = tokenizer if metadata["tokenizer_given"] else tokenizer.kind
    tokens = tokenize(corpus, kind, **settings, cache_dir=cache_dir)
    if tokens.sha256 != metadata["sha256"]:
        raise MiniGPTError(
            f"The corpus '{metadata['path']}' has changed since this model was trained, so its validation text is "
            "lost. Restore the old file, or score a different text with --data.path."
        )
    if difference := tokenizers.difference(tokens.tokenizer, tokenizer):
        raise MiniGPTError(f"The corpus gives a different tokenizer than the checkpoint's: {difference}.")
    return tokens
