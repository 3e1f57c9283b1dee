"""Text to ids and back: characters, words, or byte pairs, and the list of all kinds of tokenizers.

A tokenizer can be written as a plain dict and built again from it, which is how it travels inside a checkpoint.
"""

import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Self

import numpy as np

from minigpt.data.pretrained_tokenizer import PretrainedTokenizer, steps_of
from minigpt.data.tokenizer_base import Tokenizer, byte_letters, never_seen
from minigpt.errors import MiniGPTError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BYTES = [bytes([byte]) for byte in range(256)]
# The pre-tokenizer of an exported CharTokenizer, in the `tokenizers` library.
CHARACTERS = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
MAX_VOCAB_SIZE = 4096  # default for words and byte pairs


class CharTokenizer(Tokenizer):
    """One id per character; the vocabulary is the sorted distinct characters of the text (the article's `stoi`).

    Args:
        characters: The vocabulary; the position of a character is its id.
        lower, nfc: As in `Tokenizer`.
        byte_fallback: Spell characters outside the vocabulary in bytes, which take 256 more ids.
    """

    kind, learned = "char", "characters"

    def __init__(self, characters: Sequence[str], lower: bool = False, nfc: bool = True, byte_fallback: bool = False):
        self.characters = list(characters)
        self.byte_fallback = byte_fallback
        super().__init__([c.encode() for c in self.characters] + BYTES * byte_fallback, lower, nfc)
        self.stoi = {character: i for i, character in enumerate(self.characters)}

    @classmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """Make the tokenizer of a clean text in pieces; options: lower, nfc and byte_fallback."""
        if max_vocab_size is not None:
            raise MiniGPTError(
                "data.max_vocab_size means nothing to characters, which are as many as the text has. Leave it null, or "
                "set data.tokenizer to word or bpe."
            )
        return cls(sorted(set().union(*pieces)), **options)

    @property
    def contents(self) -> str:
        """The size of the vocabulary in words, such as `53 characters`."""
        return f"{len(self.characters):,} characters{' and 256 bytes' * self.byte_fallback}"

    @cached_property
    def _id_of_code_point(self) -> np.ndarray:
        ids = np.full(0x110000, -1, np.int32)
        ids[[ord(character) for character in self.characters]] = np.arange(len(self.characters))
        return ids

    def encode_array(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the `(N,)` ids of a clean text as an int32 array."""
        # The table lookup of [self.stoi[c] for c in text], in numpy: UTF-32 stores each character as its code point.
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = self._id_of_code_point.take(code_points)
        if ids.size == 0 or ids.min() >= 0:
            return ids
        if self.byte_fallback:
            size = len(self.characters)
            spelled = ([self.stoi[c]] if c in self.stoi else [size + byte for byte in c.encode()] for c in text)
            return np.fromiter(chain.from_iterable(spelled), np.int32)
        if unknown == "error":
            raise never_seen(sorted(set(text) - self.stoi.keys()))
        return ids[ids >= 0]

    def extended(self, alphabet: Iterable[str]) -> Self:
        """Return a tokenizer with additional ids for the characters of an alphabet that this one cannot spell."""
        new = [] if self.byte_fallback else [character for character in alphabet if character not in self.stoi]
        return type(self)([*self.characters, *new], self.lower, self.nfc, self.byte_fallback) if new else self

    def to_dict(self) -> dict:
        """Return the tokenizer as a dict of plain values."""
        return super().to_dict() | {"characters": "".join(self.characters), "byte_fallback": self.byte_fallback}


class _Words(Tokenizer):
    """Base class of tokenizers whose tokens never cross the beginning of a word.

    The text is cut into words with the white space before them. The ids of a word do not depend on its neighbours, so
    each distinct word is encoded only once, in `_encode_words`.
    """

    # A word ends before a newline or a space that follows something else, where `reading.cut` cuts too: a text gives
    # the same ids whole and in pieces.
    _WORDS = re.compile(r"\s*\S+(?:[^\S \n]\s*\S*)*|\s+")
    _CACHE_SIZE = 1 << 18  # words

    def __init__(self, tokens: Sequence[bytes], lower: bool = False, nfc: bool = True):
        super().__init__(tokens, lower, nfc)
        self._cache: dict[str, Sequence[int]] = {}  # word to ids

    def encode_array(self, text: str, unknown: str = "error") -> np.ndarray:
        """Return the `(N,)` ids of a clean text as an int32 array; there are ids for any text."""
        words = self._WORDS.findall(text)
        new = list(set(words) - self._cache.keys())
        if len(self._cache) + len(new) > self._CACHE_SIZE:
            self._cache.clear()
            new = list(set(words))
        self._cache.update(zip(new, self._encode_words(new), strict=True))
        return np.fromiter(chain.from_iterable(map(self._cache.__getitem__, words)), np.int32)

    @abstractmethod
    def _encode_words(self, words: list[str]) -> Iterable[Sequence[int]]:
        """Return the ids of each word."""


class WordTokenizer(_Words):
    """Words, runs of spaces, runs of newlines, and single punctuation marks are tokens.

    The vocabulary is the 256 bytes, then all characters of the text outside ASCII, then the most frequent words and
    runs that occur at least twice. Anything else is spelled: in characters, and unknown characters in bytes.

    Args:
        words: The tokens after the bytes.
        lower, nfc: As in `Tokenizer`.
    """

    kind, learned = "word", "words"
    _PARTS = re.compile(r"\w+|[^\S\n]+|\n+|[^\w\s]")

    def __init__(self, words: Sequence[str], lower: bool = False, nfc: bool = True):
        super().__init__([*BYTES, *(word.encode() for word in words)], lower, nfc)
        self.words = list(words)
        self._ids = {chr(byte): byte for byte in range(128)} | {word: 256 + n for n, word in enumerate(words)}

    @classmethod
    def fit(cls, pieces: Iterable[str], max_vocab_size: int | None = None, **options: bool) -> Self:
        """Make the tokenizer of a clean text in pieces; options: lower and nfc."""
        counts: Counter[str] = Counter()
        for piece in pieces:
            counts.update(cls._PARTS.findall(piece))
        alphabet = sorted(c for c in set().union(*counts) if not c.isascii())
        budget = _budget(max_vocab_size, 256 + len(alphabet), f"256 bytes and {len(alphabet)} characters outside ASCII")
        frequent = sorted((-count, word) for word, count in counts.items() if count > 1 and len(word) > 1)
        return cls([*alphabet, *(word for _, word in frequent[:budget])], **options)

    def _encode_words(self, words: list[str]) -> Iterable[Sequence[int]]:
        for word in words:
            ids = []
            for part in self._PARTS.findall(word):
                if part in self._ids:
                    ids.append(self._ids[part])
                else:
                    for character in part:
                        ids.extend([self._ids[character]] if character in self._ids else character.encode())
            yield ids


class BPETokenizer(_Words):
    """Byte pair encoding, as in GPT-2: 256 bytes, and pairs of tokens that were merged, the most frequent pair first.

    Sennrich et al., "Neural machine translation of rare words with subword units" (2016), on bytes as in Radford et
    al., "Language models are unsupervised multitask learners" (2019). The `tokenizers` library learns and applies the
    merges.

    Args:
        merges: The pairs of ids that were merged, in that order; each new token takes the next id.
        lower, nfc: As in `Tokenizer`.
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
        """Make the tokenizer of a clean text in pieces; options: lower and nfc."""
        from tokenizers import trainers

        vocab_size = 256 + _budget(max_vocab_size, 256, "256 bytes")
        ids = {letter: byte for byte, letter in byte_letters().items()}
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(ids), show_progress=False)
        backend = cls([]).backend
        backend.train_from_iterator(pieces, trainer)
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
        # Merging takes time quadratic in the length of a word, and a genome is one word: words are cut at 512 bytes.
        pieces = [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Split(Regex(".{1,512}"), "isolated")]
        backend.pre_tokenizer = pre_tokenizers.Sequence(pieces)
        backend.decoder = decoders.ByteLevel()
        return backend

    def _encode_words(self, words: list[str]) -> Iterable[Sequence[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(words, add_special_tokens=False)]


def _budget(max_vocab_size: int | None, needed: int, what: str) -> int:
    """Return how many words or merges the vocabulary has room for beside the `needed` tokens."""
    size = max(MAX_VOCAB_SIZE, needed) if max_vocab_size is None else max_vocab_size
    if size < needed:
        raise MiniGPTError(
            f"data.max_vocab_size is {size}, and {what} take {needed} already. Give it {needed} or more."
        )
    return size - needed


KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind for kind in (CharTokenizer, WordTokenizer, BPETokenizer, PretrainedTokenizer)
}


