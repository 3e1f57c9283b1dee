"""The curves and samples of a run, as HTML."""

import math
from collections.abc import Sequence
from html import escape

import gradio as gr

from minigpt.app.visitors import language_of, say
from minigpt.inspection.curves import Curves
from minigpt.words import message

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 30, 122, 26, 36  # margins around the curves; the right one holds their names
LINE = 15  # least distance between two names
MOST_POINTS = 400  # of a curve
MOST_SAMPLES = 30
SAMPLE = "samples/top_k_top_p"
BASELINES = "val_baselines/"

Points = list[tuple[int, float]]


def draw(curves: Curves, max_steps: int, request: gr.Request | None) -> str:
    """Return the curves of bits per character as SVG, with the baselines as lines and each name beside its last value.

    Args:
        curves: The curves of a run.
        max_steps: The right end of the axis of steps, unless the curves are longer.
        request: The visitor, for the language.

    Returns:
        The HTML; empty if there is no curve of bits per character yet.
    """
    language = language_of(request)
    names = {tag: message(name, language=language) for tag, name in
             (("train/bits_per_char", "chart_train"), ("val/bits_per_char", "chart_val"))}  # fmt: skip
    lines = {tag: _finite(curves.scalars.get(tag, [])) for tag in names}
    if not any(lines.values()):
        return ""
    baselines = {
        tag.removeprefix(BASELINES): points[-1][1]
        for tag, points in curves.scalars.items()
        if tag.startswith(BASELINES) and _finite(points)
    }
    values = [value for points in lines.values() for _, value in points] + list(baselines.values())
    low, high = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2) / 2
    high = max(high, low + 0.5)
    end = max(1, max_steps, *(points[-1][0] for points in lines.values() if points))

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / end

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = []
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{x(end):.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(LEFT - 5, y(tick) + 4, message("tick", tick, language=language), "end"))
    for tick in _ticks(0, end):
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 15, message("number", round(tick), language=language), "middle"))
    parts.append(_text(x(end), HEIGHT - 5, message("chart_x", language=language), "end"))
    parts.append(_text(0, 12, message("chart_y", language=language), "start"))
    labels = []
    for name, value in baselines.items():
        parts.append(f'<line class="baseline" x1="{LEFT}" x2="{x(end):.1f}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        known = name if name in ("uniform", "unigram", "bigram", "xz") else None
        labels.append((value, message(known, language=language) if known else name, "baseline"))
    for tag, points in lines.items():
        kind = tag.partition("/")[0]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _fewer(points))
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        if kind == "val":
            parts += [f'<circle class="val" cx="{x(s):.1f}" cy="{y(v):.1f}" r="3"/>' for s, v in _fewer(points)]
        if points:
            labels.append((points[-1][1], names[tag], kind))
    labels.sort(key=lambda label: -label[0])
    for (value, name, kind), height in zip(labels, _apart([y(value) for value, *_ in labels]), strict=True):
        parts.append(
            _text(x(end) + 6, height + 4, message("chart_point", name, value, language=language), "start", kind)
        )
    title = escape(f"{message('chart_y', language=language)}, {', '.join(names.values())}")
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


def samples(curves: Curves, request: gr.Request | None) -> str:
    """Return the samples of a run, the newest first, each with its step and the validation's score at that step."""
    scores = dict(curves.scalars.get("val/bits_per_char", []))
    parts = []
    for step, text in reversed(curves.texts.get(SAMPLE, [])[-MOST_SAMPLES:]):
        score = scores.get(step)
        head = say(request, "sample_head", step) if score is None else say(request, "sample_bits", step, score)
        parts.append(f"<figure><figcaption>{escape(head)}</figcaption><pre>{escape(text)}</pre></figure>")
    return f'<div class="samples">{"".join(parts)}</div>' if parts else ""


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _finite(points: Points) -> Points:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _fewer(points: Points) -> Points:
    """Return at most `MOST_POINTS` points, among them the last one."""
    every = math.ceil(len(points) / MOST_POINTS) or 1
    return points[::-1][::every][::-1]


def _ticks(low: float, high: float) -> list[float]:
    """Return at most six round numbers between two numbers."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if isinstance(low, int):
        step = max(1, step)
    return [step * n for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _apart(heights: Sequence[float]) -> list[float]:
    """Return ascending heights moved so that neighbours are at least `LINE` apart, and all are within the picture."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + LINE if moved else TOP))
    bottom = HEIGHT - BOTTOM + 4
    for n in range(len(moved) - 1, -1, -1):
        moved[n] = min(moved[n], bottom - LINE * (len(moved) - 1 - n))
    return moved
