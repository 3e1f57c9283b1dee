"""Windows of token ids: overlapping ones to train on, consecutive ones to evaluate on.

In shapes, `N` is the number of ids in the text, `T` the block size (the length of a window) and `B` the batch size.
"""

import math

import torch
from torch.utils.data import Dataset

from minigpt.data.memmap import Ids  # a tensor of ids, or a file of ids that is used like one
from minigpt.errors import MiniGPTError


class CharDataset(Dataset):
    """Every window of `block_size` ids, with the same window one id later as its targets, as in the article.

    `dataset[5]` is window 5, so `DataLoader(dataset, batch_size=4, shuffle=True)` works as in the article.

    For speed alone, one call can make a whole batch: `dataset[torch.tensor([5, 90, 7])]` is the windows 5, 90 and 7,
    stacked. Training uses `DataLoader(dataset, batch_size=None, sampler=BatchOrder(...))`. This sampler, in `order.py`,
    draws tensors of window numbers, and without a batch size the loader passes each of them to the dataset as it is.

    Args:
        data: `(N,)` ids, in a tensor or in a file. A file has integers of 8 to 32 bits, so windows are converted by
            `long` to int64, which embeddings and cross-entropy take.
        block_size: `T`, the length of a window.
    """

    def __init__(self, data: Ids, block_size: int):
        self.data = data
        self.block_size = block_size

    def __repr__(self) -> str:
        return f"CharDataset({len(self.data):,} tokens, block {self.block_size:,})"

    def __len__(self) -> int:
        return max(0, len(self.data) - self.block_size)

    def __getitem__(self, index: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return window `index` as `x` and `y`, both `(T,)`; or, for a `(B,)` tensor, that many as `(B, T)`."""
        if isinstance(index, torch.Tensor) and index.dim() == 1:  # a single number of a tensor counts as an int
            return self._batch(index)
        # A range checks the index as a list does: -1 is the last window, and one outside raises IndexError.
        start = range(len(self))[int(index)]
        window = self.data[start : start + self.block_size + 1].long()
        return window[:-1], window[1:]

    def _batch(self, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # `unfold` is a view of all windows of T + 1 ids, one per row, without copying: for the ids 0 1 2 3 4 and T = 2,
        # the rows are 0 1 2, 1 2 3 and 2 3 4. Indexing then copies the B rows of the batch in one call, which is faster
        # than a Python loop over windows.
        windows = self.data.unfold(0, self.block_size + 1, 1)[starts].long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()  # so that `view` works on them


class EvalWindows(Dataset):
    """A text cut into consecutive windows, in which every id but the first is a target exactly once.

    The windows do not overlap. Overlapping ones would give the targets more context and a lower loss, but every id
    would then go through the model several times. The last window may be shorter than the others.

    `windows[5]` is window 5, and `windows[range(5, 9)]` is a batch of four windows. All windows of a batch have one
    length, so a short last window is a batch of its own. The sampler `EvalOrder` (see `order.py`) makes such ranges.

    Args:
        data: `(N,)` ids, at least 2.
        block_size: `T`, the length of a window.
        max_tokens: Score only this many tokens, from the beginning of the text; None for all of them.

    Raises:
        MiniGPTError: There are fewer than two tokens.
    """

    def __init__(self, data: Ids, block_size: int, max_tokens: int | None = None):
        if len(data) < 2:
            raise MiniGPTError(f"A text of {len(data)} tokens cannot be evaluated. Give one of 2 tokens or more.")
        self.data = data
        self.block_size = block_size
        self.n_targets = len(data) - 1  # nothing comes before the first id to predict it from
        if max_tokens is not None:
            self.n_targets = min(self.n_targets, max_tokens)

    def __len__(self) -> int:
        return math.ceil(self.n_targets / self.block_size)

    def __getitem__(self, index: int | range) -> tuple[torch.Tensor, torch.Tensor]:
        """Return window `index` as `x` and `y`, both `(T,)`; or, for a range of `B` windows, `(B, T)`."""
        if isinstance(index, range):
            return self._batch(index)
        number = range(len(self))[index]  # checks the index, as in CharDataset
        x, y = self._batch(range(number, number + 1))
        return x[0], y[0]

    def _batch(self, numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
        # No gap and no overlap: the windows of a batch are one slice of the text, which `view` cuts into B rows. With
        # T = 3, windows 0 and 1 are ids 0 to 6: x is (0 1 2), (3 4 5), and y is (1 2 3), (4 5 6). If window 2 has one
        # target only, x is (6) and y is (7).
        start = numbers.start * self.block_size
        stop = min(numbers.stop * self.block_size, self.n_targets)
        ids = self.data[start : stop + 1].long()
        length = min(self.block_size, stop - start)
        return ids[:-1].view(-1, length), ids[1:].view(-1, length)  # -1: as many rows as there are windows
