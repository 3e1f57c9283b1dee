"""From a row of ids to batches: windows, the split, the order of batches, and the windows of an evaluation.

`N` is the number of ids, `T` the block size, `B` the batch size.
"""

import itertools
import operator
from collections.abc import Iterator

import torch
from torch.utils.data import Dataset, Sampler

from minigpt.errors import MiniGPTError
from minigpt.seeds import derive_seed


class CharDataset(Dataset):
    """Every window of `block_size` ids with the same window one step later, as in the article.

    Args:
        data: `(N,)` ids.
        block_size: `T`, the length of a window.

    `dataset[i]` is `x = data[i : i + T]` and `y = data[i + 1 : i + 1 + T]`. With a `(B,)` tensor of starts in place
    of `i`, none below 0, the whole batch `(B, T)` is gathered by one tensor index, with no loop over its samples.
    """

    def __init__(self, data: torch.Tensor, block_size: int):
        self.data = data
        self.block_size = block_size
        window = torch.arange(block_size)
        self._offsets = torch.stack([window, window + 1])[:, None, :]  # (2, 1, T): of x, and of y one step later

    def __len__(self) -> int:
        return max(0, len(self.data) - self.block_size)

    def __getitem__(self, index: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(index, torch.Tensor) or index.dim() == 0:
            index = operator.index(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"window {index} of a dataset of {len(self)}")
            start = index % len(self)
            stop = start + self.block_size
            return self.data[start:stop], self.data[start + 1 : stop + 1]
        x, y = self.data[index[:, None] + self._offsets]
        return x, y


def split(data: torch.Tensor, val_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The first part of the ids to train on, the last `val_fraction` of them to validate on."""
    boundary = int(len(data) * (1 - val_fraction))
    return data[:boundary], data[boundary:]


class BatchOrder(Sampler):
    """The endless order in which windows are drawn: batch `t` is a pure function of `(seed, t)`.

    The batches cut one endless row of window starts, in which each pass over the data visits every window once, in
    a new order. No state needs saving: a resumed run asks for the batches from `start` on. The order of a pass
    comes from a keyed permutation (a Feistel network with cycle walking: Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002), so that it takes no memory per window.

    Args:
        n_windows: The length of the dataset.
        batch_size: `B`, starts in a batch.
        seed: The key of the permutations.
        start: The first batch that iteration yields.
        cycle: Draw the first so many batches over and over; None for all.
    """

    _AHEAD = 8192  # starts computed in one go while iterating; for a few alone, the operations cost as much

    def __init__(self, n_windows: int, batch_size: int, seed: int, start: int = 0, cycle: int | None = None):
        self.n_windows = n_windows
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.cycle = cycle

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

    def __iter__(self) -> Iterator[torch.Tensor]:
        batch, ahead = self.start, max(1, self._AHEAD // self.batch_size)
        if self.cycle:
            few = self.batches(0, self.cycle)
            yield from (few[t % self.cycle] for t in itertools.count(self.start))
        while True:
            yield from self.batches(batch, ahead).unbind()
            batch += ahead


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
        data: `(N,)` ids, at least 2.
        block_size: `T`, the length of a window.
        batch_size: Windows in a batch; the result of an evaluation does not depend on it.
    """

    def __init__(self, data: torch.Tensor, block_size: int, batch_size: int):
        if len(data) < 2:
            raise MiniGPTError(f"A text of {len(data)} tokens cannot be evaluated. Give one of 2 tokens or more.")
        n_whole = (len(data) - 1) // block_size
        whole = [data[shift : shift + n_whole * block_size].view(n_whole, block_size) for shift in (0, 1)]
        self.batches = list(zip(*(part.split(batch_size) for part in whole), strict=True)) if n_whole else []
        if (len(data) - 1) % block_size:
            tail = data[n_whole * block_size :]
            self.batches.append((tail[None, :-1], tail[None, 1:]))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.batches[index]
