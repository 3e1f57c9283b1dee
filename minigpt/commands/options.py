"""The parser of the commands, the options that several of them share, and the note about what is loaded."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from minigpt.command_line import command, missing_value, unexpected_argument
from minigpt.errors import MiniGPTError, did_you_mean, note
from minigpt.words import message


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option, unless its help says it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is not None or not action.help:
            return super()._get_help_string(action)
        return action.help if action.required or "by default" in action.help else f"{action.help} (default: none)"


class Parser(argparse.ArgumentParser):
    """The parser of a command, which answers a mistake with a sentence instead of the usage.

    Args:
        name: The command.
        description: Its description.
        *shared: Its options among `SHARED`.
    """

    def __init__(self, name: str, description: str, *shared: str):
        super().__init__(
            prog=command(name),
            description=description,
            allow_abbrev=False,
            formatter_class=_Help,
        )
        for option in shared:
            self.add_argument(f"--{option}", **SHARED[option])

    def parse(self, args: list[str]) -> argparse.Namespace:
        """Parse all arguments; the message about an unknown option names the most similar one."""
        options, unknown = self.parse_known(args)
        if unknown and not unknown[0].startswith("-"):
            raise MiniGPTError(unexpected_argument(unknown[0], args))
        if unknown:
            self.refuse(unknown[0].partition("=")[0])
        return options

    def parse_known(self, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse the known options and return the other arguments; the command line is stored for messages."""
        self._given = args
        return self.parse_known_args(args)

    def refuse(self, flag: str) -> NoReturn:
        """Raise an error about an unknown option that names the most similar one."""
        raise MiniGPTError(f"Unknown option '{flag}'.{did_you_mean(flag, self._option_string_actions)}")

    def error(self, message: str) -> NoReturn:
        """Turn an error of argparse into a sentence."""
        if match := re.match(r"argument (\S+): expected", message):
            raise MiniGPTError(missing_value(match[1].split("/"), self._given, self._option_string_actions))
        raise MiniGPTError(message[0].upper() + message[1:] + ". See --help.")


# The options that several commands share.
SHARED: dict[str, dict[str, Any]] = {
    "ckpt_path": {
        "default": "last",
        "help": "`last` (the newest run), a run folder, RUN@STEP for a snapshot, a checkpoint, or a folder of Hugging "
        "Face",
    },
    "allow_code": {
        "action": "append", "default": [], "metavar": "MODULE",
        "help": "allow the run's network to be a class of this module; may be repeated",
    },
    "device": {"default": "auto", "help": "`auto` (a GPU if there is one), `cpu`, `cuda`, `mps`, ..."},
    "precision": {
        "choices": ["32", "bf16", "int8"], "default": "32",
        "help": "round the weights: bf16 to two or three digits in half the memory, int8 those of linear layers to 255 "
        "steps per output in a quarter of the memory. Probabilities, and thus texts, differ a little",
    },
    "unknown": {
        "choices": ["error", "skip"], "default": "error",
        "help": "how to treat characters that the model has never seen",
    },
}  # fmt: skip


def or_none(kind: type) -> Callable[[str], int | float | None]:
    """Return a type for an option whose value is a number or `none`."""

    def parse(text: str) -> int | float | None:
        return None if text == "none" else kind(text)

    parse.__name__ = f"{kind.__name__} or none"
    return parse


def path(text: str) -> Path:
    """Convert the value of an option to a path and expand `~`, which a shell does not expand in `--out=~/e`."""
    return Path(os.path.expanduser(text))


def announce(*packages: str) -> None:
    """Print which of the packages will be loaded now, since loading takes seconds.

    Args:
        *packages: The names under which the packages are imported.
    """
    titles = {"gradio": "Gradio", "lightning": "Lightning", "optuna": "Optuna", "torch": "PyTorch"}
    if missing := [titles[package] for package in packages if package not in sys.modules]:
        note(message("loading", message("and").join(missing)))
