"""An embedding that learns the same, to the bit, each time it is compiled and run."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class Embedding(nn.Embedding):
    """A table of rows of which each id takes one.

    Several tokens add to the gradient of one row. torch.compile has its threads add to it as they come, so that the
    sums are rounded another way in each training; here PyTorch's own kernel adds them in one order.
    """

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Ids of any shape to their rows, `C` numbers each."""
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return _InOrder.apply(idx, self.weight)
        return F.embedding(idx, self.weight)


class _InOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, idx: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(idx)
        ctx.rows = len(weight)
        return F.embedding(idx, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        (idx,) = ctx.saved_tensors
        return None, _summed(gradient, idx, ctx.rows)


@torch.library.custom_op("minigpt::summed_by_row", mutates_args=())
def _summed(gradient: torch.Tensor, idx: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.ops.aten.embedding_dense_backward(gradient, idx, rows, -1, False)


@_summed.register_fake
def _(gradient: torch.Tensor, idx: torch.Tensor, rows: int) -> torch.Tensor:
    return gradient.new_empty(rows, gradient.shape[-1])
