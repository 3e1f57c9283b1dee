"""Figures of what a model does: for TensorBoard, for files, for notebooks and for the page.

Importing this file or canvas.py imports matplotlib, so others import them when they draw their first figure. Nothing
here touches `pyplot` or its global state.
"""

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import nn

from minigpt.data.memmap import Ids
from minigpt.data.tokenizer_base import Tokenizer
from minigpt.errors import MiniGPTError
from minigpt.inspection.canvas import (
    LINE_COLOUR,
    PAGE,
    PALE,
    SHADES,
    Picture,
    add_colour_bar,
    drawable_name,
    label_axes,
    paint,
    picture_of_cells,
    put_text,
    text_style,
    width_of,
)
from minigpt.inspection.introspection import (
    attention,
    attention_size,
    is_bigram,
    most_expected,
    name_of,
    next_logits,
    transitions,
)
from minigpt.words import message

MOST_TOKENS = 96  # of a vocabulary that a table names
MOST_MAPS = 8  # layers and heads
LINE, SHORT_LINE = 40, 24  # tokens of the line that a model is shown at, and of it in a grid of many attention maps
LIKELIEST = 5
WIDEST = 11.0  # inches of a line of tokens, which is broken beyond


def draw_all(
    model: nn.Module, tokenizer: Tokenizer, ids: Ids, by_position: torch.Tensor, language: str | None = None
) -> dict[str, Picture]:
    """Draw the figures that suit a model.

    Args:
        model: In eval mode.
        tokenizer: Its tokenizer.
        ids: `(N,)` ids of a text that it was not trained on, in memory or in a file; the first line of it is used.
        by_position: `(T,)` its mean loss at each position of a window, in nats.
        language: Of the titles and labels, `en` or `fr`; by default that of the locale.

    Returns:
        The figures by name.
    """
    line = ids[:LINE].long()
    drawn = {
        "next_token": draw_next_token(model, tokenizer, line, language=language),
        "loss_by_position": draw_loss(by_position, language=language),
    }
    if is_bigram(model):
        drawn["transitions"] = draw_transitions(model, tokenizer, language=language)
    if size := attention_size(model):
        with suppress(MiniGPTError):  # of a layer that was changed
            looking = line if _across(*size) <= 2 else line[:SHORT_LINE]
            weights = attention(model, looking)
            tokens = names_of(tokenizer, looking[-weights.shape[-1] :].tolist())
            drawn["attention"] = draw_attention(weights, tokens, language=language)
    return drawn


