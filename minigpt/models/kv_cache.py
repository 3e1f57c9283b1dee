"""The cache of keys and values, with which GPT computes each token once in generation."""

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from minigpt.models.gpt import GPT


class KVCache:
    """Stores the keys and values of the tokens so far, so that each token is computed once.

    The cache has a column for each of the block_size positions. Position p of a row is in column p, so rows may have
    different lengths. A row never sees later columns than its own position, so lowering its `length` makes it forget
    the tokens after that.

    Args:
        model: The model; the cache has the device and the precision of its weights.
        batch_size: `B`, the number of rows.
    """

    def __init__(self, model: "GPT", batch_size: int):
        weight, settings = model.embed.weight, model.settings
        shape = (settings.n_layer, batch_size, settings.n_kv_head, settings.block_size, settings.head_size)
        self.keys, self.values = (weight.new_zeros(shape).unbind() for _ in range(2))  # a tensor per layer
        self.length = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)  # the number of ids in each row
        self.rows = torch.arange(batch_size, device=weight.device)[:, None]
        self.steps = torch.arange(settings.block_size, device=weight.device)
        self.columns = 0  # the number of columns ever used, which attention reads
        self.ids: torch.Tensor | None = None  # two zeros and the ids of each row, for n-grams
        self.before: torch.Tensor | None = None  # (B, 2), the last two ids before the new ones
        if model.ngrams is not None:
            self.ids = torch.zeros(batch_size, settings.block_size + 2, dtype=torch.int64, device=weight.device)
            self.two = torch.arange(2, device=weight.device)
        hidden = weight.new_full((settings.block_size,), -math.inf)
        self.masks = torch.cat((weight.new_zeros(settings.block_size), hidden)).unfold(0, settings.block_size, 1)

    def advance(self, idx: torch.Tensor) -> None:
        """Assign positions to `(B, n)` new ids."""
        n = idx.shape[1]
        self.positions = self.length[:, None] + self.steps[:n]  # (B, n)
        if self.ids is not None:
            self.before = self.ids[self.rows, self.length[:, None] + self.two]
            self.ids[self.rows, self.positions + 2] = idx
        self.length = self.length + n
        self.columns = min(self.columns + n, len(self.steps))

    def extend(self, idx: torch.Tensor) -> torch.Tensor:
        """Prepare all layers for `(B, n)` new ids, and return the positions of these, `(B, n)`."""
        self.advance(idx)
        _, heads, _, size = self.keys[0].shape
        # Where `store` puts the keys and values, and which columns each new id sees.
        self.column_index = self.positions[:, None, :, None].expand(-1, heads, -1, size)  # (B, H, n, D)
        # The rows of `masks` are windows of one vector; row r shows the columns up to block_size - 1 - r.
        self.mask = self.masks[len(self.steps) - 1 - self.positions].narrow(2, 0, self.columns)[:, None]  # (B, 1, n, S)
        return self.positions

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the `(B, H, n, D)` keys and values of the new ids, and return those of all ids, `(B, H, S, D)`."""
        keys, values = self.keys[layer], self.values[layer]
        keys.scatter_(2, self.column_index, k)
        values.scatter_(2, self.column_index, v)
        return keys.narrow(2, 0, self.columns), values.narrow(2, 0, self.columns)
