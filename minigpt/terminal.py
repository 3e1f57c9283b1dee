"""What fits on a terminal: a bar with the time left, a text on one line, and texts with lines no longer than it is."""

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
MIN_WIDTH, MAX_WIDTH = 6, 40  # columns of the bar proper
BAR, GAP = " " * MIN_WIDTH, "  "  # where it goes, and what stands between two parts of the line
FOR_CTRL_C = 3  # columns left free at the end, so that the ^C which a terminal shows there starts no line of its own


class Bar(Progress):
    """One line at the foot of the terminal, with what its width has room for; nothing where stderr is no terminal.

    What is printed to stderr meanwhile appears above it, as it is. There is no thread: the line is drawn when the work
    moves on, ten times a second at most.

    Args:
        unit: What the speed is counted in.
        total: How much there is to do; None if that is not known.
        completed: How much is done already, which tells nothing about the speed.
        units_each: How many units one of `total` stands for.
        label: What comes first.
        figures: Gives what else to show, the most important first.
        silent: Show nothing, on a terminal either.
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
        # Asked here, because rich would take FORCE_COLOR, which many a CI sets, for a terminal.
        terminal = _is_terminal(sys.stderr)
        console = Console(
            stderr=True, force_terminal=terminal, force_jupyter=False, markup=False, emoji=False, highlight=False,
            soft_wrap=True,
        )  # fmt: skip
        super().__init__(
            console=console, auto_refresh=False, transient=True, redirect_stdout=_is_terminal(sys.stdout),
            speed_estimate_period=math.inf,  # of rich's last 1,000 samples: a step may take longer than any period
            disable=silent or not (terminal and console.is_interactive),  # a dumb one is not
        )  # fmt: skip
        self._unit, self._units_each, self._label, self._figures = unit, units_each, label, figures
        self._due = 0.0
        self._task = self.add_task(label, total=total, completed=completed)

    def start(self) -> None:
        """Show the line."""
        super().start()
        if not self.disable:
            self.console.show_cursor()  # rich hides it, and a process that is killed could not bring it back

    def stop(self) -> None:
        """Wipe the line."""
        if not self.disable:  # of a bar that was never shown, some versions of rich end the line
            super().stop()

    def move(self, completed: int, at_once: bool = False) -> None:
        """Say how much is done; the line is drawn again if that is due, or `at_once`."""
        now = time.monotonic()
        if at_once or now >= self._due:
            self._due = now + REFRESH_SECONDS
            self.update(self._task, completed=completed, refresh=True)

    def get_renderables(self) -> Iterator[Text]:
        """The line, without those of its parts that the terminal is too narrow for."""
        for task in self.tasks:
            parts, room = self._parts(task), self.console.width - FOR_CTRL_C
            while (spare := room - len(GAP.join(text for _, text in parts))) < 0 and len(parts) > 1:
                parts.remove(max(parts))
            # Text and no table of columns, which would take rich three times as long.
            yield Text(GAP, no_wrap=True, overflow="ellipsis").join(
                _drawn(task, min(MAX_WIDTH, MIN_WIDTH + spare)) if text == BAR else Text(text) for _, text in parts
            )

    def _parts(self, task: Task) -> list[tuple[int, str]]:
        """What the line could hold, from left to right; the higher the number, the sooner it is left out."""
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
    """Return the beginning of a text in at most `width` columns: line breaks as ↵, other control characters as blanks.

    Args:
        text: Any text, such as what a model has written.
        width: The columns that there are.
    """
    shown = Text("".join("↵" if char == "\n" else char if char.isprintable() else " " for char in text))
    shown.truncate(width)
    return shown.plain.rstrip()


def wrapped(text: str) -> str:
    """Return a text whose lines fit the terminal, broken between words; unchanged where stdout is not a terminal."""
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
