"""Lightning's messages: which of them are shown, and the sentences that its errors become."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rich
from lightning.fabric.utilities.exceptions import MisconfigurationException

from minigpt.errors import MiniGPTError, note


def refused_by_lightning(error: Exception) -> MiniGPTError:
    """Return the error for settings that Lightning's Trainer refuses."""
    return MiniGPTError(f"Lightning's Trainer refuses its settings: {' '.join(str(error).split())}")


def not_installed(error: Exception) -> MiniGPTError:
    """Return the error for a package that a setting needs."""
    requirement = re.search(r"Requirement '(.+?)' not met", str(error))
    package = requirement[1] if requirement else getattr(error, "name", None) or str(error)
    return MiniGPTError(
        f"A setting of the trainer needs the package {package}, which is not installed. Install it or omit the setting."
    )


@contextmanager
def in_sentences() -> Iterator[None]:
    """Turn the errors with which Lightning ends a training for its settings into sentences.

    Raises:
        MiniGPTError: A setting is wrong, or needs a package that is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise not_installed(error) from error
    except MisconfigurationException as error:
        raise refused_by_lightning(error) from error
    except RuntimeError as error:
        absent = re.match(r"Early stopping conditioned on metric `(.+?)` .*following: (.*)", str(error))
        if not absent:
            raise
        measured = absent[2].replace("`", "")
        raise MiniGPTError(f"EarlyStopping monitors '{absent[1]}'. Pass one that is measured: {measured}.") from error


class _Notes(logging.Handler):
    """Prints Lightning's errors, and messages of callbacks and profilers, which the user has configured, to stderr.

    Lightning's other messages, about devices, loaders and its products, are not for users.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message if it is for users."""
        source = Path(record.pathname).as_posix()
        if record.levelno >= logging.ERROR or re.search("/lightning/pytorch/(callbacks|profilers|tuner)/", source):
            note(record.getMessage())


def quiet() -> None:
    """Hide Lightning's messages except errors and those of callbacks and profilers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Notes()], False
        logger.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module="lightning")
    rich.reconfigure(stderr=True)  # for RichModelSummary: results alone go to stdout
