"""From ids to ids, one at a time for each row of a batch. Knows nothing of text.

What a model sees is the last `block_size` ids, at positions counted from the first of them. There are three ways to the
next logits. The plain one is the window itself, for any model. The others are taken where `checks.py` has found that
they give the same on the model at hand:

- a table, for a model whose prediction depends on the last id alone (`context_size` is 1): computed, filtered and
  softmaxed once;
- a cache, for a model that makes one (`new_cache`): each id is computed once, while they fit into the block (in C++,
  where that was asked for: `decoding.py`). Past the block each new id moves all positions by one (and in a deeper layer
  even what lies under a relative position has looked at ids that are gone), so nothing cached is right.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from minigpt.errors import MiniGPTError
from minigpt.generation.checks import block_size_of, compiled_step, usable_paths
from minigpt.generation.sampling import draw, filter_logits
from minigpt.models import device_of, has_cache, has_context
from minigpt.models.gpt import GPT
from minigpt.models.stock import hooked

RULE = "A network takes (B, T) ids and returns (B, T, V) logits, one score for each token of the vocabulary."
LARGEST_TABLE = 2048  # ids of vocabulary, for the sake of memory


@torch.no_grad()
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

    Args:
        model: A network: any module whose `forward` takes `(B, T)` ids and returns `(B, T, V)` logits, each of which
            depends on no later id. It sees the last `block_size` ids where it has such an attribute, else all of them.
            With a `context_size` or a method `new_cache` (see `GPT.new_cache`) generation is faster.
        prompts: `B` rows of ids to begin with, at least one each; their lengths may differ.
        max_new_tokens: How many ids to draw for each row.
        temperature: See `filter_logits`, as for the controls that follow.
        top_k: The number of candidates kept.
        top_p: The probability mass kept.
        min_p: The least probability kept, as a share of the greatest.
        repetition_penalty: How much less likely the ids so far become.
        generators: Where the draws come from, one for each row; torch's global generator if None.

    The model is in eval mode while ids are drawn, and back in its own mode afterwards, however the loop is left.
    """
    filtered = partial(filter_logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    was_training = model.training
    model.eval()
    try:
        length = max(map(len, prompts)) + max_new_tokens
        paths = usable_paths(model, length)
        is_bigram = "context" in paths and has_context(model) and model.context_size == 1
        if is_bigram and repetition_penalty is None:
            # For fewer ids than rows, a table would not pay.
            table = _table(model, min(max_new_tokens, LARGEST_TABLE), filtered)
            if table is not None:
                yield from _walk(table, prompts, max_new_tokens, generators)
                return
        mode = _mode(model)
        with mode():
            rows = _Rows(prompts, device_of(model))
            read = _Logits(model, rows, paths, block_size_of(model, length))
        for _ in range(max_new_tokens):
            with mode():
                seen = rows.all() if repetition_penalty is not None else None
                logits = filtered(read(), repetition_penalty=repetition_penalty, generated=seen)
                drawn = draw(logits.softmax(dim=-1), generators)[:, 0]
                rows.append(drawn)
            yield drawn.clone()  # a tensor like any other, which could be trained on
    finally:
        model.train(was_training)


def plain_logits(model: nn.Module, idx: torch.Tensor) -> torch.Tensor:
    """Return the `(B, T, V)` logits of a network for `(B, T)` ids.

    Raises:
        MiniGPTError: The network returns something else.
    """
    logits = model(idx)
    if not isinstance(logits, torch.Tensor):
        raise MiniGPTError(f"The forward of {type(model).__name__} returns a {type(logits).__name__}. {RULE}")
    if logits.dim() != 3 or logits.shape[:2] != idx.shape:
        raise MiniGPTError(
            f"The forward of {type(model).__name__} returns {tuple(logits.shape)} for {tuple(idx.shape)} ids. {RULE}"
        )
    return logits


@torch.no_grad()
def check_network(model: nn.Module, vocab_size: int, block_size: int) -> None:
    """Ask a network for the logits after two ids, the last of the vocabulary.

    Raises:
        MiniGPTError: It does not take the ids or a window of this length, or returns something else than logits.
    """
    name, longest = type(model).__name__, getattr(model, "block_size", None)
    if longest is not None and longest < block_size:
        raise MiniGPTError(
            f"The data have a block_size of {block_size}, and {name} one of {longest}. Give the network the data's."
        )
    was_training = model.training
    ids = torch.tensor([[vocab_size - 1] * min(2, block_size)], device=device_of(model))
    try:
        logits = plain_logits(model.eval(), ids)
    except IndexError as error:
        raise MiniGPTError(
            f"The data have a vocab_size of {vocab_size}, and {name} does not take the id {vocab_size - 1}. Give the "
            "network the data's vocab_size."
        ) from error
    except NotImplementedError as error:
        raise MiniGPTError(f"{name} has no forward. {RULE}") from error
    except (TypeError, RuntimeError) as error:
        raise MiniGPTError(f"{name} fails on two ids: {' '.join(str(error).split())[:200]}. {RULE}") from error
    finally:
        model.train(was_training)
    if logits.shape[-1] < vocab_size:
        raise MiniGPTError(
            f"The data have a vocab_size of {vocab_size}, and {name} scores {logits.shape[-1]} tokens. Give the "
            "network the data's vocab_size."
        )


def _mode(model: nn.Module) -> type[torch.no_grad] | type[torch.inference_mode]:
    """`inference_mode`, in which many small operations take a tenth less time, where nobody keeps their tensors.

    They cannot be trained on: a hook may want to, and a model of another kind may keep some for its next `forward`.
    """
    return torch.inference_mode if type(model) is GPT and not hooked(model) else torch.no_grad


def _table(model: nn.Module, largest: int, filtered: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | None:
    """The `(V, V)` probabilities of the next id after each id; None where V is above `largest`."""
    device = device_of(model)
    vocab_size = model(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape[-1]
    if vocab_size > largest:
        return None
    logits = model(torch.arange(vocab_size, device=device)[:, None])[:, -1]
    return filtered(logits).softmax(dim=-1)


def _walk(
    table: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    generators: Sequence[torch.Generator] | None,
) -> Iterator[torch.Tensor]:
    """Draw from the rows of a table."""
    drawn = torch.tensor([row[-1] for row in prompts], device=table.device)
    for _ in range(max_new_tokens):
        drawn = draw(table[drawn], generators)[:, 0]
        yield drawn


class _Rows:
    """The ids of a batch so far, of different lengths.

    Behind its end a row repeats its first id, which a repetition penalty has counted already.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device):
        self.lengths = [len(row) for row in prompts]
        width = max(self.lengths)
        self.ids = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in prompts], device=device)
        self.ends = torch.tensor(self.lengths, device=device)
        self.numbers = torch.arange(len(prompts), device=device)
        self.drawn: list[torch.Tensor] = []  # what is still to be written into `ids`

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def append(self, drawn: torch.Tensor) -> None:
        """Add a `(B,)` id to each row."""
        self.latest = drawn
        self.drawn.append(drawn)
        self.lengths = [length + 1 for length in self.lengths]

    def all(self) -> torch.Tensor:
        """The ids of all rows, `(B, T)`."""
        if self.drawn:
            new = torch.stack(self.drawn, dim=1)
            if self.longest > self.ids.shape[1]:  # twice the room, so that growing costs little however long it goes on
                room = self.ids[:, :1].expand(-1, self.longest)
                self.ids = torch.cat([self.ids, room], dim=1)
            self.ids.scatter_(1, self.ends[:, None] + torch.arange(len(self.drawn), device=new.device), new)
            self.ends += len(self.drawn)
            self.drawn.clear()
        return self.ids[:, : self.longest]

    def windows(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last `size` ids of each row, `(B, T)`, and where in it each row's last id stands, `(B,)`."""
        ids = self.all()
        columns = (self.ends - size).clamp(min=0)[:, None] + torch.arange(min(size, self.longest), device=ids.device)
        return ids.gather(1, columns), self.ends.clamp(max=size) - 1


class _Logits:
    """The `(B, V)` logits after the last id of each row: from a cache while its ids fit, else from the window."""

    def __init__(self, model: nn.Module, rows: _Rows, paths: set[str], block_size: int):
        self.model, self.rows = model, rows
        self.size = model.context_size if "context" in paths and has_context(model) else block_size
        self.cache = model.new_cache(len(rows.lengths)) if "cache" in paths and has_cache(model) else None
        self.step = (compiled_step(model) if "compiled" in paths else None) or model  # for one id a row

    def __call__(self) -> torch.Tensor:
        rows, cache = self.rows, self.cache
        full = [n for n, length in enumerate(rows.lengths) if length > self.size]
        if cache is None or cache.columns == 0 or len(full) == len(rows.lengths):
            windows, last = rows.windows(self.size)
            if cache is None or cache.columns:
                return plain_logits(self.model, windows)[rows.numbers, last]
            read = self.step if windows.shape[1] == 1 else self.model
            logits = read(windows, cache)[rows.numbers, last]
            cache.length = last + 1
            return logits
        if full:
            cache.length = cache.length.clamp(max=self.size - 1)  # what full rows hold will not be read again
        logits = self.step(rows.latest[:, None], cache)[:, -1]
        if full:
            windows, _ = rows.windows(self.size)
            logits[full] = self.model(windows[full])[:, -1].to(logits.dtype)  # compiled code answers in float32
        return logits
