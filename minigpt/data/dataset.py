"""From a row of ids to batches: windows, the split, the order of batches, and the windows of an evaluation.

`N` is the number of ids, `T` the block size, `B` the batch size.
"""

import math
import operator
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import Dataset, SequentialSampler

from minigpt.errors import MiniGPTError
from minigpt.seeds import derive_seed

SHORTEST = 8  # tokens in the shortest window that a text is trained with


class CharDataset(Dataset):
    """Every window of `block_size` ids with the same window one step later, as in the article.

    Args:
        data: `(N,)` ids, in memory or in a file.
        block_size: `T`, the length of a window.

    `dataset[i]` is `x = data[i : i + T]` and `y = data[i + 1 : i + 1 + T]`. With a `(B,)` tensor of starts in place
    of `i`, none below 0, the whole batch `(B, T)` is gathered at once, with no loop over its samples.
    """

    def __init__(self, data: "Ids", block_size: int):
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


class MappedIds:
    """Ids in a file, read through a memory map: of them only what is looked at comes into memory.

    The system counts the pages that were looked at as this process's memory until the map is given up, so that a long
    training would seem to grow to the size of the file. The map is therefore made anew every few batches.

    Args:
        file: The ids, one after the other.
        dtype: Their type.
        start: The first one that belongs here.
        stop: The one after the last.
    """

    _RENEWED = 8  # batches from one map; each window looked at maps up to 64 kB

    def __init__(self, file: Path, dtype: torch.dtype, start: int, stop: int):
        self.file = file
        self.dtype = dtype
        self.start = start
        self.stop = stop
        self._map: torch.Tensor | None = None
        self._uses = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: slice) -> torch.Tensor:
        """A copy of the ids in a slice, as int64."""
        return self._open()[index].long()

    def unfold(self, dimension: int, size: int, step: int) -> torch.Tensor:
        """All windows of `size` ids, as `torch.Tensor.unfold` gives them; to be used at once."""
        if self._map is None or self._uses % self._RENEWED == 0:
            self._map = self._open()
        self._uses += 1
        return self._map.unfold(dimension, size, step)

    def _open(self) -> torch.Tensor:
        try:
            return torch.from_file(str(self.file), size=self.stop, dtype=self.dtype)[self.start :]
        except RuntimeError as error:
            raise MiniGPTError(f"The ids in '{self.file}' are gone. The same command makes them again.") from error


def split_at(n_characters: int, val_fraction: float) -> int:
    """Where the validation text begins: at the last `val_fraction`, with a shortest window's room on both sides."""
    return max(min(int(n_characters * (1 - val_fraction)), n_characters - SHORTEST - 1), SHORTEST + 1)


Ids = torch.Tensor | MappedIds


class BatchOrder(SequentialSampler):
    """The order in which windows are drawn: batch `t` is a pure function of `(seed, t)`, for every `t`.

    The batches cut one endless row of window starts, in which each pass over the data visits every window once, in
    a new order. No state needs saving: a resumed run asks for the batches from `start` on. The order of a pass
    comes from a keyed permutation (a Feistel network with cycle walking: Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002), so that it takes no memory per window.

    It is a SequentialSampler since Lightning puts one in the place of any other where `overfit_batches` is set.

    Args:
        n_windows: The length of the dataset.
        batch_size: `B`, starts in a batch.
        seed: The key of the permutations.
        start: The first batch that iteration yields, or a function that tells it when iteration begins.
        length: How many batches iteration yields; None for no end.
        cycle: Draw the first so many batches over and over; None for all.
        rows: The part of each batch that iteration yields.
    """

    _AHEAD = 8192  # starts computed in one go while iterating; for a few alone, the operations cost as much

    def __init__(
        self,
        n_windows: int,
        batch_size: int,
        seed: int,
        start: int | Callable[[], int] = 0,
        cycle: int | None = None,
        rows: slice = slice(None),
        length: int | None = None,
    ):
        self.n_windows = n_windows
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.cycle = cycle
        self.rows = rows
        self.length = length

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("an order without end has no length")
        return self.length

    def batches(self, first: int, count: int) -> torch.Tensor:
        """The `(count, B)` window starts of batches `first`, `first + 1`, ..."""
        position, stop = first * self.batch_size, (first + count) * self.batch_size
        pieces = []
        while position < stop:
            n_pass, offset = divmod(position, self.n_windows)
            length = min(stop - position, self.n_windows - offset)
            keys = [derive_seed(self.seed, "order", n_pass, r) & 0xFFFFFFFF for r in range(6)]
            pieces.append(_permute(torch.arange(offset, offset + length), self.n_windows, keys))
            position += length
        return torch.cat(pieces).view(count, self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:  # type: ignore[override]  # the base class yields single indices
        start = self.start() if callable(self.start) else self.start  # asked when the first batch is
        yield from islice(self._from(start), self.length)

    def _from(self, batch: int) -> Iterator[torch.Tensor]:
        ahead = max(1, self._AHEAD // self.batch_size)
        while True:
            first = batch % self.cycle if self.cycle else batch
            count = min(ahead, self.cycle - first) if self.cycle else ahead
            yield from self.batches(first, count)[:, self.rows].unbind()
            batch += count


def _permute(index: torch.Tensor, n: int, keys: list[int]) -> torch.Tensor:
    """Where a keyed permutation of `0 .. n - 1` sends each `index`."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    index, outside = index.clone(), torch.ones_like(index, dtype=torch.bool)
    while outside.any():  # each walk leaves at most 3/4 of the indices outside
        left, right = index[outside] >> half, index[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        index[outside] = (left << half) | right
        outside = index >= n
    return index


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A 32-bit integer hash that flips half of the output bits for each input bit (Murmur3's finaliser)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


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
