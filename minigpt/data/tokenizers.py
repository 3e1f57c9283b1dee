"""Text to ids and back: characters, words, or byte pairs.

Whatever it is, a token stands for a few bytes of UTF-8, and a text is decoded by joining them. A tokenizer is rebuilt
from a plain dict, so that it travels inside a checkpoint. `V` is the number of tokens.
"""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from minigpt.data.corpus import clean
from minigpt.data.reading import replace_surrogates
from minigpt.errors import MiniGPTError, check_choice

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BYTES = [bytes([byte]) for byte in range(256)]
MAX_VOCAB_SIZE = 4096  # of words and of byte pairs, unless said otherwise


class Tokenizer(ABC):
    """What all tokenizers have in common.

    Args:
        tokens: The bytes that each id stands for.
        lower: Whether the training text was put in lower case, and a prompt must be too.
        nfc: Whether its Unicode was composed, and a prompt's must be too.
    """

    kind: str
    learned: str  # the attribute with what makes it this one of its kind

    def __init__(self, tokens: Sequence[bytes], lower: bool = False, nfc: bool = True):
        self.tokens = list(tokens)
        self.lower = lower
        self.nfc = nfc

    @classmethod
    def from_text(cls, text: str, max_vocab_size: int | None = None, **options: bool) -> Self:
        """The tokenizer of a text that is already clean; options as in `fit`."""
        return cls.fit([text], max_vocab_size, **options)

    @classmethod
    @abstractmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """The tokenizer of a clean text in pieces.

        Args:
            pieces: The text.
            max_vocab_size: The most tokens to make; None for 4,096, or for as many as there are characters.
            **options: lower and nfc; for characters also byte_fallback.

        Raises:
            MiniGPTError: max_vocab_size is too small for the text's alphabet, or means nothing here.
        """

    @property
    def vocab_size(self) -> int:
        """`V`, the number of tokens."""
        return len(self.tokens)

    @property
    def contents(self) -> str:
        """What the vocabulary holds, in words, such as `1,024 tokens`."""
        return f"{self.vocab_size:,} tokens"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.contents})"

    @cached_property
    def lengths(self) -> torch.Tensor:
        """`(V,)` the characters that each token stands for; where a character is split, its first byte counts."""
        return torch.tensor([sum(byte & 0xC0 != 0x80 for byte in token) for token in self.tokens])

    def clean(self, text: str) -> str:
        """What the training text went through and a prompt must go through too (never `strip`)."""
        return clean(replace_surrogates(text), lower=self.lower, nfc=self.nfc)

    def encode(self, text: str, unknown: str = "error") -> list[int]:
        """The ids of clean text.

        Args:
            text: Clean text.
            unknown: What to do with a character that no token can spell: `error` or `skip` it.

        Raises:
            MiniGPTError: There is such a character (ten at most are named), or `unknown` is something else.
        """
        check_choice("unknown", unknown, ("error", "skip"))
        return self.encode_array(text, unknown).tolist()

    @abstractmethod
    def encode_array(self, text: str, unknown: str = "error") -> np.ndarray:
        """`(N,)` int32 ids, as `encode`'s, of a text of millions of characters."""

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """The text of `ids` (a list, or a one-dimensional tensor); a broken character becomes U+FFFD."""
        ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
        return b"".join(map(self.tokens.__getitem__, ids)).decode("utf-8", "replace")

    def to_dict(self) -> dict:
        """Everything needed to rebuild the tokenizer, in plain values."""
        return {name: getattr(self, name) for name in ("kind", self.learned, "lower", "nfc")}

    @classmethod
    def from_dict(cls, state: dict) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{key: value for key, value in state.items() if key != "kind"})


class Decoder:
    """Ids to text, one at a time: a character is handed out when its last byte is there.

    Args:
        tokens: The bytes that each id stands for.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self._tokens = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The characters that this id completes."""
        return self._utf8.decode(self._tokens[token])

    def rest(self) -> str:
        """U+FFFD, if the last character is incomplete."""
        return self._utf8.decode(b"", final=True)


