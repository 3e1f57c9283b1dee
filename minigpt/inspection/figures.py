"""Figures of what a model does, drawn with matplotlib: for TensorBoard, for files, for notebooks and for the page.

Importing this file imports matplotlib, so others import it when they draw their first figure. Nothing here touches
`pyplot` or its global state, and no token is read as mathematical notation.
"""

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import nn

from minigpt.data.memmap import Ids
from minigpt.data.tokenizer_base import Tokenizer
from minigpt.errors import MiniGPTError
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

DPI, PRINT_DPI = 110, 180  # pixels per inch in TensorBoard and on the page, and in files
MOST_TOKENS = 96  # of a vocabulary that a table names
MOST_MAPS = 8  # layers and heads
LINE, SHORT_LINE = 40, 24  # tokens of the line that a model is shown at, and of it in a grid of many attention maps
LIKELIEST = 5
LONGEST_NAME = 12  # characters of a token
PAGE = 9.0  # inches of a figure that is seen at its own size
WIDEST = 11.0  # inches of a line of tokens, which is broken beyond
# From white to navy; the CIE lightness falls by 14 with each stop, so that equal steps look equal, also without colour.
SCALE = LinearSegmentedColormap.from_list(
    "minigpt", ["#ffffff", "#b2dfe2", "#70bbd2", "#4493c1", "#366aa7", "#2b4482", "#1d2353"]
)
SHADES = PowerNorm(0.5, 0, 1)  # probabilities by their square root: the small ones can be told apart
LINE_COLOUR, PALE = "#366aa7", "#d8d8d8"
# DejaVu comes with matplotlib. Where one of the others is installed, it has the Chinese, Japanese and Korean signs.
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Hiragino Sans GB", "Microsoft YaHei", "Arial Unicode MS")
MISSING = "▯"


