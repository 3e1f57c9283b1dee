"""TextDataModule: from a corpus to data loaders of windows."""

import math
from functools import cached_property
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from minigpt.data import corpus
from minigpt.data.corpus import Corpus
from minigpt.data.dataset import SHORTEST, BatchOrder, CharDataset, Ids, MappedIds
from minigpt.data.tokenizers import Tokenizer
from minigpt.data.tokens import Tokens, tokenize
from minigpt.errors import MiniGPTError, check_number, note
from minigpt.evaluation import baselines, eval_windows
from minigpt.words import message

MAPPED_VAL_TOKENS = 1 << 20  # the most tokens scored at a validation if the text is too large for memory


def n_of(amount: int | float, n: int) -> int:
    """Return a number of batches, which may be given as a share of `n` batches by a float."""
    return int(amount * n) if isinstance(amount, float) else int(amount)


class ResumableLoader(DataLoader):
    """A loader without state that resumes within a pass, since `BatchOrder` starts at the right batch.

    Without these two methods Lightning would warn about a resume within a pass.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""


class TextDataModule(LightningDataModule):
    """Reads a text, builds its tokenizer, and provides batches of windows for training and validation.

    Args:
        path: The corpus. `exemple` is the French text inside the package; `tinyshakespeare` and `tinymoliere` are
            downloaded once. A file may be plain text, .jsonl or .ndjson with a text under `text` in each line, or .json
            with an array of such records or of strings, and may be compressed as .gz, .zst or .zip. Of a folder, all
            .txt and .md files that are not hidden are read, in the order of their names. Also a pattern such as
            'notes/*.txt', or `-` for standard input. Texts are joined with an empty line.
        tokenizer: `char`, `word` (words, spaces and signs; rare words are spelled in characters) or `bpe` (byte pairs).
        max_vocab_size: The maximum number of words or byte pairs; null for 4,096.
        byte_fallback: Spell unknown characters in bytes, with 256 additional tokens; for char only.
        block_size: The number of tokens in a window, the model's context in training; less if the text is too short.
        batch_size: The number of windows in a batch, over all processes.
        val_fraction: The share of the text, at its end, that is kept for validation.
        max_val_tokens: The maximum number of tokens scored at a validation during training; null for all, or for
            2 ** 20 if the text is too large for memory.
        lower: Convert the text to lower case.
        strip: Remove white space at both ends of the text.
        nfc: Compose Unicode, so that an accented letter is one character however it was typed.
        encoding: The encoding of the text, such as cp1252; null for UTF-8, or another encoding that is detected.
        in_memory_mb: A text of more million characters than this is tokenised once into a file and read from there.
        cache_dir: The folder for such files; null for the user's cache folder.
        overfit_batches: Train on the first so many batches again and again, to see whether a model can learn them by
            heart; null for the whole text.
        seed: The seed of the order of the batches; the command line sets it to seed_everything.

    Raises:
        MiniGPTError: The corpus cannot be read, or is too short for one window to train on and one to validate on.
    """

    def __init__(
        self,
        path: str = corpus.EMBEDDED,
        tokenizer: str = "char",
        max_vocab_size: int | None = None,
        byte_fallback: bool = False,
        block_size: int = 64,
        batch_size: int = 4,
        val_fraction: float = 0.1,
        max_val_tokens: int | None = None,
        lower: bool = False,
        strip: bool = False,
        nfc: bool = True,
        encoding: str | None = None,
        in_memory_mb: float = 16.0,
        cache_dir: str | None = None,
        overfit_batches: int | None = None,
        seed: int = 1337,
    ):
        super().__init__()
        for key, value in {"block_size": block_size, "batch_size": batch_size}.items():
            check_number(f"data.{key}", value, at_least=1, whole=True)
        for key, limit in {"max_val_tokens": max_val_tokens, "overfit_batches": overfit_batches}.items():
            check_number(f"data.{key}", limit, at_least=1, whole=True, optional=True, hint="or null for no limit")
        check_number("data.val_fraction", val_fraction, above=0, below=1, hint="such as 0.1")
        check_number("data.in_memory_mb", in_memory_mb, at_least=0, at_most=math.inf)
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.overfit_batches = overfit_batches
        self.seed = seed
        self._block_size = block_size
        self._max_val_tokens = max_val_tokens
        self._cleaning: dict[str, Any] = {"encoding": encoding, "lower": lower, "strip": strip, "nfc": nfc}
        self._splitting: dict[str, Any] = {
            "max_vocab_size": max_vocab_size, "byte_fallback": byte_fallback, "val_fraction": val_fraction,
        }  # fmt: skip
        self._path, self._kind, self._in_memory_mb, self._cache_dir = path, tokenizer, in_memory_mb, cache_dir

    def __repr__(self) -> str:
        block_size = self.__dict__.get("block_size", self._block_size)  # the property would read the text
        return f"TextDataModule({str(self._path)!r}, {self._kind}, block {block_size:,}, batch {self.batch_size:,})"

    __str__ = __repr__  # Lightning's would create the loaders and thus read the text

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, which has been located but not read."""
        return Corpus(self._path, **self._cleaning, cache_dir=self._cache_dir)

    @cached_property
    def tokens(self) -> Tokens:
        """The token ids and the tokenizer; the first access reads the text."""
        tokens = tokenize(
            self.corpus, self._kind, **self._splitting, in_memory_mb=self._in_memory_mb, cache_dir=self._cache_dir
        )
        n = len(tokens.train)
        if self.batch_size > n:
            raise MiniGPTError(
                f"data.batch_size is {self.batch_size}, but the text has {n} tokens to train on. Lower it."
            )
        if abs(tokens.val_fraction - self.val_fraction) * tokens.n_characters > 1:
            note(message("val_fraction", tokens.n_characters, f"{tokens.val_fraction:.2g}", self.val_fraction))
        return tokens

    def setup(self, stage: str | None = None) -> None:
        """Read the text."""
        self.tokens  # noqa: B018

    @property
    def train_ids(self) -> Ids:
        """The ids of the training text."""
        return self.tokens.train

    @property
    def val_ids(self) -> Ids:
        """The ids of the validation text."""
        return self.tokens.val

    @cached_property
    def block_size(self) -> int:
        """The length of a window, which is less than the setting if the text is too short."""
        n = len(self.train_ids)
        if n > self._block_size:
            return self._block_size
        size = max(SHORTEST, n // 2)
        note(message("block_size", n, size, self._block_size))
        return size

    @cached_property
    def max_val_tokens(self) -> int | None:
        """The maximum number of tokens that a validation scores; None for all."""
        if self._max_val_tokens is None and isinstance(self.val_ids, MappedIds):
            return MAPPED_VAL_TOKENS
        return self._max_val_tokens

    @cached_property
    def baselines(self) -> dict[str, float]:
        """The scores of simple models on the validation text, in bits per character."""
        return baselines(self.train_ids, self.val_ids, self.tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus."""
        return self.tokens.tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of distinct tokens in the corpus."""
        return self.tokenizer.vocab_size

    def train_dataloader(self) -> DataLoader:
        """Return a loader of `(B, T)` ids and their targets for one pass, from the next batch of the training on.

        A pass has as many full batches as the windows fill, rounded down to a multiple of accumulate_grad_batches. With
        several processes, each takes its rows of every batch, `(B / world size, T)`.
        """
        dataset, trainer = CharDataset(self.train_ids, self.block_size), self.trainer
        n = self.n_batches(trainer.accumulate_grad_batches if trainer else 1)
        over_and_over = self.overfit_batches
        if trainer and (amount := trainer.overfit_batches):  # type: ignore[attr-defined]  # Lightning sets it from outside
            over_and_over = max(1, n_of(amount, n))
        rank, world_size = self._processes()
        order = BatchOrder(
            len(dataset),
            self.batch_size,
            self.seed,
            self._batches_done,
            over_and_over,
            slice(rank, None, world_size),
            n,
        )
        return ResumableLoader(dataset, batch_size=None, sampler=order)

    def n_batches(self, accumulate_grad_batches: int) -> int:
        """Return the number of batches of a pass: full batches in whole optimizer steps, at least one step."""
        n_windows = len(CharDataset(self.train_ids, self.block_size))
        return max(1, n_windows // self.batch_size // accumulate_grad_batches) * accumulate_grad_batches

    def _batches_done(self) -> int:
        """Return the number of batches trained so far, in all passes and before a resume."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed if self.trainer else 0

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the validation text, since there is no third part."""
        return self.val_dataloader()

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the validation text, as windows that do not overlap.

        All processes have the same number of batches: FSDP2 computes in all of them together, so a process with an
        additional batch would wait for the others forever.
        """
        rank, world_size = self._processes()
        windows = eval_windows(self.val_ids, self.block_size, self.vocab_size, self.max_val_tokens, world_size)
        mine = range(rank, len(windows), world_size)
        return DataLoader(windows, batch_size=None, sampler=mine)

    def check_processes(self, world_size: int) -> None:
        """Check that so many processes can share the batches and the validation text.

        Raises:
            MiniGPTError: The processes cannot share a batch evenly, or there are too few windows for validation.
        """
        if self.batch_size % world_size:
            raise MiniGPTError(
                f"data.batch_size is {self.batch_size}, which {world_size} processes cannot share evenly. Make it "
                f"{self.batch_size + -self.batch_size % world_size}, or change trainer.devices."
            )
        n_targets = min(len(self.val_ids) - 1, self.max_val_tokens or len(self.val_ids))
        if n_targets // self.block_size < world_size > 1:
            raise MiniGPTError(
                f"A validation scores {n_targets} tokens, too few windows of {self.block_size} for {world_size} "
                "processes. Lower trainer.devices, or raise data.val_fraction or data.max_val_tokens."
            )

    def _processes(self) -> tuple[int, int]:
        """Return the rank of this process and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def describe(self, run_dir: str | None) -> dict:
        """Return the metadata about the data that sampling, evaluation and a resume need, in plain values.

        Args:
            run_dir: The run folder. The path of the corpus is stored relative to it, so that both can be moved
                together. None, if the logger has no folder, stores the absolute path.
        """
        return {
            "path": self.corpus.place(run_dir),
            "sha256": self.tokens.sha256,
            **self._cleaning,
            **self._splitting,
            "block_size": self.block_size,
            "tokenizer": self.tokenizer.to_dict(),
        }
