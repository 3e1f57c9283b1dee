"""Figures of a comparison: curves with bands over seeds, differences with intervals, and loss by position."""

from collections.abc import Sequence

import numpy as np

from minigpt import runs
from minigpt.comparison.sides import Side, by_position, compare_sides
from minigpt.inspection.canvas import PALE, Picture
from minigpt.inspection.curves import read_curves
from minigpt.words import message

COLOURS = ("#366aa7", "#d9772b", "#4a9a6b", "#8a5aa8", "#b5485d", "#6b6b6b")  # differ in lightness too


def draw_all(sides: Sequence[Side]) -> dict[str, Picture]:
    """Return the figures of a comparison by their names; that of the curves only if a run has recorded some."""
    pictures = {"intervals": draw_intervals(sides), "positions": draw_positions(sides)}
    if curves := draw_curves(sides):
        pictures["curves"] = curves
    return pictures


def draw_curves(sides: Sequence[Side]) -> Picture | None:
    """Return the validation curves: the mean over seeds, in a band from the least to the greatest."""
    picture = Picture(7, 4.2)
    axes = picture.add_subplot()
    drawn = False
    for side, colour in zip(sides, COLOURS * len(sides), strict=False):
        folders = {runs.run_of(run.file.absolute()) for run in side.runs}
        curves = [dict(read_curves(folder).scalars.get("val/bits_per_char", [])) for folder in folders if folder]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if not steps:
            continue
        values = np.array([[curve[step] for step in steps] for curve in curves])
        axes.plot(steps, values.mean(0), color=colour, label=side.name, linewidth=2)
        if len(values) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.25, linewidth=0)
        drawn = True
    _label(picture, "compare_step", "compare_bits_axis")
    return picture if drawn else None


def draw_intervals(sides: Sequence[Side]) -> Picture:
    """Return the difference of each side to the first, with its 95 % interval."""
    picture = Picture(7, 1.2 + 0.5 * (len(sides) - 1))
    axes = picture.add_subplot()
    axes.axvline(0, color=PALE)
    for row, side in enumerate(sides[1:]):
        found = compare_sides(sides[0], side)
        width = found.half_width if np.isfinite(found.half_width) else 0.0
        axes.errorbar(found.mean, -row, xerr=width, fmt="o", color=COLOURS[0], capsize=4)
    axes.set_yticks([-row for row in range(len(sides) - 1)], [side.name for side in sides[1:]])
    axes.set_ylim(-len(sides) + 1.5, 0.5)
    axes.set_xlabel(message("compare_difference_axis", sides[0].name))
    picture.tight_layout()
    return picture


def draw_positions(sides: Sequence[Side]) -> Picture:
    """Return the mean loss at each position of the context."""
    picture = Picture(7, 4.2)
    axes = picture.add_subplot()
    for side, colour in zip(sides, COLOURS * len(sides), strict=False):
        bits = by_position(side)
        axes.plot(np.arange(1, len(bits) + 1), bits, color=colour, label=side.name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _label(picture, "compare_position_axis", "compare_token_bits_axis")
    return picture


def _label(picture: Picture, horizontal: str, vertical: str) -> None:
    """Name the axes, and the curves if there are any."""
    (axes,) = picture.axes
    axes.set_xlabel(message(horizontal))
    axes.set_ylabel(message(vertical))
    if axes.has_data():
        axes.legend(frameon=False)
    picture.tight_layout()
