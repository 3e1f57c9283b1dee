"""The cache of keys and values with which GPT computes each token once in generation."""

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from minigpt.models.gpt import GPT


class KVCache:
    """The keys and values of the tokens so far, so that each token is computed once.

    Room for block_size positions a row is taken at once, and position p lies in column p, so rows may be of different
    lengths. A row never looks beyond its own position: to lower its `length` is to forget what came after.

    Args:
        model: The model that it serves; the cache lies where its weights are, in their precision.
        batch_size: `B`, the number of rows.
    """

    def __init__(self, model: "GPT", batch_size: int):
        weight = model.embed.weight
        shape = (model.n_layer, batch_size, model.n_kv_head, model.block_size, model.n_embd // model.n_head)
        self.keys, self.values = weight.new_zeros(shape).unbind(), weight.new_zeros(shape).unbind()  # one a layer
        self.length = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)  # the ids that each row holds
        self.rows = torch.arange(batch_size, device=weight.device)[:, None]
        self.steps = torch.arange(model.block_size, device=weight.device)
        self.columns = 0  # attention looks at this many: as many as were ever filled
        self.ids: torch.Tensor | None = None  # two zeros and the ids that each row holds, for n-grams
        self.before: torch.Tensor | None = None  # (B, 2), the last two ids before the new ones
        if model.ngrams is not None:
            self.ids = torch.zeros(batch_size, model.block_size + 2, dtype=torch.int64, device=weight.device)
            self.two = torch.arange(2, device=weight.device)
        hidden = weight.new_full((model.block_size,), -math.inf)
        self.masks = torch.cat((weight.new_zeros(model.block_size), hidden)).unfold(0, model.block_size, 1)

    def advance(self, idx: torch.Tensor) -> None:
        """Give `(B, n)` more ids their positions."""
        n = idx.shape[1]
        self.positions = self.length[:, None] + self.steps[:n]  # (B, n)
        if self.ids is not None:
            self.before = self.ids[self.rows, self.length[:, None] + self.two]
            self.ids[self.rows, self.positions + 2] = idx
        self.length = self.length + n
        self.columns = min(self.columns + n, len(self.steps))

    def extend(self, idx: torch.Tensor) -> None:
        """Make room for `(B, n)` more ids: for all layers, where keys and values go and what each id may look at."""
        self.advance(idx)
        _, heads, _, size = self.keys[0].shape
        self.places = self.positions[:, None, :, None].expand(-1, heads, -1, size)  # (B, H, n, D)
        # Row r of `masks`, all windows of one vector, shows the columns up to block_size - 1 - r.
        self.mask = self.masks[len(self.steps) - 1 - self.positions].narrow(2, 0, self.columns)[:, None]  # (B, 1, n, S)

    def store(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the `(B, H, n, D)` keys and values of the new ids, and return those of all ids, `(B, H, S, D)`."""
        keys, values = self.keys[layer], self.values[layer]
        keys.scatter_(2, self.places, k)
        values.scatter_(2, self.places, v)
        return keys.narrow(2, 0, self.columns), values.narrow(2, 0, self.columns)
