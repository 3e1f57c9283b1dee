"""The share of texts outside UTF-8 that are read correctly without --data.encoding, for docs/encodings.md.

    python benchmarks/encoding.py [--half table|thresholds] [--slices 30]

The texts in `texts/`, written for this measurement, are cut into slices of 200 to 5,000 characters, encoded as texts in
their language were before UTF-8, and read. A slice is right if the text comes back equal. Each file holds two pieces of
prose, two dialogues and two lists. The first of each is the half on which the thresholds were set; the table is made of
the second. Sentences (or lines) are drawn without replacement, and again when all are used. `others.txt` has two texts
each in further languages, likewise. The same slices are also read with the guess of charset-normalizer, which minigpt
used alone before. Prints Markdown tables.
"""

import argparse
import contextlib
import io
import random
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import MiniGPTError
from minigpt.data import reading
from minigpt.data.encodings import LEGACY, Guess

TEXTS = Path(__file__).resolve().parent / "texts"
HALVES = ("thresholds", "table")
LENGTHS = (200, 500, 1000, 2000, 2500, 3000, 5000)
KINDS = ("prose", "dialogue", "list", "lower case", "capitals", "no-break spaces", "a sentence repeated")
WESTERN = ("French", "Spanish", "Portuguese", "Italian", "German", "Swedish")
LANGUAGES = dict.fromkeys(WESTERN, "cp1252") | {
    "Polish": "cp1250", "Czech": "cp1250", "Russian": "cp1251", "Greek": "cp1253", "Turkish": "cp1254",
}  # fmt: skip
OLDER = {  # the same languages as DOS, Macs and Unix had them
    "mac_roman": WESTERN, "cp850": WESTERN, "cp437": ("French", "German", "Spanish", "Italian"),
    "iso8859_15": WESTERN, "iso8859_2": ("Polish", "Czech"), "iso8859_9": ("Turkish",), "iso8859_7": ("Greek",),
    "koi8_r": ("Russian",), "cp866": ("Russian",), "iso8859_5": ("Russian",), "mac_cyrillic": ("Russian",),
}  # fmt: skip
PLAIN = str.maketrans({"’": "'", "—": "-", "–": "-", "…": "...", "“": '"', "”": '"', "„": '"', "»": '"', "«": '"'})


def slices(language: str, half: str, kind: str, length: int, count: int) -> Iterator[str]:
    """Return texts of `length` characters of a language, each with a character outside ASCII.

    Args:
        language: A language of `LANGUAGES`.
        half: The half of the texts to take, of `HALVES`.
        kind: The kind of text, of `KINDS`.
        length: The number of characters in each.
        count: How many texts; fewer where the kind does not suit the language.
    """
    texts = (TEXTS / f"{language.lower()}.txt").read_text(encoding="utf-8").strip().split("\n\n")
    prose, dialogue, items = texts[HALVES.index(half) :: 2]
    sentences = [f"{sentence} " for sentence in re.split(r"(?<=[.!?»“”…]) ", prose)]
    lines, items = dialogue.splitlines(keepends=True), items.splitlines(keepends=True)
    units = {"prose": sentences, "dialogue": lines, "list": items, "capitals": sentences + items}
    units = units.get(kind, sentences + lines)
    change = {"lower case": str.lower, "capitals": _capitals, "no-break spaces": _with_no_break_spaces}.get(kind, str)
    if change is _with_no_break_spaces and language != "French":
        return  # the others put none before a sign
    draw = random.Random(f"{language} {half} {kind} {length}")
    while count:
        text, sentence = "", draw.choice(units)
        while len(text) < length:
            text += sentence if kind == KINDS[-1] else "".join(draw.sample(units, len(units)))
        text = change(text)[:length]
        if not text.isascii():
            count -= 1
            yield text


def _capitals(text: str) -> str:
    """Return the text in capitals of one character each, as in old encodings; Greek capitals have no accents."""
    capitals = "".join(character.upper() if len(character.upper()) == 1 else character for character in text)
    return capitals.translate(str.maketrans("ΆΈΉΊΌΎΏ", "ΑΕΗΙΟΥΩ"))


def _with_no_break_spaces(text: str) -> str:
    return re.sub("(?<=«) | (?=[;:!?»])", "\xa0", text)


def others(half: str) -> Iterator[tuple[str, str, str]]:
    """Return further languages, each with an encoding and a text."""
    for line in (TEXTS / "others.txt").read_text(encoding="utf-8").splitlines()[HALVES.index(half) :: 2]:
        language, encodings, text = line.split("|")
        for encoding in encodings.split(","):
            yield language, encoding, _for_windows_1258(text) if encoding == "cp1258" else text


def _for_windows_1258(text: str) -> str:
    """Return the text with the marks of Vietnamese tones after their vowels, as in cp1258."""
    tones = "\u0300\u0301\u0303\u0309\u0323"
    letters = []
    for letter in text:
        parts = unicodedata.normalize("NFD", letter)
        vowel = unicodedata.normalize("NFC", "".join(part for part in parts if part not in tones))
        letters.append(letter if letter in "àáãèéêóôùúâ" else vowel + "".join(part for part in parts if part in tones))
    return "".join(letters)


