"""Finding the files of a corpus, and the cleaning that the article applies to a text."""

import codecs
import glob
import os
import unicodedata
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from minigpt.data import encodings, reading
from minigpt.errors import MiniGPTError, did_you_mean, note, writing

EMBEDDED = "exemple"


class Download(NamedTuple):
    """The address from which a named corpus is downloaded, and the hash of the complete file."""

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
ACCEPTED = f"a text file, a folder of them, or one of {', '.join(NAMES)}"


class Corpus:
    """A text in one or more files, which can be read as often as needed, in pieces.

    Args:
        path: The name of a corpus; a file: text, .jsonl or .ndjson with a text under `text` in each line, .json with an
            array of such records or of strings, or .gz, .zst, .zip of such; a folder, of which all .txt and .md files
            are read, in the order of their names; or a pattern such as `notes/*.txt`. Texts are joined with an empty
            line.
        encoding: The encoding of the texts; None for UTF-8, or a guess for a text that is not UTF-8.
        lower: Convert the text to lower case.
        strip: Remove white space at both ends.
        nfc: Compose Unicode, so that « é » is one character however it was typed.

    Raises:
        MiniGPTError: There is nothing at the path, or no such encoding.
    """

    def __init__(
        self, path: str, encoding: str | None = None, lower: bool = False, strip: bool = False, nfc: bool = True
    ):
        self.path = str(path)
        self.encoding = encoding and _checked(encoding)
        self.lower = lower
        self.strip = strip
        self.nfc = nfc
        self.files = locate(self.path)
        self._encodings: dict[str, str] = {}  # that were detected, so that each is reported once

    def path_from(self, folder: str | None) -> str:
        """Return the corpus's name, or its path: relative to a folder, or absolute if `folder` is None."""
        if self.path in NAMES:
            return self.path
        path = Path(os.path.expanduser(self.path)).absolute()
        return Path(os.path.relpath(path, Path(folder).resolve()) if folder else path).as_posix()

    def pieces(self) -> Iterator[str]:
        """Yield the clean text in pieces of at least a few words; no token crosses from one piece to the next.

        Raises:
            MiniGPTError: A file cannot be read or is not text, or the corpus holds only white space.
        """
        empty = True
        texts = reading.join(reading.read(file, self.encoding, self._encodings) for file in self.files)
        for n, piece in enumerate(reading.cut(texts)):
            piece = clean(piece, self.lower, nfc=self.nfc)
            if self.strip:  # every piece but the last ends in a character that is not white space
                piece = piece.rstrip() if n else piece.strip()
            if piece:
                empty = empty and piece.isspace()
                yield piece
        if empty:
            raise MiniGPTError(f"The corpus '{self.path}' is empty. Give --data.path {ACCEPTED}.")


def clean(text: str, lower: bool = False, strip: bool = False, nfc: bool = True) -> str:
    """Clean a text as the article does: remove white space at both ends (`strip`), convert to lower case (`lower`).

    Before either, Unicode is composed (`nfc`), so that « é » is one character however it was typed.
    """
    if nfc:
        text = unicodedata.normalize("NFC", text)
    if strip:
        text = text.strip()
    if lower:
        text = text.lower()
        return unicodedata.normalize("NFC", text) if nfc else text  # a small letter may compose where a capital did not
    return text


