"""From a row of ids to windows to train on and to evaluate on.

`N` is the number of ids, `T` the block size, `B` the batch size.
"""

import math
import operator
from collections.abc import Iterator

import torch
from torch.utils.data import Dataset

from minigpt.data.memmap import Ids
from minigpt.errors import MiniGPTError


class CharDataset(Dataset):
    """Every window of `block_size` ids with the same window one step later, as in the article.

    Args:
        data: `(N,)` ids, in memory or in a file.
        block_size: `T`, the length of a window.

    `dataset[i]` is `x = data[i : i + T]` and `y = data[i + 1 : i + 1 + T]`. With a `(B,)` tensor of starts in place
    of `i`, none below 0, the whole batch `(B, T)` is gathered at once, with no loop over its samples.
    """

    def __init__(self, data: Ids, block_size: int):
        self.data = data
        self.block_size = block_size

    def __repr__(self) -> str:
        return f"CharDataset({len(self.data):,} tokens, block {self.block_size:,})"

    def __len__(self) -> int:
        return max(0, len(self.data) - self.block_size)

    def __getitem__(self, index: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(index, torch.Tensor) or index.dim() == 0:
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"window {index} of a dataset of {len(self)}")
            start = index % len(self)
            window = self.data[start : start + self.block_size + 1]
            return window[:-1], window[1:]
        windows = self.data.unfold(0, self.block_size, 1)
        x, y = (windows.index_select(0, starts).long() for starts in (index, index + 1))
        return x, y


class EvalWindows(Dataset):
    """A text cut into windows that follow each other, as batches: how a split is evaluated.

    The first id is context only and every other id is a target exactly once. The last window may be short, and then
    is a batch of its own. The windows do not overlap: more context would buy a better figure with more compute.

    Args:
        data: `(N,)` ids, at least 2, in memory or in a file.
        block_size: `T`, the length of a window.
        batch_size: Windows in a batch; the result of an evaluation does not depend on it.
        max_tokens: Score the first so many tokens only; None for all of them.
        processes: Make the number of batches a multiple of this, so that so many processes get equally many. A batch
            may then have a window more than batch_size, where there are hardly more windows than processes.

    Raises:
        MiniGPTError: There are fewer than two tokens.
    """

    def __init__(self, data: Ids, block_size: int, batch_size: int, max_tokens: int | None = None, processes: int = 1):
        if len(data) < 2:
            raise MiniGPTError(f"A text of {len(data)} tokens cannot be evaluated. Give one of 2 tokens or more.")
        self.data = data
        self.block_size = block_size
        self.n_targets = min(len(data) - 1, max_tokens or len(data))
        self.n_windows, tail = divmod(self.n_targets, block_size)  # full ones
        self.tail = tail > 0
        self.n_batches = math.ceil(self.n_windows / batch_size)  # of full windows
        self.n_batches += -len(self) % processes
        if self.n_batches > self.n_windows:
            self.n_batches -= processes

    def __len__(self) -> int:
        return self.n_batches + self.tail

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        if index < self.n_batches:
            first, after = (n * self.n_windows // self.n_batches for n in (index, index + 1))
            rows = after - first
        else:
            first, rows = self.n_windows, 1
        start = first * self.block_size
        length = min(rows * self.block_size, self.n_targets - start)
        ids = self.data[start : start + length + 1]
        return ids[:-1].view(rows, -1).long(), ids[1:].view(rows, -1).long()
