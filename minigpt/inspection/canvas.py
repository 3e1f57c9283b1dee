"""The parts of figures: a picture, a grid of cells with named rows and columns, texts and colours, by matplotlib.

Nothing here touches `pyplot` or its global state, and no token is read as mathematical notation.
"""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.image import AxesImage
from matplotlib.textpath import text_to_path
from matplotlib.transforms import ScaledTranslation

from minigpt.words import message

DPI, PRINT_DPI = 110, 180  # pixels per inch in TensorBoard and on the page, and in files
LONGEST_NAME = 12  # characters of a token
PAGE = 9.0  # inches of a figure that is seen at its own size
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


def picture_of_cells(
    n_rows: int, n_columns: int, width: float, height: float, rows: Sequence[str], columns: Sequence[str],
    title: str, size: float | None = None, top: float = 0.0,
) -> tuple[Picture, Axes]:  # fmt: skip
    """Return a figure with room for cells of a size in inches, in whose axes cell (r, c) has its centre at y=r, x=c.

    The rows' names are at the left, the columns' below, upright where they are short. Names are texts and not ticks,
    which would take twice the time.
    """
    size = size or 72 * height * 0.75  # points
    rows, columns = ([drawable_name(name) for name in names] for names in (rows, columns))
    title = drawable_name(title, longest=None)
    turned = any(width_of(name, size) > width for name in columns)
    below = max((width_of(name, size) if turned else size / 60 for name in columns), default=0)
    zoom = max(1.0, (n_columns * width + 1.4) / PAGE)
    left = 0.4 * zoom + 0.1 + max(width_of(name, size) for name in rows)
    bottom, head, right = 0.25 * zoom + 0.1 + below, 0.45 * zoom + top, 0.9 * zoom
    wide = max(left + n_columns * width + right, 0.3 + width_of(title, 11 * zoom))
    high = bottom + n_rows * height + head
    picture = Picture(wide, high)
    axes = picture.add_axes((left / wide, bottom / high, n_columns * width / wide, n_rows * height / high))
    axes.set(xlim=(-0.5, n_columns - 0.5), ylim=(n_rows - 0.5, -0.5), xticks=[], yticks=[], autoscale_on=False)
    axes.spines[:].set_visible(False)
    for y, name in enumerate(rows):
        put_text(axes, -0.5 - 0.05 / width, y, name, size, ha="right")
    for x, name in enumerate(columns):
        if turned:
            put_text(axes, x, n_rows - 0.5 + 0.05 / height, name, size, va="top", rotation=90)
        else:
            put_text(axes, x, n_rows - 0.5 + size / 120 / height, name, size)
    picture.text(0.12 / wide, 1 - 0.12 / high, title, fontsize=11 * picture.zoom, va="top", **text_style())
    axes.xaxis.set_label_coords(0.5, -(bottom - 0.1) / (n_rows * height))
    axes.yaxis.set_label_coords(-(left - 0.1) / (n_columns * width), 0.5)
    return picture, axes


def paint(axes: Axes, values: torch.Tensor, top: int = 0) -> AxesImage:
    """Colour the cells from row `top` on by `(R, C)` values from 0 to 1; NaN stays white."""
    n_rows, n_columns = values.shape
    extent = (-0.5, n_columns - 0.5, top + n_rows - 0.5, top - 0.5)
    return axes.imshow(values.numpy(), SCALE, SHADES, aspect="auto", interpolation="nearest", extent=extent)


def label_axes(axes: Axes, rows: str, columns: str) -> None:
    """Name what the rows and the columns of cells are."""
    zoom = cast(Picture, axes.figure).zoom
    axes.set_ylabel(rows, fontsize=9 * zoom, va="top")
    axes.set_xlabel(columns, fontsize=9 * zoom, va="bottom")


def add_colour_bar(picture: Picture, image: AxesImage, label: str, language: str | None) -> None:
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


def put_text(axes: Axes, x: float, y: float, text: str, size: float, **how: Any) -> None:
    """Write a text whose small letters have their centre at (x, y), so that all texts of a row share a base line."""
    if text:
        shift = ScaledTranslation(0, -0.36 * size / 72 * ("va" not in how), axes.figure.dpi_scale_trans)
        transform = how.pop("transform", axes.transData) + shift
        axes.text(x, y, text, fontsize=size, transform=transform, **text_style() | {"ha": "center"} | how)


def text_style() -> dict[str, Any]:
    """Return how matplotlib is to draw a text."""
    return {"family": _families(), "parse_math": False}


@cache
def _families() -> list[str]:
    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(font for font in FONTS if font in installed)]


@cache
def _has_glyph(char: str) -> bool:
    return any(get_font(findfont(family)).get_char_index(ord(char)) for family in _families())


def drawable_name(name: str, longest: int | None = LONGEST_NAME) -> str:
    """Return a name cut to a number of characters, with a box for each that no font here has."""
    name = name if longest is None or len(name) <= longest else name[: longest - 1] + "…"
    return "".join(char if _has_glyph(char) else MISSING for char in name)


@cache
def width_of(text: str, size: float) -> float:
    """Return the width of a text in inches, at a size in points."""
    font = FontProperties(family=_families(), size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72
