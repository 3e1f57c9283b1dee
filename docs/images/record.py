"""Record a command in a terminal and draw the recording as an animated SVG.

python docs/images/record.py docs/images/training.svg -- minigpt train --config quick_nano
LC_ALL=fr_FR.UTF-8 python docs/images/record.py docs/images/training.fr.svg -- minigpt train --config quick_nano

The command runs in an empty folder, in a pseudo-terminal of 80 columns. The SVG holds text, not pictures of text: each
line of the terminal is drawn once for every content that it had, and a CSS animation shows each at its time. A viewer
that does not animate shows the last screen. The script needs Python's standard library only, and a Unix system.
"""

import argparse
import codecs
import fcntl
import html
import json
import os
import pty
import re
import shlex
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

COLUMNS, ROWS = 80, 22
CELL, LINE, MARGIN = 8.4, 19, 14  # width of a character, height of a line, space around the screen; in pixels
BACKGROUND, FOREGROUND, PROMPT = "#1e2127", "#d7dae0", "#7fc97f"
COLOURS = ["#5c6370", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d7dae0"]  # ANSI's eight
CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b.")

Event = tuple[float, str]  # the second, and what the terminal received
Cell = tuple[str, str]  # a character and its colour
Row = tuple[Cell, ...]


def record(command: list[str]) -> list[Event]:
    """Run a command in a pseudo-terminal in an empty folder, and return what it wrote, with the times.

    Args:
        command: The program and its arguments.

    Raises:
        SystemExit: The command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(folder)
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS)}
            os.execvp(command[0], command)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        start, events, decoder = time.monotonic(), [], codecs.getincrementaldecoder("utf-8")()
        while chunk := _read(terminal):
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
            events.append((time.monotonic() - start, decoder.decode(chunk)))
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"{shlex.join(command)} ended with status {status}.")
    return events


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux reports that the other end was closed
        return b""


class Screen:
    """The part of a terminal that minigpt's output needs: lines, carriage returns, erasure, colours, cursor up.

    Args:
        first_line: What stands on the screen before the command writes.
    """

    def __init__(self, first_line: list[Cell]):
        self.rows: list[list[Cell]] = [first_line, []]
        self.row, self.column, self.colour = 1, 0, FOREGROUND

    def feed(self, text: str) -> None:
        """Receive what the command writes."""
        position = 0
        for control in CONTROL.finditer(text):
            self._write(text[position : control.start()])
            self._control(control[1] or "", control[2] or "")
            position = control.end()
        self._write(text[position:])

    def _write(self, text: str) -> None:
        for char in text:
            if char == "\r":
                self.column = 0
            elif char == "\n":
                self._move_to(self.row + 1)
            elif char.isprintable() or char == "\xa0":
                if self.column == COLUMNS:
                    self._move_to(self.row + 1)
                    self.column = 0
                row = self.rows[self.row]
                row += [(" ", FOREGROUND)] * (self.column + 1 - len(row))
                row[self.column] = (char, self.colour)
                self.column += 1

    def _move_to(self, row: int) -> None:
        self.row = max(0, row)
        self.rows += [[] for _ in range(self.row + 1 - len(self.rows))]

    def _control(self, numbers: str, letter: str) -> None:
        if letter == "A":
            self._move_to(self.row - int(numbers or 1))
        elif letter == "K":  # 2 erases the whole line, 0 what stands right of the cursor
            del self.rows[self.row][0 if numbers == "2" else self.column :]
        elif letter == "m":
            self._set_colour([int(number or 0) for number in numbers.split(";")])

    def _set_colour(self, codes: list[int]) -> None:
        if codes[:2] == [38, 2]:
            self.colour = "#{:02x}{:02x}{:02x}".format(*codes[2:5])
        elif codes[:2] == [38, 5]:
            self.colour = _of_256(codes[2])
        else:
            for code in codes:
                if code in (0, 39):
                    self.colour = FOREGROUND
                elif 30 <= code <= 37 or 90 <= code <= 97:
                    self.colour = COLOURS[code % 10]


def _of_256(number: int) -> str:
    if number < 16:
        return COLOURS[number % 8]
    if number >= 232:
        return "#{0:02x}{0:02x}{0:02x}".format(8 + 10 * (number - 232))
    levels = (0, 95, 135, 175, 215, 255)
    return "#{:02x}{:02x}{:02x}".format(*(levels[(number - 16) // base % 6] for base in (36, 6, 1)))


def draw(events: Iterable[Event], command: list[str], seconds: float, refresh: float = 0.25, hold: float = 5.0) -> str:
    """Return a recording as an animated SVG.

    Args:
        events: What `record` returned.
        command: What is shown after the prompt on the first line.
        seconds: How long the animation plays; the recording is slowed down or sped up to that.
        refresh: Seconds of the animation between two contents of the screen.
        hold: Seconds for which the last screen stays before the animation begins again.
    """
    events = list(events)
    factor = seconds / events[-1][0]
    first_line = [("$", PROMPT), *((char, FOREGROUND) for char in f" {shlex.join(command)}")]
    screen, shown, versions = Screen(first_line), [], []  # shown: of each row its content and since when
    tops = [(0.0, 0)]
    for now, chunks in groupby(events, lambda event: refresh * round(event[0] * factor / refresh)):
        for _, text in chunks:
            screen.feed(text)
        shown += [((), 0.0)] * (len(screen.rows) - len(shown))
        for number, cells in enumerate(screen.rows):
            content, since = shown[number]
            if tuple(cells) != content:
                versions.append((number, content, since, now))
                shown[number] = (tuple(cells), now)
        top = max(0, screen.row + 1 - ROWS)
        if top != tops[-1][1]:
            tops.append((now, top))
    versions += [(number, content, since, None) for number, (content, since) in enumerate(shown)]
    return _svg([version for version in versions if version[1]], tops, seconds + hold)


def _svg(versions: list[tuple[int, Row, float, float | None]], tops: list[tuple[float, int]], length: float) -> str:
    width, height = COLUMNS * CELL, ROWS * LINE
    lines, keyframes = [], []
    for index, (number, content, since, until) in enumerate(versions):
        frames = ["0%{visibility:hidden}"] * (since > 0) + [f"{100 * since / length:.2f}%{{visibility:visible}}"]
        if until is not None:
            frames.append(f"{100 * until / length:.2f}%{{visibility:hidden}}")
        keyframes.append(f"@keyframes l{index}{{{''.join(frames)}}}")
        kind = "v" if until is None else "v h"
        lines.append(f'<g class="{kind}" style="animation-name:l{index}">{"".join(_line(content, number))}</g>')
    scroll = "".join(f"{100 * at / length:.2f}%{{transform:translateY({-top * LINE}px)}}" for at, top in tops)
    style = f"""
text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}
.v,.s{{animation:{length:g}s step-end infinite}}
.h{{visibility:hidden}}
.s{{animation-name:s;transform:translateY({-tops[-1][1] * LINE}px)}}
@keyframes s{{{scroll}}}
{"".join(keyframes)}
@media (prefers-reduced-motion:reduce){{.v,.s{{animation:none}}}}
"""
    box = f"{width + 2 * MARGIN:g} {height + 2 * MARGIN:g}"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {box}" width="{width + 2 * MARGIN:g}">
<style>{style}</style>
<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>
<svg x="{MARGIN}" y="{MARGIN}" width="{width:g}" height="{height:g}" xml:space="preserve"><g class="s">
{chr(10).join(lines)}
</g></svg></svg>
"""


