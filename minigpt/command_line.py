"""What the commands share: commands to paste, and answers to mistakes in the words of a command line."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(name: str, *args: str | Path) -> str:
    """Return a command that can be pasted where the person is now.

    Args:
        name: The script, such as `train`.
        args: Its arguments; paths as `short` gives them.
    """
    script = ROOT / "scripts" / f"{name}.py"
    python = "python" if shutil.which("python") == sys.executable else short(Path(sys.executable))
    return shlex.join([python, short(script) if script.is_file() else f"scripts/{name}.py", *map(str, args)])


def tool(name: str, *args: str) -> str:
    """Return a command for a program that is installed beside Python, such as `tensorboard`."""
    beside = Path(sys.executable).with_name(name)
    return shlex.join([name if shutil.which(name) == str(beside) else short(beside), *args])


def example_config(name: str = "tiny") -> str:
    """Return the path of a recipe of ours, as it is typed where the person is now."""
    file = ROOT / "configs" / f"{name}.yaml"
    return short(file) if file.is_file() else f"configs/{name}.yaml"


def first_training() -> str:
    """Return the command that makes a first run."""
    return command("train", "--config", example_config())


def short(path: Path) -> str:
    """Return a path as a person would type it: relative where it lies under the working folder."""
    text = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return f"./{text}" if text.startswith("-") else text  # no option


def missing_value(flags: Collection[str], args: Sequence[str], options: Collection[str] = ()) -> str:
    """Return the answer to an option that got no value, maybe because the value looks like an option.

    Args:
        flags: The option, in all its spellings.
        args: The command line.
        options: The options that there are.
    """
    for flag, value in pairwise(args):
        if flag in flags and value.startswith("-") and value.partition("=")[0] not in options:
            return (
                f"The option {flag} needs a value. If '{value}' is the value, write {shlex.quote(f'{flag}={value}')}."
            )
    return f"The option {next((arg for arg in args if arg in flags), min(flags))} needs a value."


def first_stray(args: Sequence[str]) -> str | None:
    """Return the first argument that is neither an option nor its value, where each option takes one value."""
    pairs = pairwise(["", *args])
    return next((arg for before, arg in pairs if arg[:1] != "-" and not re.fullmatch(r"--[^=]+|-c", before)), None)


def unexpected_argument(stray: str, args: Sequence[str]) -> str:
    """Return the answer to an argument that is the value of no option.

    A shell makes several arguments of a pattern, or of a text with blanks, that is not quoted.

    Args:
        stray: The argument.
        args: The command line.
    """
    at = next((n for n, (a, b) in enumerate(pairwise(args), 1) if b == stray and not re.match(r"--[^=]+$", a)), 0)
    start = next((n for n in range(at - 1, -1, -1) if args[n].startswith("--")), None)
    if start is None:
        return f"Unexpected argument '{stray}'. Options look like --trainer.max_steps 1000."
    flag, _, value = args[start].partition("=")
    values = [value] * bool(value) + list(args[start + 1 : at])
    after = f"Unexpected argument '{stray}' after {shlex.join(args[start:at])}."
    if not values or re.fullmatch(r"[\d.]+|true|false|null|none", values[0]):
        return f"{after} Options look like --trainer.max_steps 1000."
    if all(os.path.exists(os.path.expanduser(value)) for value in [*values, stray]):
        if flag != "--data.path":
            return f"{after} {flag} takes one path."
        pattern = os.path.join(os.path.dirname(stray), f"*{Path(stray).suffix}")
        return f"{after} Quote a pattern: {flag} {shlex.quote(pattern)}."
    return f"{after} Quote a text with blanks: {flag} {shlex.quote(' '.join([*values, stray]))}."
