"""The READMEs' recordings: small, well-formed, and drawn as a terminal would show what was written."""

import re
import sys
from xml.etree import ElementTree

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "images"))
import record

RED = "\x1b[38;2;255;0;0m"


def screen_after(*texts):
    screen = record.Screen([])
    for text in texts:
        screen.feed(text)
    return ["".join(char for char, _ in row) for row in screen.rows[1:]]


def test_a_bar_is_overwritten_and_lines_appear_above_it():
    written = ("1/3 ━", "\r\x1b[2Kstep 1\r\n1/3 ━", "\r\x1b[2K2/3 ━━", "\r\n\x1b[1A\x1b[2Kdone\r\n")
    assert screen_after(*written) == ["step 1", "done", ""]


def test_a_long_line_is_wrapped_and_a_no_break_space_is_kept():
    assert screen_after("a" * 80 + "\r\n", "b" * 81) == ["a" * 80, "b" * 80, "b"]
    assert screen_after("6\xa0837") == ["6\xa0837"]


def test_colours_last_until_they_are_reset():
    screen = record.Screen([])
    screen.feed(f"a{RED}b\x1b[0mc\x1b[31md")
    assert [colour for _, colour in screen.rows[1]] == [
        record.FOREGROUND, "#ff0000", record.FOREGROUND, record.COLOURS[1],
    ]  # fmt: skip


def test_what_is_overwritten_is_hidden_at_its_time_and_what_stays_is_shown_without_animation():
    drawing = record.draw(
        [(0.0, "1/2"), (5.0, "\r\x1b[2K2/2"), (10.0, "\r\nend <&>")], ["minigpt", "train"], 10, hold=0
    )
    ElementTree.fromstring(drawing)
    hidden, shown = (
        [
            number
            for kind, number in re.findall(r'<g class="(v[ h]*)" style="animation-name:l(\d+)">', drawing)
            if kind == k
        ]
        for k in ("v h", "v")
    )
    assert len(hidden) == 1
    assert len(shown) == 3  # the command, 2/2 and the end
    assert f"@keyframes l{hidden[0]}{{0.00%{{visibility:visible}}50.00%{{visibility:hidden}}}}" in drawing


@pytest.mark.parametrize("name", ["training.svg", "training.fr.svg"])
def test_a_recording_is_small_and_names_no_folder_of_the_machine(name):
    text = (ROOT / "docs" / "images" / name).read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    shown = "\n".join(ElementTree.fromstring(text).itertext())
    assert "minigpt train --config quick_nano" in shown
    assert not re.search(r"(?<!\S)/\w", shown)
