"""The space of a sweep: a YAML file with a list or a range for each setting, which the recipe's own parser checks."""

import re
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from optuna.trial import FixedTrial, Trial

from minigpt.command_line import CommandLine, example_config
from minigpt.errors import MiniGPTError, check_choice
from minigpt.training import recipes, trust
from minigpt.training.cli import MiniGPTCLI

EXAMPLE, SEED = "sweeps/nano", "seed_everything"
SAMPLERS = ("tpe", "random", "grid")


class DryRun(MiniGPTCLI):
    """Builds a trial up to its training, without a run folder."""

    def before_instantiate_classes(self) -> None:
        """Refuse a recipe that can be read only once."""
        if any(Path(file).is_fifo() for file in self._line.files):
            raise MiniGPTError("Each trial reads the recipe, and a pipe can be read only once. Save it to a file.")

    def after_instantiate_classes(self) -> None:
        """Check the settings as a run does, without creating its folder."""
        if self.config.trainer.fast_dev_run or self.trainer.world_size > 1:
            raise MiniGPTError("A trial has a run folder and one process: omit fast_dev_run and --trainer.devices.")
        if self.config.init_from == "last":
            raise MiniGPTError("Each trial would start from the run before it. Pass --init_from a run folder.")
        self.model.build_schedule(self.trainer.max_steps)

    @property
    def text(self) -> tuple[str, float]:
        """The checksum of the text, and the share of it that validates."""
        return self.datamodule.tokens.sha256, self.datamodule.tokens.val_fraction


def read_space(path: str, args: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the sampler, one of `SAMPLERS`, and the list or range of each setting.

    Args:
        path: The YAML file.
        args: The flags of `minigpt train` for all trials.

    Raises:
        MiniGPTError: The file or a value is wrong: each was tried in a dry run, with the first values of the others.
    """
    space = {str(key): choices for key, choices in recipes.read(path, EXAMPLE).settings.items()}
    trust.check_names(space, path, CommandLine(args).values("--allow_code"))
    sampler = space.pop("sampler", SAMPLERS[0])
    check_choice(f"{path}: sampler", sampler, SAMPLERS)
    if not space.keys() - {SEED}:
        raise MiniGPTError(f"{path} has no settings to search. Start from a copy of {example_config(EXAMPLE)}.")
    values = {key: _values(path, key, choices) for key, choices in space.items()}
    for key, choices in space.items():
        if any(re.match(rf"--{re.escape(key)}(=|$)", arg) for arg in args):
            raise MiniGPTError(f"{path} searches {key}, which is also set by a flag. Omit one of them.")
        if isinstance(choices, dict) and (sampler == "grid" or key == SEED):
            raise MiniGPTError(f"{path}: list the values of {key}; a range does not do for a grid or a seed.")
    first = {key: each[0] for key, each in values.items()}

    def dry_run(**changed: Any) -> DryRun:
        with redirect_stderr(StringIO()):  # the recipe has printed these notes
            return DryRun([*args, *as_flags(first | changed)])

    key = ""
    try:
        text = dry_run().text
        for key, choices in space.items():
            if any(dry_run(**{key: value}).text != text for value in values[key][1:]):
                raise MiniGPTError(f"{key} would give trials different texts to validate on, which do not compare.")
            if isinstance(choices, dict):
                suggest(FixedTrial({key: choices["low"]}), key, choices)
                if isinstance(choices["low"], int):  # a setting may be a float where its ends are whole numbers
                    with suppress(MiniGPTError):
                        dry_run(**{key: choices["low"] + 0.5})
                        choices |= {end: float(choices[end]) for end in ("low", "high")}
    except (MiniGPTError, ValueError, TypeError) as error:
        raise MiniGPTError(f"{path}: {'' if type(error) is MiniGPTError else f'{key}: '}{error}") from error
    if len(set(space.get(SEED, []))) < len(space.get(SEED, [])):
        raise MiniGPTError(f"{path}: {SEED} has a seed twice. Keep one of them.")
    return sampler, space


def _values(path: str, key: str, choices: Any) -> list:
    """Return the values to try: those of a list; of a range the ends, and the low end a step further."""
    if isinstance(choices, list) and choices and not any(isinstance(value, (list, dict)) for value in choices):
        return choices
    if isinstance(choices, dict) and {"low", "high"} <= choices.keys() <= {"low", "high", "log", "step"}:
        low, high, step = choices["low"], choices["high"], choices.get("step", 1)
        if all(type(number) in (int, float) for number in (low, high, step)):
            return [low, high, *([low + step] if "step" in choices else [])]
    raise MiniGPTError(f"{path}: write {key} as a list of values, or as a range such as {{low: 1, high: 6}}.")


def suggest(trial: Trial | FixedTrial, key: str, choices: Any) -> Any:
    """Draw a value for a trial."""
    if isinstance(choices, list):
        return trial.suggest_categorical(key, choices)
    whole = all(isinstance(choices[end], int) for end in ("low", "high"))
    return trial.suggest_int(key, **choices) if whole else trial.suggest_float(key, **choices)


def as_flags(values: dict[str, Any]) -> list[str]:
    """Return settings as flags of `minigpt train`."""
    return [f"--{key}={recipes.as_text(value)}" for key, value in values.items()]
