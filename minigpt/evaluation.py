"""Evaluation of a model on a text: loss, bits per character, perplexity, accuracy, baselines and memorisation.

The baselines are the scores of simple models and of a compressor on the same text.
"""

import lzma
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from minigpt.data.dataset import EvalWindows
from minigpt.data.memmap import Ids
from minigpt.data.order import EvalOrder
from minigpt.data.tokenizer_base import Tokenizer
from minigpt.errors import MiniGPTError, note
from minigpt.generation.text import LanguageModel
from minigpt.models import device_of
from minigpt.words import message

MAX_LOGITS = 1 << 24  # logits per batch, 64 MB in float32
SPAN_LENGTH = 20  # characters, as long as two or three words, so that few spans match by chance
MAX_SEARCHED = 1 << 24  # tokens of a training text that are searched for copied passages


class BitsPerCharacter(Metric):
    """The loss in bits per character of text, which compares across tokenizers."""

    higher_is_better = False
    full_state_update = False
    nats: torch.Tensor
    characters: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("characters", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, nats: torch.Tensor, characters: torch.Tensor) -> None:
        """Add targets with a total loss of `nats` that stand for this many characters."""
        self.nats += nats
        self.characters += characters

    def compute(self) -> torch.Tensor:
        """Return the bits per character of all targets."""
        return self.nats / self.characters / math.log(2)


