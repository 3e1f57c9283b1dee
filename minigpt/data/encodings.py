"""Detection of the encoding of a text that is not UTF-8.

Encodings of the Latin alphabet are compared here by the accented letters that each language uses, because a few such
letters are enough. charset-normalizer detects the other alphabets. docs/encodings.md has the measurements.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

# The candidates for charset-normalizer: the encodings of the web, of DOS and of old Macs.
LEGACY = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "iso8859_2", "iso8859_5",
    "iso8859_7", "koi8_r", "koi8_u", "mac_roman", "mac_cyrillic", "cp437", "cp850", "cp866", "cp874", "cp932", "cp949",
    "euc_jp", "euc_kr", "gb18030", "big5",
]  # fmt: skip

# Encodings of the Latin alphabet. If two of them give the same text, the earlier one is reported.
LATIN = ["cp1252", "cp1250", "cp1254", "cp1257", "iso8859_15", "iso8859_2", "mac_roman", "cp850", "cp437"]

# The letters outside ASCII that each language uses, the most frequent one first.
LETTERS = {
    "Catalan": "àèóéíòçúïü·",
    "Croatian and Slovene": "čšžćđ",
    "Czech": "íáěéřčžýšůúťňóďö",
    "Danish and Norwegian": "øåæéäö",
    "Dutch": "ëéïèüöê",
    "English": "",
    "Estonian": "äõüöšž",
    "Finnish": "äöåé",
    "French": "éàèêçâîùôûœïëüæÿ",
    "German": "üäößé",
    "Hungarian": "áéöőóíüúű",
    "Icelandic": "íðáþöéóæúý",
    "Italian": "èàùòéìóîíú",
    "Latvian": "āīēšūņļģžčķ",
    "Lithuanian": "ėšųžįąūčę",
    "Polish": "łęążśćóńźé",
    "Portuguese": "ãçáéêíóàõúâôüªº",
    "Romanian": "ăîţşâ",
    "Slovak": "áíčéýžšúľťňôďäóĺŕ",
    "Spanish": "óíáéñúü¿¡ªº",
    "Swedish": "äåöéü",
    "Turkish": "ıüşğöçİâîû",
    "Western European languages": "éáàíèóüäöçñêãåòúùôâîßõëïìûºœæø¿¡ÿª",
    "Central European languages": "áíéóöąęłśżźćńčšžěřýůúťďňőűüăâîşţ",
}
SIGNS = "’—\xa0«»“”…–„‘°•€§‚©®£±×²"  # signs outside ASCII of all these languages, the most frequent one first

LETTER_SHARE = 0.75  # the share of letters among the characters outside ASCII of a text; the others are signs
OTHER = math.log(1e-4)  # log-probability of any character that is neither a letter of the language nor a sign
MARGIN = 2.5  # another encoding replaces cp1252 only where the text is at least exp(2.5) = 12 times as likely in it
KNOWN = 0.85  # a language fits only if this share of the characters outside ASCII are its letters or signs


class Guess(NamedTuple):
    """The likeliest encoding of a text, and its rivals: encodings that are about as likely and give other texts."""

    encoding: str
    rivals: tuple[str, ...] = ()


def guess(sample: bytes) -> Guess | None:
    """Return the likeliest encoding of a text that is not UTF-8, or None if the bytes are not text."""
    few = sum(byte > 127 for byte in sample) < 20  # too few for charset-normalizer
    if latin := _guess_latin(sample, few):
        return latin
    from charset_normalizer import from_bytes

    if few:  # cp1252 is the most common encoding: it will do if the bytes are printable characters in it
        try:
            if all(character.isprintable() for character in sample.decode("cp1252") if character > "\x7f"):
                return Guess("cp1252")
        except UnicodeDecodeError:
            pass
    best = from_bytes(sample, cp_isolation=LEGACY).best()
    return Guess(best.encoding) if best else None


def _guess_latin(sample: bytes, few: bool) -> Guess | None:
    """Return the likeliest encoding of the Latin alphabet, or None if the text seems to be in another alphabet.

    Accented letters are rarely neighbours, whereas words of another alphabet consist of bytes outside ASCII. A text in
    which half of these bytes follow another one is therefore in another alphabet, unless there are few of them.

    Each encoding turns the bytes outside ASCII into characters, and each language gives these a probability. An
    encoding is as likely as its characters are in the language that suits them best. Each distinct word counts once,
    so that repeating a sentence adds no evidence.
    """
    pairs: Counter[tuple[int, int]] = Counter()  # bytes outside ASCII, each with the byte before it
    for word in set(re.split(rb"[\x00-\x40]+", sample)):
        pairs.update((before, byte) for before, byte in zip(b" " + word, word, strict=False) if byte > 127)
    together = sum(n for (before, _), n in pairs.items() if before > 127)
    if together >= pairs.total() / 2 and not few:
        return None
    fits = {encoding: fit for encoding in LATIN if (fit := _fit(pairs, encoding)) is not None}
    if not fits:
        return None
    best = max(fits, key=lambda encoding: fits[encoding])
    if "cp1252" in fits and fits["cp1252"] > fits[best] - MARGIN:
        best = "cp1252"
    near = [encoding for encoding in fits if abs(fits[encoding] - fits[best]) < MARGIN]
    readings = {sample.decode(encoding): encoding for encoding in (*reversed(near), best)}  # the earliest of each text
    return Guess(best, tuple(encoding for encoding in near if encoding != best and encoding in readings.values()))


def _fit(pairs: Counter[tuple[int, int]], encoding: str) -> float | None:
    """Return the log-probability of the characters outside ASCII in the best language, or None if no language fits."""
    table = bytes(range(256)).decode(encoding, "replace")
    characters: Counter[str] = Counter()
    for (before, byte), n in pairs.items():
        character = table[byte]
        if character == "\ufffd":
            return None
        wrong_case = character.isupper() and table[before].islower()  # a capital in the middle of a word
        characters["" if wrong_case else character if character == "İ" else character.lower()] += n
    fits = [
        sum(n * language.get(character, OTHER) for character, n in characters.items())
        for language in _LANGUAGES
        if sum(n for character, n in characters.items() if character in language) >= KNOWN * pairs.total()
    ]
    return max(fits, default=None)


def _log_probabilities(letters: str) -> dict[str, float]:
    """Return a language's log-probabilities by Zipf's law: its nth letter is 1/n as frequent as its first one."""
    share = LETTER_SHARE if letters else 0
    return {
        character: math.log(weight / n / sum(1 / m for m in range(1, len(characters) + 1)))
        for characters, weight in ((letters, share), (SIGNS, 1 - share))
        for n, character in enumerate(characters, start=1)
    }


_LANGUAGES = [_log_probabilities(letters) for letters in LETTERS.values()]
