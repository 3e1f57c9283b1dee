"""Embeddings of hashed pairs and triples of tokens (Pagnoni et al., "Byte Latent Transformer", 2024)."""

import torch
from torch import nn

HASH = 1_000_003  # multiplier of the hash: a prime, so that it has no common factor with the number of rows


class NGrams(nn.ModuleList):
    """Two embeddings, one for pairs and one for triples of tokens, whose rows a hash chooses.

    Args:
        rows: The number of rows of each table.
        n_embd: `C`, the length of a vector.
    """

    def __init__(self, rows: int, n_embd: int):
        super().__init__(nn.Embedding(rows, n_embd) for _ in range(2))
        self.rows = rows

    def forward(self, idx: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """Return the sum of the two vectors, `(B, T, C)`, for the pair and the triple of tokens that end at each id.

        Args:
            idx: `(B, T)` ids.
            before: The `(B, 2)` ids before them; zeros if None.
        """
        before = idx.new_zeros(idx.shape[0], 2) if before is None else before
        ids = torch.cat((before, idx), dim=1)
        pair, triple = self
        hash_of_two = idx * HASH + ids[:, 1:-1]
        hash_of_three = hash_of_two * HASH + ids[:, :-2]
        return pair(hash_of_two % self.rows) + triple(hash_of_three % self.rows)
