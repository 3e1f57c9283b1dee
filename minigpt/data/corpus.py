"""Finding a corpus, and the cleaning that the article applies to it."""

import codecs
import glob
import os
import sys
import unicodedata
from collections.abc import Iterator
from hashlib import file_digest, sha256
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from minigpt.data import encodings, reading
from minigpt.errors import MiniGPTError, did_you_mean, note, writing
from minigpt.files import fresh

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
WHAT = f"a text file, a folder of them, or one of {', '.join(NAMES)}"


class Corpus:
    """A text, wherever it lies, which can be read as often as needed, in pieces.

    Args:
        path: A corpus's name; a file: text, .jsonl or .ndjson with a text under `text` in each line, .json with an
            array of such records or of strings, or .gz, .zst, .zip of such; a folder, of which all .txt and .md files
            are read, in the order of their names; a pattern such as `notes/*.txt`; or `-`, standard input, of which (as
            of a pipe) a copy is kept in the cache folder. An empty line is put between two texts.
        encoding: The texts' encoding; None for UTF-8, or what they look like where they are not.
        lower: Make every letter small.
        strip: Drop white space at both ends.
        nfc: Compose Unicode, so that « é » is one character however it was typed.
        cache_dir: Where a copy of standard input is kept; None for the user's cache folder.

    Raises:
        MiniGPTError: There is nothing at the path, or no such encoding.
    """

    def __init__(
        self,
        path: str,
        encoding: str | None = None,
        lower: bool = False,
        strip: bool = False,
        nfc: bool = True,
        cache_dir: str | None = None,
    ):
        self.path = str(path)
        self.encoding = encoding and _known(encoding)
        self.lower = lower
        self.strip = strip
        self.nfc = nfc
        self.cache_dir = cache_dir
        self._found: dict[str, str] = {}
        if is_pipe(self.path):
            self.path = str(_keep_a_copy(self.path, cache_folder(cache_dir)))
        self.files = locate(self.path)

    def place(self, start: str | None) -> str:
        """The corpus's name, or its path: relative to the folder `start`, or absolute where that is None."""
        if self.path in NAMES:
            return self.path
        path = Path(os.path.expanduser(self.path)).absolute()
        return Path(os.path.relpath(path, Path(start).resolve()) if start else path).as_posix()

    def pieces(self) -> Iterator[str]:
        """The clean text in pieces, each a few words or more, which no token straddles.

        Raises:
            MiniGPTError: A file is unreadable, or is no text, or there is nothing but white space.
        """
        empty, texts = True, reading.join(reading.read(file, self.encoding, self._found) for file in self.files)
        for n, piece in enumerate(reading.cut(texts)):
            piece = clean(piece, self.lower, nfc=self.nfc)
            if self.strip:  # all but the last end in a character that is not white space
                piece = piece.rstrip() if n else piece.strip()
            if piece:
                empty = empty and piece.isspace()
                yield piece
        if empty:
            raise MiniGPTError(f"The corpus '{self.path}' is empty. Give --data.path {WHAT}.")

    def sha256_of_files(self) -> str:
        """A hash of the raw bytes of all files, of where one ends and the next begins, and of how they are packed."""
        whole = sha256()
        for file in self.files:
            whole.update(repr(reading.packing(file)).encode())
            with reading.readable(str(file)), file.open("rb") as stream:
                whole.update(file_digest(stream, "sha256").digest())
        return whole.hexdigest()


def is_pipe(path: str) -> bool:
    """Whether a path is of what can be read but once: standard input or a pipe."""
    return path == "-" or Path(os.path.expanduser(path)).is_fifo()


def cache_folder(cache_dir: str | None = None) -> Path:
    """The folder for what can be made again; it need not exist."""
    if cache_dir:
        return Path(os.path.expanduser(cache_dir))
    import pooch  # here, because few runs need it

    try:
        cache = Path(pooch.os_cache("minigpt"))
    except RuntimeError:  # newer versions of platformdirs refuse what older ones give: a folder named ~
        cache = Path("~")
    if cache.parts[0] == "~":
        raise MiniGPTError(
            "This user has no home folder to keep a cache in. Set the environment variable XDG_CACHE_HOME to a folder "
            "that this user can write to."
        )
    return cache


