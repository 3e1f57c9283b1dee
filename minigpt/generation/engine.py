"""From ids to ids, one at a time. Knows nothing of text."""

from collections.abc import Iterator

import torch
from torch import nn

from minigpt.generation.sampling import filter_logits, sample


@torch.no_grad()
def generate_ids(
    model: nn.Module,
    idx: torch.Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """Continue `idx`, yielding each new `(B, 1)` id as it is drawn.

    Args:
        model: `(B, T)` ids to `(B, T, V)` logits; it sees the last `block_size` ids, or only the last `context_size`
            of them where its prediction depends on no more.
        idx: `(B, T)` ids to begin with, at least one per row.
        max_new_tokens: How many ids to draw.
        temperature: See `filter_logits`, as for `top_k` and `top_p`.
        top_k: The number of candidates kept.
        top_p: The probability mass kept.
        generator: Where the draws come from; torch's global generator if None.

    The model is in eval mode while ids are drawn, and back in its own mode afterwards, however the loop is left.
    """
    context = getattr(model, "context_size", model.block_size)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            idx = idx[:, -context:]
            logits = model(idx)[:, -1, :]
            next_id = sample(filter_logits(logits, temperature, top_k, top_p), generator)
            yield next_id
            idx = torch.cat([idx, next_id], dim=1)
    finally:
        model.train(was_training)
