"""Pictures of what a model does, drawn in a few milliseconds: for TensorBoard, for files and for the page.

An image is a field of bytes: up to `INK` a colour of the scale from nothing (white) to all (dark), above it a grey.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from minigpt.data.dataset import Ids
from minigpt.data.tokenizers import Tokenizer
from minigpt.errors import MiniGPTError
from minigpt.inspection.introspection import attention, attention_size, is_bigram, next_logits, transitions

Image.preinit()  # loads what writes PNG, which would else happen in the middle of a training

INK, PAPER = 200, 255  # black and white; between them the greys of letters
SCALE = ((255, 255, 255), (199, 233, 230), (90, 174, 196), (37, 99, 160), (13, 27, 79))  # evenly darker
_STOPS = np.linspace(0, INK - 1, len(SCALE))
COLOURS = np.stack([np.interp(np.arange(INK), _STOPS, channel) for channel in zip(*SCALE, strict=True)], axis=1)
PALETTE = np.concatenate([COLOURS, np.linspace(0, 255, 256 - INK)[:, None].repeat(3, 1)]).round().astype(np.uint8)
FONTS = ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf")
MOST_TOKENS = 96  # of a vocabulary that a table has room for
MOST_MAPS = 8  # layers and heads
NAMES = {" ": "␣", "\n": "↵", "\t": "⇥"}
LIKELIEST = 5


def name_of(token: str) -> str:
    """How a token is written in a figure: white space by a sign."""
    return "".join(NAMES.get(char, char) for char in token)


def figures(model: nn.Module, tokenizer: Tokenizer, ids: Ids, by_position: torch.Tensor) -> dict[str, Image.Image]:
    """The figures that suit a model, by name.

    Args:
        model: In eval mode.
        tokenizer: Its tokenizer.
        ids: `(N,)` ids of a text that it was not trained on, in memory or in a file; a line of it is used.
        by_position: `(T,)` its mean loss at each position of a window.
    """
    line = ids[:40].long()
    drawn = {"next_token": draw_next_token(model, tokenizer, line), "loss_by_position": draw_loss(by_position)}
    if is_bigram(model):
        drawn["transitions"] = draw_transitions(model, tokenizer)
    if attention_size(model):
        with suppress(MiniGPTError):  # of a layer that was changed
            drawn["attention"] = draw_attention(attention(model, line))
    return drawn


def draw_transitions(
    model: nn.Module, tokenizer: Tokenizer, title: str = "after the row's token, how likely is the column's"
) -> Image.Image:
    """The table of a bigram model: after the token of a row, how likely is that of each column."""
    table = transitions(model)
    names = [name_of(tokenizer.decode([i])) for i in range(len(table))]
    if len(table) > MOST_TOKENS:
        most = table.mean(0).topk(MOST_TOKENS).indices.sort().values  # those that it expects most
        table, names = table[most][:, most], [names[i] for i in most]
    return draw_table(table.sqrt(), names, names, title)


def draw_next_token(model: nn.Module, tokenizer: Tokenizer, line: torch.Tensor) -> Image.Image:
    """Along a line, the token that came, coloured by how much it was expected, and below it the likeliest ones."""
    probabilities = next_logits(model, line[:-1]).softmax(-1)  # (T - 1, V)
    likeliest = probabilities.topk(min(LIKELIEST, probabilities.shape[1]), dim=-1)
    came = line[1:].cpu()[:, None].long()
    ids = torch.cat([came, likeliest.indices], dim=1).T
    values = torch.cat([probabilities.gather(1, came), likeliest.values], dim=1).T
    cells = [[name_of(tokenizer.decode([i])) for i in row] for row in ids.tolist()]
    rows = ["came", *(f"{n}." for n in range(1, len(cells)))]
    return draw_table(values, rows, [""] * len(came), "a line, and what was expected in its place", cells)


def draw_loss(by_position: torch.Tensor, title: str = "loss in nats by position in the context") -> Image.Image:
    """The mean loss at the 1st, 2nd, 3rd and 4th, 5th to 8th ... position of a window.

    It falls as far as the model uses its context. Single positions are too few tokens to tell.
    """
    by_position = by_position.reshape(-1)  # metrics hand out a single position as a scalar
    parts, names, first = [], [], 0
    for last in (2**n for n in range(32)):
        parts.append(by_position[first:last].mean().item())
        names.append(f"{first + 1}-{last}" if last > first + 1 else f"{last}")
        first = last
        if last >= len(by_position):
            break
    return draw_curve(parts, names, title)


def draw_attention(weights: torch.Tensor) -> Image.Image:
    """`(n_layer, n_head, T, T)` weights as a grid of maps: each row of a map looks at the columns."""
    weights = weights[:MOST_MAPS, :MOST_MAPS].sqrt()
    n_layer, n_head, size, _ = weights.shape
    zoom, left, top, gap = max(1, 160 // size), 60, 44, 6
    pitch = size * zoom + gap
    title = "where each token (row) looks (column)"
    canvas = _canvas(top + n_layer * pitch, max(left + n_head * pitch, _width(title) + 8))
    _write(canvas, title, 4, 4)
    for head in range(n_head):
        _write(canvas, f"head {head + 1}", left + head * pitch, 24)
    for layer in range(n_layer):
        _write(canvas, f"layer {layer + 1}", 4, top + layer * pitch)
        for head in range(n_head):
            place = _colours(weights[layer, head]).repeat(zoom, 0).repeat(zoom, 1)
            y, x = top + layer * pitch, left + head * pitch
            canvas[y : y + len(place), x : x + len(place)] = place
    return _image(canvas)


def draw_table(
    values: torch.Tensor, rows: Sequence[str], columns: Sequence[str], title: str, cells: Sequence[Sequence[str]] = ()
) -> Image.Image:
    """`(R, C)` values from 0 to 1 as coloured cells, with a name for each row and column and a text in each cell."""
    widest = max((_width(text) for row in cells for text in row), default=0)
    template, left, top, width, height = _frame(tuple(rows), tuple(columns), title, widest)
    canvas = template.copy()
    field = _colours(values).repeat(height, 0).repeat(width, 1)
    canvas[top : top + field.shape[0], left : left + field.shape[1]] = field
    for r, (row, shades) in enumerate(zip(cells, (values > 0.5).tolist(), strict=False)):
        for c, (text, dark) in enumerate(zip(row, shades, strict=True)):
            _write(canvas, text, left + c * width + width // 2, top + r * height + 2, centre=True, light=dark)
    return _image(canvas)


def draw_curve(values: Sequence[float], names: Sequence[str], title: str) -> Image.Image:
    """Values from left to right as a line, each with its name below and itself above it."""
    pitch, left, top, height = 72, 40, 60, 200
    known = [value for value in values if math.isfinite(value)] or [0.0]  # a model that diverged is drawn all the same
    low, high = min(known), max(known)
    x = [left + pitch * n for n in range(len(values))]
    y = [top + height * (high - value) / max(high - low, 1.0) if math.isfinite(value) else top for value in values]
    image = _image(_canvas(top + height + 60, max(left * 2 + pitch * (len(values) - 1), 320)))
    pen = ImageDraw.Draw(image)
    pen.line([x[0], top + height + 20, x[-1], top + height + 20], fill=INK + 40)
    pen.line(list(zip(x, y, strict=True)), fill=INK * 3 // 4, width=2)
    canvas = np.array(image)
    _write(canvas, title, 4, 4)
    for value, name, at, up in zip(values, names, x, y, strict=True):
        _write(canvas, f"{value:.3f}", at, round(up) - 22, centre=True)
        _write(canvas, name, at, top + height + 28, centre=True)
    return _image(canvas)


def _canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width), PAPER, dtype=np.uint8)


def _image(canvas: np.ndarray) -> Image.Image:
    image = Image.fromarray(canvas, mode="L")
    image.putpalette(PALETTE.tobytes())
    return image


def _colours(values: torch.Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * (INK - 1)).round().byte().numpy()


@lru_cache(maxsize=16)
def _frame(
    rows: tuple[str, ...], columns: tuple[str, ...], title: str, widest: int
) -> tuple[np.ndarray, int, int, int, int]:
    """What stays the same from one step of a training to the next: the names. And where the cells come."""
    size = min(24, max(9, 720 // max(len(rows), len(columns))))
    width, height = max(size, widest + 4), max(size, 20) if widest else size
    left, top = max(_width(name) for name in rows) + 10, 46 if any(columns) else 30
    room = max(left + len(columns) * width, _width(title)) + 8
    canvas = _canvas(top + len(rows) * height + 4, room)
    _write(canvas, title, 4, 4)
    for r, name in enumerate(rows):
        _write(canvas, name, 4, top + r * height + (height - 17) // 2)
    for c, name in enumerate(columns):
        _write(canvas, name, left + c * width + width // 2, top - 19, centre=True)
    return canvas, left, top, width, height


def _write(canvas: np.ndarray, text: str, x: int, y: int, centre: bool = False, light: bool = False) -> None:
    """Put letters onto a canvas, dark or light on what is there; what does not fit is cut."""
    mask, ink = _ink(text, light)
    x, y = x - mask.shape[1] // 2 if centre else x, max(y, 0)
    place = canvas[y : y + mask.shape[0], max(x, 0) : x + mask.shape[1]]
    np.copyto(place, ink[: place.shape[0], : place.shape[1]], where=mask[: place.shape[0], : place.shape[1]])


@lru_cache(maxsize=4096)
def _width(text: str) -> int:
    return max(1, round(_font().getlength(text)))


@lru_cache(maxsize=4096)
def _ink(text: str, light: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where there is ink for the letters of a text, `(17, width)`, and its shades."""
    image = Image.new("L", (_width(text), 17))
    ImageDraw.Draw(image).text((0, 0), text, font=_font(), fill=255)
    letters = np.array(image)
    if light:
        return letters > 100, np.full_like(letters, PAPER)
    return letters > 40, (INK + (PAPER - INK) * (255.0 - letters) / 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 13, layout_engine=ImageFont.Layout.BASIC)  # twice as fast
        except OSError:
            continue
    return ImageFont.load_default(13)  # Latin letters without accents
