"""Rotary position embeddings (Su et al., "RoFormer", 2021): queries and keys are rotated according to their positions.

The product of a query and a key then depends on the distance between them, not on their positions.
"""

from collections.abc import Callable

import torch
from torch import nn


class Rope(nn.Module):
    """Tables of cosines and sines, `(n_positions, D)`, with an angle for each pair of elements of a head.

    The angle of pair i at position p is `p / base ** (2 i / D)`. Both elements of a pair have the same cosine, and
    the first has the sine with a minus, as in the first row of a rotation matrix.

    Args:
        n_positions: The number of positions.
        head_size: `D`, an even number.
        base: A larger base turns later pairs more slowly, so that distant positions can still be told apart.
    """

    def __init__(self, n_positions: int, head_size: int, base: float = 10_000.0):
        super().__init__()
        frequencies = base ** -(torch.arange(0, head_size, 2).float() / head_size)
        angles = torch.outer(torch.arange(n_positions).float(), frequencies)  # (n_positions, D / 2)
        self.cos = angles.cos().repeat(1, 2)
        self.sin = torch.cat((-angles.sin(), angles.sin()), dim=1)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of `(T,)` or `(B, T)` positions with a dimension for heads: `(1, T, D)` or `(B, 1, T, D)`."""
        return self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Rope":
        # Move and cast the tables with the weights. They are not buffers, since weight averaging rounds buffers.
        self.cos, self.sin = fn(self.cos), fn(self.sin)
        return super()._apply(fn, recurse)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `(B, H, T, D)` queries or keys; elements i and i + D / 2 are a pair, the coordinates in a plane."""
    # `roll` swaps the halves. With `torch.cat` instead, torch.compile in bfloat16 gives NaN gradients on some
    # processors (torch 2.13, Intel with AVX512-FP16).
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin
