"""Finding and loading checkpoints, without Lightning.

A checkpoint is given as `last`, a run folder, `RUN@STEP` or a file. A run is a folder such as
`lightning_logs/tiny/version_0`, with `checkpoints/last.ckpt` and `checkpoints/best.ckpt`, and perhaps with snapshots of
other steps in `snapshots/`. A folder that `minigpt export --format safetensors` wrote, or a folder of Hugging Face, is
read as a checkpoint too.
"""

import glob
import os
import re
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from minigpt.checkpoints import EXPORTED, SNAPSHOT, checksum, is_snapshot, read
from minigpt.command_line import first_training
from minigpt.cpu.int8 import quantize_checked
from minigpt.cpu.layers import order_weights
from minigpt.data import tokenizers
from minigpt.data.corpus import NAMES, Corpus
from minigpt.data.prepare import TokenizedCorpus, tokenize
from minigpt.errors import MiniGPTError, check_choice, writing
from minigpt.generation.text import LanguageModel
from minigpt.models import NETWORKS, build_network, device_of
from minigpt.models.gpt import GPT
from minigpt.models.merging import merged
from minigpt.models.pretrained import CONFIG, LARGEST_BLOCK, PICKLE, build_around

ROOT = "lightning_logs"
# The files of a model on the hub that are downloaded.
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "LICENSE*"]
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# The type of a model's tensors; for int8, of all tensors but the weights of linear layers.
PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


class MissingBase(MiniGPTError):
    """The model to which the adapters of a checkpoint belong is not there, or has other weights."""


def config_name(path: str | Path) -> str:
    """Return the name of a recipe: that of its file, or of the recipe of a run for a run's config.yaml."""
    path = Path(path).absolute()
    in_run = path.name == "config.yaml" and path.parent.name.startswith("version_")
    return path.parent.parent.name if in_run else path.stem


def new_run(parent: Path) -> Path:
    """Create a new `version_N` folder; runs that start at the same time get different folders."""
    with writing(parent, "--trainer.default_root_dir"):
        taken = [int(match[1]) for match in (re.fullmatch(r"version_(\d+)", p.name) for p in parent.iterdir()) if match]
        for version in count(max(taken, default=-1) + 1):
            folder = parent / f"version_{version}"
            with suppress(FileExistsError):
                folder.mkdir()
                break
    return folder.absolute()


def run_folders(name: str | None = None, root: str | Path = ROOT) -> list[Path]:
    """Return the folders of the runs of one config, or (None) of all runs, those of the trials of sweeps among them."""
    patterns = ["*/version_*", "*/trial_*/version_*"] if name is None else [f"{glob.escape(name)}/version_*"]
    return [run for pattern in patterns for run in Path(root).glob(pattern)]


def newest_run(name: str | None = None, root: str | Path = ROOT) -> Path | None:
    """Return the run folder whose `last.ckpt` was written last, among the runs of one config or (None) of all."""
    checkpoints = [run / "checkpoints" / "last.ckpt" for run in run_folders(name, root)]
    newest = max(filter(Path.exists, checkpoints), key=lambda file: file.stat().st_mtime_ns, default=None)
    return newest and run_of(newest)


def run_of(file: Path) -> Path | None:
    """Return the run folder of a checkpoint file, or of the file that a link points to; None if it is in none."""
    file = file.resolve() if file.is_symlink() else file
    return file.parent.parent if file.parent.name in ("checkpoints", "snapshots") else None


def snapshots(run_dir: Path) -> dict[int, Path]:
    """Return the snapshot files of a run by their steps, in ascending order."""
    files = [(SNAPSHOT.fullmatch(file.name), file) for file in (run_dir / "snapshots").glob("step_*.safetensors")]
    return dict(sorted((int(match[1]), file) for match, file in files if match))