def from_dict(state: dict) -> Tokenizer:
    """Build a tokenizer of any kind from what its `to_dict` returned."""
    return KINDS[state["kind"]].from_dict(state)


def difference(now: Tokenizer, then: Tokenizer) -> str | None:
    """Describe the first difference of two tokenizers; None if they are the same."""
    if now.to_dict() == then.to_dict():
        return None
    for name in ("kind", "lower", "nfc", "vocab_size"):
        if getattr(now, name) != getattr(then, name):
            return f"its {name} is {getattr(now, name)} here and {getattr(then, name)} there"
    for i, (here, there) in enumerate(zip(now.tokens, then.tokens, strict=True)):
        if here != there:
            here_text, there_text = here.decode("utf-8", "replace"), there.decode("utf-8", "replace")
            return f"token {i} is {here_text!r} here and {there_text!r} there"
    return "the merges of the same tokens differ"


def from_definition(
    definition: str, vocab_size: int, bos: int | None = None, eos: int | Sequence[int] | None = None
) -> Tokenizer:
    """Return the tokenizer of a `tokenizer.json`: that of an exported `CharTokenizer`, or a `PretrainedTokenizer`.

    Raises:
        MiniGPTError: As `PretrainedTokenizer`.
    """
    return _characters(definition, vocab_size) or PretrainedTokenizer(definition, vocab_size, bos, eos)


def _characters(definition: str, vocab_size: int) -> CharTokenizer | None:
    """Return the CharTokenizer that `export.hugging_face.tokenizer_json` wrote; None for other definitions."""
    try:
        content = json.loads(definition)
        model, steps = content["model"], [step["type"] for step in steps_of(content["normalizer"])]
        ids: dict[str, int] = model["vocab"]
        if content["pre_tokenizer"] != CHARACTERS or content["added_tokens"] or model["merges"]:
            return None
        names = sorted(ids, key=ids.__getitem__)
        characters = names[:-256] if model["byte_fallback"] else names
        if [ids[name] for name in names] != list(range(vocab_size)) or any(len(name) != 1 for name in characters):
            return None
        return CharTokenizer(characters, "Lowercase" in steps, "NFC" in steps, model["byte_fallback"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # the caller reads it as a definition of any kind, and says what is wrong
