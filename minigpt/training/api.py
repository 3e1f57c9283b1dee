"""`minigpt.train`: the command `minigpt train` as a function that returns the trained model."""

from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from minigpt import loading, runs
from minigpt.command_line import find_config
from minigpt.errors import MiniGPTError, did_you_mean
from minigpt.generation.text import LanguageModel
from minigpt.models import NETWORKS, lora
from minigpt.training import recipes
from minigpt.training.callbacks import Figures, Samples
from minigpt.training.checkpointing import Checkpoints
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.datamodule import TextDataModule
from minigpt.training.module import LitLanguageModel
from minigpt.training.progress import Progress
from minigpt.training.typed import callbacks_of

# The groups of settings, as in MiniGPTCLI.
GROUPS = {
    "trainer": Trainer, "model": LitLanguageModel, "data": TextDataModule, "checkpoint": Checkpoints,
    "samples": Samples, "figures": Figures, "progress": Progress,
}  # fmt: skip
SHORT_NAMES = {"seed": "seed_everything", "network": "model.network", "tokenizer": "data.tokenizer"}


def train(
    recipe: str | Path,
    data: str | Path | None = None,
    ckpt_path: str | Path | None = None,
    init_from: str | Path | None = None,
    allow_code: str | Iterable[str] = (),
    **settings: Any,
) -> LanguageModel:
    """Train a model from a recipe in a run folder, as the command does, and load its best checkpoint.

    If a setting such as `fast_dev_run` disables checkpoints, the model after the last step is returned.

    Args:
        recipe: A config file, or the name of a recipe, such as `tiny` or `modern_nano`.
        data: The text to use instead of the recipe's: a file, a folder, a pattern or the name of a corpus.
        ckpt_path: The run to continue: `last`, a run folder or a checkpoint file.
        init_from: The model to start a new run from: `last`, a run folder, `RUN@STEP`, a checkpoint file, a folder
            for transformers, or its name on the hub.
        allow_code: The modules outside minigpt whose classes the recipe may name.
        **settings: Settings that override the recipe's, by their last name where it is unique (`max_steps=300`,
            `learning_rate=1e-3`, `n_embd=32`), else by their full name (`**{"validation.every_n_steps": 50}`).

    Returns:
        The model, with its run folder in `run_dir`.

    Raises:
        MiniGPTError: A setting, the text or the checkpoint is wrong.
        KeyboardInterrupt: Ctrl-C was pressed; `last.ckpt` holds the last step, and `ckpt_path="last"` continues.
    """
    allowed = [allow_code] if isinstance(allow_code, str) else list(allow_code)
    args = [f"--config={find_config(str(recipe))}", *(f"--allow_code={module}" for module in allowed)]
    if data is not None:
        args.append(f"--data.path={data}")
    if ckpt_path is not None:
        args.append(f"--ckpt_path={ckpt_path}")
    if init_from is not None:
        args.append(f"--init_from={init_from}")
    known = _known_settings()
    args += [f"--{_full_name(name, known)}={recipes.as_text(value)}" for name, value in settings.items()]
    cli = MiniGPTCLI(args)
    try:
        if not cli.finished:
            cli.fit()
    except SystemExit as stop:  # a training exits so on a signal
        raise KeyboardInterrupt from stop
    run = cli.run_dir or cli.checkpoint
    if run is None or not (cli.finished or callbacks_of(cli.trainer, Checkpoints)):
        lora.merge(cli.model.network)
        loading.for_inference(cli.model.network)
        return LanguageModel(cli.model.network, cli.datamodule.tokenizer, cli.run_dir)
    network = cli.model.architecture["class_path"]
    return loading.load(runs.find_checkpoint(run), allow_code=[] if network in NETWORKS else [network])


def _known_settings() -> list[str]:
    """Return the full names of the settings of a recipe, including those of minigpt's networks."""
    kinds = [("model.network", kind) for kind in NETWORKS.values()] + list(GROUPS.items())
    names = {f"{group}.{name}" for group, kind in kinds for name in signature(kind).parameters}
    return sorted(names | {"validation.every_n_steps", "seed_everything"})


def _full_name(name: str, known: list[str]) -> str:
    if "." in name or name in known:
        return name
    if name in SHORT_NAMES:
        return SHORT_NAMES[name]
    matches = sorted({full for full in known if full.rpartition(".")[2] == name})
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise MiniGPTError(f'Several settings are called {name}: {", ".join(matches)}. Pass **{{"{matches[0]}": ...}}.')
    raise MiniGPTError(f"Unknown setting '{name}'.{did_you_mean(name, known)}")