class CharTokenizer(Tokenizer):
    """One id per character; the vocabulary is the sorted distinct characters of the text (the article's `stoi`).

    Args:
        characters: The vocabulary; the position of a character is its id.
        lower: Whether the training text was put in lower case, and a prompt must be too.
        nfc: Whether its Unicode was composed, and a prompt's must be too.
        byte_fallback: Spell a character outside the vocabulary in bytes, which take 256 more ids.
    """

    kind, learned = "char", "characters"

    def __init__(self, characters: Sequence[str], lower: bool = False, nfc: bool = True, byte_fallback: bool = False):
        self.characters = list(characters)
        self.byte_fallback = byte_fallback
        super().__init__([c.encode() for c in self.characters] + BYTES * byte_fallback, lower, nfc)
        self.stoi = {character: i for i, character in enumerate(self.characters)}

    @classmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """The tokenizer of a clean text in pieces; options: lower, nfc and byte_fallback.

        Raises:
            MiniGPTError: There is a max_vocab_size.
        """
        if max_vocab_size is not None:
            raise MiniGPTError(
                "data.max_vocab_size means nothing to characters, which are as many as the text has. Leave it null, or "
                "set data.tokenizer to word or bpe."
            )
        return cls(sorted(set().union(*pieces)), **options)

    @property
    def contents(self) -> str:
        """What the vocabulary holds, in words, such as `53 characters`."""
        return f"{len(self.characters):,} characters{' and 256 bytes' * self.byte_fallback}"

    @cached_property
    def _ids(self) -> np.ndarray:
        ids = np.full(0x110000, -1, np.int32)  # by code point
        ids[[ord(character) for character in self.characters]] = np.arange(len(self.characters))
        return ids

    def encode_array(self, text: str, unknown: str = "error") -> np.ndarray:
        """`(N,)` int32 ids, one for each character in the vocabulary.

        Raises:
            MiniGPTError: A character is not in the vocabulary and no bytes are; such characters are named, ten at most.
        """
        ids = self._ids.take(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32))
        if ids.size == 0 or ids.min() >= 0:
            return ids
        if self.byte_fallback:
            size = len(self.characters)
            spelled = ([self.stoi[c]] if c in self.stoi else [size + byte for byte in c.encode()] for c in text)
            return np.fromiter(chain.from_iterable(spelled), np.int32)
        if unknown == "error":
            missing = sorted(set(text) - self.stoi.keys())
            named = ", ".join(map(repr, missing[:10])) + (f" and {len(missing) - 10} more" if missing[10:] else "")
            raise MiniGPTError(
                f"The model has never seen {named}. "
                "Write the text without, or drop such characters with --unknown skip."
            )
        return ids[ids >= 0]

    def to_dict(self) -> dict:
        """Everything needed to rebuild the tokenizer, in plain values."""
        return super().to_dict() | {"characters": "".join(self.characters), "byte_fallback": self.byte_fallback}


class _Words(Tokenizer):
    """A tokenizer whose tokens never straddle a word's beginning, so that each word is encoded but once."""

    # Up to a line break or a space that follows something else, as `reading.cut` cuts: the same ids come of a text
    # whole and in pieces.
    _UNITS = re.compile(r"\s*\S+(?:[^\S \n]\s*\S*)*|\s+")
    _KEPT = 1 << 18  # units whose ids are remembered

    def __init__(self, tokens: Sequence[bytes], lower: bool = False, nfc: bool = True):
        super().__init__(tokens, lower, nfc)
        self._known: dict[str, Sequence[int]] = {}

    def encode_array(self, text: str, unknown: str = "error") -> np.ndarray:
        """`(N,)` int32 ids; whatever the text, there are ids for it."""
        units = self._UNITS.findall(text)
        new = list(set(units) - self._known.keys())
        if len(self._known) + len(new) > self._KEPT:
            self._known.clear()
            new = list(set(units))
        self._known.update(zip(new, self._encode_units(new), strict=True))
        return np.fromiter(chain.from_iterable(map(self._known.__getitem__, units)), np.int32)

    @abstractmethod
    def _encode_units(self, units: list[str]) -> Iterable[Sequence[int]]:
        """The ids of each unit."""


class WordTokenizer(_Words):
    """Words, runs of spaces or line breaks, and single signs are tokens, so that joining them gives the text.

    The 256 bytes come first, then the text's characters outside ASCII, then the most frequent words and runs that came
    twice or more. What is in none of these is spelled: in characters, and characters never seen in bytes.

    Args:
        words: The tokens after the bytes.
        lower: Whether the training text was put in lower case, and a prompt must be too.
        nfc: Whether its Unicode was composed, and a prompt's must be too.
    """

    kind, learned = "word", "words"
    _PARTS = re.compile(r"\w+|[^\S\n]+|\n+|[^\w\s]")

    def __init__(self, words: Sequence[str], lower: bool = False, nfc: bool = True):
        super().__init__([*BYTES, *(word.encode() for word in words)], lower, nfc)
        self.words = list(words)
        self._ids = {chr(byte): byte for byte in range(128)} | {word: 256 + n for n, word in enumerate(words)}

    @classmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """The tokenizer of a clean text in pieces; options: lower and nfc.

        Raises:
            MiniGPTError: The bytes and characters alone are more than max_vocab_size.
        """
        counts: Counter[str] = Counter()
        for piece in pieces:
            counts.update(cls._PARTS.findall(piece))
        alphabet = sorted(c for c in set().union(*counts) if not c.isascii())
        room = _room(max_vocab_size, 256 + len(alphabet), f"256 bytes and {len(alphabet)} characters outside ASCII")
        often = sorted((-count, word) for word, count in counts.items() if count > 1 and len(word) > 1)
        return cls([*alphabet, *(word for _, word in often[:room])], **options)

    def _encode_units(self, units: list[str]) -> Iterable[Sequence[int]]:
        for unit in units:
            ids = []
            for part in self._PARTS.findall(unit):
                if part in self._ids:
                    ids.append(self._ids[part])
                else:
                    for character in part:
                        ids.extend([self._ids[character]] if character in self._ids else character.encode())
            yield ids


