"""Terminal output that fits the width: a progress bar, a text on one line, and wrapped text."""

import math
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, Task
from rich.text import Text

from minigpt.words import message

REFRESH_SECONDS = 0.1
MIN_WIDTH, MAX_WIDTH = 6, 40  # columns of the bar without its labels
BAR, GAP = " " * MIN_WIDTH, "  "  # a placeholder for the bar, and the separator between parts of the line
FOR_CTRL_C = 3  # free columns at the end, so that the ^C that a terminal prints there does not start a new line


class Bar(Progress):
    """A progress line at the bottom of the terminal, fitted to its width; silent if stderr is not a terminal.

    Text printed to stderr meanwhile appears above the line, unchanged. The line has no thread of its own: it is drawn
    when `move` is called, at most ten times a second.

    Args:
        unit: The unit of the speed.
        total: The number of items to do; None if unknown.
        completed: The number of items done before, which do not count for the speed.
        units_each: The number of units per item.
        label: The text at the beginning.
        figures: Returns more texts to show, the most important first.
        silent: Whether to show nothing, even on a terminal.
    """

    def __init__(
        self,
        unit: str,
        total: int | None = None,
        completed: int = 0,
        units_each: int = 1,
        label: str = "",
        figures: Callable[[], Iterable[str]] = tuple,
        silent: bool = False,
    ):
        # Checked here, because rich would take FORCE_COLOR, which many CI services set, for a terminal.
        terminal = _is_terminal(sys.stderr)
        console = Console(
            stderr=True, force_terminal=terminal, force_jupyter=False, markup=False, emoji=False, highlight=False,
            soft_wrap=True,
        )  # fmt: skip
        super().__init__(
            console=console, auto_refresh=False, transient=True, redirect_stdout=_is_terminal(sys.stdout),
            speed_estimate_period=math.inf,  # rich then uses its last 1,000 samples, however long a step takes
            disable=silent or not (terminal and console.is_interactive),  # a dumb terminal is not interactive
        )  # fmt: skip
        self._unit, self._units_each, self._label, self._figures = unit, units_each, label, figures
        self._due = 0.0
        self._task = self.add_task(label, total=total, completed=completed)

    def start(self) -> None:
        """Show the line."""
        super().start()
        if not self.disable:
            self.console.show_cursor()  # rich hides it, and a killed process would leave it hidden

    def stop(self) -> None:
        """Remove the line."""
        if not self.disable:  # some versions of rich print a line break for a bar that was never shown
            super().stop()

    def move(self, completed: int, at_once: bool = False) -> None:
        """Set the number of completed items, and redraw the line if that is due, or `at_once`."""
        now = time.monotonic()
        if at_once or now >= self._due:
            self._due = now + REFRESH_SECONDS
            self.update(self._task, completed=completed, refresh=True)

    def get_renderables(self) -> Iterator[Text]:
        """Yield the line, without the parts that do not fit the terminal."""
        for task in self.tasks:
            parts, room = self._parts(task), self.console.width - FOR_CTRL_C
            while (spare := room - len(GAP.join(text for _, text in parts))) < 0 and len(parts) > 1:
                parts.remove(max(parts))
            # Plain text, since rich takes three times as long for a table of columns.
            yield Text(GAP, no_wrap=True, overflow="ellipsis").join(
                _drawn(task, min(MAX_WIDTH, MIN_WIDTH + spare)) if text == BAR else Text(text) for _, text in parts
            )

    def _parts(self, task: Task) -> list[tuple[int, str]]:
        """Return the parts of the line from left to right; parts with the highest numbers are left out first."""
        completed, speed = int(task.completed), task.speed
        parts = [(0, f"{self._label} {completed}".lstrip() + (f"/{int(task.total)}" if task.total else ""))]
        if task.total:
            parts += [(92, message("percent", task.percentage)), (94, BAR)]
        parts += enumerate(self._figures(), 2)
        if speed:
            parts.append((93, message("bar_speed", speed * self._units_each, self._unit)))
        parts.append((95, message("elapsed", _clock(task.elapsed or 0))))
        if speed and task.total:
            parts.append((1, message("remaining", _clock((task.total - completed) / speed))))
        return parts


def on_one_line(text: str, width: int) -> str:
    """Return the beginning of a text in `width` columns, with line breaks as ↵ and control characters as spaces.

    Args:
        text: Any text, such as a sample of a model.
        width: The number of columns.
    """
    shown = Text("".join("↵" if char == "\n" else char if char.isprintable() else " " for char in text))
    shown.truncate(width)
    return shown.plain.rstrip()


def wrapped(text: str) -> str:
    """Return a text with its lines wrapped to the terminal; unchanged if stdout is not a terminal."""
    if not _is_terminal(sys.stdout):
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(line, width, expand_tabs=False, replace_whitespace=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def compact(number: float) -> str:
    """Return a number in at most five characters, with k for thousands and M for millions."""
    for factor, name in ((1e6, "million"), (1e3, "thousand")):
        if number >= factor:
            return message(name, compact(number / factor))
    return message("decimal", number) if number < 9.95 else f"{number:.0f}"


def _drawn(task: Task, width: int) -> Text:
    done = int(width * task.percentage / 100)
    return Text.assemble(("━" * done, "bar.complete"), ("─" * (width - done), "bar.back"))


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
