"""A model's predictions, the surprise of each token, and attention weights, as tensors."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.errors import MiniGPTError
from minigpt.generation.checks import LONGEST, ROUNDED, block_size_of, differs, usable_paths
from minigpt.generation.sampling import filter_logits
from minigpt.models import device_of, has_context
from minigpt.models.gpt import Attention

AT_ONCE = 1 << 14  # tokens in a batch of windows
SAMPLED = 1024  # ids whose predictions stand for those of a large vocabulary
NAMES = {" ": "␣", "\n": "↵", "\t": "⇥", "\u00a0": "⍽", "\u202f": "⍽"}


def name_of(token: str) -> str:
    """Return a token with signs in place of white space and control characters, which could not be seen."""
    return "".join(NAMES.get(char, chr(0x2400 + ord(char)) if char < " " else char) for char in token)


def is_bigram(model: nn.Module) -> bool:
    """Return whether a model's prediction depends on the last id alone: it says so, and a check agrees."""
    claimed = has_context(model) and model.context_size == 1
    return claimed and "context" in usable_paths(model, block_size_of(model, LONGEST))


@torch.no_grad()
def transitions(model: nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return `(N, V)` probabilities of the next id after each of `(N,)` ids alone, by default after all V ids."""
    device = device_of(model)
    if ids is None:
        ids = torch.arange(model(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape[-1])
    return model(ids.to(device)[:, None])[:, -1].float().softmax(-1).cpu()


def most_expected(model: nn.Module, n: int) -> torch.Tensor:
    """Return the `n` ids that a bigram model expects most, in ascending order; all ids of a small vocabulary.

    The mean is over the predictions after at most `SAMPLED` ids, which are spread evenly over the vocabulary.
    """
    vocab_size = transitions(model, torch.zeros(1, dtype=torch.int64)).shape[-1]
    if vocab_size <= n:
        return torch.arange(vocab_size)
    sampled = torch.linspace(0, vocab_size - 1, min(vocab_size, SAMPLED)).long()
    return transitions(model, sampled).mean(0).topk(n).indices.sort().values


@torch.no_grad()
def next_logits(model: nn.Module, ids: Sequence[int] | torch.Tensor, first: int = 1) -> torch.Tensor:
    """Return the logits of the next id after each beginning of `ids`, as generation computes them.

    Each row is computed from the last `block_size` ids before it, and not from one long window.

    Args:
        model: `(B, T)` ids to `(B, T, V)` logits, in eval mode.
        ids: `N` ids.
        first: The length of the shortest beginning.

    Returns:
        `(N - first + 1, V)` float32 logits; the last row follows all of `ids`.
    """
    row = torch.as_tensor(ids, device=device_of(model))
    size = block_size_of(model, len(row))
    rows = [model(row[None, :size])[0, first - 1 :]]
    if len(row) > size:
        windows = row.unfold(0, size, 1)[max(1, first - size) :]
        rows += [model(part)[:, -1] for part in windows.split(max(1, AT_ONCE // size))]
    return torch.cat(rows).float().cpu()


def surprisal(model: nn.Module, ids: Sequence[int], first: int = 1) -> torch.Tensor:
    """Return the surprisal in bits of each id from `first` on, `(N - first,)`: 0 is certain, 1 a toss of a coin."""
    if len(ids) <= first:
        return torch.empty(0)
    logits = next_logits(model, ids[:-1], first)
    return F.cross_entropy(logits, torch.as_tensor(ids[first:]), reduction="none") / math.log(2)


def next_probabilities(model: nn.Module, ids: Sequence[int], **sampling: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities `(V,)` of the id after `ids`: the model's own, and those after `filter_logits`.

    Raises:
        MiniGPTError: A sampling parameter is outside its range.
    """
    logits = next_logits(model, ids, len(ids))
    left = filter_logits(logits, **sampling, generated=torch.as_tensor(ids)[None])
    return logits[0].softmax(-1), left[0].softmax(-1)


def attention_size(model: nn.Module) -> tuple[int, int] | None:
    """Return how many layers of `minigpt.models.gpt.Attention` a network has, and heads in each; None without any."""
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    n_heads = {layer.widths[0] // layer.head_size for layer in layers}
    return (len(layers), n_heads.pop()) if len(n_heads) == 1 else None


@torch.no_grad()
def attention(model: nn.Module, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Return the attention weights of the last `block_size` ids: `(n_layer, n_head, T, T)`, whose rows sum to 1.

    Raises:
        MiniGPTError: A layer was changed, so that its output is not what these weights give.
    """
    maps: list[torch.Tensor] = []
    layers = (module for module in model.modules() if isinstance(module, Attention))
    hooks = [layer.register_forward_hook(partial(_look, maps)) for layer in layers]
    row = torch.as_tensor(ids, device=device_of(model))
    try:
        model(row[None, -block_size_of(model, len(row)) :])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps).cpu()


def _look(maps: list[torch.Tensor], attn: Attention, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """Compute a layer's weights, which its kernel does not return, and check that they give the layer's output."""
    q, k, v = attn.project(*inputs[:2])
    k, v = (t.repeat_interleave(attn.groups, dim=1) for t in (k, v))
    scores = (q @ k.mT)[0].float() / math.sqrt(attn.head_size)  # (H, T, T)
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    gathered = (weights.to(v.dtype) @ v[0]).transpose(0, 1).flatten(1)  # (T, C)
    if said := differs(attn.proj(gathered[None]), output, ROUNDED):
        raise MiniGPTError(
            f"The attention of layer {attn.layer + 1} cannot be shown, since the layer was changed: {said}."
        )
    maps.append(weights)
