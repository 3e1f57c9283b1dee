"""What the tests share: a working folder of their own, and commands called as a shell would call them."""

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

if "PYTEST_XDIST_WORKER" in os.environ:  # each of several processes takes one core; torch reads this as it starts
    os.environ["OMP_NUM_THREADS"] = "1"

os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "all"  # else it would warn once a process, of whichever call is first

import pytest
import torch
from filelock import FileLock

from minigpt import commands

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(set((ROOT / "configs").rglob("*.yaml")) - set((ROOT / "configs" / "sweeps").iterdir()))
STARTS = [recipe for recipe in RECIPES if "--init_from" in recipe.read_text(encoding="utf-8")]  # without a network
TINY = str(ROOT / "configs" / "tiny.yaml")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUICK = ["--trainer.accelerator", "cpu", "--samples.every_n_steps", "0", "--figures.every_n_steps", "0"]


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in an empty folder with a cache folder in it, in English, on as many threads as there were."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    for name in ("LANGUAGE", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LC_MESSAGES", "C")
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def call(capfd, monkeypatch):
    """`call("train", "--config", ...)`: a command as the shell runs it, in this process."""

    def call(name: str, *args: str) -> Result:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
        capfd.readouterr()
        try:
            status = commands.run(getattr(commands, name))
        except SystemExit as stop:
            status = stop.code or 0
        return Result(status, *capfd.readouterr())

    return call


def lack(program: str) -> NoReturn:
    """Skip a test for want of a program, or fail it where `.ci/run` runs the tests."""
    (pytest.fail if os.environ.get("MINIGPT_NO_SKIP") else pytest.skip)(f"needs {program}")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or a skip."""
    if CHROMIUM is None:
        lack("a Chromium, such as Debian's package of that name")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first of the processes that run the tests fills. Not to be written to."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{place}.lock"):
        if not place.with_suffix(".made").exists():
            place.mkdir()
            make(place)
            place.with_suffix(".made").touch()
    return place


def generate_ids(model, prompts, max_new_tokens: int, generators=None, **sampling):
    """The engine's loop, with the sampling parameters by name."""
    from minigpt.generation import engine
    from minigpt.generation.sampling import SamplingParams

    return engine.generate_ids(model, prompts, max_new_tokens, SamplingParams(**sampling), generators)


def read(path: str, **options) -> str:
    """A corpus as one text."""
    from minigpt.data.corpus import Corpus

    return "".join(Corpus(path, **options).pieces())


@pytest.fixture
def train(call):
    """Train the article's recipe for a few steps on the CPU, without samples unless asked for."""

    def train(*args: str) -> Result:
        return call("train", "--config", TINY, *QUICK, *args)

    return train


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A run of the article's recipe, 60 steps long, to sample and to score. Not to be written to."""
    from minigpt.training.cli import MiniGPTCLI

    place = tmp_path_factory.mktemp("trained")
    args = ["--config", TINY, *QUICK, "--trainer.max_steps", "60", "--trainer.default_root_dir", str(place)]
    cli = MiniGPTCLI(args)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli.run_dir


@pytest.fixture
def distinct_model():
    """A TinyGPT over 40 characters whose logits are far apart, with its tokenizer."""
    from minigpt import CharTokenizer, TinyGPT

    tokenizer = CharTokenizer.from_text("abcdefghijklmnopqrstuvwxyzéèàç ,.;:!?'-\n")
    torch.manual_seed(7)
    return TinyGPT(tokenizer.vocab_size, n_embd=32), tokenizer
