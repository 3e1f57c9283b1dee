"""The terminal: the first line, the bar in any width, and lines that fit into 80 columns in both languages."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import QUICK, RECIPES, ROOT, TINY

from minigpt.terminal import FOR_CTRL_C, Bar, compact, on_one_line, wrapped
from minigpt.training.progress import Progress

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
termios = pytest.importorskip("termios")

FIGURES = ["loss 2.345", "3.38 bits/char"]
FRENCH = "fr_FR.UTF-8"
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
@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.full) for n in (signal.SIGTERM, signal.SIGKILL))]
)
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
    assert re.search(r"step 100/100000  train loss \d\.\d{4}  val loss .* tok/s\r?\n", plain(text))
    if number != signal.SIGKILL:
        after = text[text.rindex(" tokens/s") :]
        assert "\x1b[2K" in after.split("Stopped after step")[0], "the bar is wiped"
        assert plain(after).rstrip().endswith("lightning_logs/tiny/version_0")


# A process with this in front ends with status 7 where a package that takes seconds would be imported.
UNTIL_AN_IMPORT = """
import runpy, sys
class Door:
    def find_spec(self, name, path=None, target=None):
        if name in ("gradio", "lightning", "optuna", "torch"):
            sys.exit(7)
sys.meta_path.insert(0, Door())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "locale", "line"),
    [
        (["train", "--config", TINY], "C", "Loading PyTorch and Lightning …"),
        (["train", "--config", TINY], FRENCH, "Chargement de PyTorch et de Lightning …"),
        (["sweep", "--config", TINY, "--space", "space.yaml"], "C", "Loading PyTorch and Lightning …"),
        (["generate"], "C", "Loading PyTorch …"),
        (["evaluate"], "C", "Loading PyTorch …"),
        (["export", "--format", "hf", "--out", "out"], "C", "Loading PyTorch …"),
        (["app"], "C", "Loading Gradio and PyTorch …"),
        (["train", "--help"], "C", ""),
        (["train", "--trainer.callbacks.help=EarlyStopping"], "C", ""),
        (["generate", "--help"], "C", None),
        (["evaluate", "--memorisation", "0"], "C", None),
    ],
)
def test_the_first_line_comes_before_what_takes_seconds(monkeypatch, command, locale, line):
    """None: nothing heavy is loaded, and no line says so."""
    monkeypatch.setenv("LC_MESSAGES", locale)
    name, *args = command
    program = [sys.executable, "-c", UNTIL_AN_IMPORT, str(ROOT / "scripts" / f"{name}.py"), *args]
    done = subprocess.run(program, capture_output=True, encoding="utf-8")
    if line is None:
        assert done.returncode in (0, 2), done.stderr
        assert "Loading" not in done.stderr
    else:
        assert (done.returncode, done.stdout, done.stderr) == (7, "", line and f"{line}\n")


def test_what_is_loaded_is_not_announced(train):
    assert "Loading" not in train("--trainer.max_steps", "1").err


EXPECTED = {
    "C": [
        r"TinyGPT, 6,837 parameters, on cpu",
        r"137,075 tokens to train on, 53 distinct",
        r"run folder lightning_logs/tiny/version_0",
        r"  embedding     a vector of 64 numbers for each of 53 characters  3,392",
        r"  output layer  a score for each of 53 characters, with biases    3,445",
        r"step 1/20  train loss 4\.1208  [\d.]+k? tok/s",
        r"step 10/20  train loss \d\.\d{4}  val loss \d\.\d{4}  bits/char \d\.\d\d  [\d.]+k? tok/s",
        r"    un matin,.{50,}",
        r"step 20/20  train loss \d\.\d{4}  val loss \d\.\d{4}  bits/char \d\.\d\d  [\d.]+k? tok/s",
        r"    un matin,.{50,}",
    ],
    FRENCH: [
        r"TinyGPT, 6\xa0837 paramètres, sur cpu",
        r"137\xa0075 jetons d'entraînement, dont 53 distincts",
        r"dossier lightning_logs/tiny/version_0",
        r"  plongement  64 nombres pour chacun des 53 caractères            3\xa0392",
        r"  sortie      un score pour chacun des 53 caractères, avec biais  3\xa0445",
        r"étape 1/20  perte 4,1208  [\d,]+k? jetons/s",
        r"étape 10/20  perte \d,\d{4}  val\. \d,\d{4}  bits/car\. \d,\d\d  [\d,]+k? jetons/s",
        r"    un matin,.{50,}",
        r"étape 20/20  perte \d,\d{4}  val\. \d,\d{4}  bits/car\. \d,\d\d  [\d,]+k? jetons/s",
        r"    un matin,.{50,}",
    ],
}
SUMMARY = {
    "C": [
        r"validation loss \d\.\d{4} nats per token, \d\.\d{4} bits per character",
        r"  after 20 steps in \d+ s",
        r"baselines in bits per character:",
        r"  uniform 5\.7279  unigram 4\.3328  bigram 3\.3470  xz 2\.6052",
        r"Curves and samples:",
        r"  \S*tensorboard --logdir lightning_logs/tiny/version_0",
        r"More text:",
        r"  .*generate\.py --ckpt_path lightning_logs/tiny/version_0",
    ],
    FRENCH: [
        r"perte de validation : \d,\d{4} nats par jeton, \d,\d{4} bits par caractère",
        r"  après 20 étapes en \d+ s",
        r"valeurs de référence en bits par caractère :",
        r"  uniforme 5,7279  unigramme 4,3328  bigramme 3,3470  xz 2,6052",
        r"Courbes et échantillons :",
        r"  \S*tensorboard --logdir lightning_logs/tiny/version_0",
        r"Encore du texte :",
        r"  .*generate\.py --ckpt_path lightning_logs/tiny/version_0",
    ],
}


