"""Text to training and validation ids: in memory, or for a large text in a file, which is written once and kept."""

import json
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import Timeout

from minigpt import files
from minigpt.data import reading
from minigpt.data.corpus import Corpus, cache_folder
from minigpt.data.memmap import Ids, MemmapIds
from minigpt.data.tokenizer_base import Tokenizer
from minigpt.data.tokenizers import KINDS, CharTokenizer, from_dict
from minigpt.errors import MiniGPTError, check_choice, note, writing
from minigpt.terminal import Bar
from minigpt.words import message

CACHE_FORMAT = 3  # part of the cache's keys: raise it when the format changes, and older files are ignored
LEARNING_CHARACTERS = 1 << 26  # words and byte pairs are learned from a sample of the training text of this size
SHORTEST = 8  # tokens in the shortest window that a model can be trained with


class TokenizedCorpus(NamedTuple):
    """A corpus in ids: the first part of the text to train on, the last part to validate on.

    The text is split between two characters, at the same place for every tokenizer, so that tokenizers compare.
    """

    tokenizer: Tokenizer
    train: Ids
    val: Ids
    sha256: str  # of the clean text
    n_characters: int
    val_fraction: float  # the share that validates, which differs from the setting in a very short text


class Scan(NamedTuple):
    """The result of the first pass over a text."""

    n_characters: int
    alphabet: list[str]
    sha256: str


# Makes the tokenizer from a scan, the position of the split, and a function that begins another pass over the pieces.
Fit = Callable[[Scan, int, Callable[[], Iterable[str]]], Tokenizer]


def tokenize(
    corpus: Corpus,
    kind: str | Tokenizer = "char",
    max_vocab_size: int | None = None,
    byte_fallback: bool = False,
    val_fraction: float = 0.1,
    in_memory_mb: float = 16,
    cache_dir: str | None = None,
    unknown: str = "add",
) -> TokenizedCorpus:
    """Build the tokenizer of a corpus, or take a given one, and encode the corpus.

    A large text is read piece by piece, so memory does not grow with it: once to scan it, once to learn words or byte
    pairs (characters come out of the scan), and once to encode it.

    Args:
        corpus: The text.
        kind: `char`, `word` or `bpe`. Characters are taken from the whole text, as in the article; words and byte pairs
            are learned from the training part. Or a tokenizer, such as that of a model that is trained further; the
            other settings of tokenizers then mean nothing.
        max_vocab_size: The largest vocabulary of words or byte pairs; None for 4,096.
        byte_fallback: Spell characters that are not in the vocabulary in bytes, as words and byte pairs always do.
        val_fraction: The share of the text, from its end, that is for validation.
        in_memory_mb: A text of more millions of characters than this is encoded into a file.
        cache_dir: The folder for such files; None for the user's cache folder.
        unknown: How to treat characters that a given tokenizer lacks: `add` gives each an id after all others, if the
            tokenizer is one of characters; `skip` leaves them out.

    Raises:
        MiniGPTError: The text cannot be read or is too short, or a setting does not fit.
    """
    check_choice("data.unknown", unknown, ("add", "skip"))
    if isinstance(kind, Tokenizer):
        max_vocab_size, byte_fallback = None, False
    else:
        check_choice("data.tokenizer", kind, KINDS)
    if byte_fallback and kind != "char":
        raise MiniGPTError(f"data.byte_fallback is for data.tokenizer char: {kind} always has one. Leave it false.")

    def fit(scanned: Scan, boundary: int, read: Callable[[], Iterable[str]]) -> Tokenizer:
        options = {"lower": corpus.lower, "nfc": corpus.nfc}
        if isinstance(kind, Tokenizer):
            return kind.extended(scanned.alphabet) if unknown == "add" else kind
        if kind == "char":
            return CharTokenizer.fit(scanned.alphabet, max_vocab_size, byte_fallback=byte_fallback, **options)
        train = (piece for piece, is_val in _split(read(), boundary) if not is_val)
        return KINDS[kind].fit(subsample(train, boundary), max_vocab_size, **options)

    pieces = _read_small(corpus, in_memory_mb * 1e6)
    if pieces is not None:
        return _in_memory(corpus, pieces, fit, val_fraction, unknown)
    which = [kind.to_dict(), unknown] if isinstance(kind, Tokenizer) else [kind, max_vocab_size, byte_fallback]
    return _in_file(corpus, [*which, val_fraction], fit, val_fraction, cache_folder(cache_dir) / "tokens", unknown)


