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
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """Continue `idx`, yielding each new `(B, 1)` id as it is drawn.

    Args:
        model: `(B, T)` ids to `(B, T, V)` logits; it sees the last `block_size` ids, or only the last `context_size`
            of them where its prediction depends on no more.
        idx: `(B, T)` ids to begin with, at least one per row.
        max_new_tokens: How many ids to draw.
        temperature: See `filter_logits`, as for the controls that follow.
        top_k: The number of candidates kept.
        top_p: The probability mass kept.
        min_p: The least probability kept, as a share of the greatest.
        repetition_penalty: How much less likely the ids so far become.
        generator: Where the draws come from; torch's global generator if None.

    The model is in eval mode while ids are drawn, and back in its own mode afterwards, however the loop is left.
    """
    context = getattr(model, "context_size", model.block_size)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            logits = model(idx[:, -context:])[:, -1, :]
            logits = filter_logits(logits, temperature, top_k, top_p, min_p, repetition_penalty, idx)
            next_id = sample(logits, generator)
            yield next_id
            if repetition_penalty is None:
                idx = idx[:, max(0, idx.shape[1] - context + 1) :]  # the rest will not be looked at again
            idx = torch.cat([idx, next_id], dim=1)
    finally:
        model.train(was_training)
