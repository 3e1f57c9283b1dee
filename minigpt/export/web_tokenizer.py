"""A tokenizer as plain values, from which the JavaScript of the HTML page makes the same tokenizer."""

import json
import re
from typing import Any

from minigpt.data.pretrained_tokenizer import BYTE_NAME, PretrainedTokenizer, steps_of
from minigpt.data.tokenizer_base import Tokenizer, byte_letters
from minigpt.data.tokenizers import BPETokenizer, CharTokenizer, WordTokenizer
from minigpt.errors import MiniGPTError

# In JavaScript's regular expressions \s and \w are not Python's. White space and word characters of Python, in classes:
SPACE, WORD = r"\p{White_Space}\x1c-\x1f", r"\p{L}\p{N}_"
# `_Words._WORDS`, `WordTokenizer._PARTS`, and the regular expression of GPT-2 in the `tokenizers` library.
WORDS = f"[{SPACE}]*[^{SPACE}]+(?:(?![ \\n])[{SPACE}]+[^{SPACE}]*)*|[{SPACE}]+"
PARTS = f"[{WORD}]+|(?:(?!\\n)[{SPACE}])+|\\n+|[^{WORD}{SPACE}]"
GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|"
    r"\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+"
)
# The parts of the library's regular expressions that JavaScript has too, some under another name.
SAME = re.compile(
    r"\\p\{[A-Z][a-z]?\}|\\[rnt.|()*+?\[\]{}^$/\\]|\(\?[:=!]|\((?!\?)|[)|]|(\{\d+(,\d*)?\}|[?*+])(?!\+)"
    r"|\[\^?(?!\])|[^\\\[\](){}|?*+.^$]"
)
IN_CLASS = re.compile(r"\\p\{[A-Z][a-z]?\}|\\[rnt^\[\]\\/-]|[^\\\[&]|&(?!&)")
RENAMED = {r"\s": r"\p{White_Space}", r"\S": r"\P{White_Space}", r"\d": r"\p{Nd}"}
CASELESS = re.compile(r"\(\?i:([a-z'|]+)\)")
ALSO = {"s": "ſ", "k": "\u212a"}  # capital letters other than the usual one, in a pattern that ignores case


