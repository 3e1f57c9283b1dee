"""TextDataModule: a corpus in, loaders of windows out."""

import os
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from minigpt.data import corpus
from minigpt.data.dataset import BatchOrder, CharDataset, split
from minigpt.data.tokenizers import CharTokenizer
from minigpt.errors import MiniGPTError
from minigpt.evaluation import eval_windows, floors


class TextDataModule(LightningDataModule):
    """Reads a text, builds its vocabulary, and cuts it into batches of windows to train and to validate on.

    Args:
        path: The corpus: `exemple`, the French one inside the package; `tinyshakespeare` or `tinymoliere`, which are
            downloaded once; or the path of a UTF-8 text file.
        block_size: Tokens in a window: the context that the model is trained with.
        batch_size: Windows in a batch.
        val_fraction: The share of the text, taken from its end, that is kept for validation.
        max_val_tokens: At most so many tokens are scored at each validation while training; null for all of them.
        lower: Put the text in lower case.
        strip: Drop white space at both ends of the text.
        overfit_batches: Train on the first so many batches over and over, to see whether a model can learn them by
            heart; null for all of the text.
        seed: Where the order of the batches comes from; always the same as seed_everything.

    Raises:
        MiniGPTError: The corpus cannot be read, or is too short for one window to train on and one to validate on.
    """

    def __init__(
        self,
        path: str = corpus.EMBEDDED,
        block_size: int = 64,
        batch_size: int = 4,
        val_fraction: float = 0.1,
        max_val_tokens: int | None = None,
        lower: bool = False,
        strip: bool = False,
        overfit_batches: int | None = None,
        seed: int = 1337,
    ):
        super().__init__()
        for key, value in {"block_size": block_size, "batch_size": batch_size}.items():
            if value < 1:
                raise MiniGPTError(f"data.{key} is {value}. Give it a whole number of 1 or more.")
        for key, limit in {"max_val_tokens": max_val_tokens, "overfit_batches": overfit_batches}.items():
            if limit is not None and limit < 1:
                raise MiniGPTError(f"data.{key} is {limit}. Give it 1 or more, or null for no limit.")
        if not 0 < val_fraction < 1:
            raise MiniGPTError(f"data.val_fraction is {val_fraction}. Give it a share between 0 and 1, such as 0.1.")
        self.path = str(path)
        self.block_size = block_size
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.max_val_tokens = max_val_tokens
        self.lower = lower
        self.strip = strip
        self.overfit_batches = overfit_batches
        self.seed = seed
        self._tokenizer: CharTokenizer | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, clean, encode and split the text; a second call does nothing."""
        if self._tokenizer is not None:
            return
        text = corpus.clean(corpus.read_text(self.path), self.lower, self.strip)
        self.sha256 = sha256(text.encode()).hexdigest()
        tokenizer = CharTokenizer.from_text(text, lower=self.lower)
        ids = torch.tensor(tokenizer.encode(text), dtype=torch.long)
        self.chars_per_token = len(text) / len(ids)
        self.train_ids, self.val_ids = split(ids, self.val_fraction)
        if len(self.train_ids) <= self.block_size or len(self.val_ids) < 2:
            raise MiniGPTError(
                f"The corpus '{self.path}' is too short: it has {len(ids)} tokens, and windows of {self.block_size} "
                f"with a validation share of {self.val_fraction} need more. "
                "Give a longer text, or a smaller --data.block_size."
            )
        if self.batch_size > len(self.train_ids):
            raise MiniGPTError(
                f"data.batch_size is {self.batch_size}, but the text has {len(self.train_ids)} tokens. Lower it."
            )
        self._tokenizer = tokenizer

    @cached_property
    def floors(self) -> dict[str, float]:
        """What simple models make of the validation text, in bits per character."""
        train, val = (self.tokenizer.decode(ids) for ids in (self.train_ids, self.val_ids))
        return floors(self.train_ids, self.val_ids, self.vocab_size, train, val)

    @property
    def tokenizer(self) -> CharTokenizer:
        """The tokenizer of the corpus, which is read when first asked for."""
        self.setup()
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """The number of distinct tokens in the corpus."""
        return self.tokenizer.vocab_size

    def train_dataloader(self) -> DataLoader:
        """Endless batches of `(B, T)` ids and their targets, from the step on that training stands at."""
        self.setup()
        dataset = CharDataset(self.train_ids, self.block_size)
        start = self.trainer.global_step * self.trainer.accumulate_grad_batches if self.trainer else 0
        order = BatchOrder(len(dataset), self.batch_size, self.seed, start, self.overfit_batches)
        return DataLoader(dataset, batch_size=None, sampler=order, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader:
        """The validation text as windows that follow each other."""
        self.setup()
        last = None if self.max_val_tokens is None else self.max_val_tokens + 1
        return DataLoader(eval_windows(self.val_ids[:last], self.block_size), batch_size=None, collate_fn=_as_it_is)

    def describe(self, run_dir: str) -> dict:
        """What a checkpoint keeps of the data, in plain values: enough to sample, to evaluate and to check a resume.

        Args:
            run_dir: The run folder; the corpus is named relative to it, so that both can be moved together.
        """
        if self.path in corpus.NAMES:
            path = self.path
        else:
            path = Path(os.path.relpath(corpus.locate(self.path).resolve(), Path(run_dir).resolve())).as_posix()
        return {
            "path": path,
            "sha256": self.sha256,
            "lower": self.lower,
            "strip": self.strip,
            "val_fraction": self.val_fraction,
            "tokenizer": self.tokenizer.to_dict(),
        }


def _as_it_is(batch):
    """A batch is gathered whole: there is nothing to collate."""
    return batch