class BPETokenizer(_Words):
    """Byte pairs, as GPT-2's: 256 bytes, and the pairs that were the most frequent when they were merged.

    Sennrich et al., "Neural machine translation of rare words with subword units" (2016), on bytes as in Radford et
    al., "Language models are unsupervised multitask learners" (2019). Training and merging are the `tokenizers`
    library's.

    Args:
        merges: The pairs of ids that were merged, in that order; each new token takes the next id.
        lower: Whether the training text was put in lower case, and a prompt must be too.
        nfc: Whether its Unicode was composed, and a prompt's must be too.
    """

    kind, learned = "bpe", "merges"

    def __init__(self, merges: Sequence[Sequence[int]], lower: bool = False, nfc: bool = True):
        tokens = list(BYTES)
        seen = set(tokens)
        for left, right in merges:
            token = tokens[left] + tokens[right]
            if token not in seen:  # two pairs can make the same token
                seen.add(token)
                tokens.append(token)
        super().__init__(tokens, lower, nfc)
        self.merges = [list(pair) for pair in merges]

    @classmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """The tokenizer of a clean text in pieces; options: lower and nfc.

        Raises:
            MiniGPTError: max_vocab_size leaves no room beside the bytes.
        """
        from tokenizers import trainers

        room = _room(max_vocab_size, 256, "256 bytes")
        backend = cls([]).backend
        alphabet = list(byte_letters().values())
        trainer = trainers.BpeTrainer(vocab_size=256 + room, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(pieces, trainer)
        ids = {letter: byte for byte, letter in byte_letters().items()}
        merges = []
        for left, right in json.loads(backend.to_str())["model"]["merges"]:
            merges.append((ids[left], ids[right]))
            ids.setdefault(left + right, len(ids))
        return cls(merges, **options)

    @cached_property
    def backend(self) -> "Backend":
        """The same tokenizer in the `tokenizers` library."""
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        letters = byte_letters()
        names = ["".join(letters[byte] for byte in token) for token in self.tokens]
        merges = [(names[left], names[right]) for left, right in self.merges]
        backend = Backend(models.BPE({name: i for i, name in enumerate(names)}, merges))
        # A word is cut after so many bytes: merging takes the square of its length, and a genome is one word.
        pieces = [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Split(Regex(".{1,512}"), "isolated")]
        backend.pre_tokenizer = pre_tokenizers.Sequence(pieces)
        backend.decoder = decoders.ByteLevel()
        return backend

    def _encode_units(self, units: list[str]) -> Iterable[Sequence[int]]:
        return [unit.ids for unit in self.backend.encode_batch_fast(units, add_special_tokens=False)]


def _room(max_vocab_size: int | None, needed: int, what: str) -> int:
    """How many tokens there is room for beside the `needed` ones."""
    size = max(MAX_VOCAB_SIZE, needed) if max_vocab_size is None else max_vocab_size
    if size < needed:
        raise MiniGPTError(
            f"data.max_vocab_size is {size}, and {what} take {needed} already. Give it {needed} or more."
        )
    return size - needed


def byte_letters() -> dict[int, str]:
    """The visible character that GPT-2's vocabulary writes for each byte: itself, or else one from U+0100 on."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    hidden = (byte for byte in range(256) if byte not in visible)
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


KINDS: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (CharTokenizer, WordTokenizer, BPETokenizer)}


def from_dict(state: dict) -> Tokenizer:
    """The tokenizer that `to_dict` described, of whatever kind."""
    return KINDS[state["kind"]].from_dict(state)


def difference(now: Tokenizer, then: Tokenizer) -> str | None:
    """The first thing in which two tokenizers differ, in words; None if they are the same."""
    if now.to_dict() == then.to_dict():
        return None
    for what in ("kind", "lower", "nfc", "vocab_size"):
        if getattr(now, what) != getattr(then, what):
            return f"its {what} is {getattr(now, what)} here and {getattr(then, what)} there"
    for i, (here, there) in enumerate(zip(now.tokens, then.tokens, strict=True)):
        if here != there:
            return (
                f"token {i} is {here.decode('utf-8', 'replace')!r} here and {there.decode('utf-8', 'replace')!r} there"
            )
    return "the same tokens come of other merges"
