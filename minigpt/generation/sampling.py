"""Sampling: filters on `(B, V)` logits, computed in float32 for each row, and the draw of the next ids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from minigpt.errors import MiniGPTError, check_number

GREEDY_BELOW = 1e-5  # temperatures below take the likeliest token


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of a text, and the filter of logits that they describe.

    Args:
        temperature: Divides the logits; below 1e-5 only the first maximum of each row is kept.
        top_k: Keeps the k greatest logits and every tie with the k-th (Fan et al., "Hierarchical Neural Story
            Generation", 2018); above `V` it keeps all.
        top_p: Adds up probabilities from the likeliest token down and keeps the tokens up to the one at which the sum
            exceeds p (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020); 1 keeps all.
        min_p: Keeps a token whose probability is at least this share of the likeliest one's (Nguyen et al., "Turning Up
            the Heat", 2024).
        repetition_penalty: Divides the positive logits of the ids so far, and multiplies the negative ones (Keskar et
            al., "CTRL", 2019).

    Raises:
        MiniGPTError: A parameter is outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def filter(self, logits: torch.Tensor, generated: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the repetition penalty, temperature, top-k, top-p and min-p, in this order.

        Args:
            logits: `(B, V)` logits of the next token.
            generated: The `(B, T)` ids so far, with the prompt. Only the repetition penalty uses them.

        Returns:
            `(B, V)` float32 logits, with `-inf` for each token that is cut.
        """
        logits = logits.float()
        if self.repetition_penalty is not None and generated is not None:
            logits = penalise(logits, generated, self.repetition_penalty)
        if self.temperature < GREEDY_BELOW:
            return keep_best(logits)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_likely(logits, self.min_p)
        return logits

    def __post_init__(self) -> None:
        """Check the range of each parameter; a dataclass calls this at the end of its `__init__`."""
        hint = "or 'none' to keep every token"  # the end of an error's message
        check_number("top_k", self.top_k, at_least=1, whole=True, optional=True, hint=hint)
        check_number("top_p", self.top_p, above=0, at_most=1, optional=True, hint=hint)
        check_number("min_p", self.min_p, at_least=0, at_most=1, optional=True, hint=hint)
        hint = "where 0 always takes the likeliest token"
        check_number("temperature", self.temperature, at_least=0, hint=hint)
        hint = "where 1 changes nothing"
        check_number("repetition_penalty", self.repetition_penalty, above=0, optional=True, hint=hint)


def filter_logits(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    generated: torch.Tensor | None = None,
) -> torch.Tensor:
    """Filter `(B, V)` logits in one call: a shortcut for `SamplingParams(...).filter(logits, generated)`."""
    return SamplingParams(temperature, top_k, top_p, min_p, repetition_penalty).filter(logits, generated)


def penalise(logits: torch.Tensor, generated: torch.Tensor, penalty: float) -> torch.Tensor:
    """Lower the logits of the `(B, T)` ids in `generated`, each id once however often it occurs."""
    scores = logits.gather(-1, generated)  # (B, T)
    scores = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits.scatter(-1, generated, scores)  # an id that occurs twice is written twice, with the same score


def keep_best(logits: torch.Tensor) -> torch.Tensor:
    """Keep the first maximum of each row only."""
    best = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
    ids = torch.arange(logits.shape[-1], device=logits.device)  # (V,)
    return logits.masked_fill(ids != best, -math.inf)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k greatest logits, and all that are equal to the k-th."""
    kth = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the likeliest tokens, up to the one with which the sum of their probabilities exceeds p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    # What the likelier tokens have together: probabilities of 0.5, 0.3 and 0.2 give 0, 0.5 and 0.8.
    sum_before = F.pad(probabilities.cumsum(dim=-1)[..., :-1], (1, 0))
    ordered = ordered.masked_fill(sum_before > p, -math.inf)
    return torch.empty_like(logits).scatter(-1, order, ordered)  # back to the order of the ids


def keep_likely(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    """Keep the tokens whose probability is at least `min_p` times the greatest one."""
    probabilities = logits.softmax(dim=-1)
    least = min_p * probabilities.max(dim=-1, keepdim=True).values
    return logits.masked_fill(probabilities < least, -math.inf)


def draw(
    probabilities: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> torch.Tensor:
    """Draw one id per row: `(B, V)` probabilities to `(B, 1)` ids.

    With the same seed it draws the ids that the article's `torch.multinomial(probabilities, 1)` would draw, faster. It
    also takes a generator for each row.

    Args:
        probabilities: Rows that sum to one.
        generator: One random generator for all rows; a sequence with one for each row, so that a text does not depend
            on the others in its batch; or None for torch's global one.

    Raises:
        MiniGPTError: The probabilities are NaN: the model's training diverged.
    """
    if probabilities.isnan().any():
        raise MiniGPTError("The model produced NaN: its training diverged. Train it again, at a lower learning rate.")
    # A race: each id gets a random arrival time, noise / probability, and the first one wins, which is the one with the
    # greatest probability / noise. With noise from the exponential distribution, an id's chance to win is exactly its
    # probability. `torch.multinomial` does the same, after checks that take longer than the draw.
    noise = torch.empty_like(probabilities)
    if generator is None or isinstance(generator, torch.Generator):
        noise.exponential_(generator=generator)
    else:
        for row, row_generator in zip(noise.unbind(), generator, strict=True):
            row.exponential_(generator=row_generator)  # `row` is a view, so this fills a row of `noise`
    return (probabilities / noise).argmax(dim=-1, keepdim=True)
