"""The tokenizer of a pretrained model, from its `tokenizer.json`."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minigpt.data.tokenizer_base import Tokenizer, byte_letters, never_seen
from minigpt.errors import MiniGPTError, check_choice

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# The pre-tokenizers that only cut a text. Split and Punctuation can also remove characters, which is refused.
CUTTING = ("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "UnicodeScripts", "FixedLength")
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")  # a byte in vocabularies with `byte_fallback`


class PretrainedTokenizer(Tokenizer):
    r"""A byte-pair tokenizer that came with a model, in the `tokenizers` library.

    There are two kinds. The tokens of GPT-2's kind are bytes, spelled in the letters of `byte_letters`. The tokens of
    Llama's kind are characters, with "▁" for a space, and tokens such as <0x0A> for the bytes of others.

    The ids are the library's, with three exceptions that make `decode(encode(text))` the text. A space that the library
    would put before a text is left out. White space beside special tokens stays. A text that the
    library does not give back, such as one with the character "▁", is spelled in part with tokens of single bytes.

    Args:
        definition: The content of `tokenizer.json`.
        vocab_size: `V` of the model; ids without a token stand for no bytes.
        bos: The id with which the model's texts begin, if it has one. An empty prompt is continued from it.
        eos: The id with which they end, or several.

    Attributes:
        prefix: The ids that the tokenizer puts before each text.

    Raises:
        MiniGPTError: The definition is damaged, or is a kind of tokenizer that does not give a text back; the message
            names the part that does not.
    """

    kind, learned = "pretrained", "definition"

    def __init__(
        self, definition: str, vocab_size: int, bos: int | None = None, eos: int | Sequence[int] | None = None
    ):
        self.definition, self.bos, self.eos = definition, bos, eos
        try:
            content = json.loads(definition)
            steps = [step["type"] for step in steps_of(content["normalizer"])]
            content, byte_level, space = _reversible(content)
            self.backend = _without_large_ids(content, vocab_size)
            tokens = self._bytes_of(vocab_size, byte_level, space)
            super().__init__(tokens, lower="Lowercase" in steps, nfc="NFC" in steps)
            self.prefix = self._prefix()
        except MiniGPTError:
            raise
        except BaseException as error:  # the library has many, and its own panics derive from BaseException
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise MiniGPTError("The tokenizer.json of the model is damaged. Download its folder again.") from error

    @classmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """Refuse: this tokenizer comes with its model."""
        raise MiniGPTError(
            "A pretrained tokenizer comes with its model and is not made from a text. Pass the model with --init_from, "
            "or set data.tokenizer to char, word or bpe."
        )

    def to_dict(self) -> dict:
        """Return the tokenizer as a dict of plain values."""
        return {
            "kind": self.kind, "definition": self.definition, "vocab_size": self.vocab_size, "bos": self.bos,
            "eos": self.eos,
        }  # fmt: skip

    def _bytes_of(self, vocab_size: int, byte_level: bool, space: str | None) -> list[bytes]:
        """Return the bytes of each id."""
        names = self.backend.get_vocab(with_added_tokens=False)
        if largest := [name for name, i in names.items() if i >= vocab_size]:
            raise MiniGPTError(
                f"The tokenizer.json has the token {largest[0][:50]!r} with the id {names[largest[0]]}, and the model "
                f"has {vocab_size:,} tokens. Download the folder again."
            )
        tokens = [b""] * vocab_size
        bytes_of = {letter: byte for byte, letter in byte_letters().items()}
        for name, i in names.items():
            if byte_level and bytes_of.keys() >= set(name):
                tokens[i] = bytes(bytes_of[letter] for letter in name)
            elif not byte_level and (match := BYTE_NAME.fullmatch(name)):
                tokens[i] = bytes([int(match[1], 16)])
            else:
                tokens[i] = (name.replace(space, " ") if space else name).encode()
        for i, added in self.backend.get_added_tokens_decoder().items():
            tokens[i] = added.content.encode()
        return tokens

    def _prefix(self) -> list[int]:
        plain = self._encode(["a"])[0]
        ids = self.backend.encode("a").ids
        where = [n for n in range(len(ids)) if ids[n : n + len(plain)] == plain]
        return ids[: where[0]] if plain and where else []

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _gives_back(self, ids: list[int], text: str) -> bool:
        return b"".join(map(self.tokens.__getitem__, ids)) == text.encode()

    def encode_array(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the `(N,)` ids of a clean text as an int32 array, without `prefix`."""
        check_choice("unknown", unknown, ("error", "skip"))
        ids = self._encode([text])[0] if text else []
        if not self._gives_back(ids, text):
            ids = self._spell_exactly(text, unknown)
        return np.array(ids, np.int32)

    def _spell_exactly(self, text: str, unknown: str) -> list[int]:
        """Return the ids of a text with characters that the library does not give back."""
        characters = sorted(set(text))
        lost = [c for c, ids in zip(characters, self._encode(characters), strict=True) if not self._gives_back(ids, c)]
        spelled = {c: self._spell(c) for c in lost}
        missing = [c for c in lost if not spelled[c]]
        if missing and unknown == "error":
            raise never_seen(missing)
        pieces = re.split(f"([{re.escape(''.join(lost))}])", text) if lost else [text]
        plain = list(set(pieces) - spelled.keys() - {""})
        encoded = spelled | {p: self._halved(p, ids) for p, ids in zip(plain, self._encode(plain), strict=True)}
        return list(chain.from_iterable(encoded[piece] for piece in pieces if piece))

    def _spell(self, character: str) -> list[int]:
        """Return the id of a character, or those of its bytes; none if there are no such tokens."""
        whole = character.encode()
        if whole in self._ids:
            return [self._ids[whole]]
        single = [bytes([byte]) for byte in whole]
        return [self._ids[byte] for byte in single] if self._ids.keys() >= set(single) else []

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {token: i for i, token in enumerate(self.tokens) if token}

    def _halved(self, text: str, ids: list[int]) -> list[int]:
        """Return the ids of a text, or those of its halves if they do not give it back."""
        if len(text) == 1 or self._gives_back(ids, text):
            return ids
        halves = text[: len(text) // 2], text[len(text) // 2 :]
        return [i for half, own in zip(halves, self._encode(halves), strict=True) for i in self._halved(half, own)]


def steps_of(part: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer, a pre-tokenizer or a decoder, which may be a sequence of others."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(part[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in part)
    return [step for each in inner for step in steps_of(each)]


def _refused(what: str) -> MiniGPTError:
    return MiniGPTError(
        f"The tokenizer of this model has {what}, with which a text cannot be given back. Pass a model with a "
        "byte-pair tokenizer, such as GPT-2's or Llama's."
    )


def _reversible(content: dict[str, Any]) -> tuple[dict[str, Any], bool, str | None]:
    """Return a definition that adds and removes nothing, whether its tokens are bytes, and its letter for a space.

    NFC and lower case are left out, since `Tokenizer.clean` does both.

    Raises:
        MiniGPTError: The definition has a part that changes a text.
    """
    model, space = content["model"], None
    if model.get("type", "BPE" if "merges" in model else None) != "BPE":
        raise _refused(f"a {model.get('type')} model")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _refused(f"the {name} {model[name]!r}")
    normalizers = []
    for step in steps_of(content["normalizer"]):
        if step["type"] == "Replace" and step["pattern"] == {"String": " "} and len(step["content"]) == 1:
            space = step["content"]
            normalizers.append(step)
        elif step["type"] not in ("NFC", "Lowercase", "Prepend"):
            raise _refused(f"the normalizer {step['type']}")
    cutting = []
    for step in steps_of(content["pre_tokenizer"]):
        if step["type"] not in CUTTING or step.get("behavior") == "Removed":
            raise _refused(f"the pre-tokenizer {step['type']}")
        if step["type"] == "ByteLevel":
            step = step | {"add_prefix_space": False}
        elif step["type"] == "Metaspace":
            space = step["replacement"]
            step = {key: value for key, value in step.items() if key not in ("add_prefix_space", "str_rep")}
            step["prepend_scheme"] = "never"
        cutting.append(step)
    byte_level = any(step["type"] == "ByteLevel" for step in cutting)
    return content | {
        "truncation": None,
        "padding": None,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cutting},
        "model": model | {"dropout": None},
        "added_tokens": [token | {"lstrip": False, "rstrip": False} for token in content["added_tokens"]],
    }, byte_level, space  # fmt: skip


def _without_large_ids(content: dict[str, Any], vocab_size: int) -> "Backend":
    """Return the tokenizer without added tokens that the model has no row for."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(json.dumps(content))
    large = {token.content for i, token in backend.get_added_tokens_decoder().items() if i >= vocab_size}
    if not large:
        return backend
    kept = [token for token in content["added_tokens"] if token["content"] not in large]
    return Backend.from_str(json.dumps(content | {"added_tokens": kept}))
