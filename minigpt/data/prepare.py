"""A corpus to the ids of its two parts: in memory, or, where it is large, in a file that is made once and kept."""

import errno
import json
import re
import shutil
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import Timeout

from minigpt import files
from minigpt.data.corpus import Corpus, cache_folder
from minigpt.data.memmap import Ids, MemmapIds
from minigpt.data.tokenizers import KINDS, CharTokenizer, Tokenizer, from_dict
from minigpt.errors import MiniGPTError, check_choice, note, writing
from minigpt.terminal import Bar
from minigpt.words import message

FORMAT = 2  # of the files in the cache: another number, and old ones are not found
LEARNED_FROM = 1 << 26  # characters at most, spread over the training text, that words and byte pairs are learned from
SHORTEST = 8  # tokens in the shortest window that a text is trained with


def split_at(n_characters: int, val_fraction: float) -> int:
    """Where the validation text begins: at the last `val_fraction`, with a shortest window's room on both sides."""
    return max(min(int(n_characters * (1 - val_fraction)), n_characters - SHORTEST - 1), SHORTEST + 1)


class TokenizedCorpus(NamedTuple):
    """A corpus in ids: the first part of the text to train on, the last to validate on.

    The text is split between two characters, the same ones whatever the tokenizer, so that tokenizers compare.
    """

    tokenizer: Tokenizer
    train: Ids
    val: Ids
    sha256: str  # of the clean text
    n_characters: int
    val_fraction: float  # as it came out


def tokenize(
    corpus: Corpus,
    kind: str = "char",
    max_vocab_size: int | None = None,
    byte_fallback: bool = False,
    val_fraction: float = 0.1,
    in_memory_mb: float = 16,
    cache_dir: str | None = None,
) -> TokenizedCorpus:
    """Build a corpus's tokenizer and encode it.

    Args:
        corpus: The text.
        kind: `char`, `word` or `bpe`. Characters are taken from the whole text, as in the article; words and byte pairs
            are learned from the training part.
        max_vocab_size: The most words or byte pairs; None for 4,096.
        byte_fallback: Give characters never seen a spelling in bytes; words and byte pairs have one anyway.
        val_fraction: The share of the text, from its end, that is for validation.
        in_memory_mb: A text of more millions of characters than this is encoded into a file.
        cache_dir: The folder for such files; None for the user's cache folder.

    Raises:
        MiniGPTError: The text cannot be read or is too short, or a setting does not fit.
    """
    check_choice("data.tokenizer", kind, KINDS)
    if byte_fallback and kind != "char":
        raise MiniGPTError(f"data.byte_fallback is for data.tokenizer char: {kind} always has one. Leave it false.")

    def fit(pieces: Callable[[], Iterable[str]], survey: "Survey", boundary: int) -> Tokenizer:
        options = {"lower": corpus.lower, "nfc": corpus.nfc}
        if kind == "char":
            options["byte_fallback"] = byte_fallback
            return CharTokenizer.fit(survey.alphabet, max_vocab_size, **options)
        train = (piece for piece, is_val in _parts(pieces(), boundary) if not is_val)
        return KINDS[kind].fit(_spread(train, boundary), max_vocab_size, **options)

    pieces = _read_small(corpus, in_memory_mb * 1e6)
    if pieces is not None:
        return _in_memory(corpus, pieces, fit, val_fraction)
    settings = [kind, max_vocab_size, byte_fallback, val_fraction]
    return _in_file(corpus, settings, fit, val_fraction, cache_folder(cache_dir) / "tokens")


class Survey(NamedTuple):
    """What is known of a text once it was read from end to end."""

    n_characters: int
    alphabet: list[str]
    sha256: str


