"""Bytes to text: what a file unpacks to, in whatever encoding, as pieces that no token can straddle."""

import codecs
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from backports import zstd

from minigpt.data.encodings import Guess, guess
from minigpt.errors import MiniGPTError, note
from minigpt.words import message

BLOCK = 1 << 20  # bytes read at once
SEPARATOR = "\n\n"  # between two texts of a folder, an archive or a file of JSON records: an empty line
TEXTS = (".txt", ".md")  # what is read of a folder or an archive
JSON_LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst", ".zip")
MARKS = {  # UTF-32's first: its mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip

# How files begin that hold a text, but with more around it than a model should learn.
CONTAINERS = {
    b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document",
    b"PK\x03\x04": "a ZIP archive, as .docx, .odt and .epub files are",
    b"\xd0\xcf\x11\xe0": "an old Microsoft Office document",
}

# A line break or a space after something that is neither begins a new word for every tokenizer, and neither case nor
# composed characters (NFC) look across it. So a text may be cut there, and be the same text in the same tokens.
_UP_TO_A_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)


class ByteStream(Protocol):
    """A file, or a member of an archive, that is read from one end to the other."""

    def read(self, size: int, /) -> bytes: ...


def cut(texts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that no token straddles; a text without spaces or line breaks stays whole."""
    held: list[str] = []
    for text in filter(None, texts):
        if match := _UP_TO_A_CUT.match(text):
            yield "".join(held) + match[0]
            held = [text[match.end() :]]
        elif held and text[0] in " \n" and not held[-1][-1:].isspace():
            yield "".join(held)
            held = [text]
        else:
            held.append(text)
    if held:
        yield "".join(held)


def join(texts: Iterable[Iterable[str]]) -> Iterator[str]:
    """Texts, each in parts, with `SEPARATOR` between those that are not empty."""
    begun = False
    for parts in texts:
        for n, part in enumerate(filter(None, parts)):
            if begun and n == 0:
                yield SEPARATOR
            begun = True
            yield part


def read(file: Path, encoding: str | None, found: dict[str, str]) -> Iterator[str]:
    """The text of a file, or the texts of an archive with `SEPARATOR` between them, in parts of any size.

    Args:
        file: A text, packed or not (.gz, .zst, .zip); where the name ends in .jsonl or .ndjson, each line is a JSON
            object with a text under the key `text`; a .json file holds such lines, one such object, or an array of them
            or of strings.
        encoding: The encoding, if the person named one.
        found: The encodings found so far, by the text's name; what is found now is added, and said once.

    Raises:
        MiniGPTError: The file cannot be read or unpacked, or is no text.
    """
    return join(_read_one(name, stream, encoding, found) for name, stream in _unpack(file))


def packing(file: Path) -> list[str]:
    """The ends of a file's name that say how it is read, such as .jsonl and .gz."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if suffixes and suffixes[-1] not in PACKED:
        suffixes = suffixes[-1:]
    return [suffix for suffix in suffixes if suffix in (*PACKED, *JSON_LINES, ".json")]


def _read_one(name: str, stream: ByteStream, encoding: str | None, found: dict[str, str]) -> Iterator[str]:
    with readable(name):
        text, ends = _decode(stream, name, encoding, found), packing(Path(name))
        if ".json" in ends:
            yield from join(_json(text, name))
        elif set(JSON_LINES) & set(ends):
            yield from join(_json_lines(text, name))
        else:
            yield from text


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Say plainly what is wrong with a file that cannot be read or unpacked.

    Raises:
        MiniGPTError: The file is missing, locked, damaged or cut off.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, zstd.ZstdError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or "it ends too soon"
        raise MiniGPTError(f"The corpus '{name}' cannot be read: {why}.") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile's words for a password and for rare methods
        raise MiniGPTError(
            f"The corpus '{name}' cannot be unpacked: {error}. Unpack it, and pass the folder."
        ) from error


def _unpack(file: Path) -> Iterator[tuple[str, ByteStream]]:
    """The streams of bytes in a file, each with its name."""
    with readable(str(file)):
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                members = [m for m in archive.infolist() if m.filename.lower().endswith((*TEXTS, *JSON_LINES))]
                members = [m for m in members if not is_hidden(Path(m.filename))]
                if not members:
                    raise MiniGPTError(
                        f"The archive '{file}' holds no .txt, .md, .jsonl or .ndjson file. Pass a different one, or "
                        "unpack it and pass the file to read."
                    )
                for member in sorted(members, key=lambda member: member.filename):
                    with readable(f"{file}/{member.filename}"), archive.open(member) as stream:
                        yield f"{file}/{member.filename}", stream
        else:
            with _open(file) as stream:
                yield str(file), stream


def _open(file: Path) -> AbstractContextManager[ByteStream]:
    """Open a file that holds one text, packed or not."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.open(file, "rb")
    return zstd.open(file, "rb") if suffix == ".zst" else file.open("rb")


def is_hidden(file: Path) -> bool:
    """Whether a file or a folder above it is hidden, or is what a Mac adds to an archive."""
    return any(part.startswith(".") or part == "__MACOSX" for part in file.parts)


def _json_lines(texts: Iterable[str], name: str) -> Iterator[list[str]]:
    """The texts in the lines of a .jsonl or .ndjson file."""
    for number, line in enumerate(_lines(texts), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield [_text_of(record, f"Line {number} of '{name}'")]


def _json(texts: Iterable[str], name: str) -> Iterator[list[str]]:
    """The texts in a .json file, which is read whole."""
    content = "".join(texts).strip()
    try:
        records = json.loads(content or "[]")
    except (ValueError, RecursionError) as error:
        try:
            json.loads(content.partition("\n")[0])
        except (ValueError, RecursionError):
            raise MiniGPTError(f"The corpus '{name}' is not valid JSON: {error}. Fix it there.") from error
        yield from _json_lines([content], name)  # many files of JSON lines end in .json
        return
    for number, record in enumerate(records if isinstance(records, list) else [records], start=1):
        yield [_text_of({"text": record} if isinstance(record, str) else record, f"Record {number} of '{name}'")]


def _text_of(record: Any, where: str) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise MiniGPTError(
            f'{where} is not a JSON object with a text under the key "text". Fix it, or pass a text file to '
            "--data.path."
        )
    return whole(text.replace("\r\n", "\n").replace("\r", "\n"))


def whole(text: str) -> str:
    """The text with U+FFFD in the place of halves of characters (surrogates), which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _lines(texts: Iterable[str]) -> Iterator[str]:
    held = ""
    for text in texts:
        *lines, held = (held + text).split("\n")
        yield from lines
    yield held


def _decode(stream: ByteStream, name: str, encoding: str | None, found: dict[str, str]) -> Iterator[str]:
    """The text of a stream without its byte-order mark, its lines ended by newlines alone.

    It is UTF-8, unless it is said or looks otherwise. Where the first byte that is not ASCII is not UTF-8 either, the
    encoding is guessed from there on; after other such bytes it is damage.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    start, block = 0, stream.read(BLOCK)
    if kind := next((kind for mark, kind in CONTAINERS.items() if block.startswith(mark)), None):
        raise MiniGPTError(
            f"The corpus '{name}' is {kind}, not plain text. Save it as a .txt file and pass that to --data.path."
        )
    known = encoding or found.get(name) or _by_look(block, name, found)
    decoder = codecs.getincrementaldecoder(known or "utf-8")()
    only_ascii, first = True, True
    while True:
        if b"\0" in block and not (known and known.startswith(("utf-16", "utf-32"))):
            raise _has_nul(name, start, block)
        try:
            text = decoder.decode(block, not block)
        except UnicodeDecodeError as error:
            start += len(block) - len(error.object)  # the decoder had kept some bytes of the block before
            place, bad = start + error.start, error.object[error.start]
            if known or not only_ascii or _is_utf8(error.object, error.start):
                raise MiniGPTError(
                    f"The corpus '{name}' is not whole {known or 'UTF-8'}: byte {place} is 0x{bad:02x}"
                    f"{', after text that is' * (place > 0)}. Fix it there, or pass its encoding with --data.encoding."
                ) from error
            likely = guess(error.object[max(0, error.start - 4096) : error.start + (1 << 16)])
            if likely is None:
                raise _no_text(name, place, bad) from error
            known = _report(name, likely, found)
            decoder, block = codecs.getincrementaldecoder(known)(), error.object
            continue
        except UnicodeError as error:  # UTF-16 or UTF-32 that was named, without the mark that says which kind
            raise MiniGPTError(
                f"The corpus '{name}' is not {known}: {error}. Pass a different --data.encoding, such as {known}-le."
            ) from error
        only_ascii = only_ascii and text.isascii()
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text := newlines.decode(text, not block):
            yield text
        if not block:
            return
        start += len(block)
        block = stream.read(BLOCK)


def _by_look(head: bytes, name: str, found: dict[str, str]) -> str | None:
    """UTF-16 or UTF-32, by the mark at the beginning, or by the zeros that every other byte of Western text is."""
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    if len(head) < 32:
        return None
    zeros = [head[n::2].count(0) * 2 / len(head) for n in (0, 1)]
    if max(zeros) > 0.4 and min(zeros) < 0.02:
        return _report(name, Guess("utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"), found)
    return None


def _has_nul(name: str, start: int, block: bytes) -> MiniGPTError:
    """The error about a block that has a NUL byte, which no text has but in UTF-16 and UTF-32.

    Args:
        name: The text's name.
        start: Where the block begins.
        block: The bytes.
    """
    place = start + block.index(b"\0")
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        if _looks_like(block[:4096], encoding):
            kind = encoding[:6].upper()
            return MiniGPTError(
                f"The corpus '{name}' looks like {kind} without a byte-order mark: byte {place} is NUL. "
                f"Pass --data.encoding {encoding}."
            )
    return MiniGPTError(
        f"The corpus '{name}' is not text: byte {place} is NUL, as in a binary file. Pass a text file to --data.path; "
        "if this is one, it is damaged: remove the NUL bytes."
    )


def _looks_like(head: bytes, encoding: str) -> bool:
    """Whether bytes with NULs decode to printable text with some ASCII, spaces or line breaks among it."""
    width = int(encoding[4:6]) // 8
    try:
        text = head[: len(head) // width * width].decode(encoding)
    except UnicodeDecodeError:
        return False
    printable = all(character.isprintable() or character.isspace() for character in text)
    return printable and sum(map(str.isascii, text)) >= 3 and not {" ", "\n"}.isdisjoint(text)


def _is_utf8(block: bytes, bad: int) -> bool:
    """Whether a block in which one byte is not UTF-8 is UTF-8 with some damage.

    It is if any sign before it is one of UTF-8's longer ones. Only where most bytes are outside ASCII, in Chinese say,
    can a few of another encoding's look like that by chance.
    """
    signs = sum(character > "\x7f" for character in block[:bad].decode())
    around = block[max(0, bad - 256) : bad + 256]
    return signs >= 8 or (signs > 0 and sum(byte > 127 for byte in around) < len(around) / 2)


def _report(name: str, found: Guess, encodings: dict[str, str]) -> str:
    """Tell the person which encoding was found, once, and return it."""
    encodings[name] = found.encoding
    if found.rivals:
        rivals = message("or").join(found.rivals)
        note(message("encoding_rivals", name, found.encoding, rivals, found.rivals[0]))
    else:
        note(message("encoding", name, found.encoding))
    return found.encoding


def _no_text(name: str, place: int, bad: int) -> MiniGPTError:
    return MiniGPTError(
        f"The corpus '{name}' is not text: byte {place} is 0x{bad:02x}. Pass a text file to --data.path, or pass the "
        "encoding of this one with --data.encoding."
    )
