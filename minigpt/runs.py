"""Finding runs and checkpoints by the names that people give them, on disk or on the Hugging Face hub.

A checkpoint is given as `last`, a run folder, `RUN@STEP` or a file. A run is a folder such as
`lightning_logs/tiny/version_0`, with `checkpoints/last.ckpt` and `checkpoints/best.ckpt`, and perhaps with snapshots of
other steps in `snapshots/`. A folder that `minigpt export --format safetensors` wrote, or a folder of Hugging Face, is
read as a checkpoint too.
"""

import glob
import os
import re
from contextlib import suppress
from itertools import count
from pathlib import Path

from minigpt.checkpoints import EXPORTED, SNAPSHOT, is_snapshot
from minigpt.command_line import first_training
from minigpt.errors import MiniGPTError, writing
from minigpt.models.pretrained import CONFIG, PICKLE

ROOT = "lightning_logs"
# The files of a model on the hub that are downloaded.
HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "LICENSE*"]
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