def locate(path: str) -> list[Path]:
    """Return the files behind the name or path of a corpus, in the order in which they are read; see `Corpus`.

    Raises:
        MiniGPTError: The path does not exist, a folder or pattern has no texts, or a download fails.
    """
    if path == EMBEDDED:
        return [Path(str(files("minigpt"))) / "corpora" / "exemple.txt"]
    if path in DOWNLOADS:
        return [_download(path)]
    file = Path(os.path.expanduser(path))
    try:
        path.encode()  # a name that is not Unicode could not be written into a run's config.yaml
        is_dir, exists = file.is_dir(), bool(path) and file.exists()
    except (OSError, ValueError):  # a name that is too long, or has characters that no name has
        is_dir = exists = False
    if is_dir and path:
        matches = (f for f in file.rglob("*") if f.suffix.lower() in reading.TEXTS and f.is_file())
        texts = sorted(f for f in matches if not reading.is_hidden(f.relative_to(file)))
        if not texts:
            raise MiniGPTError(f"The folder '{path}' holds no .txt or .md file. Give --data.path {ACCEPTED}.")
        return texts
    if path == "-" or (exists and not file.is_file()):  # standard input, or a pipe: it could be read only once
        raise MiniGPTError(f"The corpus '{path}' is not a regular file. Save the text to a file and pass that.")
    if exists:
        return [file]
    if glob.has_magic(path):
        texts = sorted(f for f in map(Path, glob.glob(_pattern(file), recursive=True)) if f.is_file())
        if not texts:
            raise MiniGPTError(f"No file matches '{path}'. Give --data.path {ACCEPTED}.")
        return texts
    hint = did_you_mean(path, NAMES) or f" Give --data.path {ACCEPTED}."
    raise MiniGPTError(f"The corpus '{path}' does not exist.{hint}")


def cache_folder(cache_dir: str | None = None) -> Path:
    """Return the folder for files that can be made again: `cache_dir`, or the user's cache. It may not exist yet."""
    if cache_dir:
        return Path(os.path.expanduser(cache_dir))
    import pooch  # here, because few runs need it

    try:
        cache = Path(pooch.os_cache("minigpt"))
    except RuntimeError:  # newer versions of platformdirs; older ones return a folder named ~
        cache = Path("~")
    if cache.parts[0] == "~":
        raise MiniGPTError(
            "This user has no home folder to keep a cache in. Set the environment variable XDG_CACHE_HOME to a folder "
            "that this user can write to."
        )
    return cache


def _pattern(path: Path) -> str:
    """Return a glob pattern in which existing folders with names such as `notes [2]` are matched literally.

    Only the parts after the longest prefix that exists as written are a pattern.
    """
    literal = next(parent for parent in path.parents if parent.exists())
    return os.path.join(glob.escape(str(literal)), path.relative_to(literal))


def _checked(encoding: str) -> str:
    """Return Python's name of an encoding, or refuse one that is not an encoding of text files."""
    try:
        name = codecs.lookup(encoding).name
        if name in ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape", "undefined"):
            raise LookupError("not for text files")
        "".encode(encoding)  # refuses base64, for example
    except (LookupError, ValueError) as error:
        hint = did_you_mean(encoding, ("utf-8", "utf-16", "latin-1", *encodings.LEGACY))
        raise MiniGPTError(
            f"data.encoding is '{encoding}', which is not an encoding of text.{hint or ' Use utf-8 or cp1252, say.'}"
        ) from error
    return name


def _download(name: str) -> Path:
    import pooch  # here, because few runs need it

    corpus, cache = DOWNLOADS[name], cache_folder()
    file = cache / f"{name}.txt"
    pooch.get_logger().setLevel("ERROR")
    fetch = pooch.HTTPDownloader(timeout=30)

    def downloader(url: str, output: str, pup: pooch.Pooch | None) -> None:
        os.unlink(output)  # pooch's temporary file is readable by its owner only; a new one obeys the umask
        fetch(url, output, pup)

    if not file.exists():
        with writing(cache, "the environment variable XDG_CACHE_HOME"), TemporaryFile(dir=cache):
            note(f"Downloading '{name}' ({corpus.megabytes} MB), this once.")
    try:
        pooch.retrieve(corpus.url, f"sha256:{corpus.sha256}", file.name, cache, downloader=downloader)
    except OSError as error:  # also the errors of requests: no network, unknown host, a bad proxy
        raise MiniGPTError(
            f"The corpus '{name}' ({corpus.megabytes} MB) could not be downloaded. Without a network, save "
            f"{corpus.url} as {file}."
        ) from error
    except ValueError as error:
        raise MiniGPTError(
            f"What came from {corpus.url} is not '{name}': its SHA-256 differs, and nothing was kept. Try again later, "
            f"or save the right file as {file}."
        ) from error
    return file