def survey(pieces: Iterable[str]) -> Survey:
    """Read a text once, and say so if it holds control characters."""
    n_characters, seen, whole = 0, np.zeros(0x110000, bool), sha256()
    for piece in pieces:
        n_characters += len(piece)
        seen[np.frombuffer(piece.encode("utf-32-le"), np.uint32)] = True
        whole.update(piece.encode())
    alphabet = [chr(code) for code in np.flatnonzero(seen)]
    controls = [c for c in alphabet if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    if controls:
        names = ", ".join(f"U+{ord(c):04X}" for c in controls[:10]) + (" and more" if controls[10:] else "")
        note(f"The text holds control characters ({names}), which are learned like all others.")
    return Survey(n_characters, alphabet, whole.hexdigest())


Fit = Callable[[Callable[[], Iterable[str]], Survey, int], Tokenizer]


def _read_small(corpus: Corpus, most: float) -> list[str] | None:
    pieces, length = [], 0
    for piece in corpus.pieces():
        pieces.append(piece)
        length += len(piece)
        if length > most:
            return None
    return pieces


def _in_memory(corpus: Corpus, pieces: list[str], fit: Fit, val_fraction: float) -> TokenizedCorpus:
    about, text = survey(pieces), "".join(pieces)
    for boundary in _boundaries(len(text), val_fraction):
        tokenizer = fit(lambda: pieces, about, boundary)
        train, val = (
            torch.from_numpy(tokenizer.encode_array(part)).long() for part in (text[:boundary], text[boundary:])
        )
        if min(len(train), len(val)) > SHORTEST:
            return TokenizedCorpus(tokenizer, train, val, about.sha256, len(text), 1 - boundary / len(text))
        if len(train) + len(val) < 2 * (SHORTEST + 1):
            break
    raise _too_short(corpus, len(text))


def _too_short(corpus: Corpus, n_characters: int) -> MiniGPTError:
    return MiniGPTError(
        f"The corpus '{corpus.path}' is too short to train on: it has {n_characters} characters, and 18 tokens are the "
        "least, 9 to train on and 9 to validate on. Give a longer text, or leave data.tokenizer at char."
    )


def _boundaries(n_characters: int, val_fraction: float) -> Iterator[int]:
    """Where to split a text, and where else if that leaves a part with too few tokens: ever further from there."""
    asked = split_at(n_characters, val_fraction)
    for distance in chain([0], range(1, 65), (2**n for n in range(7, 40))):
        for boundary in {asked - distance, asked + distance}:
            if SHORTEST < boundary < n_characters - SHORTEST:
                yield boundary


def _in_file(corpus: Corpus, settings: list, fit: Fit, val_fraction: float, cache: Path) -> TokenizedCorpus:
    cleaning = [corpus.encoding, corpus.lower, corpus.strip, corpus.nfc]
    raw = _known_sha256(corpus, cache)
    key = sha256(json.dumps([FORMAT, raw, cleaning, settings]).encode()).hexdigest()[:32]
    folder = cache / key
    if tokens := _open(folder):  # without the lock, so that a cache that is only to be read will do
        return tokens
    with writing(cache, "--data.cache_dir"):
        try:
            lock = files.lock(cache / f"{key}.lock", blocking=False)
        except Timeout:
            note(f"Another process is tokenising '{corpus.path}': waiting for it.")
            lock = files.lock(cache / f"{key}.lock")
    with lock:
        return _open(folder) or _build(corpus, fit, val_fraction, folder)


def _state(file: Path) -> list[int]:
    """What changes when a file does."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _known_sha256(corpus: Corpus, cache: Path) -> str:
    """The hash of the raw files, which is looked up where they have not changed since they were last hashed."""
    states = [FORMAT, *([str(file.absolute()), *_state(file)] for file in corpus.files)]
    known = cache / f"{sha256(json.dumps(states).encode()).hexdigest()[:32]}.sha256"
    with suppress(OSError):
        if re.fullmatch(rb"[0-9a-f]{64}", kept := known.read_bytes()):
            return kept.decode()
    found = corpus.sha256_of_files()
    with suppress(OSError):  # it is only a shortcut
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(found, encoding="utf-8")
    return found


def _open(folder: Path) -> TokenizedCorpus | None:
    """What lies in the cache; None if nothing does, or what lies there is not what was put there."""
    about, ids = folder / "tokens.json", folder / "ids.bin"
    try:
        found, check = json.loads(about.read_text(encoding="utf-8"))
        if check != _check(found) or (found["state"] != _state(ids) and found["crc32"] != _crc32(ids)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    dtype, boundary, n = getattr(torch, found["dtype"]), found["n_train"], found["n_tokens"]
    tokenizer = from_dict(found["tokenizer"])
    train, val = MemmapIds(ids, dtype, 0, boundary), MemmapIds(ids, dtype, boundary, n)
    return TokenizedCorpus(tokenizer, train, val, found["sha256"], found["n_characters"], found["val_fraction"])


def _check(found: dict) -> str:
    return sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _crc32(file: Path) -> int:
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _build(corpus: Corpus, fit: Fit, val_fraction: float, folder: Path) -> TokenizedCorpus:
    """Encode a text into a folder, which appears under its name when all of it is written."""
    partial = folder.with_suffix(".partial")  # the lock is ours: what a killed process left under this name is no one's
    if folder.exists():
        note(f"The ids in {folder} have been altered since they were written: they are made anew.")
    _remove(partial)
    _remove(folder)
    before = [_state(file) for file in corpus.files]
    note(f"'{corpus.path}' is large: it is tokenised once, into {folder.parent}.")
    about = survey(_shown(corpus.pieces(), message("reading")))
    if about.n_characters < 2 * (SHORTEST + 1):
        raise _too_short(corpus, about.n_characters)
    boundary = split_at(about.n_characters, val_fraction)
    learning = message("learning")
    tokenizer = fit(lambda: _shown(corpus.pieces(), learning, about.n_characters), about, boundary)
    dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32) if tokenizer.vocab_size - 1 <= np.iinfo(kind).max)
    counts, characters = [0, 0], 0  # tokens of each part
    pieces = _shown(corpus.pieces(), message("tokenising"), about.n_characters)
    try:
        partial.mkdir(parents=True)
        with (partial / "ids.bin").open("wb") as file:
            for piece, is_val in _parts(pieces, boundary):
                ids = tokenizer.encode_array(piece).astype(dtype)
                file.write(ids.data)
                counts[is_val] += len(ids)
                characters += len(piece)
            files.sync_file(file)
        if min(counts) <= SHORTEST:
            raise _too_short(corpus, about.n_characters)
        if [_state(file) for file in corpus.files] != before:
            raise MiniGPTError(f"The corpus '{corpus.path}' changed while it was read. Start again when it is at rest.")
        found = {
            "tokenizer": tokenizer.to_dict(), "dtype": np.dtype(dtype).name, "n_train": counts[0],
            "n_tokens": sum(counts), "n_characters": about.n_characters, "sha256": about.sha256,
            "val_fraction": 1 - boundary / about.n_characters, "state": _state(partial / "ids.bin"),
            "crc32": _crc32(partial / "ids.bin"),
        }  # fmt: skip
        with (partial / "tokens.json").open("w", encoding="utf-8") as about_file:
            json.dump([found, _check(found)], about_file)
            files.sync_file(about_file)
        partial.replace(folder)
    except BaseException as error:
        _remove(partial)
        if not isinstance(error, OSError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        tokens = sum(counts) / max(1, characters) * about.n_characters or about.n_characters
        needed, free = tokens * np.dtype(dtype).itemsize / 1e6, shutil.disk_usage(folder.parent).free / 1e6
        raise MiniGPTError(
            f"The ids of '{corpus.path}' could not be written ({'the disk is full' if full else error.strerror}): they "
            f"need about {needed:,.0f} MB, and {folder.parent} has {free:,.0f} MB free. "
            f"{'Make room, or name' if full else 'Name'} another folder with --data.cache_dir."
        ) from error
    made = _open(folder)
    if made is None:
        raise MiniGPTError(
            f"The ids in '{folder}' were removed or altered as soon as they were written. Start again, or pass a "
            "different folder with --data.cache_dir."
        )
    return made


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _parts(pieces: Iterable[str], boundary: int) -> Iterator[tuple[str, bool]]:
    """The pieces, one of them cut in two at the boundary, and whether each belongs to the second part."""
    place = 0
    for piece in pieces:
        first = piece[: max(0, boundary - place)]
        if first:
            yield first, False
        if len(first) < len(piece):
            yield piece[len(first) :], True
        place += len(piece)


def _spread(pieces: Iterable[str], n_characters: int) -> Iterator[str]:
    """All of a text, or, where that is too much to learn from, every so many-th piece."""
    step = -(-n_characters // LEARNED_FROM)
    if step > 1:
        note(f"The tokenizer learns from one piece in {step} of the training text.")
    return (piece for n, piece in enumerate(pieces) if n % step == 0)


def _shown(pieces: Iterable[str], what: str, total: int | None = None) -> Iterator[str]:
    """The pieces, with a progress bar on a terminal."""
    n = 0
    with Bar(message("characters"), total, label=what) as bar:
        for piece in pieces:
            yield piece
            n += len(piece)
            bar.move(n)
