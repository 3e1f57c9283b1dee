"""The order in which a training draws its windows, and an evaluation takes them: samplers for a DataLoader.

`BatchOrder` shuffles like `torch.randperm(n_windows)` for each pass over the text, but it needs no memory for the
permutation, and it can begin at any batch: a resumed training gets the batches that it would have had.
"""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import torch
from torch.utils.data import SequentialSampler

from minigpt.data.dataset import EvalWindows
from minigpt.seeds import derive_seed


class BatchOrder(SequentialSampler):
    """Endless batches of window numbers, where batch `t` is a pure function of `(seed, t)`.

    Write down all windows in a random order, then all windows again in another random order, and so on. Batch 0 is the
    first `B` numbers of that sequence, batch 1 the next `B`; a batch may therefore hold the end of one pass and the
    beginning of the next.

    Lightning replaces samplers other than SequentialSampler where `overfit_batches` is set, hence the base class.

    Args:
        n_windows: The length of the dataset.
        batch_size: `B`, windows in a batch.
        seed: The seed of all permutations.
        start: The first batch of an iteration, or a function that returns it when the iteration begins.
        cycle: Repeat the first `cycle` batches for ever; None draws from the whole text.
        rows: The rows of each batch that an iteration yields: those of one of several processes.
        length: How many batches an iteration yields; None for no end.
    """

    _AHEAD = 8192  # window numbers computed in one call: the cost of a call hardly depends on how many there are

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
        """Return the `(count, B)` window numbers of batches `first`, `first + 1`, ..."""
        position, stop = first * self.batch_size, (first + count) * self.batch_size
        parts = []
        while position < stop:
            n_pass, offset = divmod(position, self.n_windows)
            length = min(stop - position, self.n_windows - offset)  # not beyond the end of this pass
            keys = [derive_seed(self.seed, "order", n_pass, r) & LOW_32 for r in range(ROUNDS)]
            parts.append(permute(torch.arange(offset, offset + length), self.n_windows, keys))
            position += length
        return torch.cat(parts).view(count, self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:  # type: ignore[override]  # the base class yields single indices
        yield from islice(self._endless(), self.length)

    def _endless(self) -> Iterator[torch.Tensor]:
        batch = self.start() if callable(self.start) else self.start
        ahead = max(1, self._AHEAD // self.batch_size)
        while True:
            first, count = batch, ahead
            if self.cycle:
                first = batch % self.cycle
                count = min(ahead, self.cycle - first)
            yield from self.batches(first, count)[:, self.rows].unbind()
            batch += count


ROUNDS = 6  # of the network below; with a perfect hash, four would do (Luby and Rackoff, 1988)
LOW_32 = 2**32 - 1  # `x & LOW_32` keeps the lowest 32 bits of x


def permute(index: torch.Tensor, n: int, keys: list[int]) -> torch.Tensor:
    """Return where a random permutation of `0 .. n - 1`, which `keys` choose, sends each index.

    This is a cipher for small numbers: a Feistel network with cycle walking (Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002). A number of `2 * half` bits is split into its left and right half. In each round the halves
    change places, and one of them is XORed with a hash of the other. A round can be undone by the same XOR, so no two
    numbers ever get the same result: the network permutes all numbers of `2 * half` bits.

    Some of these are n or more. They are sent through the network again until they come out below n; since the way back
    is unique as well, the result is a permutation of `0 .. n - 1`.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)  # so that n numbers fit into 2 * half bits
    mask = 2**half - 1  # `x & mask` keeps the lowest `half` bits
    index, outside = index.clone(), torch.ones_like(index, dtype=torch.bool)
    while outside.any():  # n is more than a quarter of the network's numbers, so few repetitions are needed
        left, right = index[outside] >> half, index[outside] & mask
        for key in keys:
            left, right = right, left ^ (_hash(right + key) & mask)
        index[outside] = (left << half) | right
        outside = index >= n
    return index


def _hash(x: torch.Tensor) -> torch.Tensor:
    """Return a 32-bit hash of each number, of which any changed input bit changes about half of the bits.

    The shifts and the two multipliers are those of the last step of MurmurHash3 (Austin Appleby, public domain).
    """
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & LOW_32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & LOW_32
    return x ^ (x >> 16)


class EvalOrder(SequentialSampler):
    """Batches of consecutive windows, as ranges of window numbers, for one of several processes.

    All processes get equally many batches. The windows of full length are spread evenly over the batches; a short last
    window is a batch of its own, since the rows of a batch have one length.

    Args:
        windows: The windows of a text.
        batch_size: Windows in a batch. Where there are hardly more windows than processes, a batch may hold one more.
        rank: Which process this is.
        world_size: How many processes share the windows.
    """

    def __init__(self, windows: EvalWindows, batch_size: int, rank: int = 0, world_size: int = 1):
        n_full = windows.n_targets // windows.block_size  # windows of full length
        n_short = len(windows) - n_full  # 0 or 1
        count = -(-n_full // batch_size)  # rounded up
        count += -(count + n_short) % world_size  # more batches, until the processes can share them
        if count > n_full:
            count -= world_size  # or fewer and larger ones, since no batch may be empty
        bounds = [n * n_full // count for n in range(count + 1)] if count > 0 else []
        batches = [range(first, after) for first, after in pairwise(bounds)]
        if count >= 0:  # else there are fewer windows than processes, which `check_processes` refuses: no batches
            batches += [range(n_full, len(windows))] * n_short
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[range]:  # type: ignore[override]  # the base class yields single indices
        return iter(self.batches)
