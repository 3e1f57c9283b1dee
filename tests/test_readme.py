"""Every command and every line of Python in the README, in the guide and in the pages of `PAGES` runs in a copy of the
project.

The trainings are shortened, and the commands run in the process of the test. A test marked `full` runs the pages as a
reader would: at full length, with a process for each command.
"""

import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from inspect import signature
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT, free_port
from lightning.pytorch import Trainer

from minigpt import GPT, LitLanguageModel, TextDataModule, TinyGPT
from minigpt.runs import snapshots
from minigpt.training.callbacks import Figures, Samples
from minigpt.training.checkpointing import Checkpoints

# The pages in the order in which a reader would go through them; each has a French page beside it.
PAGES = ("README.md", "docs/reference.md", "docs/export.md", "docs/lightning.md", "docs/comparing.md")
TEXT_PAGES = ("docs/finetuning.md",)  # their commands take minutes, or need a network
# uv fetches PyTorch's builds for CPUs from an index of PyTorch's own.
CPU_ONLY = (
    "python3 -m venv .venv && source .venv/bin/activate && pip install -q uv && "
    "uv pip install -q --torch-backend=cpu -e ."
)


def french_of(page: str) -> str:
    return page.replace(".md", ".fr.md")


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), flags=re.S)


def commands(file: str) -> list[str]:
    return [line for block in blocks(file, "bash") for line in block.splitlines() if line.strip()]


def copy_into(place: Path) -> None:
    """Copy what is under version control."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((ROOT / name).read_bytes())


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project in which python is this one, `minigpt` is the copy's, and nothing has to be installed."""
    place = tmp_path_factory.mktemp("clone")
    copy_into(place)
    tools = place / "tools"
    tools.mkdir()
    for tool, module in {"python": "", "tensorboard": "-m tensorboard.main", "minigpt": "-m minigpt"}.items():
        wrapper = tools / tool
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        wrapper.chmod(0o755)
    return place


def environment(clone: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{clone / 'tools'}:{os.environ['PATH']}"}


def runnable(command: str) -> str | None:
    """The part of a command that needs no network; None where nothing is left, or where it is this very test."""
    command = command.split("  #")[0].strip()
    if command.startswith(("source ", "deactivate")) or command == CPU_ONLY:
        return None
    if "pip install" in command:
        command = command.rsplit("&&", 1)[1].strip().replace(".venv/bin/", "")
    return None if "pytest" in command else command


def servers(command: str) -> bool:
    return command.startswith("tensorboard") or "minigpt app" in command


def shortened(words: list[str], flags: list[str], steps: int) -> list[str]:
    """Append flags to a training, with a number of steps, let a sweep try twice, and draw one text for memorisation."""
    if "--memorisation" in words:
        return ["1" if before == "--memorisation" else word for before, word in pairwise(["", *words])]
    if words[0] not in ("train", "sweep"):
        return words
    return [*words, "--trainer.max_steps", str(steps), *flags, *(["--trials", "2"] if words[0] == "sweep" else [])]


def of_kept_steps(words: list[str]) -> list[str]:
    """Replace the step of each RUN@STEP by the first that the shortened training of RUN has kept."""

    def kept(match: re.Match) -> str:
        return f"{match[1]}@{min(snapshots(Path(match[1])))}"

    return [re.sub(r"^(.+)@\d+$", kept, word) for word in words]


def run_python(program: str, capfd) -> str:
    """Run a program in this process, and return what it printed."""
    capfd.readouterr()
    exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})
    return capfd.readouterr().out


@pytest.mark.slow
def test_every_command_and_program_of_the_pages_runs_in_order(call, folder, monkeypatch, capfd):
    copy_into(folder)
    monkeypatch.syspath_prepend(folder)  # as for a process that is started here
    number = 0
    for page in PAGES:
        run = [command for command in map(runnable, commands(page)) if command]
        assert any("minigpt" in command for command in run)
        for command in run:
            if servers(command):
                continue
            before, _, command = command.rpartition(" && ")
            subprocess.run(before, shell=True, cwd=folder, check=True)
            program, *words = shlex.split(command)
            assert program == "minigpt", command
            number += 1
            words = of_kept_steps(words)
            done = call(*shortened(words, QUICK_SAMPLES, 4 + number))  # a resume has more steps to do than its run
            assert done.status == 0, f"{command}\n{done.err}"
            assert done.out.strip(), command
        for program in blocks(page, "python"):
            program = re.sub(r"max_steps=\d+", "max_steps=8", program)
            assert re.search("^un matin,", run_python(program, capfd), flags=re.M)  # after Lightning's tables


