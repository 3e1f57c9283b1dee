"""Texts of several models side by side: the same prompt, seed and sampling parameters for each."""

import shutil
import textwrap
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from typing import Any

from minigpt import loading
from minigpt.command_line import PROMPTS, SAMPLING
from minigpt.comparison.sides import Side
from minigpt.words import message

TOKENS = 200
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:1.5rem;color:#1d2430;background:#fcfbf8}"
    "table{border-collapse:collapse;width:100%;table-layout:fixed}"
    "th,td{text-align:left;vertical-align:top;padding:.5rem .75rem;border-bottom:1px solid #d9d6cd}"
    "td{white-space:pre-wrap;overflow-wrap:anywhere}"
    "@media (prefers-color-scheme:dark){body{color:#e8eaed;background:#14181f}th,td{border-color:#39424f}}"
)


def draw(sides: Sequence[Side], n: int, allow_code: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return `n` rows, each with a prompt, a seed and the text of each side's first run.

    Args:
        sides: The sides.
        n: The number of rows; the prompts take turns.
        allow_code: Modules outside minigpt whose networks may be imported.
    """
    models = [loading.load(side.runs[0].file, allow_code=allow_code) for side in sides]
    rows = []
    for seed in range(n):
        prompt = PROMPTS[seed % len(PROMPTS)]
        texts = [lm.generate(prompt, TOKENS, unknown="skip", seed=seed, **SAMPLING) for lm in models]
        rows.append({"prompt": prompt, "seed": seed, "texts": texts})
    return rows


def as_lines(sides: Sequence[Side], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows as columns of text, as wide as the terminal."""
    width = max(20, (shutil.get_terminal_size().columns - 3 * (len(sides) - 1)) // len(sides))
    lines = [" | ".join(f"{side.name[-width:]:{width}}" for side in sides)]
    for row in rows:
        lines += ["", message("seed", row["seed"])]
        columns = [
            [part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]] for text in row["texts"]
        ]
        lines += [" | ".join(f"{cell:{width}}" for cell in cells) for cells in zip_longest(*columns, fillvalue="")]
    return lines


def as_html(sides: Sequence[Side], rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a page with one column for each side."""
    heads = "".join(f"<th>{escape(side.name)}</th>" for side in sides)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row['texts'])}</tr>"
        for row in rows
    )  # fmt: skip
    return (
        '<!doctype html><html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>minigpt compare</title><style>{STYLE}</style></head>"
        f"<body><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></body></html>"
    )
