"""The ids of a batch during generation, in rows of different lengths."""

from collections.abc import Generator, Sequence

import torch

IdSteps = Generator[torch.Tensor, None, None]  # an iterator over the (B,) new ids of each step; `close` ends it early


class TokenBuffer:
    """Stores the ids of each row of a batch.

    Rows are padded on the right with their first id, so that padding never changes a repetition penalty.

    Args:
        prompts: `B` rows of at least one id each.
        device: The device of the ids.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device):
        self.lengths = [len(row) for row in prompts]
        width = max(self.lengths)
        self.ids = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in prompts], device=device)
        self.ends = torch.tensor(self.lengths, device=device)
        self.rows = torch.arange(len(prompts), device=device)
        self.pending: list[torch.Tensor] = []  # new ids, not yet written to `ids`

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return max(self.lengths)

    def append(self, new: torch.Tensor) -> None:
        """Append one of the `(B,)` new ids to each row."""
        self.latest = new
        self.pending.append(new)
        self.lengths = [length + 1 for length in self.lengths]

    def all(self) -> torch.Tensor:
        """Return the ids of all rows, `(B, T)`."""
        if self.longest > self.ids.shape[1]:  # at least doubled, so that ids are seldom copied
            room = self.ids[:, :1].expand(-1, self.longest)
            self.ids = torch.cat([self.ids, room], dim=1)
        for new in self.pending:
            self.ids.scatter_(1, self.ends[:, None], new[:, None])
            self.ends += 1
        self.pending.clear()
        return self.ids[:, : self.longest]

    def windows(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last `size` ids of each row, `(B, T)`, and the column of each row's last id, `(B,)`."""
        ids = self.all()
        first = (self.ends - size).clamp(min=0)
        columns = first[:, None] + torch.arange(min(size, self.longest), device=ids.device)
        return ids.gather(1, columns), self.ends.clamp(max=size) - 1
