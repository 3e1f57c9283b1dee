"""How good a model is on a text: loss, bits per character, perplexity and accuracy over the whole of it.

And the floors beside it: what a text costs when next to nothing is known of it, or what a compressor makes of it.
"""

import lzma
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from minigpt.data.dataset import EvalWindows
from minigpt.models import device_of

PIECE = 20  # characters; as long as two or three words, so that few are common by chance


class BitsPerCharacter(Metric):
    """The cost of a character of text in bits, whatever the tokens are, so that tokenizers compare."""

    higher_is_better = False
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("nats", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("characters", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, nats: torch.Tensor, characters: float) -> None:
        """Add targets that cost `nats` in all and stand for this many characters."""
        self.nats += nats
        self.characters += characters

    def compute(self) -> torch.Tensor:
        """Bits per character over everything seen."""
        return self.nats / self.characters / math.log(2)


class TextMetrics(nn.Module):
    """The figures of an evaluation, gathered batch by batch: each target counts once, whatever the batches.

    Args:
        vocab_size: `V`.
        chars_per_token: The mean number of characters that a token stands for; 1 for a character model.
    """

    def __init__(self, vocab_size: int, chars_per_token: float = 1.0):
        super().__init__()
        self.chars_per_token = chars_per_token
        self.loss = MeanMetric()
        self.bits_per_char = BitsPerCharacter()
        self.accuracy = MulticlassAccuracy(vocab_size, average="micro", validate_args=False)

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add a batch of `(B, T, V)` logits and its `(B, T)` targets."""
        logits, targets = logits.flatten(0, 1).float(), targets.flatten()
        loss = F.cross_entropy(logits, targets)
        self.loss.update(loss, weight=targets.numel())
        self.bits_per_char.update(loss * targets.numel(), targets.numel() * self.chars_per_token)
        self.accuracy.update(logits, targets)

    def compute(self) -> dict[str, torch.Tensor]:
        """`loss` in nats per token, `bits_per_char`, `perplexity` per token and `accuracy` of the likeliest token."""
        loss = self.loss.compute()
        return {
            "loss": loss,
            "bits_per_char": self.bits_per_char.compute(),
            "perplexity": loss.exp(),
            "accuracy": self.accuracy.compute(),
        }

    def reset(self) -> None:
        """Forget what was gathered."""
        for metric in self.children():
            metric.reset()


def eval_windows(data: torch.Tensor, block_size: int) -> EvalWindows:
    """The windows of `(N,)` ids in batches of about 8,192 tokens, enough to keep a small machine busy."""
    return EvalWindows(data, block_size, batch_size=max(1, 8192 // block_size))


@torch.no_grad()
def evaluate(model: nn.Module, data: torch.Tensor, vocab_size: int, chars_per_token: float = 1.0) -> dict[str, float]:
    """Score a model on all of a text: windows of its `block_size`, no overlap, each token but the first once.

    Args:
        model: `(B, T)` ids to `(B, T, V)` logits, in float32.
        data: `(N,)` ids, at least 2.
        vocab_size: `V`.
        chars_per_token: The mean number of characters that a token stands for.

    Returns:
        `loss`, `bits_per_char`, `perplexity`, `accuracy`, and `tokens` and `characters`, how many were scored.

    Raises:
        MiniGPTError: The text is shorter than two tokens.
    """
    device = device_of(model)
    metrics = TextMetrics(vocab_size, chars_per_token).to(device)
    was_training = model.training
    model.eval()
    for x, y in eval_windows(data, model.block_size):
        metrics.update(model(x.to(device)), y.to(device))
    model.train(was_training)
    tokens = len(data) - 1
    scores = {name: value.item() for name, value in metrics.compute().items()}
    return {**scores, "tokens": tokens, "characters": round(tokens * chars_per_token)}


def floors(train: torch.Tensor, val: torch.Tensor, vocab_size: int, train_text: str, val_text: str) -> dict[str, float]:
    """What simple models make of the validation text, in bits per character: a scale for every other figure.

    Args:
        train: `(N,)` ids to count.
        val: `(M,)` ids to score; like in `evaluate`, all but the first.
        vocab_size: `V`.
        train_text: The text of `train`.
        val_text: The text of `val`.

    Returns:
        `uniform`, a guess among the V tokens; `unigram`, the train counts plus one; `bigram`, the counts after each
        token, filled up with one unigram draw (MacKay and Peto, "A hierarchical Dirichlet language model", 1995),
        about the best that TinyGPT can reach; `xz`, what xz adds to the size of the train text for the validation
        text.
    """
    targets, before = val[1:], val[:-1]
    tokens_per_char = len(val) / len(val_text)
    counts = torch.bincount(train, minlength=vocab_size).double() + 1
    unigram = counts / counts.sum()
    pairs, which = torch.unique(train[:-1] * vocab_size + train[1:], return_counts=True)  # V x V may be too large
    place = torch.searchsorted(pairs, before * vocab_size + targets).clamp(max=len(pairs) - 1)
    seen = torch.where(pairs[place] == before * vocab_size + targets, which[place], 0)
    after = torch.bincount(train[:-1], minlength=vocab_size)[before]
    bigram = (seen + unigram[targets]) / (after + 1)
    train_bytes, val_bytes = train_text.encode(), val_text.encode()
    xz = len(lzma.compress(train_bytes + val_bytes)) - len(lzma.compress(train_bytes))
    return {
        "uniform": math.log2(vocab_size) * tokens_per_char,
        "unigram": -unigram[targets].log2().mean().item() * tokens_per_char,
        "bigram": -bigram.log2().mean().item() * tokens_per_char,
        "xz": xz * 8 / len(val_text),
    }


def copied(texts: Sequence[str], source: str) -> dict[str, float | str]:
    """How much of some texts stands word for word in a source.

    Args:
        texts: What a model wrote, say.
        source: The text that it was trained on.

    Returns:
        `longest`, the number of characters of the longest run found in the source, and `run`, that run; `share`, of
        all pieces of `PIECE` characters, overlapping ones included, those found in it.
    """
    run, pieces, found = "", 0, 0
    for text in texts:
        length = 0  # of the longest run that begins here; it shrinks by one at most from one place to the next
        for start in range(len(text)):
            length = max(0, length - 1)
            while start + length < len(text) and text[start : start + length + 1] in source:
                length += 1
            run = max(run, text[start : start + length], key=len)
            if start + PIECE <= len(text):
                pieces += 1
                found += length >= PIECE
    return {"longest": len(run), "share": round(found / max(1, pieces), 6), "run": run}