@pytest.mark.parametrize("locale", ["C", FRENCH])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_training_fits_into_80_columns_in_both_languages(call, terminal, monkeypatch, locale, is_terminal):
    monkeypatch.setenv("LC_MESSAGES", locale)
    narrow = terminal(80) if is_terminal else None
    result = call(
        "train", "--config", TINY, "--trainer.accelerator", "cpu", "--trainer.max_steps", "20",
        "--validation.every_n_steps", "10", "--samples.every_n_steps", "4", "--trainer.log_every_n_steps", "10",
    )  # fmt: skip
    assert result.status == 0
    drawn = plain(narrow.read()).replace("\r\n", "\n") if is_terminal else result.err
    assert max(len(line) for line in re.split("[\r\n]", drawn)) <= 80
    lines = [line.rpartition("\r")[2] for line in drawn.rstrip("\n").split("\n")]
    matches = [bool(re.fullmatch(*pair)) for pair in zip(EXPECTED[locale], lines, strict=False)]
    assert matches == [True] * 10, lines
    assert ("jetons/s" if locale == FRENCH else "tokens/s") in drawn or not is_terminal
    assert ("écoulé" if locale == FRENCH else "elapsed") in drawn or not is_terminal
    *scores, _, text, rest = result.out.rstrip("\n").split("\n", 6)
    lines = [*scores, *rest.split("\n")[-4:]]
    assert text.startswith("un matin,")
    assert [bool(re.fullmatch(*pair)) for pair in zip(SUMMARY[locale], lines, strict=True)] == [True] * 8, lines
    places = (str(ROOT), str(Path(sys.executable).parent))  # of this machine, of any length
    assert max(len(line) for line in lines if not any(place in line for place in places)) <= 80


@pytest.mark.parametrize("locale", ["C", FRENCH])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_progress_of_every_recipe_fits_into_80_columns(capfd, monkeypatch, recipe, locale):
    monkeypatch.setenv("LC_MESSAGES", locale)
    steps = yaml.safe_load(recipe.read_text(encoding="utf-8"))["trainer"]["max_steps"]
    trainer = SimpleNamespace(
        sanity_checking=False, enable_validation=True,
        global_step=steps, max_steps=steps, callbacks=[],
        callback_metrics={name: torch.tensor(8.3178) for name in ("val/loss", "val/bits_per_char")},
    )  # fmt: skip
    for speed in (2.5, 999, 64_000, 512_000, 9_876_543):
        progress = Progress()
        progress._step, progress._mark, progress._tokens_per_step, progress._bar = steps, (0, 0.0), 1, SimpleNamespace()
        progress._clock = SimpleNamespace(seconds=lambda speed=speed: steps / speed)
        progress._metrics = SimpleNamespace(last_record={"step": steps, "metrics": {"train/loss": 8.3178}})
        progress.on_validation_end(trainer, None)
    lines = capfd.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    speeds = ["2.5", "999", "64k", "512k", "9.9M"]
    unit = "tok/s" if locale == "C" else "jetons/s"
    assert [line.split("  ")[-1].replace(",", ".") for line in lines] == [f"{speed} {unit}" for speed in speeds]


def test_a_number_takes_five_characters_at_most():
    numbers = {0.04: "0.0", 9.94: "9.9", 9.96: "10", 999.4: "999", 1e3: "1.0k", 9960: "10k", 1.2e5: "120k", 2e6: "2.0M"}
    assert {number: compact(number) for number in numbers} == numbers


def test_a_sample_stays_on_its_line():
    assert on_one_line("a\nb\tc\x1b[31m\u202ed\x00 ", 80) == "a↵b c [31m d"
    assert on_one_line("é" * 100, 11) == "é" * 11
    assert on_one_line("猫" * 100, 11) == "猫" * 5, "a character that is two columns wide"


def test_a_text_is_broken_between_words_on_a_terminal_alone(terminal, monkeypatch):
    text = "le soir descend  sur la forêt\n\n  et un oiseau-lyre chante encore"
    narrow = terminal(20)
    assert wrapped(text) == text
    monkeypatch.setattr(sys, "stdout", narrow.file)
    assert wrapped(text).split("\n") == ["le soir descend  sur", "la forêt", "", "  et un oiseau-lyre", "chante encore"]


@pytest.mark.parametrize("locale", ["C", FRENCH])
def test_the_bar_speaks_the_language_of_the_locale(terminal, monkeypatch, locale):
    monkeypatch.setenv("LC_MESSAGES", locale)
    wide = terminal(120)
    with Bar("jetons" if locale == FRENCH else "tokens", 5000, 1000, units_each=1000) as bar:
        for n in (2000, 3000):
            time.sleep(0.01)
            bar.move(n, at_once=True)
        line = last_line(wide)
    english = r"3000/5000  60%  [━─]+  \d+(,\d{3})+ tokens/s  0:0\d elapsed  0:0\d left"
    french = r"3000/5000  60 %  [━─]+  \d+(\xa0\d{3})+ jetons/s  0:0\d écoulé  reste 0:0\d"
    assert re.fullmatch(french if locale == FRENCH else english, line)
