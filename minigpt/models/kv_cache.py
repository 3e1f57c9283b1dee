"""The cache of keys and values, with which GPT computes each token once in generation."""

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from minigpt.models.gpt import GPT

FIRST_COLUMNS = 256


class KVCache:
    """Stores the keys and values of the tokens so far, so that each token is computed once.

    Position p of a row is in column p, so rows may have different lengths. A row never sees later columns than its own
    position, so lowering its `length` makes it forget the tokens after that. There is room for a few columns at first,
    and for twice as many whenever they are full, up to block_size: few texts are as long as the longest window.

    Args:
        model: The model; the cache has the device and the precision of its weights.
        batch_size: `B`, the number of rows.
    """

    def __init__(self, model: "GPT", batch_size: int):
        weight, settings = model.embed.weight, model.settings
        self.block_size, self.room = settings.block_size, 0
        self.stored = weight.new_zeros(2, settings.n_layer, batch_size, settings.n_kv_head, 0, settings.head_size)
        self.make_room(FIRST_COLUMNS)
        self.length = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)  # the number of ids in each row
        self.rows = torch.arange(batch_size, device=weight.device)[:, None]
        self.steps = torch.arange(settings.block_size, device=weight.device)
        self.columns = 0  # the number of columns ever used, which attention reads
        self.ids: torch.Tensor | None = None  # two zeros and the ids of each row, for n-grams
        self.before: torch.Tensor | None = None  # (B, 2), the last two ids before the new ones
        if model.ngrams is not None:
            self.ids = torch.zeros(batch_size, settings.block_size + 2, dtype=torch.int64, device=weight.device)
            self.two = torch.arange(2, device=weight.device)

    def make_room(self, columns: int) -> None:
        """Enlarge the cache to at least this many columns, up to block_size, and keep its content."""
        before, self.room = self.room, min(max(columns, 2 * self.room), self.block_size)
        self.stored = F.pad(self.stored, (0, 0, 0, self.room - before))  # (2, n_layer, B, H, room, D)
        self.keys, self.values = (part.unbind() for part in self.stored)  # a tensor per layer
        shown = self.stored.new_zeros(self.room)
        self.masks = torch.cat((shown, torch.full_like(shown, -math.inf))).unfold(0, self.room, 1)

    def advance(self, idx: torch.Tensor) -> None:
        """Assign positions to `(B, n)` new ids."""
        n = idx.shape[1]
        self.columns = min(self.columns + n, self.block_size)
        if self.columns > self.room:
            self.make_room(self.columns)
        self.positions = self.length[:, None] + self.steps[:n]  # (B, n)
        if self.ids is not None:
            self.before = self.ids[self.rows, self.length[:, None] + self.two]
            self.ids[self.rows, self.positions + 2] = idx
        self.length = self.length + n

    def extend(self, idx: torch.Tensor) -> torch.Tensor:
        """Prepare all layers for `(B, n)` new ids, and return the positions of these, `(B, n)`."""
        self.advance(idx)
        _, heads, _, size = self.keys[0].shape
        # Where `store` puts the keys and values, and which columns each new id sees.
        self.column_index = self.positions[:, None, :, None].expand(-1, heads, -1, size)  # (B, H, n, D)
        # The rows of `masks` are windows of one vector; row r shows the columns up to room - 1 - r.
        self.mask = self.masks[self.room - 1 - self.positions].narrow(2, 0, self.columns)[:, None]  # (B, 1, n, S)
        return self.positions

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the `(B, H, n, D)` keys and values of the new ids, and return those of all ids, `(B, H, S, D)`."""
        keys, values = self.keys[layer], self.values[layer]
        keys.scatter_(2, self.column_index, k)
        values.scatter_(2, self.column_index, v)
        return keys.narrow(2, 0, self.columns), values.narrow(2, 0, self.columns)
