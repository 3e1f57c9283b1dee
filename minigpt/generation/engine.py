"""The loop of generation, from ids to ids; `text.py` encodes the prompt and decodes the new ids.

For one text, `ids` of shape `(1, T)`, it is the article's loop:

    for _ in range(max_new_tokens):
        window = ids[:, -block_size:]  # the last block_size ids
        logits = model(window)[:, -1]  # (1, V) scores of the next id
        logits = params.filter(logits, ids)  # repetition penalty, temperature, top-k, top-p, min-p
        new = draw(logits.softmax(dim=-1))  # (1, 1)
        ids = torch.cat([ids, new], dim=1)

`draw_ids` does the same for several texts of different lengths at once. The rest makes this faster: there are other
ways to compute the logits, here called paths. `checks.usable_paths` returns the names of the paths that work for a
model, that is, give the same logits as the loop above:

- `cache`: the model stores the keys and values of the ids that it has read, so that it computes each id only once. It
  works for the first block_size ids. After that the window drops its oldest id at each step: the others move to new
  positions, and the stored keys and values are out of date.
- `context`: the prediction depends on the last `context_size` ids only, so windows of that length are enough. For
  TinyGPT, where this is 1, a table is computed once, with the next id's probabilities for each last id (`table.py`).
- `compiled`: like `cache`, with a step in C++ for each new id, if the user has asked for it (`cpu/decoding.py`). At
  first reading skip this one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from minigpt.generation.buffer import IdSteps, TokenBuffer  # IdSteps: an iterator over the new ids of each step
from minigpt.generation.checks import compiled_step, usable_paths, window_size
from minigpt.generation.contract import plain_logits
from minigpt.generation.sampling import SamplingParams, draw
from minigpt.generation.table import sample_from_table, transition_table
from minigpt.models import device_of


@torch.no_grad()
def generate_ids(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    params: SamplingParams,
    generators: Sequence[torch.Generator] | None = None,
) -> IdSteps:
    """Continue each of `prompts`, yielding the `(B,)` new ids of every step as they are drawn.

    The model is in eval mode while ids are drawn. Then its previous mode is restored, also after an error, or when the
    caller leaves its loop early.

    Args:
        model: A network: any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits that do not
            depend on later ids. It sees the last `block_size` ids if it has that attribute, else all of them. With a
            `context_size` or a method `new_cache` (see `minigpt.models.HasCache`) generation is faster.
        prompts: `B` rows of at least one id each; their lengths may differ.
        max_new_tokens: The number of ids to draw for each row.
        params: Temperature, top-k, top-p, min-p and repetition penalty.
        generators: Random generators, one for each row; None for torch's global generator.
    """
    was_training = model.training
    model.eval()
    try:
        length = max(map(len, prompts)) + max_new_tokens  # of the longest row at the end
        paths = usable_paths(model, length)  # GPT: {"cache"}, with "compiled" if it was compiled; TinyGPT: {"context"}
        size = window_size(model, paths, length)  # GPT: block_size; TinyGPT: 1; a model without a limit: all ids
        # The ids of all rows. Shorter rows are padded on the right: no prediction depends on later ids, so the padding
        # changes nothing. The padding is one of the row's own ids, since a repetition penalty must not fall on an id
        # that a row does not have.
        buffer = TokenBuffer(prompts, device_of(model))
        table = transition_table(model, paths, params, max_new_tokens)  # (V, V) for TinyGPT, if that is faster; or None
        if table is None:
            yield from draw_ids(NextLogits(model, buffer, paths, size), buffer, max_new_tokens, params, generators)
        else:
            yield from sample_from_table(table, prompts, max_new_tokens, generators)
    finally:
        model.train(was_training)


def draw_ids(
    next_logits: "NextLogits",
    buffer: TokenBuffer,
    max_new_tokens: int,
    params: SamplingParams,
    generators: Sequence[torch.Generator] | None,
) -> Iterator[torch.Tensor]:
    """Draw the `(B,)` new ids of each step, and append them to the buffer: the article's loop."""
    for _ in range(max_new_tokens):
        logits = next_logits()  # (B, V), after the ids in the buffer
        ids = buffer.all() if params.repetition_penalty is not None else None  # only the penalty needs all ids
        logits = params.filter(logits, ids)
        new = draw(logits.softmax(dim=-1), generators)[:, 0]  # (B,)
        buffer.append(new)
        yield new


class NextLogits:
    """Computes the `(B, V)` logits after the last id of each row, with a cache while the ids fit into it."""

    def __init__(self, model: Any, buffer: TokenBuffer, paths: set[str], size: int):
        self.model, self.buffer, self.size = model, buffer, size  # size: the length of the window
        self.cache: Any = None
        # If the prompt is longer than the window, the window moves at every step, and a cache would not help.
        if "cache" in paths and buffer.longest <= size:
            self.cache = model.new_cache(len(buffer.lengths))
        # The compiled step, too, takes (B, 1) ids and the cache, and returns (B, 1, V) logits.
        self.step: Any = compiled_step(model) if "compiled" in paths else model

    def __call__(self) -> torch.Tensor:
        """Return the logits in the fastest way that is possible now."""
        if self.cache is None:
            return self.from_windows()
        if self.cache.columns == 0:  # the cache is empty
            return self.from_prompts()
        if self.buffer.longest <= self.size:
            return self.from_latest()
        self.cache = None  # a row has become longer than the window
        return self.from_windows()

    def from_windows(self) -> torch.Tensor:
        """Compute the windows of all rows without the cache, as the article does."""
        windows, last = self.buffer.windows(self.size)  # (B, T) ids, and the column of each row's last id
        logits = plain_logits(self.model, windows)  # `self.model(windows)`; an error if its shape is not (B, T, V)
        return logits[self.buffer.rows, last]  # of row 0 the logits at column last[0], of row 1 at last[1], ...: (B, V)

    def from_prompts(self) -> torch.Tensor:
        """Compute the prompts, padded on the right to one length, and store them in the cache.

        The cache has the padding too. For the rows `a b c` and `d e`, it holds `a b c` and `d e d`, with d as padding.
        Its `length`, the column of each row's next id, is then set to 3 and 2, so that the next id of the second row
        replaces the padding. A row never sees columns after its newest id, so it never sees remaining padding.
        """
        windows, last = self.buffer.windows(self.size)
        logits = self.model(windows, self.cache)
        self.cache.length = last + 1  # (B,)
        return logits[self.buffer.rows, last]

    def from_latest(self) -> torch.Tensor:
        """Compute the latest id of each row alone: the cache has the others."""
        return self.step(self.buffer.latest[:, None], self.cache)[:, -1]
