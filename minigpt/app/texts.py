"""The texts that visitors train on: checked, cleaned, and kept as UTF-8 files in one folder."""

import os
import re
import unicodedata
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from minigpt import runs
from minigpt.app.visitors import Problem
from minigpt.data import reading
from minigpt.errors import MiniGPTError
from minigpt.files import fresh

FOLDER = Path(runs.ROOT) / "texts"
KINDS = (*reading.TEXTS, *reading.JSON_LINES, ".json")  # packed files are left out: their size is not bounded
MAX_MB = 20  # of all texts of a training together
MAX_FILES = 10
MIN_CHARACTERS = 500


def keep(pasted: str | None, uploads: Sequence[str] | None) -> Path:
    """Write a visitor's text, pasted and uploaded, into `FOLDER`, and return its file.

    The file's name has letters from the text's first words or the first upload's name, and a hash of the text, so the
    same text gives the same file.

    Args:
        pasted: The pasted text.
        uploads: Uploaded files, which Gradio has saved under their own names in folders of its own.

    Raises:
        Problem: There is no text, it is too short or too large, or a file has the wrong kind or cannot be read.
    """
    files = [Path(upload) for upload in uploads or ()]
    if len(files) > MAX_FILES:
        raise Problem("too_many_files", MAX_FILES)
    for file in files:
        if file.suffix.lower() not in KINDS:
            raise Problem("wrong_kind", file.name, ", ".join(KINDS))
    pasted = reading.replace_surrogates(pasted or "").replace("\r\n", "\n").replace("\0", "")
    if sum(map(_size, files)) + len(pasted.encode()) > MAX_MB * 2**20:
        raise Problem("too_large", MAX_MB)
    texts = [*map(_read, files), pasted.strip()]
    text = reading.SEPARATOR.join(filter(None, texts))
    if not text:
        raise Problem("no_text")
    if len(text) < MIN_CHARACTERS:
        raise Problem("short_text", len(text), MIN_CHARACTERS)
    content = text.encode()
    title = _letters(files[0].stem if files else " ".join(text[:100].split()[:4]))
    path = FOLDER / f"{title}-{sha256(content).hexdigest()[:12]}.txt"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        partial = fresh(path)
        partial.write_bytes(content)
        os.replace(partial, path)
    return path


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:  # Gradio deletes its copies after a day
        raise Problem("not_text", file.name) from error


def _read(file: Path) -> str:
    try:
        return "".join(reading.read(file, None, {})).strip()
    except MiniGPTError as error:
        raise Problem("not_text", file.name) from error


def _letters(title: str) -> str:
    """Return a part of a file name: letters and digits of ASCII with dashes between them, at most 40."""
    title = title.lower().replace("œ", "oe").replace("æ", "ae")
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:40].strip("-") or "text"