class LossByPosition(Metric):
    """The mean loss at each position of a window, which falls up to the length of context that the model uses.

    Args:
        block_size: `T`, the number of positions; it grows with longer windows.
    """

    higher_is_better = False
    full_state_update = False
    nats: torch.Tensor
    windows: torch.Tensor

    def __init__(self, block_size: int = 1):
        super().__init__()
        self.add_state("nats", torch.zeros(block_size), dist_reduce_fx="sum")
        self.add_state("windows", torch.zeros(block_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: torch.Tensor) -> None:
        """Add the `(B, T)` losses of windows that begin at the first position."""
        self.grow(losses.shape[1])
        self.nats[: losses.shape[1]] += losses.sum(0)
        self.windows[: losses.shape[1]] += len(losses)

    def grow(self, length: int) -> None:
        """Make room for windows of this length; several processes need equal lengths before `compute`."""
        more = max(0, length - len(self.nats))
        self.nats, self.windows = F.pad(self.nats, (0, more)), F.pad(self.windows, (0, more))

    def compute(self) -> torch.Tensor:
        """Return the `(T,)` nats per token, where T is the length of the longest window seen."""
        return (self.nats / self.windows)[self.windows > 0]


class TextMetrics(nn.Module):
    """The metrics of an evaluation, accumulated over batches of any sizes, in which each target counts once.

    Args:
        lengths: `(V,)` numbers of characters of the tokens; None leaves out the bits per character.
    """

    def __init__(self, lengths: torch.Tensor | None = None):
        super().__init__()
        self.lengths = lengths  # not a buffer, since weight averaging swaps buffers
        self.loss = MeanMetric()
        self.bits_per_char = BitsPerCharacter()
        self.by_position = LossByPosition()
        self.accuracy = MeanMetric()

    def characters(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the total number of characters of these tokens; `lengths` must be set."""
        assert self.lengths is not None
        self.lengths = self.lengths.to(targets.device)
        return self.lengths[targets].sum()

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch of `(B, T, V)` logits and its `(B, T)` targets."""
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        self.by_position.update(losses.view(targets.shape))
        logits, targets, loss = logits.flatten(0, 1), targets.flatten(), losses.mean()
        self.loss.update(loss, weight=targets.numel())
        if self.lengths is not None:
            self.bits_per_char.update(loss * targets.numel(), self.characters(targets))
        self.accuracy.update((logits.argmax(-1) == targets).float().mean(), weight=targets.numel())

    def compute(self) -> dict[str, torch.Tensor]:
        """Return `loss` in nats per token, `bits_per_char`, `perplexity` and `accuracy` of the likeliest token."""
        loss = self.loss.compute()
        bits = {} if self.lengths is None else {"bits_per_char": self.bits_per_char.compute()}
        return {"loss": loss, **bits, "perplexity": loss.exp(), "accuracy": self.accuracy.compute()}

    def scores(self) -> dict[str, float]:
        """Return the metrics as plain numbers, with the numbers of `tokens` and `characters` scored."""
        figures = {name: value.item() for name, value in self.compute().items()}
        counts = {"tokens": int(self.by_position.windows.sum()), "characters": int(self.bits_per_char.characters)}
        return figures | counts

    def reset(self) -> None:
        """Reset all metrics."""
        for metric in (self.loss, self.bits_per_char, self.by_position, self.accuracy):
            metric.reset()


class LoaderMetrics(nn.Module):
    """The metrics of a validation or test with one loader or more."""

    loaders: list[TextMetrics]

    def __init__(self) -> None:
        super().__init__()
        self.loaders = nn.ModuleList([TextMetrics()])  # type: ignore[assignment]  # a list, as annotated above

    @property
    def first(self) -> TextMetrics:
        """The metrics of the first loader, which is always there."""
        return self.loaders[0]

    def count_characters(self, lengths: torch.Tensor) -> None:
        """Compute bits per character too, from the `(V,)` numbers of characters of the tokens."""
        self.first.lengths = lengths

    def reset(self) -> None:
        """Reset the metrics of the first loader, and drop those of the others.

        Lightning validates in inference mode, and a tensor that was made there cannot be changed outside it, so this
        has to be called in the mode of the batches to come.
        """
        del self.loaders[1:]
        self.first.reset()

    def update(self, loader: int, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch of a loader, counted from 0: `(B, T, V)` logits and their `(B, T)` targets."""
        while loader >= len(self.loaders):  # several times if loaders without batches were skipped
            self.loaders.append(TextMetrics(self.first.lengths).to(logits.device))
        self.loaders[loader].update(logits, targets)

    def compute(self, part: str) -> dict[str, torch.Tensor]:
        """Return the metrics by name: `val/loss` of the first loader if `part` is val, `val_1/loss` of the second."""
        named: dict[str, torch.Tensor] = {}
        for n, metrics in enumerate(self.loaders):
            if metrics.loss.update_called:  # the loader had batches
                group = part if n == 0 else f"{part}_{n}"
                named |= {f"{group}/{name}": value for name, value in metrics.compute().items()}
        return named


def eval_batches(
    data: Ids, block_size: int, vocab_size: int, max_tokens: int | None = None, rank: int = 0, world_size: int = 1
) -> tuple[EvalWindows, EvalOrder]:
    """Return the windows of `(N,)` ids, and batches of about 8,192 tokens, or fewer if the logits would be large."""
    tokens = min(8192, MAX_LOGITS // vocab_size)
    windows = EvalWindows(data, block_size, max_tokens)
    return windows, EvalOrder(windows, max(1, tokens // block_size), rank, world_size)


@torch.no_grad()
def measure(model: nn.Module, data: Ids, lengths: torch.Tensor, block_size: int | None = None) -> TextMetrics:
    """Return the metrics of a model over a whole text; arguments as in `evaluate`."""
    device, longest = device_of(model), getattr(model, "block_size", None)
    block_size = block_size or longest
    if block_size is None:
        raise MiniGPTError(
            f"{type(model).__name__} has no block_size. Pass the length of the windows, such as block_size=64."
        )
    if longest is not None and block_size > longest:
        raise MiniGPTError(f"block_size is {block_size}, and the longest window of this model has {longest} tokens.")
    metrics = TextMetrics(lengths).to(device)
    was_training = model.training
    model.eval()
    windows, batches = eval_batches(data, block_size, len(lengths))
    for batch in batches:
        x, y = windows[batch]
        metrics.update(model(x.to(device)), y.to(device))
    model.train(was_training)
    if not metrics.bits_per_char.characters:
        raise MiniGPTError("The text has no whole character to score. Pass a longer one.")
    return metrics


def evaluate(model: nn.Module, data: Ids, lengths: torch.Tensor, block_size: int | None = None) -> dict[str, float]:
    """Score a model on a whole text, cut into windows that do not overlap; each token but the first counts once.

    Args:
        model: A network that maps `(B, T)` ids to `(B, T, V)` logits, in float32.
        data: `(N,)` ids, at least 2, in memory or in a file.
        lengths: `(V,)` numbers of characters of the tokens.
        block_size: The length of the windows; None for the model's `block_size`.

    Returns:
        `loss`, `bits_per_char`, `perplexity`, `accuracy`, and the numbers of `tokens` and `characters` scored.

    Raises:
        MiniGPTError: The text is shorter than two tokens or one character, or the windows do not fit the model.
    """
    return measure(model, data, lengths, block_size).scores()


def baselines(train: Ids, val: Ids, tokenizer: Tokenizer) -> dict[str, float]:
    """Return the bits per character of simple models on the validation text, for comparison with a trained model.

    Only the parts of a large text next to the split are used: the last 2 ** 22 training tokens and the first 2 ** 20
    validation tokens, and for xz the last 2 ** 20 and the first 2 ** 18 characters.

    Args:
        train: `(N,)` ids to count.
        val: `(M,)` ids to score, without the first, as in `evaluate`.
        tokenizer: The tokenizer of both.

    Returns:
        `uniform`: equal probabilities for the V tokens. `unigram`: the training counts plus one. `bigram`: the counts
        after each token, smoothed with the unigram probabilities (MacKay and Peto, "A hierarchical Dirichlet language
        model", 1995), about the best that TinyGPT can reach. `xz`: the increase of the compressed size when the
        validation text is appended to the training text.
    """
    vocab_size = tokenizer.vocab_size
    train, val = train[max(0, len(train) - 2**22) :].long(), val[: 2**20].long()
    targets, before = val[1:], val[:-1]
    tokens_per_char = len(targets) / max(1, int(tokenizer.lengths[targets].sum()))
    counts = torch.bincount(train, minlength=vocab_size).double() + 1
    unigram = counts / counts.sum()
    # Count only the pairs that occur, under one number each: a V x V table may be too large.
    pairs, pair_counts = torch.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    index = torch.searchsorted(pairs, before * vocab_size + targets).clamp(max=len(pairs) - 1)
    seen = torch.where(pairs[index] == before * vocab_size + targets, pair_counts[index], 0)
    after = torch.bincount(train[:-1], minlength=vocab_size)[before]
    bigram = (seen + unigram[targets]) / (after + 1)
    known = tokenizer.decode(train[max(0, len(train) - 2**20) :])[-(2**20) :].encode()
    text = tokenizer.decode(val[: 2**18])[: 2**18]
    new = text.encode()
    with ThreadPoolExecutor() as threads:  # xz releases the interpreter lock
        alone, both = threads.map(lambda text: len(lzma.compress(text)), (known, known + new))
    return {
        "uniform": math.log2(vocab_size) * tokens_per_char,
        "unigram": -unigram[targets].log2().mean().item() * tokens_per_char,
        "bigram": -bigram.log2().mean().item() * tokens_per_char,
        "xz": (both - alone) * 8 / len(text),
    }


def longest_overlap(texts: Sequence[str], source: str) -> dict[str, float | str]:
    """Measure how much of some texts occurs word for word in a source.

    Args:
        texts: The texts, such as samples of a model.
        source: The text to search, such as the model's training text.

    Returns:
        `longest_overlap`, the length in characters of the longest passage that also occurs in the source; `overlap`,
        that passage; and `share`, the share of all spans of `SPAN_LENGTH` characters that occur in the source.
    """
    overlap, n_spans, n_copied = "", 0, 0
    for text in texts:
        length = 0  # of the longest passage that begins at `start`; it shrinks by at most one as `start` moves on
        for start in range(len(text)):
            length = max(0, length - 1)
            while start + length < len(text) and text[start : start + length + 1] in source:
                length += 1
            overlap = max(overlap, text[start : start + length], key=len)
            if start + SPAN_LENGTH <= len(text):
                n_spans += 1
                n_copied += length >= SPAN_LENGTH
    return {"longest_overlap": len(overlap), "share": round(n_copied / max(1, n_spans), 6), "overlap": overlap}


def memorisation(lm: LanguageModel, train: Ids, val: Ids, samples: int, **sampling: Any) -> dict[str, dict]:
    """Measure how much of a model's samples, and of an unseen text, occurs word for word in the training text.

    Args:
        lm: The model.
        train: `(N,)` ids of the training text.
        val: `(M,)` ids of the unseen text.
        samples: The number of texts to draw.
        **sampling: Sampling parameters, as in `LanguageModel.stream_batch`.

    Returns:
        The results of `longest_overlap` for the `samples` and for the unseen `text`.
    """
    drawn = lm.generate_batch([""] * samples, 500, seed=0, **sampling)
    known, text = (lm.tokenizer.decode(ids[:MAX_SEARCHED]) for ids in (train, val))
    if len(train) > MAX_SEARCHED:
        note(message("searched", MAX_SEARCHED))
    length = max(map(len, drawn))
    fresh = [text[n : n + length] for n in range(0, length * samples, length)]
    return {"samples": longest_overlap(drawn, known), "text": longest_overlap(fresh, known)}


def as_table(scores: dict, indent: str = "") -> list[str]:
    """Return the lines of a table of scores in the language of the locale; a group is indented below its name."""
    lines = []
    for name, value in scores.items():
        label = f"{indent}{message(f'score_{name}')}"
        if isinstance(value, dict):
            lines += [label, *as_table(value, f"{indent}  ")]
        elif isinstance(value, str):
            lines.append(f"{label:<22}{value!r:>12}")
        elif value is not None:
            text = message("score" if isinstance(value, float) else "number", value)
            lines.append(f"{label:<22}{text:>12}{message('unit_loss') if name == 'loss' else ''}")
    return lines
