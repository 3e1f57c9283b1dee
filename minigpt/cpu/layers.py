"""CPU-optimised drop-in replacements for PyTorch layers, which `optimize` swaps into a model."""

import math
from typing import Any

import torch
from torch import library, nn
from torch.nn import functional as F

from minigpt.models import gpt
from minigpt.models.stock import PARTS

LONGEST_MATERIALISED = 512  # the longest window for which attention stores the full T x T matrix of weights


class Attention(gpt.Attention):
    """GPT's attention as four operations where these are faster than PyTorch's kernel: with dropout, and in bfloat16.

    Forward and backward take about half the time of the kernel (docs/LOG.md), whose dropout is slow.
    """

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return what each query gathers, `(B, H, T, D)`."""
        T, share = q.shape[-2], self.dropout.p if self.training else 0.0
        faster = q.device.type == "cpu" and T <= LONGEST_MATERIALISED
        if mask is not None or not (faster and (share or torch.is_autocast_enabled("cpu"))):
            return super().attend(q, k, v, mask)
        scores = (q / math.sqrt(q.shape[-1])) @ k.mT  # (B, H, T, T)
        later = torch.full((T, T), -math.inf, dtype=scores.dtype).triu(1)
        return dropout((scores + later).softmax(-1), share) @ v


class Embedding(nn.Embedding):
    """An embedding whose gradient has the same bits in every run of compiled code, on any device.

    Several tokens add to the gradient of one row. The threads of torch.compile's code add in a random order, so each
    run rounds differently. PyTorch's own kernel always adds in the same order.
    """

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        """Return the vectors of the ids, `(..., C)`."""
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return _InOrder.apply(idx, self.weight)
        return super().forward(idx)


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


class GELU(nn.GELU):
    """GPT-2's GELU, computed in compiled training with an exponential, which a CPU computes faster than a tanh.

    `x / 2 (1 + tanh(u))` with `u = sqrt(2 / pi) (x + 0.044715 x ** 3)` equals `x sigmoid(2 u)`. An exported model keeps
    the GELU operation that runtimes support.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the GELU of each number."""
        if torch.compiler.is_compiling() and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            u = math.sqrt(2 / math.pi) * (1 + 0.044715 * x * x) * x
            return x * torch.sigmoid(2 * u)
        return super().forward(x)


class Dropout(nn.Dropout):
    """Dropout that takes 16 random bits for each number, where PyTorch takes 32 or more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activations; in training, some of them are 0 and the others are scaled up."""
        return dropout(x, self.p) if self.training else x


def dropout(x: torch.Tensor, share: float) -> torch.Tensor:
    """Set each number to 0 with this probability, and divide the others by the probability of being kept.

    On a CPU one 64-bit draw serves four numbers, and the probability is rounded to a multiple of 1/65,536. A
    transformer applies dropout to far more numbers than it has parameters, so PyTorch, with a draw for each of them,
    spends more time on dropout than on matrix products.

    Args:
        x: A tensor of any shape.
        share: The probability of a zero, below 1.
    """
    if not share:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, share)
    words = _words(torch.randint(2**63 - 1, (1,)), x.numel()).view(x.shape)
    return x * (words >= min(round(share * 2**16), 2**16 - 1) - 2**15) * (1 / (1 - share))


# The words are a function of a seed, so that activation checkpointing can compute them again. For an operation without
# a seed, the compiler would draw once for all layers of one size.
@library.custom_op("minigpt::words", mutates_args=())
def _words(seed: torch.Tensor, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int(seed.item()))
    draws = torch.empty(math.ceil(n / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:n]


@_words.register_fake
def _(seed: torch.Tensor, n: int) -> torch.Tensor:
    return torch.empty(n, dtype=torch.int16)


REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: Dropout, nn.Embedding: Embedding, nn.GELU: GELU, gpt.Attention: Attention,
}  # fmt: skip
# The compiled step and the exports accept these classes in place of the originals.
PARTS.update({new: PARTS[old] for old, new in REPLACEMENTS.items()})


def optimize(model: nn.Module) -> None:
    """Make modules of a model train faster on a CPU, in place.

    `nn.Dropout`, `nn.Embedding`, `nn.GELU` and GPT's attention get another class. The module objects stay the same, and
    with them parameters, names in the state dict and shared modules. Subclasses are left alone, since they may compute
    something else. So are modules with hooks, with a replaced forward, or with options that the replacement does not
    support. On other devices the replacements compute the same as the originals.

    Args:
        model: Any network.
    """
    _replace(model, REPLACEMENTS)


def order_gradients(model: nn.Module) -> None:
    """Replace embeddings only, in place, since compiled code on any device adds their gradients in a random order.

    Args:
        model: Any network.
    """
    _replace(model, {nn.Embedding: Embedding})


def _replace(model: nn.Module, replacements: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        replacement = replacements.get(type(module))
        if replacement is not None and _replaceable(module):
            module.__class__ = replacement


def _replaceable(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or "forward" in vars(module):
        return False
    if isinstance(module, nn.Dropout):
        return module.p < 1 and not module.inplace
    if isinstance(module, nn.Embedding):
        options = (module.padding_idx, module.max_norm, module.scale_grad_by_freq, module.sparse)
        return options == (None, None, False, False)
    if isinstance(module, nn.GELU):
        return module.approximate == "tanh"
    return not (isinstance(module, gpt.Attention) and "attend" in vars(module))


def order_weights(model: nn.Module) -> None:
    """Store the weights of linear layers that have more outputs than inputs column by column, in place.

    Their values, shapes and names stay. The matrix library multiplies a single row by such a matrix in two thirds of
    the time (PyTorch 2.13 with MKL), and several rows as fast as before.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if type(module) is not nn.Linear or id(module.weight) in embeddings:  # an embedding reads rows
            continue
        if module.out_features > module.in_features:
            module.weight.data = module.weight.data.t().contiguous().t()
