"""What PyTorch has as well, where a CPU can be faster, or compiled code exact."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import library, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """A linear layer that answers a single row, the case of generation, on all CPU cores.

    A product with one row is bound by how fast the weights are read, and BLAS reads them with one core. As a batch of
    products, each with a part of the weights, it reads with all.
    """

    parts = 4
    blocks = None  # the weights in parts, where `lay_out` was called

    def __init__(self, in_features: int, out_features: int, bias: bool):
        super().__init__(in_features, out_features, bias)
        large = in_features * out_features > 100_000  # smaller ones lie in a core's own cache
        self.in_parts = large and in_features % self.parts == 0 and out_features % self.parts == 0
        self.one_row = (1, 1, in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, T, in_features)` activations to `(B, T, out_features)`."""
        one_row = self.in_parts and x.shape == self.one_row and x.is_cpu
        if not one_row or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        blocks, weight = self.blocks, self._parameters.get("weight")  # None where parametrized
        if blocks is None:
            blocks = self._blocks()
        elif weight is None or blocks.data_ptr() != weight.data_ptr():  # those of a copy are others
            blocks = self.blocks = self._blocks()
        if blocks.size(1) < self.in_features:
            y = torch.bmm(x.view(self.parts, 1, -1), blocks).sum(0, keepdim=True)
        else:
            y = torch.bmm(x.expand(self.parts, -1, -1), blocks).view(1, 1, -1)
        return y if self.bias is None else y + self.bias

    def lay_out(self) -> None:
        """Store the weights with the longer side contiguous, the order in which one row reads them fastest."""
        if self.out_features > self.in_features:
            self.weight.data = self.weight.data.t().contiguous().t()
        self.blocks = self._blocks() if self.in_parts else None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Linear":
        super()._apply(fn, recurse)
        self.blocks = None if self.blocks is None else self._blocks()  # those of before would stay in memory
        return self

    def _blocks(self) -> torch.Tensor:
        """The weights with a part of the inputs each, whose answers are summed, or a part of the outputs."""
        weight = self.weight.detach()
        if weight.stride(0) == 1:  # as `lay_out` left it
            return weight.t().view(self.parts, -1, self.out_features)
        return weight.view(self.parts, -1, self.in_features).mT


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


@library.custom_op("minigpt::summed_by_row", mutates_args=())
def _summed(gradient: torch.Tensor, idx: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.ops.aten.embedding_dense_backward(gradient, idx, rows, -1, False)


@_summed.register_fake
def _(gradient: torch.Tensor, idx: torch.Tensor, rows: int) -> torch.Tensor:
    return gradient.new_empty(rows, gradient.shape[-1])


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GPT-2's GELU, `x / 2 (1 + tanh(u))` with `u = sqrt(2 / pi) (x + 0.044715 x ** 3)`, for numbers of any shape.

    Where torch.compile makes code for training, it is `x sigmoid(2 u)`, the same function: an exponential costs a CPU
    less than a tanh does. An exported model keeps the operation that runtimes know.
    """
    if torch.compiler.is_compiling() and torch.is_grad_enabled() and not torch.compiler.is_exporting():
        u = math.sqrt(2 / math.pi) * (1 + 0.044715 * x * x) * x
        return x * torch.sigmoid(2 * u)
    return F.gelu(x, approximate="tanh")


def dropped(x: torch.Tensor, share: float) -> torch.Tensor:
    """`F.dropout` in training: each number is 0 in this share of cases, and the others grow by what is lost.

    On a CPU a draw of the generator serves four numbers, with 16 bits for each, and the share is met to 1/65,536. A
    transformer drops among far more numbers than it has parameters, and PyTorch, which draws for each of them, takes
    longer for it than for the products.
    """
    if not share:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    words = _words(torch.randint(2**63 - 1, (1,)), x.numel()).view(x.shape)
    return x * (words >= min(round(share * 2**16), 2**16 - 1) - 2**15) * (1 / (1 - share))


# A function of its seed: compilers leave out what is computed twice, and checkpointing computes it again.
@library.custom_op("minigpt::words", mutates_args=())
def _words(seed: torch.Tensor, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed.item())
    draws = torch.empty(math.ceil(n / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:n]


@_words.register_fake
def _(seed: torch.Tensor, n: int) -> torch.Tensor:
    return torch.empty(n, dtype=torch.int16)
