"""Token ids in a file, which a training reads without loading the file into memory."""

from pathlib import Path

import torch

from minigpt.errors import MiniGPTError


class MemmapIds:
    """Token ids in a file, used like a one-dimensional tensor.

    The file is memory-mapped: the system loads a page of it when an id in that page is read. Such pages count as memory
    of this process until the map is closed, so a long training would seem to grow to the size of the file. The map is
    therefore opened anew for every few batches.

    Args:
        file: The ids, one after the other.
        dtype: The integer type in which they are stored.
        start: The position in the file of the first id to use.
        stop: The position after the last one.
    """

    _BATCHES_PER_MAP = 8

    def __init__(self, file: Path, dtype: torch.dtype, start: int, stop: int):
        self.file = file
        self.dtype = dtype
        self.start = start
        self.stop = stop
        self._map: torch.Tensor | None = None
        self._batches = 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: slice) -> torch.Tensor:
        """Return a copy of the ids in a slice, as int64."""
        return self._open()[index].long()

    def unfold(self, dimension: int, size: int, step: int) -> torch.Tensor:
        """Return a view of all windows of `size` ids, like `torch.Tensor.unfold`; copy what you need of it at once."""
        if self._map is None or self._batches % self._BATCHES_PER_MAP == 0:
            self._map = self._open()
        self._batches += 1
        return self._map.unfold(dimension, size, step)

    def _open(self) -> torch.Tensor:
        try:
            return torch.from_file(str(self.file), size=self.stop, dtype=self.dtype)[self.start :]
        except RuntimeError as error:
            raise MiniGPTError(f"The ids in '{self.file}' are gone. The same command makes them again.") from error


Ids = torch.Tensor | MemmapIds
