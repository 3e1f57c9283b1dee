"""Bytes to text: unpack a file, decode it in whatever encoding it has, and cut it into pieces for the tokenizers."""

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
TEXTS = (".txt", ".md")  # the files that are read of a folder or an archive
JSON_LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst", ".zip")
BYTE_ORDER_MARKS = {  # UTF-32's first: its mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip

# The first bytes of documents that hold a text among other data, which a model should not learn.
DOCUMENTS = {
    b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document",
    b"PK\x03\x04": "a ZIP archive, as .docx, .odt and .epub files are",
    b"\xd0\xcf\x11\xe0": "an old Microsoft Office document",
}

# A newline or a space after a character that is not white space begins a new word for every tokenizer, and neither
# lower case nor Unicode composition (NFC) depends on what comes before it. A text cut there gives the same tokens.
_UP_TO_A_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)


class ByteStream(Protocol):
    """A file, or a member of an archive, that is read from beginning to end."""

    def read(self, size: int, /) -> bytes: ...


def cut(texts: Iterable[str]) -> Iterator[str]:
    """Yield the same text in pieces that no token crosses; a text without spaces or newlines is one piece."""
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
    """Yield the parts of all texts, with `SEPARATOR` between texts that are not empty."""
    begun = False
    for parts in texts:
        for n, part in enumerate(filter(None, parts)):
            if begun and n == 0:
                yield SEPARATOR
            begun = True
            yield part


def read(file: Path, encoding: str | None, detected: dict[str, str]) -> Iterator[str]:
    """Yield the text of a file, or the texts of an archive with `SEPARATOR` between them, in parts of any size.

    Args:
        file: A text, packed (.gz, .zst, .zip) or not. In a .jsonl or .ndjson file each line is a JSON object with a
            text under the key `text`; a .json file holds such lines, one such object, or an array of such objects or
            of strings.
        encoding: The encoding, if the person passed one.
        detected: The encodings detected so far, by the name of the text. New ones are added, and reported once.

    Raises:
        MiniGPTError: The file cannot be read or unpacked, or is not text.
    """
    return join(_read_one(name, stream, encoding, detected) for name, stream in _unpack(file))


def _read_one(name: str, stream: ByteStream, encoding: str | None, detected: dict[str, str]) -> Iterator[str]:
    with readable(name):
        text = _decode(stream, name, encoding, detected)
        suffixes = [suffix.lower() for suffix in Path(name).suffixes]
        format = suffixes[-2:-1] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes[-1:]  # a.jsonl.gz: .jsonl
        if format == [".json"]:
            yield from join(_json(text, name))
        elif format and format[0] in JSON_LINES:
            yield from join(_json_lines(text, name))
        else:
            yield from text


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn errors of reading and unpacking into a sentence.

    Raises:
        MiniGPTError: The file is missing, locked, damaged or cut off.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, zstd.ZstdError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split()) or "it ends too soon"
        raise MiniGPTError(f"The corpus '{name}' cannot be read: {why}.") from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile raises these for passwords and rare methods
        raise MiniGPTError(
            f"The corpus '{name}' cannot be unpacked: {error}. Unpack it, and pass the folder."
        ) from error


def _unpack(file: Path) -> Iterator[tuple[str, ByteStream]]:
    """Yield the byte streams in a file, each with its name."""
    with readable(str(file)):
        if file.suffix.lower() != ".zip":
            with _open(file) as stream:
                yield str(file), stream
            return
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


def _open(file: Path) -> AbstractContextManager[ByteStream]:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.open(file, "rb")
    return zstd.open(file, "rb") if suffix == ".zst" else file.open("rb")