def find_checkpoint(
    ckpt_path: str | Path = "last", prefer: tuple[str, ...] = ("best", "last"), flag: str = "--ckpt_path"
) -> Path:
    """Return the checkpoint file that `last`, a folder, `RUN@STEP` or a file names.

    Args:
        ckpt_path: `last` for the newest run under `lightning_logs/`, a run folder, a checkpoint file, or a folder of
            an export or of Hugging Face. In these two, the checkpoint is the .json file beside the weights. After
            `last` or a run folder, `@100` means the snapshot of step 100, and `@best` and `@last` the checkpoints.
        prefer: The checkpoints of a run folder to look for, in this order.
        flag: The option that messages name.

    Raises:
        MiniGPTError: There is no run yet, no checkpoint at this path, or no snapshot of this step.
    """
    if str(ckpt_path) == "last":
        run = _last_run()
    else:
        if not str(ckpt_path):
            raise MiniGPTError(f"{flag} is empty. Pass a run folder, a checkpoint file, or 'last'.")
        run = Path(os.path.expanduser(ckpt_path))
        if "@" in run.name and not run.exists() and (file := _find_point(str(ckpt_path))):
            return file
        if run.suffix == ".safetensors" and run.is_file() and not is_snapshot(run):
            run = run.parent
        if _is_checkpoint(run):
            return run
        if not run.exists():
            on_hub = flag == "--ckpt_path" and HUB_NAME.fullmatch(str(ckpt_path)) and "lightning" not in str(ckpt_path)
            hint = f" A model of the Hugging Face hub is for `train --init_from {ckpt_path}`." if on_hub else ""
            raise MiniGPTError(
                f"There is no run or checkpoint at '{ckpt_path}'. Pass {flag} a run folder such as "
                f"{ROOT}/tiny/version_0, a file, or 'last'.{hint}"
            )
    files = [run / EXPORTED, *(run / "checkpoints" / f"{stem}.ckpt" for stem in prefer), run / CONFIG]
    for file in files:
        if _is_checkpoint(file):
            return file
    if run.name == "snapshots" and (kept := snapshots(run.parent)):
        example = f"{run.parent}@{min(kept)}"
        raise MiniGPTError(f"The folder '{run}' holds snapshots of {len(kept)} steps. Pass one, such as {example}.")
    if any(run.glob("*.safetensors")) or (run / PICKLE).exists():
        raise MiniGPTError(f"The folder '{run}' has weights, but no {CONFIG}. Download it again, or pass a run.")
    raise MiniGPTError(f"The folder '{run}' holds no checkpoint (checkpoints/{prefer[-1]}.ckpt). Pass a different run.")


def _last_run() -> Path:
    run = newest_run()
    if run is None:
        raise MiniGPTError(f"There is no run under {ROOT}/ yet. Start one: {first_training()}")
    return run


def _find_point(ckpt_path: str) -> Path | None:
    """Return the file for `RUN@STEP`, `RUN@best` or `RUN@last`; None if there is no folder RUN.

    Raises:
        MiniGPTError: The run does not have this file, or there is something else after the @.
    """
    name, _, point = ckpt_path.rpartition("@")
    run = _last_run() if name == "last" else Path(os.path.expanduser(name))
    if not name or not run.is_dir():
        return None
    if point in ("best", "last"):
        file = run / "checkpoints" / f"{point}.ckpt"
        if not _is_checkpoint(file):
            raise MiniGPTError(f"The folder '{run}' holds no checkpoints/{point}.ckpt. Pass a different run.")
        return file
    if not re.fullmatch("[0-9]{1,18}", point):
        raise MiniGPTError(f"'{point}' after the @ of '{ckpt_path}' is not a step. Pass a number, best or last.")
    kept = snapshots(run)
    if not kept:
        raise MiniGPTError(
            f"The run '{run}' has no snapshots, so its weights of step {int(point)} are lost. Train with "
            f"--checkpoint.snapshots 10 to keep some, or pass {name}."
        )
    if int(point) not in kept:
        nearest = min(kept, key=lambda step: abs(step - int(point)))
        raise MiniGPTError(
            f"The run '{run}' has no snapshot of step {int(point)}. The nearest is of step {nearest}: pass "
            f"{name}@{nearest}."
        )
    return kept[int(point)]


def find_source(name: str | Path) -> Path:
    """Return the checkpoint file that `--init_from` names; a model of the Hugging Face hub is downloaded.

    Args:
        name: As in `find_checkpoint`; or the name of a model on the hub, such as `gpt2` or
            `HuggingFaceTB/SmolLM2-135M`, unless there is a file or folder of this name.

    Raises:
        MiniGPTError: There is no checkpoint at this path, and no such model on the hub or in its local cache.
    """
    if str(name) == "last" or not HUB_NAME.fullmatch(str(name)) or Path(os.path.expanduser(name)).exists():
        return find_checkpoint(name, flag="--init_from")
    return find_checkpoint(_download(str(name)), flag="--init_from")


def _download(name: str) -> Path:
    """Return the folder of a model of the hub, from its local cache if it cannot be reached.

    Raises:
        MiniGPTError: The hub has no such model, or cannot be reached and the model is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except GatedRepoError as error:
        raise MiniGPTError(
            f"The model '{name}' asks for a login: accept its terms on its page, and log in with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise MiniGPTError(
            f"'{name}' is not a run, a file or a folder here, nor a model of the Hugging Face hub. Pass --init_from a "
            "run folder, a file, 'last', or a name such as HuggingFaceTB/SmolLM2-135M."
        ) from error
    except Exception as error:  # the network can fail in many ways, for which the library's versions differ
        raise MiniGPTError(
            f"'{name}' is not a run, a file or a folder here, and the Hugging Face hub cannot be reached for a model "
            f"of that name ({type(error).__name__}). Pass --init_from a folder, or try again with a network."
        ) from error


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() or (path / ".metadata").is_file()  # sharded, which read_checkpoint refuses


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
