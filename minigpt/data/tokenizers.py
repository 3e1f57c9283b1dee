"""Text to ids and back. A tokenizer is rebuilt from a plain dict, so that it travels inside a checkpoint."""

from collections.abc import Iterable, Sequence

from minigpt.data.corpus import clean
from minigpt.errors import MiniGPTError


class CharTokenizer:
    """One id per character; the vocabulary is the sorted distinct characters of the text (the article's `stoi`).

    Args:
        characters: The vocabulary; the position of a character is its id.
        lower: Whether the training text was put in lower case, and a prompt must be too.
    """

    kind = "char"

    def __init__(self, characters: Sequence[str], lower: bool = False):
        self.characters = list(characters)
        self.lower = lower
        self.stoi = {character: i for i, character in enumerate(self.characters)}

    @classmethod
    def from_text(cls, text: str, lower: bool = False) -> "CharTokenizer":
        """The tokenizer of a text that is already clean."""
        return cls(sorted(set(text)), lower=lower)

    @property
    def vocab_size(self) -> int:
        """The number of distinct characters."""
        return len(self.characters)

    def clean(self, text: str) -> str:
        """What the training text went through and a prompt must go through too (never `strip`)."""
        return clean(text, lower=self.lower)

    def encode(self, text: str, unknown: str = "error") -> list[int]:
        """The ids of `text`, one per character.

        Args:
            text: Clean text.
            unknown: What to do with a character outside the vocabulary: `error` or `skip` it.

        Raises:
            MiniGPTError: A character is not in the vocabulary; such characters are named, ten at most.
        """
        if unknown not in ("error", "skip"):
            raise MiniGPTError(f"unknown is '{unknown}'. It takes error or skip.")
        missing = sorted(set(text) - self.stoi.keys())
        if missing and unknown == "error":
            named = ", ".join(map(repr, missing[:10])) + (f" and {len(missing) - 10} more" if missing[10:] else "")
            raise MiniGPTError(
                f"The model has never seen {named}. "
                "Write the text without, or drop such characters with --unknown skip."
            )
        return [self.stoi[character] for character in text if character in self.stoi]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` (a list, or a one-dimensional tensor)."""
        return "".join(self.characters[int(i)] for i in ids)

    def to_dict(self) -> dict:
        """Everything needed to rebuild the tokenizer, in plain values."""
        return {"kind": self.kind, "characters": "".join(self.characters), "lower": self.lower}

    @classmethod
    def from_dict(cls, state: dict) -> "CharTokenizer":
        """The inverse of `to_dict`."""
        return cls(state["characters"], lower=state["lower"])