def is_hidden(file: Path) -> bool:
    """Return whether a file or a folder above it is hidden, or was added to an archive by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in file.parts)


def _json_lines(texts: Iterable[str], name: str) -> Iterator[list[str]]:
    """Yield the text of each line of a .jsonl or .ndjson file."""
    for number, line in enumerate(_lines(texts), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield [_text_of(record, f"Line {number} of '{name}'")]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    held = ""
    for text in texts:
        *lines, held = (held + text).split("\n")
        yield from lines
    yield held


def _json(texts: Iterable[str], name: str) -> Iterator[list[str]]:
    """Yield the texts in a .json file, all of which is read into memory."""
    content = "".join(texts).strip()
    try:
        records = json.loads(content or "[]")
    except (ValueError, RecursionError) as error:
        try:
            json.loads(content.partition("\n")[0])
        except (ValueError, RecursionError):
            raise MiniGPTError(f"The corpus '{name}' is not valid JSON: {error}. Fix it there.") from error
        yield from _json_lines([content], name)  # many files of JSON lines are named .json
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
    return replace_surrogates(text.replace("\r\n", "\n").replace("\r", "\n"))


def replace_surrogates(text: str) -> str:
    """Return the text with U+FFFD for each lone surrogate, half of a UTF-16 pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _decode(stream: ByteStream, name: str, encoding: str | None, detected: dict[str, str]) -> Iterator[str]:
    """Yield the text of a stream, without its byte-order mark and with newlines as its only line ends.

    A text is UTF-8 unless `encoding`, a byte-order mark or the zero bytes of UTF-16 say otherwise. If the first bytes
    outside ASCII are not UTF-8, the encoding is guessed from the bytes around them; invalid bytes further on are
    damage.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    start, block = 0, stream.read(BLOCK)
    if kind := next((kind for mark, kind in DOCUMENTS.items() if block.startswith(mark)), None):
        raise MiniGPTError(
            f"The corpus '{name}' is {kind}, not plain text. Save it as a .txt file and pass that to --data.path."
        )
    marked = next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if block.startswith(mark)), None)
    known = encoding or detected.get(name) or marked
    if not known and (likely := sniff_utf16(block[:4096])):
        known = report_encoding(name, Guess(likely), detected)
    decoder = codecs.getincrementaldecoder(known or "utf-8")()
    only_ascii, first = True, True
    while True:
        if b"\0" in block and not (known and known.startswith(("utf-16", "utf-32"))):
            raise _nul_error(name, start + block.index(b"\0"), block)
        try:
            text = decoder.decode(block, not block)
        except UnicodeDecodeError as error:
            start += len(block) - len(error.object)  # error.object begins with bytes kept from the block before
            position, byte = start + error.start, error.object[error.start]
            if known or not only_ascii or _is_damaged_utf8(error.object, error.start):
                raise MiniGPTError(
                    f"The corpus '{name}' is not whole {known or 'UTF-8'}: byte {position} is 0x{byte:02x}"
                    f"{', after text that is' * (position > 0)}. Fix it there, or pass its encoding with "
                    "--data.encoding."
                ) from error
            guessed = guess(error.object[max(0, error.start - 4096) : error.start + (1 << 16)])
            if guessed is None:
                raise MiniGPTError(
                    f"The corpus '{name}' is not text: byte {position} is 0x{byte:02x}. Pass a text file to "
                    "--data.path, or pass the encoding of this one with --data.encoding."
                ) from error
            known = report_encoding(name, guessed, detected)
            decoder, block = codecs.getincrementaldecoder(known)(), error.object
            continue
        except UnicodeError as error:  # the person passed utf-16 or utf-32, and the text has no byte-order mark
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


def sniff_utf16(head: bytes) -> str | None:
    """Return the UTF-16 or UTF-32 encoding of a text without a byte-order mark; None if the bytes are something else.

    ASCII characters have zero bytes in these encodings, which other texts do not have. Bytes that decode to printable
    text with some ASCII among it, at least one of it a space or a newline, are taken for text.
    """
    if b"\0" not in head:
        return None
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        width = int(encoding[4:6]) // 8
        text = head[: len(head) // width * width].decode(encoding, "replace")
        printable = sum((c.isprintable() or c.isspace()) and c != "\ufffd" for c in text)
        if printable > 0.95 * len(text) and sum(map(str.isascii, text)) >= 3 and not {" ", "\n"}.isdisjoint(text):
            return encoding
    return None


def _nul_error(name: str, position: int, block: bytes) -> MiniGPTError:
    """Return the error for a NUL byte in a text that was to be read in an encoding without such bytes."""
    if likely := sniff_utf16(block[:4096]):
        return MiniGPTError(
            f"The corpus '{name}' looks like {likely[:6].upper()}: byte {position} is NUL. "
            f"Pass --data.encoding {likely}."
        )
    return MiniGPTError(
        f"The corpus '{name}' is not text: byte {position} is NUL, as in a binary file. Pass a text file to "
        "--data.path; if this is one, it is damaged: remove the NUL bytes."
    )


def report_encoding(name: str, guessed: Guess, detected: dict[str, str]) -> str:
    """Tell the person which encoding was detected, remember it, and return it."""
    detected[name] = guessed.encoding
    if guessed.rivals:
        rivals = message("or").join(guessed.rivals)
        note(message("encoding_rivals", name, guessed.encoding, rivals, guessed.rivals[0]))
    else:
        note(message("encoding", name, guessed.encoding))
    return guessed.encoding


def _is_damaged_utf8(block: bytes, bad: int) -> bool:
    """Return whether a block whose byte at `bad` is not UTF-8 is UTF-8 otherwise.

    It is if a character outside ASCII comes before. Text in another encoding looks like such a character by chance only
    if most of its bytes are outside ASCII, as in Chinese; then eight characters have to come before.
    """
    characters = sum(character > "\x7f" for character in block[:bad].decode())
    around = block[max(0, bad - 256) : bad + 256]
    return characters >= 8 or (characters > 0 and sum(byte > 127 for byte in around) < len(around) / 2)