class Picture(Figure):
    """A matplotlib figure that draws itself as PNG, in a notebook too."""

    def __init__(self, width: float, height: float):
        super().__init__(figsize=(width, height), dpi=DPI)
        self.zoom = max(1.0, width / PAGE)  # of the letters around a large figure, which is seen at a smaller scale
        FigureCanvasAgg(self)

    @property
    def pixels(self) -> tuple[int, int]:
        """Return the width and height of its PNG file."""
        return self.canvas.get_width_height()

    def png(self, dpi: float = DPI) -> bytes:
        """Return the figure as the bytes of a PNG file with that many pixels per inch."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=dpi, pil_kwargs={"compress_level": 4})
        return file.getvalue()

    _repr_png_ = png


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
    picture, axes = _grid(len(ids), len(ids), cell, cell, names, names, title)
    image = _paint(axes, transitions(model, ids)[:, ids])
    _labels(axes, message("token_read", language=language), message("next_token", language=language))
    _colour_bar(picture, image, message("probability", language=language), language)
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
    cells = [[_drawable(name) for name in names_of(tokenizer, row)] for row in ids.tolist()]
    width = max(0.26, 0.1 + max(_width(name, 8.5) for row in cells for name in row))
    n_rows, n_bands = ids.shape[1], math.ceil(len(cells) * width / WIDEST)  # a line of long tokens takes several bands
    fit = math.ceil(len(cells) / n_bands)  # tokens in a band
    ranks = [message("came_row", language=language), *map(str, range(1, n_rows))]
    height, gap = 0.26, 1  # a row stays empty between two bands
    rows = [*[*ranks, *[""] * gap] * n_bands][:-gap]
    title = title or message("figure_next_token", n_rows - 1, language=language)
    picture, axes = _grid(len(rows), fit, width, height, rows, [], title, size=8.5)
    for band in range(n_bands):
        part, top = range(len(cells))[band * fit : (band + 1) * fit], band * (n_rows + gap)
        image = _paint(axes, values[list(part)].T, top)
        axes.plot([-0.5, len(part) - 0.5], [top + 0.5] * 2, color="white", linewidth=2.5)
        for column, place in enumerate(part):
            for row, name in enumerate(cells[place]):
                light = SHADES(values[place, row].item()) > 0.5
                _text(axes, column, top + row, name, 8.5, color="white" if light else "black")
    _labels(axes, message("rank", language=language), message("in_order", language=language))
    _colour_bar(picture, image, message("probability", language=language), language)
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
        _text(axes, 0.5, 0.5, message("not_finite", language=language), 11, transform=axes.transAxes)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    margin = max(1.0 - (high - low), 0) / 2 + 0.05 * (high - low)  # a nat at least, so that noise looks small
    axes.set_ylim(max(0, low - margin), high + margin)
    axes.set_xlim(-0.3, len(ranges) - 0.7)
    axes.set_xticks(range(len(ranges)), [f"{a + 1}–{b}" if b > a + 1 else f"{b}" for a, b in ranges])
    axes.set_xlabel(message("position", language=language))
    axes.set_ylabel(message("loss_axis", language=language))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # a decimal is enough for its ticks
    axes.yaxis.set_major_formatter(lambda value, _: message("decimal", value, language=language))
    title = _drawable(title or message("figure_loss", language=language), longest=None)
    axes.set_title(title, fontsize=11, loc="left", **_style())
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
    picture, axes = _grid(len(rows), len(columns), cell, cell, rows, columns, title, top=0.25)
    caption = message("map_layer" if n_layer > 1 else "map_head", "{layer}", "{head}", language=language)
    field = torch.full((len(rows), len(columns)), math.nan)
    for n, weight in enumerate(weights.flatten(0, 1)):
        y, x = n // across * pitch, n % across * pitch
        field[y : y + size, x : x + size] = weight
        named = caption.format(layer=n // n_head + 1, head=n % n_head + 1)
        _text(axes, x - 0.5, y - 0.5 - 0.1 * zoom / cell, named, 8.5 * zoom, ha="left")
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), size, size, fill=False, edgecolor=PALE, clip_on=False))
    image = _paint(axes, field)
    _labels(axes, message("token_looking", language=language), message("token_seen", language=language))
    _colour_bar(picture, image, message("weight", language=language), language)
    return picture


def _across(n_layer: int, n_head: int) -> int:
    """Return how many maps are side by side: a layer's, unless it is alone."""
    return n_head if n_layer > 1 else math.ceil(math.sqrt(n_head))


def draw_head(weights: torch.Tensor, tokens: Sequence[str], title: str, language: str | None = None) -> Picture:
    """Draw one head's `(T, T)` weights with `T` names on both axes."""
    cell = max(0.115, min(0.3, 6.0 / len(tokens)))
    picture, axes = _grid(len(tokens), len(tokens), cell, cell, tokens, tokens, title)
    image = _paint(axes, weights)
    _labels(axes, message("token_looking", language=language), message("token_seen", language=language))
    _colour_bar(picture, image, message("weight", language=language), language)
    return picture