def _line(content: Row, number: int) -> Iterator[str]:
    """Draw one line: rectangles for the bar, text for the rest, each run of a colour at its column.

    `textLength` keeps the columns where the viewer's font is wider or narrower.
    """
    column = 0
    for (kind, colour), cells in groupby(content, lambda cell: (cell[0] if cell[0] in "━─" else "", cell[1])):
        text = "".join(char for char, _ in cells)
        x, y, width = column * CELL, number * LINE, len(text) * CELL
        column += len(text)
        if kind:
            thickness = 4 if kind == "━" else 2
            yield f'<rect x="{x:.1f}" y="{y + (LINE - thickness) / 2:g}" width="{width:.1f}" height="{thickness}" '
            yield f'fill="{colour}"/>'
        elif text.strip():
            yield f'<text x="{x:.1f}" y="{y + 14}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs" '
            yield f'fill="{colour}">{html.escape(text, quote=False)}</text>'


def main() -> None:
    """Record a command, or read a recording, and write the SVG."""
    parser = argparse.ArgumentParser(description="Record a command in a terminal as an animated SVG.")
    parser.add_argument("svg", type=Path, help="the file to write")
    parser.add_argument("command", nargs="+", help="after --: the command to record")
    parser.add_argument("--seconds", type=float, default=20, help="how long the animation plays")
    parser.add_argument("--recording", type=Path, help="a JSON file to read the recording from, or to keep it in")
    args = parser.parse_args()
    if args.recording and args.recording.exists():
        events = json.loads(args.recording.read_text(encoding="utf-8"))
    else:
        events = record(args.command)
        if args.recording:
            args.recording.write_text(json.dumps(events), encoding="utf-8")
    args.svg.write_text(draw(events, args.command, args.seconds), encoding="utf-8")
    print(f"{args.svg}: {args.svg.stat().st_size / 1000:.0f} kB, {events[-1][0]:.0f} s recorded")


if __name__ == "__main__":
    main()