def locate(path: str) -> list[Path]:
    """The files behind a corpus's name or path, in the order in which they are read; see `Corpus`.

    Raises:
        MiniGPTError: There is no such thing, a folder or pattern without texts, or a corpus that cannot be downloaded.
    """
    if path == EMBEDDED:
        return [Path(str(files("minigpt"))) / "corpora" / "exemple.txt"]
    if path in DOWNLOADS:
        return [_download(path)]
    file = Path(os.path.expanduser(path))
    try:
        path.encode()  # what cannot be written down in a run's config.yaml cannot be gone on with
        is_dir, exists = file.is_dir(), bool(path) and file.exists()
    except (OSError, ValueError):  # a name too long, or with characters that no name has
        is_dir = exists = False
    if is_dir and path:
        found = (f for f in file.rglob("*") if f.suffix.lower() in reading.TEXTS and f.is_file())
        texts = sorted(f for f in found if not reading.is_hidden(f.relative_to(file)))
        if not texts:
            raise MiniGPTError(f"The folder '{path}' holds no .txt or .md file. Give --data.path {WHAT}.")
        return texts
    if exists:
        return [file]
    if glob.has_magic(path):
        texts = sorted(f for f in map(Path, glob.glob(_pattern(file), recursive=True)) if f.is_file())
        if not texts:
            raise MiniGPTError(f"No file matches '{path}'. Give --data.path {WHAT}.")
        return texts
    hint = did_you_mean(path, NAMES) or f" Give --data.path {WHAT}."
    raise MiniGPTError(f"The corpus '{path}' does not exist.{hint}")


def _pattern(path: Path) -> str:
    """Return a pattern in which folders that exist under their own names, such as `notes [2]`, stand for themselves.

    Files and folders are matched from the first part on that does not exist as it is written.
    """
    literal = next(parent for parent in path.parents if parent.exists())
    return os.path.join(glob.escape(str(literal)), path.relative_to(literal))


def _keep_a_copy(path: str, cache: Path) -> Path:
    """A copy of what can be read but once, named by its hash, so that a run can be resumed and evaluated."""
    if path == "-" and sys.stdin is None:
        raise MiniGPTError("There is no standard input to read. Give --data.path a file.")
    folder, whole = cache / "stdin", sha256()
    with writing(folder, "--data.cache_dir"):
        partial = fresh(folder / "copy")
        try:
            source = sys.stdin.buffer if path == "-" else open(os.path.expanduser(path), "rb")  # noqa: SIM115
            with source as pipe, partial.open("xb") as copy:
                while block := pipe.read(reading.BLOCK):
                    whole.update(block)
                    copy.write(block)
            return partial.replace(folder / f"{whole.hexdigest()[:32]}.txt")
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _known(encoding: str) -> str:
    try:
        found = codecs.lookup(encoding)
        if found.name in ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape", "undefined"):
            raise LookupError("not of whole texts")
        "".encode(encoding)  # refuses what is no encoding of text, such as base64
    except (LookupError, ValueError) as error:
        hint = did_you_mean(encoding, ("utf-8", "utf-16", "latin-1", *encodings.LEGACY))
        raise MiniGPTError(
            f"data.encoding is '{encoding}', which is no encoding of text.{hint or ' Take utf-8 or cp1252, say.'}"
        ) from error
    return found.name


def _download(name: str) -> Path:
    import pooch  # here, because nothing else needs it

    corpus, cache = DOWNLOADS[name], cache_folder()
    file = cache / f"{name}.txt"
    pooch.get_logger().setLevel("ERROR")
    fetch = pooch.HTTPDownloader(timeout=30)

    def downloader(url: str, output: str, pup: pooch.Pooch | None) -> None:
        os.unlink(output)  # pooch makes it for the user alone; one made anew obeys the umask
        fetch(url, output, pup)

    if not file.exists():
        with writing(cache, "the environment variable XDG_CACHE_HOME"), TemporaryFile(dir=cache):
            note(f"Fetching '{name}' ({corpus.megabytes} MB), this once.")
    try:
        pooch.retrieve(corpus.url, f"sha256:{corpus.sha256}", file.name, cache, downloader=downloader)
    except OSError as error:  # requests' errors too: no network, no such host, a proxy that is none
        raise MiniGPTError(
            f"The corpus '{name}' ({corpus.megabytes} MB) could not be fetched. Without a network, bring "
            f"{corpus.url} here as {file}."
        ) from error
    except ValueError as error:
        raise MiniGPTError(
            f"What came from {corpus.url} is not '{name}': its SHA-256 differs, and nothing was kept. Try again later, "
            f"or put the right file at {file}."
        ) from error
    return file


def clean(text: str, lower: bool = False, strip: bool = False, nfc: bool = True) -> str:
    """The article's cleaning: `strip` drops white space at both ends, `lower` makes every letter small.

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
