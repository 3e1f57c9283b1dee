"""What a config file may name: a file from a stranger must not be able to run code.

The parser imports every class and function that a config names, before it looks whether it fits. So the names are held
to a list before the parser sees them. What a person types on the command line is not: that is code of their own.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

from minigpt.errors import MiniGPTError

# Of Lightning's own classes those that take no function and write no file but a run's.
ALLOWED = {
    *(
        f"lightning.pytorch.callbacks.{name}"
        for name in (
            "DeviceStatsMonitor", "EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor", "ModelSummary",
            "RichModelSummary", "ThroughputMonitor", "Timer", "WeightAveraging",
        )
    ),
    *(f"lightning.pytorch.strategies.{name}" for name in ("DDPStrategy", "ModelParallelStrategy")),
    "lightning.pytorch.plugins.environments.SLURMEnvironment",
}  # fmt: skip
_SHORT = {name.rsplit(".", 1)[1] for name in ALLOWED}
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def check_names(recipe: dict[str, Any], file: str, modules: Collection[str] = ()) -> None:
    """Refuse a config that names a class or a function which is not on the list.

    Args:
        recipe: The settings, read but not parsed.
        file: Where they come from.
        modules: What `--allow_code` allows besides: modules, with all that is in them.

    Raises:
        MiniGPTError: A name is not allowed.
    """
    for name in _names(recipe, within_trainer=False):
        if name in ALLOWED | _SHORT or any(f"{name}.".startswith(f"{module}.") for module in modules):
            continue
        raise MiniGPTError(
            f"The config file '{file}' names '{name}', which is code that minigpt does not know. If you trust it, add "
            f"--allow_code {name.rpartition('.')[0] or name}."
        )


def _names(tree: Any, within_trainer: bool) -> Iterator[str]:
    """Every class path, and in the trainer's settings everything else that reads like `module.name`."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "class_path":
                yield str(value)
            elif key != "default_root_dir":
                yield from _names(value, within_trainer or str(key).split(".")[0].rstrip("+") == "trainer")
    elif isinstance(tree, list):
        for value in tree:
            yield from _names(value, within_trainer)
    elif within_trainer and isinstance(tree, str) and _DOTTED.fullmatch(tree.strip()):
        yield tree.strip()
