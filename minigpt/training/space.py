"""The space of a sweep: a YAML file of ranges and lists, checked by the types and limits of the recipe's settings."""

import contextlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from minigpt.command_line import CommandLine, example_config
from minigpt.errors import MiniGPTError, did_you_mean
from minigpt.training import recipes, trust
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.parser import NETWORK_FLAGS

EXAMPLE = "sweeps/nano"
Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


class DryRun(MiniGPTCLI):
    """Builds a trial up to its training, without a run folder."""

    def before_instantiate_classes(self) -> None:
        """Refuse a recipe that can be read only once."""
        if any(Path(file).is_fifo() for file in self._line.files):
            raise MiniGPTError("Each trial reads the recipe, and a pipe can be read only once. Save it to a file.")

    def after_instantiate_classes(self) -> None:
        """Check the settings as a run does, without creating its folder."""
        if self.config.trainer.fast_dev_run:
            raise MiniGPTError("A sweep compares runs, but fast_dev_run does not leave one. Omit it.")
        if self.trainer.world_size > 1:
            raise MiniGPTError("A trial trains in one process. Leave --trainer.devices at 1, and start several sweeps.")
        self.model.build_schedule(self.trainer.max_steps)


def read_space(path: str, recipe: MiniGPTCLI, args: list[str]) -> dict[str, Distribution]:
    """Return the distributions of a YAML file, with all values parsed by the recipe's parser.

    Every value is checked in a dry run with the first values of all other settings.

    Raises:
        MiniGPTError: The file or a value is wrong; the message names the file and the setting.
    """
    given = recipes.read(path, EXAMPLE).settings
    if not given:
        raise MiniGPTError(f"{path} has no settings to search. Start from a copy of {example_config(EXAMPLE)}.")
    trust.check_names(given, path, CommandLine(args).values("--allow_code"))
    dests = [action.dest for action in recipe.parser._actions if "." in action.dest]
    known = [dest for dest in dests if not dest.startswith("help")] + ["seed_everything"]
    networks = [flag.removeprefix("--") for flag in NETWORK_FLAGS]
    values = {}
    for key, choice in given.items():
        if key not in known and not str(key).startswith("model.network."):
            raise MiniGPTError(
                f"{path}: '{key}' is not a setting of a recipe.{did_you_mean(str(key), known + networks)}"
            )
        if any(re.match(rf"--{re.escape(key)}(=|$)", arg) for arg in args):
            raise MiniGPTError(f"{path} searches {key}, which is also set by a flag. Omit one of them.")
        values[key] = _values(path, key, choice)
    first = {key: choices[0] for key, choices in values.items()}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # these notes have been printed for the recipe
            config = DryRun([*args, *as_flags(first)]).config
            typed = {key: [_typed(config, key)] for key in values}
            for key, choices in values.items():
                for value in choices[1:]:
                    typed[key].append(_typed(DryRun([*args, *as_flags(first | {key: value})]).config, key))
    except MiniGPTError as error:
        raise MiniGPTError(f"{path}: {error}") from error
    return {key: _distribution(path, key, given[key], typed[key]) for key in values}


def _typed(config: Any, key: str) -> Any:
    """Return the parsed value of a setting; for the network, the name of its class or one of its arguments."""
    if key == "model.network":
        return config[key].class_path
    return config[key.replace("model.network.", "model.network.init_args.")]


def _values(path: str, key: str, choice: Any) -> list:
    """Return the ends of a range or the choices of a list."""
    if isinstance(choice, dict) and {"low", "high"} <= choice.keys() <= {"low", "high", "log", "step"}:
        return [choice["low"], choice["high"]]
    if isinstance(choice, list) and choice and not any(isinstance(value, (list, dict)) for value in choice):
        return choice
    raise MiniGPTError(f"{path}: write {key} as a list of values, or as a range such as {{low: 1, high: 6}}.")


def _distribution(path: str, key: str, choice: list | dict, typed: list) -> Distribution:
    if isinstance(choice, list):
        return CategoricalDistribution(typed)
    low, high = typed
    log, step = choice.get("log", False), choice.get("step")
    if any(isinstance(end, bool) or not isinstance(end, (int, float)) or not math.isfinite(end) for end in typed):
        raise MiniGPTError(f"{path}: {key} cannot have a range from {low} to {high}. List the values instead.")
    if low > high:
        raise MiniGPTError(f"{path}: the range of {key} begins at {low} and ends at {high}. Swap them.")
    if log and low <= 0:
        raise MiniGPTError(f"{path}: {key} has a range on a log scale that begins at {low}. Begin it above 0.")
    if log not in (True, False) or (step is not None and (log or not isinstance(step, (int, float)) or not step > 0)):
        raise MiniGPTError(f"{path}: {key} takes log: true, or a step above 0, and not both.")
    if not (isinstance(low, int) and isinstance(high, int)):
        return FloatDistribution(low, high, log=log, step=step)
    step = step or 1
    if not isinstance(step, int):
        raise MiniGPTError(f"{path}: {key} is a whole number and has a step of {step}. Give it a whole one.")
    return IntDistribution(low, high, log=log, step=step)


def in_words(distribution: Distribution) -> str:
    """Return a range or a list of choices as readable text."""
    if isinstance(distribution, CategoricalDistribution):
        return f"[{', '.join(map(as_text, distribution.choices))}]"
    steps = "" if distribution.step in (None, 1) else f" in steps of {as_text(distribution.step)}"
    return f"{as_text(distribution.low)} to {as_text(distribution.high)}{steps}{', log' * distribution.log}"


def as_text(value: Any) -> str:
    """Return a value as it is written on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def as_flags(values: dict[str, Any]) -> list[str]:
    """Return settings as flags of `minigpt train`."""
    return [f"--{key}={as_text(value)}" for key, value in values.items()]
