"""What a person is told: the one kind of error that a mistake raises, and notes.

An error's message is what the person reads: one or two plain sentences that name the thing and the way out.
`commands.py` is the only place that catches it, prints it and exits with status 2.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb

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


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse a size that is not a whole number of 1 or more.

    Raises:
        MiniGPTError: It names the size.
    """
    for name, size in sizes.items():
        if size < 1:
            raise MiniGPTError(f"{name} is {size}. Give it a whole number of 1 or more.")


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
