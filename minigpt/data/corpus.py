"""Finding and reading a corpus, and the cleaning that the article applies to it."""

from importlib.resources import files
from pathlib import Path

from minigpt.errors import MiniGPTError, did_you_mean

EMBEDDED = "exemple"


def locate(path: str) -> Path:
    """The file behind a corpus name or path.

    Args:
        path: `exemple`, the French corpus inside the package, or the path of a text file.

    Raises:
        MiniGPTError: There is no such file, or it is a folder.
    """
    if path == EMBEDDED:
        return Path(str(files("minigpt"))) / "corpora" / "exemple.txt"
    file = Path(path).expanduser()
    if file.is_dir():
        raise MiniGPTError(f"The corpus '{path}' is a folder. Give --data.path one text file.")
    if not file.exists():
        hint = did_you_mean(path, [EMBEDDED]) or f" Give --data.path a text file, or '{EMBEDDED}' for the embedded one."
        raise MiniGPTError(f"The corpus '{path}' does not exist.{hint}")
    return file


def read_text(path: str) -> str:
    """The text of a corpus, as UTF-8 without its byte-order mark.

    Raises:
        MiniGPTError: The corpus is missing, unreadable, empty, or not UTF-8 text (the first bad byte is named).
    """
    file = locate(path)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise MiniGPTError(f"The corpus '{path}' cannot be read: {error.strerror}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MiniGPTError(
            f"The corpus '{path}' is not UTF-8 text (byte {error.start} is 0x{raw[error.start]:02x}). "
            "Save it as UTF-8 and try again."
        ) from error
    if "\0" in text:
        raise MiniGPTError(f"The corpus '{path}' is not text: it holds zero bytes. Give --data.path a text file.")
    if not text.strip():
        raise MiniGPTError(f"The corpus '{path}' is empty. Give --data.path a file with some text in it.")
    return text


def clean(text: str, lower: bool = False, strip: bool = False) -> str:
    """The article's cleaning: `strip` drops white space at both ends, `lower` makes every letter small."""
    if strip:
        text = text.strip()
    return text.lower() if lower else text
