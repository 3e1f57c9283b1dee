"""The base class of all tokenizers: a token stands for some bytes of UTF-8, so ids are decoded by joining bytes."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Self

import numpy as np
import torch

from minigpt.data.corpus import clean
from minigpt.data.reading import replace_surrogates
from minigpt.errors import MiniGPTError, check_choice


class Tokenizer(ABC):
    """Base class of the tokenizers.

    A subclass has a `kind`, makes itself from a text in `fit`, and encodes in `encode_array`.

    Args:
        tokens: The bytes that each id stands for.
        lower: Whether the training text was converted to lower case, so that a prompt must be too.
        nfc: Whether the training text's Unicode was composed, so that a prompt's must be too.
    """

    kind: str  # the name in settings and checkpoints
    learned: str  # the name of the attribute that holds the learned vocabulary
    prefix: Sequence[int] = ()  # the ids that the model expects before each text
    bos: int | None = None  # the id from which an empty prompt is continued; None for a line break

    def __init__(self, tokens: Sequence[bytes], lower: bool = False, nfc: bool = True):
        self.tokens = list(tokens)
        self.lower = lower
        self.nfc = nfc

    @classmethod
    def from_text(cls, text: str, max_vocab_size: int | None = None, **options: bool) -> Self:
        """Make the tokenizer of a clean text; options as in `fit`."""
        return cls.fit([text], max_vocab_size, **options)

    @classmethod
    @abstractmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """Make the tokenizer of a clean text in pieces.

        Args:
            pieces: The text.
            max_vocab_size: The largest V; None for 4,096. Characters take no limit.
            **options: lower and nfc; for characters also byte_fallback.

        Raises:
            MiniGPTError: max_vocab_size is too small for the text's alphabet, or was given for characters.
        """

    @property
    def vocab_size(self) -> int:
        """`V`, the number of tokens."""
        return len(self.tokens)

    @property
    def contents(self) -> str:
        """The size of the vocabulary in words, such as `1,024 tokens`."""
        return f"{self.vocab_size:,} tokens"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.contents})"

    @cached_property
    def lengths(self) -> torch.Tensor:
        """`(V,)` characters per token. A character split over several tokens counts in the one with its first byte."""
        return torch.tensor([sum(byte & 0xC0 != 0x80 for byte in token) for token in self.tokens])

    def clean(self, text: str) -> str:
        """Clean a prompt as the training text was cleaned, except for white space at its ends."""
        return clean(replace_surrogates(text), lower=self.lower, nfc=self.nfc)

    def encode(self, text: str, unknown: str = "error") -> list[int]:
        """Return the ids of a clean text.

        Args:
            text: Clean text.
            unknown: How to treat a character that no token can spell: `error`, or `skip` to leave it out.

        Raises:
            MiniGPTError: There is such a character (at most ten are named), or `unknown` is another word.
        """
        check_choice("unknown", unknown, ("error", "skip"))
        return self.encode_array(text, unknown).tolist()

    @abstractmethod
    def encode_array(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the `(N,)` ids of `encode` as an int32 array, fast enough for texts of millions of characters."""

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """Return the text of ids, a list or a `(N,)` tensor; an incomplete character becomes U+FFFD."""
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", "replace")

    def extended(self, alphabet: Iterable[str]) -> Self:
        """Return a tokenizer with additional ids for the characters that this one cannot spell, if it can have such."""
        return self

    def to_dict(self) -> dict:
        """Return the tokenizer as a dict of plain values."""
        return {name: getattr(self, name) for name in ("kind", self.learned, "lower", "nfc")}

    @classmethod
    def from_dict(cls, state: dict) -> Self:
        """Build the tokenizer from what `to_dict` returned."""
        return cls(**{key: value for key, value in state.items() if key != "kind"})


class StreamDecoder:
    """Decodes one id at a time, and returns a character as soon as its last byte has come.

    Args:
        tokens: The bytes that each id stands for.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self._tokens = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Return the characters that this id completes."""
        return self._utf8.decode(self._tokens[token])

    def rest(self) -> str:
        """Return U+FFFD if the last character is incomplete, else nothing."""
        return self._utf8.decode(b"", final=True)


def never_seen(missing: Sequence[str]) -> MiniGPTError:
    """Return the error for characters that no token can spell, at most ten of which are named."""
    named = ", ".join(map(repr, missing[:10])) + (f" and {len(missing) - 10} more" if missing[10:] else "")
    return MiniGPTError(
        f"The model has never seen {named}. Write the text without, or drop such characters with --unknown skip (in a "
        "training --data.unknown skip)."
    )


def byte_letters() -> dict[int, str]:
    """Return the visible character that GPT-2's vocabulary uses for each byte: itself, or one from U+0100 on."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
