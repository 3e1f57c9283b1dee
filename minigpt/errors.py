"""User-facing errors and notes.

The message of a `MiniGPTError` is one or two plain sentences that name the mistake and the way out. `commands` is
the only module that catches it; it prints the message and exits with status 2.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from numbers import Integral, Real
from pathlib import Path
from traceback import walk_tb
from typing import Any

from minigpt import processes


class MiniGPTError(Exception):
    """A mistake that the user can fix."""


def note(text: str) -> None:
    """Print a message that is not an error to stderr, from the first process of a training only."""
    if processes.rank() == 0:
        print(text, file=sys.stderr, flush=True)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error, and the errors that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def needs(who: str, extra: str, *packages: str) -> Iterator[None]:
    """Turn a failed import into a message: the command to install the package, or the reason why it cannot be imported.

    Args:
        who: The beginning of the message: the feature that needs the packages.
        extra: The extra of minigpt that installs the packages.
        *packages: The packages that are imported in the context.

    Raises:
        MiniGPTError: A package is not installed, or is installed and cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name == "minigpt":  # a bug in minigpt
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
    """Turn a missing PyTorch or Lightning into a message with the command to install it.

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
    """Create a folder, and turn a failure to write there into a message.

    Args:
        folder: The folder.
        flag: The option that sets the folder.

    Raises:
        MiniGPTError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise MiniGPTError(
            f"The folder '{folder}' cannot be written to: {error.strerror}. Pass a different one with {flag}."
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
    """Check that a value is a number in a range; it may have any type, since Python code passes it without a parser.

    Args:
        name: The setting, as the user writes it.
        value: Its value. NaN and booleans are refused, and an infinity is refused unless `at_most` is infinite.
        at_least: The least value allowed.
        above: A lower bound that is not itself allowed.
        at_most: The greatest value allowed.
        below: An upper bound that is not itself allowed.
        whole: Whether to allow whole numbers only.
        optional: Whether to allow None.
        hint: An addition to the message about the range, such as `or null for no limit`.

    Raises:
        MiniGPTError: The value is not allowed; the message names the setting, the value and the range.
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


def check_sizes(sizes: Mapping[str, Any]) -> None:
    """Check that each named size is a whole number of 1 or more.

    Raises:
        MiniGPTError: A size is not.
    """
    for name, size in sizes.items():
        check_number(name, size, at_least=1, whole=True)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Check that a value, of any type, is one of several words.

    Args:
        name: The setting, as the user writes it.
        value: Its value.
        choices: The words allowed.

    Raises:
        MiniGPTError: The value is not allowed; the message names the setting, the value and the choices.
    """
    *others, last = choices
    if not isinstance(value, str) or value not in [*others, last]:
        takes = f"{', '.join(others)} or {last}" if others else last
        raise MiniGPTError(f"{name} is {str(value)!r}. It takes {takes}.{did_you_mean(str(value), [*others, last])}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the known word most similar to `word`, or an empty string if none is similar.

    If no full name is similar, the last parts of the names are compared, as in `n_embd` for `model.n_embd`.
    """
    known = list(known)
    matches = get_close_matches(word, known, n=1, cutoff=0.6)
    if not matches:
        by_last_part = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
        last = get_close_matches(word.rsplit(".", 1)[-1], by_last_part, n=1, cutoff=0.6)
        matches = [by_last_part[last[0]]] if last else []
    return f" Did you mean '{matches[0]}'?" if matches else ""