def definition_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the definition of a tokenizer.

    A text is cut into pieces. A piece that is not an id as a whole is spelled in characters, or in bytes where these
    have no ids, and then pairs of ids are merged. All kinds of tokenizers differ in these values only:

    - `tokens`: the bytes of each id, each byte as a character up to U+00FF.
    - `lower`, `nfc`: how a prompt is cleaned.
    - `prefix`, `opening`: the ids before each text, and the id in place of an empty text.
    - `special`: the ids that are found in a text before it is cut.
    - `cuts`: regular expressions. Their matches and the text between them are pieces, which the next one cuts again.
    - `whole`, `units`: the ids that are found as a piece, and as a character.
    - `bytes`: the ids of the 256 bytes, None for a byte without one; or an empty list.
    - `merges`: pairs of ids with the id that they become, the first pair first.
    - `longest`: how many ids are merged at once, None for all of a piece.

    Raises:
        MiniGPTError: The page has no such tokenizer; the message names the part.
    """
    line_break = (tokenizer.encode("\n", unknown="skip") or [0])[0]
    definition: dict[str, Any] = {
        "tokens": [token.decode("latin-1") for token in tokenizer.tokens], "lower": tokenizer.lower,
        "nfc": tokenizer.nfc, "prefix": list(tokenizer.prefix),
        "opening": line_break if tokenizer.bos is None else tokenizer.bos,
        "special": [], "cuts": [], "whole": [], "units": [], "bytes": [], "merges": [], "longest": None,
    }  # fmt: skip
    if type(tokenizer) is CharTokenizer:
        size, V = len(tokenizer.characters), tokenizer.vocab_size
        return definition | {"units": list(range(size)), "bytes": list(range(size, V))}
    if type(tokenizer) is WordTokenizer:
        characters = [*range(128), *(256 + n for n, word in enumerate(tokenizer.words) if len(word) == 1)]
        whole = [*range(128), *range(256, tokenizer.vocab_size)]
        parts = {"cuts": [WORDS, PARTS], "units": characters, "whole": whole}
        return definition | parts | {"bytes": list(range(256))}
    if type(tokenizer) is BPETokenizer:
        ids = {token: i for i, token in enumerate(tokenizer.tokens)}
        tokens = tokenizer.tokens
        merges = [[left, right, ids[tokens[left] + tokens[right]]] for left, right in tokenizer.merges]
        return definition | {"cuts": [WORDS, GPT2], "bytes": list(range(256)), "merges": merges, "longest": 512}
    if type(tokenizer) is PretrainedTokenizer:
        return definition | _pretrained(tokenizer)
    raise _refused(f"a {type(tokenizer).__name__}")


def _refused(what: str) -> MiniGPTError:
    return MiniGPTError(f"The HTML page has no tokenizer with {what}. Use --format safetensors or onnx.")


def _pretrained(tokenizer: PretrainedTokenizer) -> dict[str, Any]:
    """Return the values of a definition that differ from those of an empty tokenizer."""
    content = json.loads(tokenizer.backend.to_str())
    model, ids = content["model"], content["model"]["vocab"]
    steps = steps_of(content["pre_tokenizer"])
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    added = content["added_tokens"]
    if any(token["single_word"] for token in added):
        raise _refused("special tokens that are single words")
    if byte_level:
        units = []
        letters = byte_letters()
        of_bytes = [ids.get(letters[byte]) for byte in range(256)]
    else:
        spaces = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
        spaces += [step["content"] for step in steps_of(content["normalizer"]) if step["type"] == "Replace"]
        # The library writes spaces as another character, so it never finds a token " ".
        units = [i for name, i in ids.items() if len(name) == 1 and not (spaces and name == " ")]
        names = {int(match[1], 16): i for name, i in ids.items() if (match := BYTE_NAME.fullmatch(name))}
        of_bytes = [names.get(byte) for byte in range(256)]
    merges = []
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        merges.append([ids[left], ids[right], ids[left + right]])
    return {
        "special": [token["id"] for token in added if token["content"]], "cuts": _cuts(steps), "units": units,
        "bytes": of_bytes, "merges": merges,
        "whole": [i for i in ids.values() if _is_text(tokenizer.tokens[i])] if model.get("ignore_merges") else [],
    }  # fmt: skip


def _is_text(token: bytes) -> bool:
    try:
        return bool(token.decode())
    except UnicodeDecodeError:
        return False


def _cuts(steps: list[dict[str, Any]]) -> list[str]:
    """Return the regular expressions that cut a text as pre-tokenizers do."""
    cuts = []
    for n, step in enumerate(steps):
        kind = step["type"]
        if kind == "ByteLevel" and n == len(steps) - 1:
            cuts += [GPT2] * step.get("use_regex", True)
        elif kind == "Digits":
            cuts.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
        elif kind == "Metaspace":
            cuts += [" [^ ]*"] * step.get("split", True)
        elif kind == "Split" and step["behavior"] == "Isolated":
            ((form, pattern),) = step["pattern"].items()
            literal = re.sub(r"[\\^$.*+?()\[\]{}|/]", r"\\\g<0>", pattern)
            cuts.append(_in_javascript(pattern) if form == "Regex" else literal)
        else:
            raise _refused(f"the pre-tokenizer {kind}{' ' + step['behavior'] if 'behavior' in step else ''}")
    return cuts


def _in_javascript(pattern: str) -> str:
    r"""Translate a regular expression of the `tokenizers` library, whose \s, for example, is not that of JavaScript."""
    parts, at, in_class = [], 0, False
    while at < len(pattern):
        if pattern[at : at + 2] in RENAMED:
            parts.append(RENAMED[pattern[at : at + 2]])
            at += 2
            continue
        caseless = None if in_class else CASELESS.match(pattern, at)
        found = caseless or (IN_CLASS if in_class else SAME).match(pattern, at)
        if not found:
            raise _refused(f"the regular expression {pattern!r}")
        part = found[0]
        in_class = part != "]" if in_class else part in ("[", "[^")
        parts.append(f"(?:{re.sub('[a-z]', lambda c: _either(c[0]), caseless[1])})" if caseless else part)
        at = found.end()
    return "".join(parts)


def _either(letter: str) -> str:
    return f"[{letter}{letter.upper()}{ALSO.get(letter, '')}]"