def names_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return how the tokens of ids are written in a figure."""
    return [name_of(tokenizer.decode([i])) for i in ids]


def draw_transitions(
    model: nn.Module, tokenizer: Tokenizer, title: str | None = None, language: str | None = None
) -> Picture:
    """Draw how likely each token (column) is after each token alone (row): all of a bigram model.

    Of a large vocabulary, the `MOST_TOKENS` tokens that the model expects most are shown.
    """
    ids = most_expected(model, MOST_TOKENS)
    names = names_of(tokenizer, ids.tolist())
    cell = max(0.115, min(0.3, 7.5 / len(ids)))
    title = title or message("figure_transitions", language=language)
    picture, axes = picture_of_cells(len(ids), len(ids), cell, cell, names, names, title)
    image = paint(axes, transitions(model, ids)[:, ids])
    label_axes(axes, message("token_read", language=language), message("next_token", language=language))
    add_colour_bar(picture, image, message("probability", language=language), language)
    return picture


def draw_next_token(
    model: nn.Module, tokenizer: Tokenizer, line: torch.Tensor, title: str | None = None, language: str | None = None
) -> Picture:
    """Draw a line token by token: above the token that came, below it the likeliest ones, darker the likelier."""
    probabilities = next_logits(model, line[:-1]).softmax(-1)  # (T - 1, V)
    likeliest = probabilities.nan_to_num().topk(min(LIKELIEST, probabilities.shape[1]), dim=-1)
    came = line[1:].cpu()[:, None].long()
    ids = torch.cat([came, likeliest.indices], dim=1)  # (T - 1, 1 + LIKELIEST)
    values = torch.cat([probabilities.gather(1, came), likeliest.values], dim=1)
    cells = [[drawable_name(name) for name in names_of(tokenizer, row)] for row in ids.tolist()]
    width = max(0.26, 0.1 + max(width_of(name, 8.5) for row in cells for name in row))
    n_rows, n_bands = ids.shape[1], math.ceil(len(cells) * width / WIDEST)  # a line of long tokens takes several bands
    fit = math.ceil(len(cells) / n_bands)  # tokens in a band
    ranks = [message("came_row", language=language), *map(str, range(1, n_rows))]
    height, gap = 0.26, 1  # a row stays empty between two bands
    rows = [*[*ranks, *[""] * gap] * n_bands][:-gap]
    title = title or message("figure_next_token", n_rows - 1, language=language)
    picture, axes = picture_of_cells(len(rows), fit, width, height, rows, [], title, size=8.5)
    for band in range(n_bands):
        part, top = range(len(cells))[band * fit : (band + 1) * fit], band * (n_rows + gap)
        image = paint(axes, values[list(part)].T, top)
        axes.plot([-0.5, len(part) - 0.5], [top + 0.5] * 2, color="white", linewidth=2.5)
        for column, place in enumerate(part):
            for row, name in enumerate(cells[place]):
                light = SHADES(values[place, row].item()) > 0.5
                put_text(axes, column, top + row, name, 8.5, color="white" if light else "black")
    label_axes(axes, message("rank", language=language), message("in_order", language=language))
    add_colour_bar(picture, image, message("probability", language=language), language)
    return picture


def draw_loss(by_position: torch.Tensor, title: str | None = None, language: str | None = None) -> Picture:
    """Draw the mean loss at the 1st, 2nd, 3rd and 4th, 5th to 8th ... position of a window.

    It falls as far as the model uses its context. A single later position has too few tokens to tell.

    Args:
        by_position: `(T,)` mean loss in nats.
        title: In place of the usual one.
        language: `en` or `fr`; by default that of the locale.
    """
    by_position = by_position.reshape(-1).float()  # metrics hand out a single position as a scalar
    ends = [2**n for n in range(math.ceil(math.log2(len(by_position))))] + [len(by_position)]
    ranges = list(zip([0, *ends[:-1]], ends, strict=True))
    values = np.array([by_position[first:last].mean().item() for first, last in ranges])
    values[~np.isfinite(values)] = math.nan  # of a model that diverged
    picture = Picture(5.4, 3.6)
    axes = picture.add_axes((0.13, 0.17, 0.83, 0.7))
    axes.plot(values, color=LINE_COLOUR, linewidth=2, marker="o", markersize=5)
    finite = values[np.isfinite(values)]
    if not len(finite):
        put_text(axes, 0.5, 0.5, message("not_finite", language=language), 11, transform=axes.transAxes)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    margin = max(1.0 - (high - low), 0) / 2 + 0.05 * (high - low)  # a nat at least, so that noise looks small
    axes.set_ylim(max(0, low - margin), high + margin)
    axes.set_xlim(-0.3, len(ranges) - 0.7)
    axes.set_xticks(range(len(ranges)), [f"{a + 1}–{b}" if b > a + 1 else f"{b}" for a, b in ranges])
    axes.set_xlabel(message("position", language=language))
    axes.set_ylabel(message("loss_axis", language=language))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # a decimal is enough for its ticks
    axes.yaxis.set_major_formatter(lambda value, _: message("decimal", value, language=language))
    title = drawable_name(title or message("figure_loss", language=language), longest=None)
    axes.set_title(title, fontsize=11, loc="left", **text_style())
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return picture


def draw_attention(
    weights: torch.Tensor, tokens: Sequence[str], title: str | None = None, language: str | None = None
) -> Picture:
    """Draw a map for each head of each layer: the token of a row looks at those of the columns.

    A network of a single layer has its heads in several rows.

    Args:
        weights: `(n_layer, n_head, T, T)`, whose rows sum to 1; the first `MOST_MAPS` layers and heads are drawn.
        tokens: `T` names, for the outer axes.
        title: In place of the usual one.
        language: `en` or `fr`; by default that of the locale.
    """
    weights = weights[:MOST_MAPS, :MOST_MAPS]
    n_layer, n_head, size, _ = weights.shape
    across = _across(n_layer, n_head)
    cell = max(0.1, min(0.25, 4.6 / size, 14 / across / size))
    zoom = max(1.0, across * (size + 4) * cell / PAGE)
    pitch = size + math.ceil(0.22 * zoom / cell)  # room for the captions
    n_down = math.ceil(n_layer * n_head / across)
    rows, columns = ([*[*tokens, *[""] * (pitch - size)] * n][: size - pitch] for n in (n_down, across))
    title = title or message("figure_attention", language=language)
    picture, axes = picture_of_cells(len(rows), len(columns), cell, cell, rows, columns, title, top=0.25)
    caption = message("map_layer" if n_layer > 1 else "map_head", "{layer}", "{head}", language=language)
    field = torch.full((len(rows), len(columns)), math.nan)
    for n, weight in enumerate(weights.flatten(0, 1)):
        y, x = n // across * pitch, n % across * pitch
        field[y : y + size, x : x + size] = weight
        named = caption.format(layer=n // n_head + 1, head=n % n_head + 1)
        put_text(axes, x - 0.5, y - 0.5 - 0.1 * zoom / cell, named, 8.5 * zoom, ha="left")
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), size, size, fill=False, edgecolor=PALE, clip_on=False))
    image = paint(axes, field)
    label_axes(axes, message("token_looking", language=language), message("token_seen", language=language))
    add_colour_bar(picture, image, message("weight", language=language), language)
    return picture


def _across(n_layer: int, n_head: int) -> int:
    """Return how many maps are side by side: a layer's, unless it is alone."""
    return n_head if n_layer > 1 else math.ceil(math.sqrt(n_head))


def draw_head(weights: torch.Tensor, tokens: Sequence[str], title: str, language: str | None = None) -> Picture:
    """Draw one head's `(T, T)` weights with `T` names on both axes."""
    cell = max(0.115, min(0.3, 6.0 / len(tokens)))
    picture, axes = picture_of_cells(len(tokens), len(tokens), cell, cell, tokens, tokens, title)
    image = paint(axes, weights)
    label_axes(axes, message("token_looking", language=language), message("token_seen", language=language))
    add_colour_bar(picture, image, message("weight", language=language), language)
    return picture
