"""Finding and reading a corpus, and the cleaning that the article applies to it."""

import os
import unicodedata
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from minigpt.errors import MiniGPTError, did_you_mean

EMBEDDED = "exemple"


class Download(NamedTuple):
    """Where a named corpus is, and how to know that it arrived whole."""

    url: str
    sha256: str
    megabytes: float


DOWNLOADS = {
    "tinyshakespeare": Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/"
        "data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1.1,
    ),
    "tinymoliere": Download(
        "https://raw.githubusercontent.com/grll/tiny-moliere/b601214ce875485aad1308f8086d0fbeb8b68e1e/"
        "data/tinymoliere.txt",
        "e49379af6cc98869693aed4a567b39cc48bbfa489cfe36333a124c00acd99129",
        2.4,
    ),
}
NAMES = (EMBEDDED, *DOWNLOADS)


def locate(path: str) -> Path:
    """The file behind a corpus name or path.

    Args:
        path: `exemple`, the French corpus inside the package; `tinyshakespeare` or `tinymoliere`, which are downloaded
            once into the user's cache folder; or the path of a text file.

    Raises:
        MiniGPTError: There is no such file, it is a folder, or it cannot be downloaded.
    """
    if path == EMBEDDED:
        return Path(str(files("minigpt"))) / "corpora" / "exemple.txt"
    if path in DOWNLOADS:
        return _download(path)
    file = Path(os.path.expanduser(path))
    if file.is_dir():
        raise MiniGPTError(f"The corpus '{path}' is a folder. Give --data.path one text file.")
    if not file.exists():
        hint = did_you_mean(path, NAMES) or f" Give --data.path a text file, or one of {', '.join(NAMES)}."
        raise MiniGPTError(f"The corpus '{path}' does not exist.{hint}")
    return file


def _download(name: str) -> Path:
    import pooch  # here, because nothing else needs it

    corpus, cache = DOWNLOADS[name], Path(pooch.os_cache("minigpt"))
    file = cache / f"{name}.txt"
    pooch.get_logger().setLevel("ERROR")
    try:
        downloader = pooch.HTTPDownloader(progressbar=not file.exists(), timeout=30)
        pooch.retrieve(corpus.url, f"sha256:{corpus.sha256}", file.name, cache, downloader=downloader)
    except ValueError as error:
        raise MiniGPTError(
            f"What came from {corpus.url} is not '{name}': its SHA-256 differs, and nothing was kept. Try again later, "
            f"or put the right file at {file}."
        ) from error
    except OSError as error:  # requests' errors too: no network, no such host, a connection that was cut
        raise MiniGPTError(
            f"The corpus '{name}' ({corpus.megabytes} MB) could not be fetched. Without a network, bring "
            f"{corpus.url} here as {file}."
        ) from error
    return file


def read_text(path: str) -> str:
    """The text of a corpus, as UTF-8 without its byte-order mark, its lines ended by newlines alone.

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
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise MiniGPTError(f"The corpus '{path}' is empty. Give --data.path a file with some text in it.")
    return text


def clean(text: str, lower: bool = False, strip: bool = False) -> str:
    """The article's cleaning: `strip` drops white space at both ends, `lower` makes every letter small.

    Before either, Unicode is composed (NFC), so that « é » is one character however it was typed.
    """
    text = unicodedata.normalize("NFC", text)
    if strip:
        text = text.strip()
    return text.lower() if lower else text
