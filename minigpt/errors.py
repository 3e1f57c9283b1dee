"""What a person is told: the one kind of error that a mistake raises, and notes.

An error's message is what the person reads: one or two plain sentences that name the thing and the way out.
`commands.py` is the only place that catches it, prints it and exits with status 2.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from traceback import walk_tb
from typing import Any

from minigpt import processes


class MiniGPTError(Exception):
    """A mistake that the person at the keyboard can mend."""


def note(text: str) -> None:
    """Tell the person something that is no mistake, on stderr; of several processes of a training the first does."""
    if processes.rank() == 0:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def needs(who: str, extra: str, *packages: str) -> Iterator[None]:
    """Say what to install where an import finds nothing, and what is wrong where an installed library fails.

    Args:
        who: What needs the packages: the beginning of the sentence.
        extra: The extra of this package that installs them.
        packages: The packages that are imported inside.

    Raises:
        MiniGPTError: One of them is not installed, or cannot be imported although it is.
    """
    try:
        yield
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name == "minigpt":  # a fault of ours
            raise
        if isinstance(error, ModuleNotFoundError) and name in packages and not find_spec(name):
            raise MiniGPTError(
                f"{who} {name}, which is not installed: pip install 'minigpt-lightning[{extra}]'."
            ) from error
        modules = (frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in walk_tb(error.__traceback__))
        library = next((module for module in modules if module in packages), name or packages[0])
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise MiniGPTError(f"{who} {library}, which is installed but cannot be imported: {reason}.") from error


@contextmanager
def required() -> Iterator[None]:
    """Say what to install where one of the libraries that everything here is built on is absent.

    Raises:
        MiniGPTError: PyTorch or Lightning is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "lightning"):
            raise
        raise MiniGPTError(
            f"minigpt needs {error.name}, which is not installed in this Python: pip install {error.name}."
        ) from error


@contextmanager
def writing(folder: Path, flag: str) -> Iterator[None]:
    """Make a folder, and say so plainly if nothing can be written there.

    Args:
        folder: The folder.
        flag: The option that names another one.

    Raises:
        MiniGPTError: The file system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise MiniGPTError(
            f"The folder '{folder}' cannot be written to: {error.strerror}. Name another with {flag}."
        ) from error


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    whole: bool = False,
    optional: bool = False,
    hint: str = "",
) -> None:
    """Refuse a value that is not a number in a range, whatever its type: it may come from Python, without a parser.

    Args:
        name: The setting, as the person knows it.
        value: Its value. Neither NaN nor a boolean is a number, and an infinity only if `at_most` is one.
        at_least: The least value.
        above: A bound below which, and at which, no value is allowed.
        at_most: The largest value.
        below: A bound at and above which no value is allowed.
        whole: Allow whole numbers only.
        optional: Allow None.
        hint: What to add to the sentence about the range, such as `or null for no limit`.

    Raises:
        MiniGPTError: It names the setting, the value and the range.
    """
    if value is None and optional:
        return
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if is_number:
        enough = value >= at_least if at_least is not None else value > (-math.inf if above is None else above)
        if enough and (value <= at_most if at_most is not None else value < (math.inf if below is None else below)):
            return
    kind = "a whole number" if whole else "a number"
    low = f" of {at_least} or more" if at_least is not None else f" above {above}" if above is not None else ""
    high = f" below {below}" if below is not None else f" up to {at_most}" if at_most not in (None, math.inf) else ""
    between = f" from {at_least} to {at_most}" if low.startswith(" of") and high.startswith(" up") else ""
    raise MiniGPTError(
        f"{name} is {value!r}. Give it {kind}{between or ' and'.join(filter(None, (low, high)))}{hint and ', '}{hint}."
    )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a value that is none of several words, whatever its type.

    Args:
        name: The setting, as the person knows it.
        value: Its value.
        choices: The words that it may be.

    Raises:
        MiniGPTError: It names the setting, the value, the choices and the nearest of them.
    """
    *others, last = choices
    if not isinstance(value, str) or value not in [*others, last]:
        takes = f"{', '.join(others)} or {last}" if others else last
        raise MiniGPTError(f"{name} is {str(value)!r}. It takes {takes}.{did_you_mean(str(value), [*others, last])}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the known word nearest to `word`, or nothing when none is near.

    A word may be right but for its group (`n_embd` for `model.n_embd`): its last part is then what is compared.
    """
    known = list(known)
    matches = get_close_matches(word, known, n=1, cutoff=0.6)
    if not matches:
        by_last_part = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
        last = get_close_matches(word.rsplit(".", 1)[-1], by_last_part, n=1, cutoff=0.6)
        matches = [by_last_part[last[0]]] if last else []
    return f" Did you mean '{matches[0]}'?" if matches else ""