def scan(pieces: Iterable[str]) -> Scan:
    """Make the first pass over a text, and note if it holds control characters."""
    n_characters, seen, digest = 0, np.zeros(0x110000, bool), sha256()
    for piece in pieces:
        n_characters += len(piece)
        seen[np.frombuffer(piece.encode("utf-32-le"), np.uint32)] = True
        digest.update(piece.encode())
    alphabet = [chr(code) for code in np.flatnonzero(seen)]
    controls = [c for c in alphabet if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    if controls:
        names = ", ".join(f"U+{ord(c):04X}" for c in controls[:10]) + (" and more" if controls[10:] else "")
        note(f"The text holds control characters ({names}), which are learned like all others.")
    return Scan(n_characters, alphabet, digest.hexdigest())


def subsample(pieces: Iterable[str], n_characters: int) -> Iterator[str]:
    """Yield all pieces of a text, or every n-th piece if the text is larger than `LEARNING_CHARACTERS`."""
    step = -(-n_characters // LEARNING_CHARACTERS)  # rounded up
    if step > 1:
        note(f"The tokenizer learns from one piece in {step} of the training text.")
    return (piece for n, piece in enumerate(pieces) if n % step == 0)


def split_at(n_characters: int, val_fraction: float) -> int:
    """Return the position where the validation text begins.

    It leaves `SHORTEST + 1` characters on both sides, which is a window and its targets if tokens are characters.
    """
    boundary = int(n_characters * (1 - val_fraction))
    boundary = min(boundary, n_characters - (SHORTEST + 1))
    return max(boundary, SHORTEST + 1)


def _split(pieces: Iterable[str], boundary: int) -> Iterator[tuple[str, bool]]:
    """Yield the pieces, one of them cut in two at the boundary, and whether each belongs to the validation text."""
    position = 0
    for piece in pieces:
        train = piece[: max(0, boundary - position)]
        if train:
            yield train, False
        if len(train) < len(piece):
            yield piece[len(train) :], True
        position += len(piece)


def _read_small(corpus: Corpus, max_characters: float) -> list[str] | None:
    """Return the pieces of a text, or None as soon as they are more than so many characters."""
    pieces, n_characters = [], 0
    for piece in corpus.pieces():
        pieces.append(piece)
        n_characters += len(piece)
        if n_characters > max_characters:
            return None
    return pieces


def _in_memory(corpus: Corpus, pieces: list[str], fit: Fit, val_fraction: float, unknown: str) -> TokenizedCorpus:
    scanned, text = scan(pieces), "".join(pieces)
    for boundary in _boundaries(len(text), val_fraction):
        tokenizer = fit(scanned, boundary, lambda: pieces)
        train, val = (
            torch.from_numpy(_encode(tokenizer, part, unknown)).long() for part in (text[:boundary], text[boundary:])
        )
        if min(len(train), len(val)) > SHORTEST:
            return TokenizedCorpus(tokenizer, train, val, scanned.sha256, len(text), 1 - boundary / len(text))
        if len(train) + len(val) < 2 * (SHORTEST + 1):
            break
    raise _too_short(corpus, len(text))


def _encode(tokenizer: Tokenizer, text: str, unknown: str) -> np.ndarray:
    return tokenizer.encode_array(text, "skip" if unknown == "skip" else "error")


def _boundaries(n_characters: int, val_fraction: float) -> Iterator[int]:
    """Yield where to split a text, then positions ever further away, for when a part has too few tokens."""
    wanted = split_at(n_characters, val_fraction)
    for distance in chain([0], range(1, 65), (2**n for n in range(7, 40))):
        for boundary in {wanted - distance, wanted + distance}:
            if SHORTEST < boundary < n_characters - SHORTEST:
                yield boundary


def _too_short(corpus: Corpus, n_characters: int) -> MiniGPTError:
    return MiniGPTError(
        f"The corpus '{corpus.path}' is too short to train on: it has {n_characters} characters, and 18 tokens are the "
        "least, 9 to train on and 9 to validate on. Give a longer text, or leave data.tokenizer at char."
    )


def _in_file(
    corpus: Corpus, settings: list, fit: Fit, val_fraction: float, cache: Path, unknown: str
) -> TokenizedCorpus:
    """Open the cached ids of a text, or write them; a second process that wants the same ids waits for the first."""
    folder = cache / _key(corpus, settings)
    if cached := _load(folder):  # without the lock, since a cache may be readable alone
        return cached
    with writing(cache, "--data.cache_dir"):
        try:
            lock = files.lock(folder.with_suffix(".lock"), blocking=False)
        except Timeout:
            note(f"Another process is tokenising '{corpus.path}': waiting for it.")
            lock = files.lock(folder.with_suffix(".lock"))
    with lock:
        if cached := _load(folder):
            return cached
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # we hold the lock, so a killed process left it
        try:
            metadata = _write(corpus, fit, val_fraction, partial, unknown)
            if _key(corpus, settings) != folder.name:
                raise MiniGPTError(
                    f"The corpus '{corpus.path}' changed while it was read. Start again when it is at rest."
                )
            with writing(cache, "--data.cache_dir"):
                shutil.rmtree(folder, ignore_errors=True)
                partial.replace(folder)  # the folder appears whole, or not at all
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _open(folder, metadata)


def _key(corpus: Corpus, settings: list) -> str:
    """Return the name of a text's ids in the cache, which changes with its files, its cleaning and its tokenizer."""
    with reading.readable(corpus.path):
        stats = [(file, file.stat()) for file in corpus.files]
    sources = [[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    cleaning = [corpus.encoding, corpus.lower, corpus.strip, corpus.nfc]
    return sha256(json.dumps([CACHE_FORMAT, sources, cleaning, settings]).encode()).hexdigest()[:32]


def _write(corpus: Corpus, fit: Fit, val_fraction: float, folder: Path, unknown: str) -> dict[str, Any]:
    """Write the ids of a text and their metadata into a new folder, and return the metadata."""
    note(f"'{corpus.path}' is large: it is tokenised once, into {folder.parent}.")
    scanned = scan(with_progress(corpus.pieces(), message("reading")))
    n_characters = scanned.n_characters
    if n_characters < 2 * (SHORTEST + 1):
        raise _too_short(corpus, n_characters)
    boundary, learning = split_at(n_characters, val_fraction), message("learning")
    tokenizer = fit(scanned, boundary, lambda: with_progress(corpus.pieces(), learning, n_characters))
    dtype = next(kind for kind in (np.uint8, np.uint16, np.uint32) if tokenizer.vocab_size - 1 <= np.iinfo(kind).max)
    n_tokens = [0, 0]  # to train on, to validate on
    try:
        folder.mkdir(parents=True)
        with (folder / "ids.bin").open("wb") as file:
            pieces = with_progress(corpus.pieces(), message("tokenising"), n_characters)
            for piece, is_val in _split(pieces, boundary):
                ids = _encode(tokenizer, piece, unknown).astype(dtype)
                file.write(ids.data)
                n_tokens[is_val] += len(ids)
            files.sync_file(file)
        if min(n_tokens) <= SHORTEST:
            raise _too_short(corpus, n_characters)
        metadata = {
            "tokenizer": tokenizer.to_dict(), "dtype": np.dtype(dtype).name, "n_train": n_tokens[0],
            "n_tokens": sum(n_tokens), "sha256": scanned.sha256, "n_characters": n_characters,
            "val_fraction": 1 - boundary / n_characters,
        }  # fmt: skip
        with (folder / "metadata.json").open("w", encoding="utf-8") as file:
            json.dump(metadata, file)
            files.sync_file(file)
    except OSError as error:
        needed, free = n_characters * np.dtype(dtype).itemsize / 1e6, shutil.disk_usage(folder.parent).free / 1e6
        raise MiniGPTError(
            f"The ids of '{corpus.path}' could not be written ({error.strerror}): they take up to {needed:,.0f} MB, "
            f"and {folder.parent} has {free:,.0f} MB free. Make room, or pass a different folder with --data.cache_dir."
        ) from error
    return metadata


def _load(folder: Path) -> TokenizedCorpus | None:
    """Return the ids in a folder of the cache, or None if there are none, or if their file was cut off."""
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        size = (folder / "ids.bin").stat().st_size
    except (OSError, ValueError):
        return None
    return _open(folder, metadata) if size == metadata["n_tokens"] * np.dtype(metadata["dtype"]).itemsize else None


def _open(folder: Path, metadata: dict[str, Any]) -> TokenizedCorpus:
    file, dtype = folder / "ids.bin", getattr(torch, metadata["dtype"])
    return TokenizedCorpus(
        from_dict(metadata["tokenizer"]),
        MemmapIds(file, dtype, 0, metadata["n_train"]),
        MemmapIds(file, dtype, metadata["n_train"], metadata["n_tokens"]),
        *(metadata[name] for name in ("sha256", "n_characters", "val_fraction")),
    )


def with_progress(pieces: Iterable[str], label: str, total: int | None = None) -> Iterator[str]:
    """Yield the pieces, and count their characters in a progress bar."""
    n_characters = 0
    with Bar(message("characters"), total, label=label) as bar:
        for piece in pieces:
            yield piece
            n_characters += len(piece)
            bar.move(n_characters)
