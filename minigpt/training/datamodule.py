"""TextDataModule: reads a corpus, and makes the loaders to train, validate and test on it."""

import math
from functools import cached_property
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from minigpt.data import corpus
from minigpt.data.corpus import Corpus
from minigpt.data.dataset import CharDataset
from minigpt.data.memmap import Ids, MemmapIds
from minigpt.data.order import BatchOrder
from minigpt.data.prepare import SHORTEST, TokenizedCorpus, tokenize
from minigpt.data.tokenizer_base import Tokenizer
from minigpt.errors import MiniGPTError, check_number, note
from minigpt.evaluation import baselines, eval_batches
from minigpt.words import message

MOST_NEW = 40  # the number of new characters that a note shows
MAPPED_VAL_TOKENS = 1 << 20  # the most tokens scored at a validation if the text is too large for memory


def n_of(amount: int | float, n: int) -> int:
    """Return a number of batches that is given as such, or, if it is a float, as a share of `n` batches."""
    return int(amount * n) if isinstance(amount, float) else int(amount)


class ResumableLoader(DataLoader):
    """A loader that can be resumed within a pass without any state, since `BatchOrder` starts at the right batch.

    Lightning warns about a resume within a pass unless the loader has these two methods.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: there is no state to restore."""


class TextDataModule(LightningDataModule):
    """Reads a text, builds its tokenizer, and makes batches of windows to train and to validate on.

    Args:
        path: The corpus: `exemple`, the French text inside the package; `tinyshakespeare` or `tinymoliere`, which are
            downloaded once; a text file, a .jsonl or .ndjson file with a text under `text` in each line, or a .json
            file with an array of such records or of strings, any of them packed as .gz, .zst or .zip or not; a folder,
            of which all .txt and .md files that are not hidden are read, in the order of their names; or a pattern
            such as 'notes/*.txt'. Texts are joined with an empty line.
        tokenizer: `char`, `word` (words, spaces and signs; rare words are spelled in characters) or `bpe` (byte pairs).
            With --init_from it is the source's.
        max_vocab_size: The largest vocabulary of words or byte pairs; null for 4,096.
        byte_fallback: Spell characters that the text lacks in bytes, which takes 256 more tokens; only for char.
        block_size: Tokens in a window: the context that the model is trained with; reduced if the text is too short.
        batch_size: Windows in a batch, over all processes together.
        val_fraction: The share of the text, taken from its end, that is kept for validation.
        max_val_tokens: The largest number of tokens that a validation during training scores; null for all tokens, or
            for 2 ** 20 if the text is too large for memory.
        lower: Convert the text to lower case.
        strip: Remove white space at both ends of the text.
        nfc: Compose Unicode, so that an accented letter is one character however it was typed.
        unknown: How to treat characters that the source of --init_from does not know: `add` them to its characters, or
            `skip` them.
        encoding: The encoding of the text, such as cp1252; null for UTF-8, or a guess if the text is not UTF-8.
        in_memory_mb: A text of more millions of characters is tokenised once, into a file, and read from there.
        cache_dir: The folder for such files; null for the user's cache folder.
        overfit_batches: Train on this many batches over and over, to see whether a model can learn them by heart; null
            for all of the text.
        seed: The seed of the order of the batches; always equal to seed_everything.

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
        unknown: str = "add",
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
            "unknown": unknown,
        }  # fmt: skip
        self._path, self._kind, self._in_memory_mb, self._cache_dir = path, tokenizer, in_memory_mb, cache_dir
        self._given: Tokenizer | None = None

    def __repr__(self) -> str:
        block_size = self.__dict__.get("block_size", self._block_size)  # the property would read the text
        return f"TextDataModule({str(self._path)!r}, {self._kind}, block {block_size:,}, batch {self.batch_size:,})"

    __str__ = __repr__  # Lightning's would create the loaders and thus read the text

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Encode the text with a given tokenizer, such as that of a model to train further; before the text is read."""
        self._given, self._kind = tokenizer, tokenizer.kind
        self._cleaning |= {"lower": tokenizer.lower, "nfc": tokenizer.nfc}  # the text is cleaned as the tokenizer's was

    @cached_property
    def corpus(self) -> Corpus:
        """The files of the text, which are not read yet."""
        return Corpus(self._path, **self._cleaning)

    @cached_property
    def tokens(self) -> TokenizedCorpus:
        """The ids of the text and its tokenizer; the text is read at the first access."""
        tokens = tokenize(
            self.corpus,
            self._given or self._kind,
            **self._splitting,
            in_memory_mb=self._in_memory_mb,
            cache_dir=self._cache_dir,
        )
        if self._given and (new := tokens.tokenizer.tokens[self._given.vocab_size :]):
            shown = " ".join(token.decode() for token in new[:MOST_NEW]) + " …" * (len(new) > MOST_NEW)
            note(message("new_characters", len(new), shown))
        n = len(tokens.train)
        if self.batch_size > n:
            raise MiniGPTError(
                f"data.batch_size is {self.batch_size}, but the text has {n} tokens to train on. Lower it."
            )
        if abs(tokens.val_fraction - self.val_fraction) * tokens.n_characters > 1:
            note(message("val_fraction", tokens.n_characters, f"{tokens.val_fraction:.2g}", self.val_fraction))
        return tokens

    def setup(self, stage: str | None = None) -> None:
        """Read the text now rather than at the first access."""
        self.tokens  # noqa: B018

    @property
    def train_ids(self) -> Ids:
        """`(N,)` ids to train on."""
        return self.tokens.train

    @property
    def val_ids(self) -> Ids:
        """`(M,)` ids to validate on."""
        return self.tokens.val

    @cached_property
    def block_size(self) -> int:
        """`T`, the length of a window, which is less than the setting if the text is too short for that."""
        n = len(self.train_ids)
        if n > self._block_size:
            return self._block_size
        size = max(SHORTEST, n // 2)
        note(message("block_size", n, size, self._block_size))
        return size

    @cached_property
    def max_val_tokens(self) -> int | None:
        """The largest number of tokens that a validation scores; None for all."""
        if self._max_val_tokens is None and isinstance(self.val_ids, MemmapIds):
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
        """Return a loader of `(B, T)` ids and targets: one pass over the windows, from the next batch of the training.

        A pass has as many full batches as the windows fill, rounded down to a multiple of accumulate_grad_batches. Each
        of several processes takes its own rows of every batch, `(B / world size, T)`.
        """
        dataset, trainer = CharDataset(self.train_ids, self.block_size), self.trainer
        n = self.n_batches(trainer.accumulate_grad_batches if trainer else 1)
        repeated = self.overfit_batches
        if trainer and (amount := trainer.overfit_batches):  # type: ignore[attr-defined]  # Lightning sets it from outside
            repeated = max(1, n_of(amount, n))
        rank, world_size = self._processes()
        order = BatchOrder(
            len(dataset),
            self.batch_size,
            self.seed,
            start=self._batches_done,
            cycle=repeated,
            rows=slice(rank, None, world_size),
            length=n,
        )
        return ResumableLoader(dataset, batch_size=None, sampler=order)

    def n_batches(self, accumulate_grad_batches: int) -> int:
        """Return the number of full batches in a pass: a multiple of accumulate_grad_batches, one step at least."""
        n_windows = len(CharDataset(self.train_ids, self.block_size))
        return max(1, n_windows // self.batch_size // accumulate_grad_batches) * accumulate_grad_batches

    def _batches_done(self) -> int:
        """Return the number of batches that the training has had, in all passes and before a resume."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.completed if self.trainer else 0

    def test_dataloader(self) -> DataLoader:
        """Return the validation loader: the text has no third part."""
        return self.val_dataloader()

    def val_dataloader(self) -> DataLoader:
        """Return a loader of the validation text in consecutive windows.

        All processes get the same number of batches, because with FSDP2 every forward needs all processes: one with an
        extra batch would wait for the others for ever.
        """
        rank, world_size = self._processes()
        windows, batches = eval_batches(
            self.val_ids, self.block_size, self.vocab_size, self.max_val_tokens, rank, world_size
        )
        return DataLoader(windows, batch_size=None, sampler=batches)

    def check_processes(self, world_size: int) -> None:
        """Check that the batches and the validation text can be shared by this many processes.

        Raises:
            MiniGPTError: They cannot.
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
        """Return what a checkpoint keeps of the data, in plain values, to sample, to evaluate and to check a resume.

        Args:
            run_dir: The run folder, which the path of the corpus is relative to, so that both can be moved together;
                None for a training whose logger has no folder, which keeps the absolute path.
        """
        return {
            "path": self.corpus.path_from(run_dir),
            "sha256": self.tokens.sha256,
            **self._cleaning,
            **self._splitting,
            "block_size": self.block_size,
            "tokenizer": self.tokenizer.to_dict(),
            "tokenizer_given": self._given is not None,  # not made from this text
        }
