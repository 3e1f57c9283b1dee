"""Every command and every line of Python in the READMEs runs, in a copy of the project, as a reader would type it."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), flags=re.S)


def commands(file: str) -> list[str]:
    return [line for block in blocks(file, "bash") for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what is under version control, in which python is this one and nothing has to be installed."""
    place = tmp_path_factory.mktemp("clone")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((ROOT / name).read_bytes())
    tools = place / "tools"
    tools.mkdir()
    for tool in ("python", "tensorboard"):
        wrapper = tools / tool
        module = {"python": "", "tensorboard": "-m tensorboard.main"}[tool]
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        wrapper.chmod(0o755)
    return place


def environment(clone: Path) -> dict[str, str]:
    return os.environ | {"PATH": f"{clone / 'tools'}:{os.environ['PATH']}"}


def runnable(command: str) -> str | None:
    """The part of a command that needs no network; None where nothing is left, or where it is this very test."""
    command = command.split("  #")[0].strip()
    if command.startswith(("source ", "deactivate")):
        return None
    if "pip install" in command:
        command = command.rsplit("&&", 1)[1].strip().replace(".venv/bin/", "")
    return None if "pytest" in command else command


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(clone):
    run = [command for command in map(runnable, commands("README.md")) if command]
    assert any("train.py" in command for command in run)
    for command in run:
        if command.startswith("tensorboard"):
            serve_and_stop(command, clone, "data/runs", "tiny/version_0")
            continue
        if "app.py" in command:
            serve_and_stop(command, clone, "config", "tiny/version_0")
            continue
        done = subprocess.run(
            command, shell=True, cwd=clone, env=environment(clone), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command


def serve_and_stop(command: str, clone: Path, path: str, shown: str) -> None:
    """Start a server, and wait until what it answers at a path shows a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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


@pytest.mark.slow
def test_the_python_of_the_readme_runs(clone):
    (program,) = blocks("README.md", "python")
    if not (clone / "lightning_logs" / "tiny").exists():
        pytest.skip("the commands above it make the run that it loads; run the whole file")
    done = subprocess.run([sys.executable, "-c", program], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("un matin,")


def test_both_readmes_give_the_same_commands():
    for language in ("bash", "python"):
        english, french = ([re.sub(r" *#.*", "", block) for block in blocks(f, language)] for f in READMES)
        assert english == french


READMES = ("README.md", "README.fr.md")


@pytest.mark.parametrize("file", READMES)
def test_what_a_readme_points_to_is_there(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_ci_runs_the_readmes_test_command():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "README.md" in ci
    assert any("pytest" in command for command in commands("README.md"))
