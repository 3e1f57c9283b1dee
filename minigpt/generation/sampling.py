"""The controls of sampling as pure functions on `(B, V)` logits, computed in float32, each row on its own."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from minigpt.errors import MiniGPTError, check_number

GREEDY_BELOW = 1e-5


def check_controls(
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
) -> None:
    """Refuse what the controls cannot mean.

    Raises:
        MiniGPTError: A control is outside its range; the sentence names it and the range.
    """
    all_tokens: dict[str, Any] = {"optional": True, "hint": "or 'none' to keep every token"}
    check_number("temperature", temperature, at_least=0, hint="where 0 always takes the likeliest token")
    check_number("top_k", top_k, at_least=1, whole=True, **all_tokens)
    check_number("top_p", top_p, above=0, at_most=1, **all_tokens)
    check_number("min_p", min_p, at_least=0, at_most=1, **all_tokens)
    check_number("repetition_penalty", repetition_penalty, above=0, optional=True, hint="where 1 changes nothing")


def filter_logits(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    generated: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply the repetition penalty, temperature, top-k, top-p (the article's order) and min-p.

    Args:
        logits: `(B, V)` scores of the next token.
        temperature: Divides the logits; below 1e-5 only the first maximum of each row is left.
        top_k: Keeps the k best and every tie with the k-th (Fan et al., "Hierarchical Neural Story Generation",
            2018); above `V` it keeps all.
        top_p: Keeps a token while the probability before it, in descending order, is at most p, so the token that
            crosses the threshold is kept (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020);
            1 keeps all.
        min_p: Keeps a token whose probability is at least this share of the likeliest one's (Nguyen et al., "Turning Up
            the Heat", 2024).
        repetition_penalty: Divides the positive scores of the ids in `generated`, and multiplies the negative ones
            (Keskar et al., "CTRL", 2019).
        generated: `(B, T)` ids so far; needed by repetition_penalty alone.

    Returns:
        `(B, V)` float32 logits with `-inf` where a token is cut.

    Raises:
        MiniGPTError: A control is outside its range.
    """
    check_controls(temperature, top_k, top_p, min_p, repetition_penalty)
    logits = logits.float()
    if repetition_penalty is not None and generated is not None:
        seen = logits.gather(-1, generated)
        seen = torch.where(seen < 0, seen * repetition_penalty, seen / repetition_penalty)
        logits = logits.scatter(-1, generated, seen)
    if temperature < GREEDY_BELOW:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))
    logits = logits / temperature
    top_k = None if top_k is None or top_k >= logits.shape[-1] else top_k
    if top_p is not None and top_p < 1:  # which needs the logits in order; the k-th is then at hand
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        if top_k is not None:
            ordered = ordered.masked_fill(ordered < ordered[..., top_k - 1 : top_k], -math.inf)
        mass = ordered.softmax(dim=-1).cumsum(dim=-1)
        ordered[..., 1:].masked_fill_(mass[..., :-1] > top_p, -math.inf)  # what counts is the mass before a token
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    elif top_k is not None:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if min_p is not None:
        probabilities = logits.softmax(dim=-1)
        least = min_p * probabilities.max(dim=-1, keepdim=True).values
        logits = logits.masked_fill(probabilities < least, -math.inf)
    return logits


def sample(logits: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw one id per row: `(B, V)` logits to `(B, 1)` ids.

    Args:
        logits: What `filter_logits` left.
        generator: Where the draws come from; torch's global generator, governed by `torch.manual_seed`, if None.

    Raises:
        MiniGPTError: The logits are no numbers: the model's training diverged.
    """
    return draw(logits.softmax(dim=-1), generator)


def draw(
    probabilities: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None = None
) -> torch.Tensor:
    """Draw one id per row: `(B, V)` probabilities to `(B, 1)` ids.

    Args:
        probabilities: Rows that sum to one.
        generator: Where the draws come from: one generator for all rows, or a sequence of one for each; torch's
            global generator if None.

    Raises:
        MiniGPTError: The probabilities are no numbers: the model's training diverged.
    """
    check_numbers(probabilities)
    # `torch.multinomial`, draw for draw, without its other checks, which take longer than the draw: the first of a race
    # of exponential times, each divided by its rate.
    race = torch.empty_like(probabilities)
    if generator is None or isinstance(generator, torch.Generator):
        race.exponential_(generator=generator)
    else:
        for row, own in zip(race.unbind(), generator, strict=True):
            row.exponential_(generator=own)
    return (probabilities / race).argmax(dim=-1, keepdim=True)


def check_numbers(probabilities: torch.Tensor) -> None:
    """Refuse probabilities that are no numbers.

    Raises:
        MiniGPTError: Some are not: the model's training diverged.
    """
    if probabilities.isnan().any():
        raise MiniGPTError("The model's predictions are no numbers: its training diverged. Train it again.")