def charset_normalizer(sample: bytes) -> Guess | None:
    """Return the encoding that earlier versions of minigpt would have guessed."""
    from charset_normalizer import from_bytes

    if sum(byte > 127 for byte in sample) < 20:
        with contextlib.suppress(UnicodeDecodeError):
            if all(character.isprintable() for character in sample.decode("cp1252") if character > "\x7f"):
                return Guess("cp1252")
    best = from_bytes(sample, cp_isolation=LEGACY).best()
    return Guess(best.encoding) if best else None


def read(raw: bytes) -> tuple[str | None, str]:
    """Return the text that minigpt reads, or None if it refuses, and the note that it prints."""
    with contextlib.redirect_stderr(io.StringIO()) as notes:
        try:
            return "".join(reading._decode(io.BytesIO(raw), "slice", None, {})), notes.getvalue()
        except MiniGPTError:
            return None, notes.getvalue()


class Count:
    """The counts of texts read correctly, now and before, and of texts with several encodings named."""

    def __init__(self) -> None:
        self.texts = self.right = self.before = self.several = 0

    def add(self, text: str, encoding: str) -> None:
        """Encode a text and read it in both ways; texts with characters outside the encoding are skipped."""
        try:
            raw = text.encode(encoding)
        except UnicodeEncodeError:
            return
        self.texts += 1
        back, note = read(raw)
        self.right += back == text
        self.several += "as likely" in note
        with mock.patch.object(reading, "guess", charset_normalizer):
            self.before += read(raw)[0] == text

    def __str__(self) -> str:
        return f"{_percent(self.right, self.texts)} ({_percent(self.before, self.texts)})" if self.texts else ""


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}".removesuffix(".0") if whole else ""


def _table(rows: list[list]) -> None:
    head, *body = rows
    lines = [f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *body]]
    print("", *lines, sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=HALVES, default="table")
    parser.add_argument("--slices", type=int, default=30, help="of each kind and length")
    args = parser.parse_args()

    by_length: dict[tuple, Count] = defaultdict(Count)
    by_kind: dict[tuple, Count] = defaultdict(Count)
    for language, encoding in LANGUAGES.items():
        for kind in KINDS:
            for length in LENGTHS:
                for text in slices(language, args.half, kind, length, args.slices):
                    for count in (by_length[language, length], by_kind[language, kind]):
                        count.add(text, encoding)
    _table([
        ["language", "encoding", "texts", *(f"{length:,}" for length in LENGTHS), "several named"],
        *(
            [name, LANGUAGES[name], by_length[name, 200].texts, *(by_length[name, length] for length in LENGTHS),
             _percent(sum(by_length[name, length].several for length in LENGTHS),
                      sum(by_length[name, length].texts for length in LENGTHS))]
            for name in LANGUAGES
        ),
    ])  # fmt: skip
    _table([["language", *KINDS], *([name, *(by_kind[name, kind] for kind in KINDS)] for name in LANGUAGES)])

    tale = (reading.Path(reading.__file__).parents[1] / "corpora" / "exemple.txt").read_text(encoding="utf-8")
    middle = len(tale) // 2
    tale = tale[:middle] if args.half == "thresholds" else tale[middle:]
    rows = [["slices of the embedded corpus, cp1252", *(f"{length:,}" for length in LENGTHS)], ["200 each"]]
    for length in LENGTHS:
        draw, count = random.Random(length), Count()
        for _ in range(200):
            start = draw.randrange(len(tale) - length)
            count.add(tale[start : start + length], "cp1252")
        rows[-1].append(count)
    _table(rows)

    rows = [["older encoding", "language", "200", "500", "2,000"]]
    for encoding, languages in OLDER.items():
        for language in languages:
            counts = []
            for length in (200, 500, 2000):
                count = Count()
                for kind in KINDS:
                    for text in slices(language, args.half, kind, length, args.slices // 3):
                        count.add(text.translate(PLAIN) if encoding.startswith("iso") else text, encoding)
                counts.append(count)
            rows.append([encoding, language, *counts])
    _table(rows)

    rows = [["other language", "encoding", "200", "500", "2,000"]]
    for language, encoding, text in others(args.half):
        counts, units = [], [f"{sentence} " for sentence in re.split(r"(?<=[.!?。]) ?", text) if sentence]
        for length in (200, 500, 2000):
            draw, count = random.Random(f"{language} {length}"), Count()
            for _ in range(args.slices):
                text = ""
                while len(text) < length:
                    text += "".join(draw.sample(units, len(units)))
                count.add(text[:length], encoding)
            counts.append(count)
        rows.append([language, encoding, *counts])
    _table(rows)


if __name__ == "__main__":
    main()
