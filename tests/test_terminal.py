"""The bar: what it shows on a terminal of which width, what it leaves alone, and how it goes."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import QUICK, ROOT, TINY

from minigpt.terminal import FOR_CTRL_C, Bar

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
termios = pytest.importorskip("termios")

FIGURES = ["loss 2.345", "3.38 bits/char"]
NEVER = r"(?!)"
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"  # the cursor


class Terminal:
    """A pseudo-terminal; `file` writes to it, and `written` is what it was given so far."""

    def __init__(self, columns: int):
        self.end, other = pty.openpty()
        termios.tcsetwinsize(other, (30, columns))
        self.file = os.fdopen(other, "w", encoding="utf-8")
        self.raw = b""

    def read(self, until: str = "") -> str:
        """Read what is there, on until a pattern is found or nobody can write any more; all that was written so far."""
        os.set_blocking(self.end, False)
        for _ in range(1200):
            try:
                while some := os.read(self.end, 1 << 16):
                    self.raw += some
            except BlockingIOError:
                if re.search(until, plain(self.written)):
                    break
                time.sleep(0.05)
            except OSError:
                break
        return self.written

    @property
    def written(self) -> str:
        return self.raw.decode(errors="ignore")


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(columns)`: a Terminal that is now standard error."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    opened = []

    def terminal(columns: int) -> Terminal:
        made = Terminal(columns)
        opened.append(made)
        monkeypatch.setenv("COLUMNS", str(columns))  # rich asks the process's own standard streams, which are others
        monkeypatch.setattr(sys, "stderr", made.file)
        return made

    yield terminal
    for made in opened:
        made.file.close()
        os.close(made.end)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def last_line(terminal: Terminal) -> str:
    return plain(terminal.read()).split("\r")[-1].strip()


def test_a_narrow_terminal_gets_what_matters_most(terminal):
    shown = {}
    for columns in (120, 80, 60, 40, 24):
        wide = terminal(columns)
        with Bar("tokens", 500, 300, units_each=256, figures=lambda: FIGURES) as bar:
            for n in range(301, 304):
                time.sleep(0.01)
                bar.move(n, at_once=True)
            shown[columns] = last_line(wide)
            assert len(shown[columns]) <= columns - FOR_CTRL_C
            assert "\n" not in wide.read().replace("\r\n", "", 1)
    for words in ("303/500", "61%", "━", *FIGURES, " tokens/s", " elapsed", " left"):
        assert words in shown[120]
    for words in ("61%", *FIGURES, " left"):
        assert words in shown[60]
    assert "elapsed" not in shown[80]
    assert shown[40].startswith("303/500  loss 2.345")
    assert re.fullmatch(r"303/500  0:\d\d left", shown[24])


def test_the_time_left_does_not_count_what_was_done_before(terminal):
    wide = terminal(120)
    with Bar("tokens", 1000, 900) as bar:
        for n in range(901, 905):
            time.sleep(0.2)
            bar.move(n)
        line = last_line(wide)
    minutes, seconds = re.search(r"(\d+):(\d\d) left", line).groups()
    assert 15 <= 60 * int(minutes) + int(seconds) < 120, line  # 96 steps of 0.2 s or, on a busy machine, a little more


def test_the_line_is_drawn_ten_times_a_second_at_most(terminal):
    wide = terminal(120)
    started = time.monotonic()
    with Bar("tokens", 100_000) as bar:
        for n in range(20_000):
            bar.move(n)
        drawn = wide.read().count("elapsed")
        assert 1 <= drawn <= 2 + 10 * (time.monotonic() - started)


def test_what_is_printed_meanwhile_stands_above_as_it_is(terminal):
    narrow = terminal(40)
    text = "[bold]42[/bold] :smile: '/a/path' " + "a long line " * 10 + "and its end"
    with Bar("tokens", 10):
        print(text, file=sys.stderr, flush=True)
        assert text in narrow.read()
    assert sys.stderr is narrow.file


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_what_the_terminal_cannot_or_shall_not_do_is_respected(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    wide = terminal(120)
    with Bar("tokens", 10) as bar:
        bar.move(5, at_once=True)
        print("a note", file=sys.stderr, flush=True)
    text = wide.read()
    assert "a note" in text
    assert not re.search(r"\x1b\[[0-9;]*3\dm", text), "a colour"
    if name == "TERM":
        assert text == "a note\r\n"


def test_where_there_is_no_terminal_there_is_no_bar(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Bar("tokens", 10) as bar:
        bar.move(5, at_once=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_training_on_a_terminal_shows_a_bar_and_leaves_it_clean(terminal, number):
    wide = terminal(110)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", TINY, *QUICK]
    command += ["--trainer.max_steps", "100000"]
    process = subprocess.Popen(command, stderr=wide.file, stdout=subprocess.DEVNULL)
    wide.file.close()
    parts = r"loss \d\.\d{3}  \d\.\d\d bits/char  [\d,]+ tokens/s  (0:\d\d elapsed  )?[\d:]+ left"
    try:
        seen = plain(wide.read(rf"\d+/100000  \d+%  [━─]+  {parts}(.|\n)*step 200/"))
        assert re.search(parts, seen), seen
        process.send_signal(number)
        text = wide.read(NEVER)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 128 + number)
    finally:
        process.kill()
    assert text.rindex(SHOWN) > text.rindex(HIDDEN)
    assert re.search(r"step 100/100000  train loss \d\.\d{4}  val loss .* tokens/s\r?\n", plain(text))
    if number != signal.SIGKILL:
        after = text[text.rindex(" tokens/s") :]
        assert "\x1b[2K" in after.split("Stopped after step")[0], "the bar is wiped"
        assert plain(after).rstrip().endswith("lightning_logs/tiny/version_0")
