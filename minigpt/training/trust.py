"""The classes that a config file may name, so that a file from a stranger cannot run code.

jsonargparse imports the class or function that a setting names before it checks whether it fits. So the names in config
files are first compared with a list, which allows a good message. jsonargparse gets the same list, for names that this
check cannot see, such as those in a file that a setting names. Classes typed on the command line are the user's own
code.
"""

import inspect
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.optim import lr_scheduler

from minigpt.errors import MiniGPTError
from minigpt.models import NETWORKS, look_in_working_folder
from minigpt.training import recipes
from minigpt.training.distributed import FSDP2Strategy

# minigpt's classes, and those of Lightning that take no functions and write only a training's usual files.
_CLASSES = (
    callbacks.DeviceStatsMonitor, callbacks.EarlyStopping, callbacks.EMAWeightAveraging, callbacks.LearningRateMonitor,
    callbacks.ModelCheckpoint, callbacks.ModelSummary, callbacks.RichModelSummary, callbacks.Timer,
    callbacks.WeightAveraging, callbacks.GradientAccumulationScheduler, callbacks.RichProgressBar,
    callbacks.TQDMProgressBar, callbacks.LearningRateFinder, loggers.CSVLogger, loggers.TensorBoardLogger,
    loggers.WandbLogger, loggers.MLFlowLogger, DDPStrategy, FSDP2Strategy, ModelParallelStrategy, SLURMEnvironment,
    ReduceLROnPlateau,
)  # fmt: skip
# Each class by the module that defines it and by the packages that export it.
ALLOWED = (
    {
        f"{module}.{kind.__name__}"
        for kind in _CLASSES
        for module in accumulate(kind.__module__.split("."), "{}.{}".format)
    }
    | {f"torch.optim.{name}" for name, kind in vars(torch.optim).items() if inspect.isclass(kind)}
    | {
        f"{kind.__module__}.{name}"
        for module in (torch.optim, lr_scheduler)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__.startswith("torch.optim")
    }
    | {path for name, kind in NETWORKS.items() for path in (name, f"{kind.__module__}.{kind.__qualname__}")}
)
SHORT = {name.rpartition(".")[2] for name in ALLOWED}
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def allow_imports(settings: Iterable[tuple[str, str]]) -> None:
    """Restrict the parser's imports to `ALLOWED`, the modules of `--allow_code` and the classes typed as settings.

    The restriction is global in the process, and lasts until the next command line.

    Args:
        settings: The flags and values of a command line.
    """
    names = set()
    for flag, value in settings:
        if flag == "--allow_code" and all(map(str.isidentifier, value.split("."))):
            names.add(value)
        elif flag.startswith(("--trainer.", "--model.network", "--optimizer", "--lr_scheduler")):
            names |= {match[0] for match in _DOTTED.finditer(value)}
    if any(name.split(".")[0] not in ("minigpt", "lightning") for name in names):
        look_in_working_folder()
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(ALLOWED | names))


def check_names(recipe: dict[str, Any], file: str, modules: Collection[str] = ()) -> None:
    """Check that a config file names only classes and functions that are allowed.

    Args:
        recipe: The settings, before they are parsed.
        file: The config file.
        modules: The modules that `--allow_code` allows.

    Raises:
        MiniGPTError: A name is not allowed.
    """
    for name in _names(recipe, within_trainer=False):
        if name in ALLOWED | SHORT or any(f"{name}.".startswith(f"{module}.") for module in modules):
            continue
        raise MiniGPTError(not_allowed(name, f"The config file '{file}'"))


def not_allowed(name: str, who: str) -> str:
    """Return the message about a name that is not allowed."""
    return (
        f"{who} names '{name}', which is code that minigpt does not know. If you trust it, add "
        f"--allow_code {name.rpartition('.')[0] or name}."
    )


def settings_of(text: str) -> list[str]:
    """Return the settings of all allowed classes whose names occur in a text."""
    kinds = (*_CLASSES, *NETWORKS.values())
    return [name for kind in kinds if kind.__name__ in text for name in inspect.signature(kind).parameters]


def _names(tree: Any, within_trainer: bool) -> Iterator[str]:
    """Yield every class path, and in the trainer's settings every value of the form `module.name`."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "class_path":
                yield str(value)
            elif key != "default_root_dir":
                yield from _names(value, within_trainer or str(key).split(".")[0].rstrip("+") == "trainer")
    elif isinstance(tree, list):
        for value in tree:
            yield from _names(value, within_trainer)
    elif within_trainer and isinstance(tree, str):
        if _DOTTED.fullmatch(tree.strip()):
            yield tree.strip()
        elif any(sign in tree for sign in "{[\n"):  # the parser reads YAML in a string
            try:
                yield from _names(recipes.load(tree), within_trainer=True)
            except (yaml.YAMLError, ValueError, RecursionError):
                yield " ".join(tree.split())