@pytest.mark.full
def test_the_pages_work_as_they_are_typed(clone):
    run = [command for page in PAGES for command in map(runnable, commands(page)) if command]
    assert sum(map(servers, run)) == 2
    for command in run:
        if servers(command):
            path = "data/runs" if command.startswith("tensorboard") else "config"
            serve_and_stop(command, clone, path, "tiny/version_0")
            continue
        done = subprocess.run(
            command, shell=True, cwd=clone, env=environment(clone), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command
    programs = [program for page in PAGES for program in blocks(page, "python")]
    assert len(programs) == 2
    for program in programs:
        done = subprocess.run([sys.executable, "-c", program], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.search("^un matin,", done.stdout, flags=re.M)


def serve_and_stop(command: str, clone: Path, path: str, shown: str) -> None:
    """Start a server, and wait until what it answers at a path shows a run."""
    port = free_port()
    words = [*shlex.split(command), "--port", str(port)]
    server = subprocess.Popen(words, cwd=clone, env=environment(clone), stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).read().decode()
                if shown in page:
                    return
            except OSError:
                assert server.poll() is None, "it ended by itself"
            time.sleep(0.5)
        pytest.fail("it shows no run")
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("page", [*PAGES, *TEXT_PAGES])
def test_a_page_gives_the_same_commands_in_both_languages(page):
    for language in ("bash", "python", "yaml", *["text"] * (page in TEXT_PAGES)):
        files = (page, french_of(page))
        english, french = ([re.sub(r" *#.*", "", block) for block in blocks(file, language)] for file in files)
        assert english == french


def test_the_command_that_no_test_runs_is_in_the_readme():
    assert CPU_ONLY in commands("README.md")


def test_a_readme_fits_a_few_screens():
    for file in READMES:
        assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.slow
def test_every_command_of_the_guide_runs_in_order(call, folder, capfd):
    """In a copy of its own: a chapter names the runs of a reader who gave only the first of the README's commands."""
    copy_into(folder)
    run = [runnable(commands("README.md")[0]), *commands("docs/guide.md")]
    for command in run:
        program, *words = shlex.split(command)
        assert program == "minigpt", command
        done = call(*shortened(of_kept_steps(words), SHORT, 4))
        assert done.status == 0, f"{command}\n{done.err}"
        assert done.out.strip(), command
        assert "--figures" not in words or f"{words[words.index('--figures') + 1]}/next_token.png" in done.err
    (program,) = blocks("docs/guide.md", "python")
    printed = run_python(program, capfd)
    assert [line.split()[0] for line in printed.splitlines()] == ["1", "2", "4", "8", "16", "32", "64"]


def test_both_guides_give_the_same_commands_texts_and_pictures():
    for language in ("bash", "python", "text"):
        french, english = ([re.sub(r" *#.*", "", block) for block in blocks(f, language)] for f in GUIDES)
        assert french == english
    french, english = (re.findall(r"!\[.+\]\((.+)\)", (ROOT / f).read_text(encoding="utf-8")) for f in GUIDES)
    assert [picture.replace(".fr.", ".") for picture in french] == english  # pictures with words have two versions
    pictures = {Path(picture).name for picture in french + english}
    assert pictures == {file.name for file in (ROOT / "docs" / "guide").iterdir()}
    assert all((ROOT / "docs" / picture).stat().st_size < 150_000 for picture in french + english)


def test_both_guides_give_the_same_figures_in_the_same_chapters():
    """Chapter by chapter, whatever the order of a sentence: 7 615 and 2,34 in French are 7,615 and 2.34 in English."""
    french, english = ((ROOT / file).read_text(encoding="utf-8").split("\n## ") for file in GUIDES)
    assert len(french) == len(english)
    for one, other in zip(french, english, strict=True):
        one = re.sub(r"(?<=\d)[ \u202f](?=\d{3}\b)", "", re.sub(r"(?<=\d),(?=\d)", ".", one))
        other = re.sub(r"(?<=\d),(?=\d{3}\b)", "", other)
        assert sorted(re.findall(r"\d+(?:\.\d+)?", one)) == sorted(re.findall(r"\d+(?:\.\d+)?", other))


READMES = ("README.md", "README.fr.md")
GUIDES = ("docs/guide.fr.md", "docs/guide.md")
QUICK_SAMPLES = ["--data.max_val_tokens", "500", "--samples.max_new_tokens", "20"]
SHORT = [*QUICK_SAMPLES, "--model.warmup_steps", "0", "--model.network.n_embd", "16"]  # later flags win


@pytest.mark.parametrize("file", [*PAGES, *TEXT_PAGES, *map(french_of, [*PAGES, *TEXT_PAGES]), *GUIDES])
def test_what_a_page_points_to_is_there(file):
    page = ROOT / file
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_the_readmes_lead_to_the_guides():
    for readme, guide in zip(READMES, reversed(GUIDES), strict=True):
        where_next = (ROOT / readme).read_text(encoding="utf-8").rsplit("\n## ", 1)[1]
        assert f"]({guide})" in where_next


def test_ci_runs_the_readmes_test_command_and_the_full_tests():
    (command,) = (command for command in commands("README.md") if "pytest" in command)
    with open(ROOT / "README.md", encoding="utf-8") as readme:  # `grep -m 1 pytest` takes the first line that has it
        assert next(line for line in readme if "pytest" in line).strip() == command
    assert command.endswith(" -m 'not full'")
    assert " -m full" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_setting_that_a_page_names_exists():
    """docs/LOG.md and CHANGELOG.md are history, and name those of before."""
    kinds = {
        "model": (LitLanguageModel,), "model.network": (GPT, TinyGPT), "data": (TextDataModule,),
        "trainer": (Trainer,), "samples": (Samples,), "figures": (Figures,), "checkpoint": (Checkpoints,),
    }  # fmt: skip
    known = {f"{group}.{name}" for group, all_ in kinds.items() for kind in all_ for name in signature(kind).parameters}
    known.add("model.network.hidden")  # of examples/gru.py
    history = {"docs/LOG.md", "CHANGELOG.md"}
    pages = {str(page.relative_to(ROOT)) for place in (ROOT, ROOT / "docs") for page in place.glob("*.md")} - history
    pages |= {str(recipe.relative_to(ROOT)) for recipe in ROOT.glob("configs/**/*.yaml")}
    setting = re.compile(rf"(?:--|`)((?:{'|'.join(kinds)})\.(?!onnx|gguf|html|py)[a-z_.]*[a-z_])")
    named = {(page, name) for page in pages for name in setting.findall((ROOT / page).read_text(encoding="utf-8"))}
    assert len(named) > 50
    assert not {(page, name) for page, name in named if name not in known}
