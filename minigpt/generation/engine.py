"""The loop of generation, from ids to ids: compute the logits of the next id, filter them, draw an id, append it.

`text.py` encodes and decodes text. As in the article, the model reads a window, the last `block_size` ids of each row,
for each new id. There are faster ways, here called paths. `checks.usable_paths` returns the names of those that give
the model's own logits:

- `cache`: the model stores the keys and values of the ids that it has read, so that it computes each id only once. This
  ends after block_size ids: then the window moves, so that its ids have other positions, and other keys and values.
- `compiled`: compiled code computes one id per row with the cache (`cpu/decoding.py`).
- `context`: the prediction depends on the last `context_size` ids only, so windows of that length are enough. For a
  bigram model, where this is 1, a table of the probabilities after each id is computed once (`table.py`).
"""

from collections.abc import Generator, Sequence

import torch
from torch import nn

from minigpt.generation.buffer import TokenBuffer
from minigpt.generation.checks import compiled_step, usable_paths, window_size
from minigpt.generation.contract import plain_logits
from minigpt.generation.sampling import SamplingParams, draw
from minigpt.generation.table import sample_from_table, transition_table
from minigpt.models import Cache, device_of, has_cache


@torch.no_grad()
def generate_ids(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    params: SamplingParams,
    generators: Sequence[torch.Generator] | None = None,
) -> Generator[torch.Tensor, None, None]:
    """Continue each of `prompts`, yielding the `(B,)` new ids of every step as they are drawn.

    The model is in eval mode while ids are drawn. Then its previous mode is restored, also after an error or a `break`.

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
        length = max(map(len, prompts)) + max_new_tokens
        paths = usable_paths(model, length)
        table = transition_table(model, paths, params, max_new_tokens)  # None except for bigram models
        if table is not None:
            yield from sample_from_table(table, prompts, max_new_tokens, generators)
            return
        buffer = TokenBuffer(prompts, device_of(model))
        next_logits = NextLogits(model, buffer, paths, window_size(model, paths, length))
        for _ in range(max_new_tokens):
            logits = next_logits()  # (B, V)
            # Only a repetition penalty needs all ids. The padding of short rows repeats one of their own ids.
            logits = params.filter(logits, buffer.all() if params.repetition_penalty is not None else None)
            new = draw(logits.softmax(dim=-1), generators)[:, 0]  # (B,)
            buffer.append(new)
            yield new
    finally:
        model.train(was_training)


class NextLogits:
    """Computes the `(B, V)` logits after the last id of each row, with a cache while the ids fit into it."""

    def __init__(self, model: nn.Module, buffer: TokenBuffer, paths: set[str], size: int):
        self.model, self.buffer, self.size = model, buffer, size  # size: the length of the window
        self.cache = model.new_cache(len(buffer.lengths)) if "cache" in paths and has_cache(model) else None
        self.step = compiled_step(model) if "compiled" in paths else None

    def __call__(self) -> torch.Tensor:
        if self.cache is None:
            return self.from_windows()
        if self.cache.columns == 0:  # nothing has been read yet
            return self.from_prompts(self.cache)
        if self.buffer.longest <= self.size:
            return self.from_latest(self.cache)
        self.cache = None  # a row has become longer than the window
        return self.from_windows()

    def from_windows(self) -> torch.Tensor:
        """Compute the windows of all rows without the cache, as the article does."""
        windows, last = self.buffer.windows(self.size)  # (B, T) ids, and the column of each row's last id
        return plain_logits(self.model, windows)[self.buffer.rows, last]

    def from_prompts(self, cache: Cache) -> torch.Tensor:
        """Compute the prompts, padded on the right to one length, and store them in the cache."""
        windows, last = self.buffer.windows(self.size)
        logits = self.model(windows, cache)[self.buffer.rows, last]
        cache.length = last + 1  # the cache forgets the padding
        return logits

    def from_latest(self, cache: Cache) -> torch.Tensor:
        """Compute the latest id of each row alone: the cache has the others."""
        read = self.step or self.model
        return read(self.buffer.latest[:, None], cache)[:, -1]
