"""The loop of generation, from ids to ids: the logits after the ids so far, filter them, draw, append.

Text is encoded and decoded in `text.py`. The model reads the window of the last `block_size` ids of each row, as in the
article. `checks.py` may have found that faster ways give the same logits on the model at hand; they are used then:

- A cache of keys and values computes each id once. It serves up to block_size ids. Beyond, the window moves on by one
  with each id, and since that changes the position of every id, the whole window is computed.
- For a bigram model a table of the probabilities after each id is computed and filtered once (`table.py`).
"""

from collections.abc import Generator, Sequence

import torch
from torch import nn

from minigpt.generation.buffer import TokenBuffer
from minigpt.generation.checks import block_size_of, compiled_step, usable_paths
from minigpt.generation.contract import plain_logits
from minigpt.generation.sampling import SamplingParams, draw
from minigpt.generation.table import sample_from_table, transition_table
from minigpt.models import Cache, device_of, has_cache, has_context
from minigpt.models.gpt import GPT
from minigpt.models.stock import hooked


def generate_ids(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Generator[torch.Tensor, None, None]:
    """Continue each of `prompts`, yielding the `(B,)` new ids of every step as they are drawn.

    The model is in eval mode while ids are drawn, and back in its own mode afterwards, however the loop is left.

    Args:
        model: A network: any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits, each of which
            depends on no later id. It sees the last `block_size` ids where it has such an attribute, else all of them.
            With a `context_size` or a method `new_cache` (see `GPT.new_cache`) generation is faster.
        prompts: `B` rows of ids to begin with, at least one each; their lengths may differ.
        max_new_tokens: How many ids to draw for each row.
        temperature: See `filter_logits`, as for the parameters that follow.
        top_k: The number of candidates kept.
        top_p: The probability mass kept.
        min_p: The least probability kept, as a share of the greatest.
        repetition_penalty: How much less likely the ids so far become.
        generators: Where the draws come from, one for each row; torch's global generator if None.
    """
    params = SamplingParams(temperature, top_k, top_p, min_p, repetition_penalty)
    return sample_ids(model, prompts, max_new_tokens, params, generators)


@torch.no_grad()
def sample_ids(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    params: SamplingParams,
    generators: Sequence[torch.Generator] | None = None,
) -> Generator[torch.Tensor, None, None]:
    """Continue each of `prompts` as `generate_ids` does."""
    was_training = model.training
    model.eval()
    try:
        length = max(map(len, prompts)) + max_new_tokens
        paths = usable_paths(model, length)
        table = transition_table(model, paths, params, max_new_tokens)
        if table is not None:
            yield from sample_from_table(table, prompts, max_new_tokens, generators)
            return
        mode = grad_mode(model)
        with mode():
            buffer = TokenBuffer(prompts, device_of(model))
            next_logits = NextLogits(model, buffer, paths, block_size_of(model, length))
        for _ in range(max_new_tokens):
            with mode():
                logits = next_logits()  # (B, V)
                logits = params.filter(logits, buffer.all() if params.repetition_penalty is not None else None)
                new = draw(logits.softmax(dim=-1), generators)[:, 0]  # (B,)
                buffer.append(new)
            yield new.clone()  # an ordinary tensor, with which one may train
    finally:
        model.train(was_training)


def grad_mode(model: nn.Module) -> type[torch.no_grad] | type[torch.inference_mode]:
    """Return `inference_mode`, which is a tenth faster, for a stock GPT, and `no_grad` for others.

    Tensors of inference mode can never be trained on, and a hook or another model may keep some.
    """
    return torch.inference_mode if type(model) is GPT and not hooked(model) else torch.no_grad


class NextLogits:
    """The `(B, V)` logits after the last id of each row, from a cache as long as the ids fit into it."""

    def __init__(self, model: nn.Module, buffer: TokenBuffer, paths: set[str], block_size: int):
        self.model, self.buffer = model, buffer
        self.size = model.context_size if "context" in paths and has_context(model) else block_size
        self.cache = model.new_cache(len(buffer.lengths)) if "cache" in paths and has_cache(model) else None
        self.step = (compiled_step(model) if "compiled" in paths else None) or model  # for one id a row, with the cache

    def __call__(self) -> torch.Tensor:
        full = [row for row, length in enumerate(self.buffer.lengths) if length > self.size]
        if self.cache is None:
            return self.of_windows()
        if self.cache.columns == 0:
            return self.of_prompts(self.cache)
        return self.of_windows() if len(full) == len(self.buffer.lengths) else self.of_latest(full, self.cache)

    def of_windows(self) -> torch.Tensor:
        """Compute the windows of all rows, without the cache."""
        windows, last = self.buffer.windows(self.size)
        return plain_logits(self.model, windows)[self.buffer.rows, last]

    def of_prompts(self, cache: Cache) -> torch.Tensor:
        """Compute the prompts, padded on the right, and fill the cache with them."""
        windows, last = self.buffer.windows(self.size)
        read = self.step if windows.shape[1] == 1 else self.model
        logits = read(windows, cache)[self.buffer.rows, last]
        cache.length = last + 1  # the cache forgets the padding
        return logits

    def of_latest(self, full: list[int], cache: Cache) -> torch.Tensor:
        """Compute the latest id of each row, and for the rows that no longer fit into the cache the window."""
        if full:
            # Full rows stay in the batch, one place below the end; their logits are replaced below.
            cache.length = cache.length.clamp(max=self.size - 1)
        logits = self.step(self.buffer.latest[:, None], cache)[:, -1]
        if full:
            windows, _ = self.buffer.windows(self.size)
            logits[full] = self.model(windows[full])[:, -1].to(logits.dtype)  # a compiled step gives float32
        return logits
