"""The order in which windows are drawn."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch.utils.data import SequentialSampler

from minigpt.seeds import derive_seed


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
