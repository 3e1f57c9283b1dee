"""What PyTorch has as well, where a CPU can be faster, or compiled code exact."""

import math
from typing import Any

import torch
from torch import library, nn
from torch.nn import functional as F


class Int8Linear(nn.Module):
    """A linear layer that learns no more, with its weights in 8 bits: a quarter of the memory that float32 takes.

    The weights of an output are whole numbers from -127 to 127, times a scale that makes the largest of them its own
    (weight-only absmax quantisation per output channel, as in Dettmers et al., "LLM.int8()", 2022). On a CPU PyTorch's
    kernel for such weights rounds what goes in and what comes out to bfloat16, and is faster than float32 for it. It
    takes whole groups of 16 inputs; for others, and on other devices, the weights are widened for each product.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    exact = False  # round nothing but the weights

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` activations to `(..., out_features)`, of the same type."""
        if (
            x.is_cpu and self.in_features % 16 == 0 and not self.exact
        ):  # with other numbers the kernel reads what is not there
            rows = x.reshape(-1, self.in_features).bfloat16()
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale.bfloat16())
            y = y.view(*x.shape[:-1], self.out_features).to(x.dtype)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantize(model: nn.Module) -> None:
    """Put the weights of linear layers into 8 bits, in place; an embedding's stay as they are, also in a layer.

    Only `nn.Linear` itself is replaced: a subclass may compute something else.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.Linear and not any(layer.weight is table for table in tables):
                setattr(module, name, Int8Linear(layer))


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
    generator = torch.Generator().manual_seed(int(seed.item()))
    draws = torch.empty(math.ceil(n / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:n]


@_words.register_fake
def _(seed: torch.Tensor, n: int) -> torch.Tensor:
    return torch.empty(n, dtype=torch.int16)