def _grid(
    n_rows: int, n_columns: int, width: float, height: float, rows: Sequence[str], columns: Sequence[str],
    title: str, size: float | None = None, top: float = 0.0,
) -> tuple[Picture, Axes]:  # fmt: skip
    """Return a figure with room for cells of a size in inches, in whose axes cell (r, c) has its centre at y=r, x=c.

    The rows' names are at the left, the columns' below, upright where they are short. Names are texts and not ticks,
    which would take twice the time.
    """
    size = size or 72 * height * 0.75  # points
    rows, columns = ([_drawable(name) for name in names] for names in (rows, columns))
    title = _drawable(title, longest=None)
    turned = any(_width(name, size) > width for name in columns)
    below = max((_width(name, size) if turned else size / 60 for name in columns), default=0)
    zoom = max(1.0, (n_columns * width + 1.4) / PAGE)
    left = 0.4 * zoom + 0.1 + max(_width(name, size) for name in rows)
    bottom, head, right = 0.25 * zoom + 0.1 + below, 0.45 * zoom + top, 0.9 * zoom
    wide = max(left + n_columns * width + right, 0.3 + _width(title, 11 * zoom))
    high = bottom + n_rows * height + head
    picture = Picture(wide, high)
    axes = picture.add_axes((left / wide, bottom / high, n_columns * width / wide, n_rows * height / high))
    axes.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5), xticks=[], yticks=[], autoscale_on=False)
    axes.spines[:].set_visible(False)
    for y, name in enumerate(rows):
        _text(axes, -0.5 - 0.05 / width, y, name, size, ha="right")
    for x, name in enumerate(columns):
        if turned:
            _text(axes, x, n_rows - 0.5 + 0.05 / height, name, size, va="top", rotation=90)
        else:
            _text(axes, x, n_rows - 0.5 + size / 120 / height, name, size)
    picture.text(0.12 / wide, 1 - 0.12 / high, title, fontsize=11 * picture.zoom, va="top", **_style())
    axes.xaxis.set_label_coords(0.5, -(bottom - 0.1) / (n_rows * height))
    axes.yaxis.set_label_coords(-(left - 0.1) / (n_columns * width), 0.5)
    return picture, axes


def _paint(axes: Axes, values: torch.Tensor, top: int = 0) -> AxesImage:
    """Colour the cells from row `top` on by `(R, C)` values from 0 to 1; NaN stays white."""
    n_rows, n_columns = values.shape
    extent = (-0.5, n_columns - 0.5, top + n_rows - 0.5, top - 0.5)
    return axes.imshow(values.numpy(), SCALE, SHADES, aspect="auto", interpolation="nearest", extent=extent)


def _labels(axes: Axes, rows: str, columns: str) -> None:
    zoom = cast(Picture, axes.figure).zoom
    axes.set_ylabel(rows, fontsize=9 * zoom, va="top")
    axes.set_xlabel(columns, fontsize=9 * zoom, va="bottom")


def _colour_bar(picture: Picture, image: AxesImage, label: str, language: str | None) -> None:
    """Put the scale of an image at the right of its axes, at most two inches high."""
    wide, high = picture.get_size_inches()
    box, zoom = image.axes.get_position(), picture.zoom
    tall = min(box.height, 2.0 * zoom / high)
    place = (box.x1 + 0.12 * zoom / wide, box.y1 - tall, 0.1 * zoom / wide, tall)
    bar = picture.colorbar(image, cax=picture.add_axes(place))
    ticks = [0, 0.05, 0.2, 0.5, 1] if tall * high > 1 else [0, 0.2, 1]
    bar.set_ticks(ticks, labels=[message("percent", 100 * tick, language=language) for tick in ticks])
    bar.ax.tick_params(labelsize=7 * zoom, length=2)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=8 * zoom)


def _text(axes: Axes, x: float, y: float, text: str, size: float, **how: Any) -> None:
    """Write a text whose small letters have their centre at (x, y), so that all texts of a row share a base line."""
    if text:
        shift = ScaledTranslation(0, -0.36 * size / 72 * ("va" not in how), axes.figure.dpi_scale_trans)
        transform = how.pop("transform", axes.transData) + shift
        axes.text(x, y, text, fontsize=size, transform=transform, **_style() | {"ha": "center"} | how)


def _style() -> dict[str, Any]:
    return {"family": _families(), "parse_math": False}


@cache
def _families() -> list[str]:
    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(font for font in FONTS if font in installed)]


@cache
def _has_glyph(char: str) -> bool:
    return any(get_font(findfont(family)).get_char_index(ord(char)) for family in _families())


def _drawable(name: str, longest: int | None = LONGEST_NAME) -> str:
    """Return a name cut to a number of characters, with a box for each that no font here has."""
    name = name if longest is None or len(name) <= longest else name[: longest - 1] + "…"
    return "".join(char if _has_glyph(char) else MISSING for char in name)


@cache
def _width(text: str, size: float) -> float:
    """Return the width of a text in inches, at a size in points."""
    font = FontProperties(family=_families(), size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72
