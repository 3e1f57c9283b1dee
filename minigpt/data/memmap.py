"""Token ids in a file, read through a memory map."""

from pathlib import Path

import torch

from minigpt.errors import MiniGPTError


class MemmapIds:
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


Ids = torch.Tensor | MemmapIds
