"""Generation with a bigram model from a table of the filtered probabilities after each id."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from minigpt.generation.sampling import SamplingParams, draw
from minigpt.models import device_of, has_context

LARGEST_TABLE = 2048  # ids in the vocabulary; the table has as many rows and columns


def transition_table(
    model: nn.Module, paths: set[str], params: SamplingParams, max_new_tokens: int
) -> torch.Tensor | None:
    """Return the `(V, V)` probabilities of the next id after each id; None if a table is not possible or not faster.

    It takes as long as generating V ids, so it is not made for a shorter text, nor with a repetition penalty, which
    would change its rows at each step.
    """
    is_bigram = "context" in paths and has_context(model) and model.context_size == 1
    if not is_bigram or params.repetition_penalty is not None:
        return None
    device = device_of(model)
    vocab_size = model(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape[-1]
    if vocab_size > min(max_new_tokens, LARGEST_TABLE):  # more rows to compute than ids to draw
        return None
    logits = model(torch.arange(vocab_size, device=device)[:, None])[:, -1]
    return params.filter(logits).softmax(dim=-1)


def sample_from_table(
    table: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    generators: Sequence[torch.Generator] | None,
) -> Iterator[torch.Tensor]:
    """Draw each id from the table's row for the previous id."""
    latest = torch.tensor([row[-1] for row in prompts], device=table.device)
    for _ in range(max_new_tokens):
        latest = draw(table[latest], generators)[:, 0]
        yield latest
