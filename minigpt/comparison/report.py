"""The report of a comparison: as plain values, and as lines in the language of the locale."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from minigpt.comparison.sides import Side, by_kind, by_position, compare_sides, differing_settings, passages
from minigpt.inspection.introspection import name_of
from minigpt.terminal import compact
from minigpt.words import message

COLUMNS = (("bits", 16), ("loss", 8), ("parameters", 12), ("tokens", 9), ("seconds", 9))  # and their widths


def as_json(sides: Sequence[Side]) -> dict[str, Any]:
    """Return a comparison as plain values: the sides, the settings that differ, and the differences to the first."""
    return {
        "characters": len(sides[0].runs[0].text),
        "sides": [_side_as_json(side) for side in sides],
        "settings": differing_settings(sides),
        "differences": [_difference_as_json(sides[0], side) for side in sides[1:]],
    }


def _side_as_json(side: Side) -> dict[str, Any]:
    scored = zip(side.runs, side.scores, strict=True)
    return {
        "name": side.name, "bits_per_char": float(np.mean(side.scores)), "deviation": deviation(side.scores),
        "runs": [{"name": run.name, "bits_per_char": float(score), **run.figures} for run, score in scored],
        "by_position": by_position(side).tolist(),
    }  # fmt: skip


def _difference_as_json(first: Side, second: Side) -> dict[str, Any]:
    found = compare_sides(first, second)
    return {
        "from": first.name, "to": second.name, **asdict(found), "half_width": found.half_width, "clear": found.clear,
        "by_kind": by_kind(first, second),
        "passages": [{"difference": gain, "text": text} for gain, text in passages(first, second)],
    }  # fmt: skip


def deviation(scores: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds; None for one run."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def as_lines(sides: Sequence[Side]) -> list[str]:
    """Return a comparison as the lines of a report, in the language of the locale."""
    width = max(len(side.name) + (4 if len(side.runs) > 1 else 0) for side in sides) + 1
    lines = [f"{'':{width}}" + "".join(f"{message(f'compare_{name}'):>{n}}" for name, n in COLUMNS)]
    for side in sides:
        spread = deviation(side.scores)
        score = message("compare_score", float(np.mean(side.scores)))
        score += f" ± {message('compare_score', spread)}" if spread is not None else ""
        cells = [score, *(_cell(name, [run.figures[name] for run in side.runs]) for name, _ in COLUMNS[1:])]
        label = side.name + (f" ({len(side.runs)})" if len(side.runs) > 1 else "")
        lines.append(f"{label:{width}}" + "".join(f"{cell:>{n}}" for cell, (_, n) in zip(cells, COLUMNS, strict=True)))
    for side in sides[1:]:
        lines += ["", *_verdict(sides[0], side)]
    if settings := differing_settings(sides):
        lines += ["", message("compare_settings"), *(f"  {name}: {_each(values)}" for name, values in settings.items())]
    for side in sides[1:]:
        kinds = by_kind(sides[0], side)
        lines += ["", message("compare_kinds", side.name, sides[0].name)]
        lines += [
            f"  {message(f'kind_{kind}'):28}{message('compare_change', change):>9}" for kind, change in kinds.items()
        ]
        lines += ["", message("compare_passages", side.name, sides[0].name)]
        for change, text in passages(sides[0], side):
            lines.append(f"  {message('compare_change', change):>7}  {name_of(text)}")
    return lines


def _cell(name: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "?"
    mean = float(np.mean(known))
    if name == "loss":
        return message("compare_loss_value", mean)
    return message("number", round(mean)) if name == "seconds" else compact(mean)


def _each(values: Sequence[Any]) -> str:
    return "  |  ".join(", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)


def _verdict(first: Side, second: Side) -> list[str]:
    """Return what can be said about two sides, in sentences."""
    found = compare_sides(first, second)
    n_seeds = sorted({len(first.runs), len(second.runs)})
    better, worse = (second.name, first.name) if found.mean < 0 else (first.name, second.name)
    if found.clear:
        lines = [message("verdict_clear", better, worse, abs(found.mean), found.half_width)]
    else:
        lines = [message("verdict_unclear", second.name, first.name, abs(found.mean), found.half_width)]
    if found.seeds is None:
        lines.append(message("verdict_one_seed"))
    elif n_seeds[0] == 1:
        lines.append(message("verdict_one_side"))
    if found.clear or not found.mean:
        return lines
    if found.needed:
        lines.append(message("verdict_needed", found.needed))
    elif abs(found.mean) > found.text:
        lines.append(message("verdict_never"))
    elif math.isfinite(found.text):  # this text cannot tell them apart, with however many seeds
        characters = len(first.runs[0].text) * (found.text / abs(found.mean)) ** 2
        lines.append(message("verdict_text", float(f"{characters:.1g}")))
    return lines
