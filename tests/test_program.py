"""The `minigpt` command: its commands, the names of recipes, what it prints to paste, and an installed copy."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, TINY, Result

import minigpt
from minigpt import command_line, commands, loading
from minigpt.command_line import command, find_config, no_config

COMMANDS = {script.stem for script in (ROOT / "scripts").glob("*.py")}


@pytest.fixture
def program(capfd, monkeypatch):
    """`program("train", ...)`: `python -m minigpt` in this process."""
    monkeypatch.setenv("PATH", os.defpath)  # without an installed minigpt

    def program(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "minigpt" / "__main__.py"), *args])
        capfd.readouterr()
        try:
            status = commands.main()
        except SystemExit as stop:
            status = stop.code or 0
        return Result(status, *capfd.readouterr())

    return program


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_every_script_is_a_command_with_a_line_of_description(program, args):
    result = program(*args)
    assert (result.status, result.err) == (0, "")
    lines = [line.split(maxsplit=1) for line in result.out.splitlines() if line.startswith("  ")]
    assert {name for name, _ in lines} == COMMANDS
    assert all(text.endswith(".") and len(text) < 80 for _, text in lines)


def test_the_version_is_printed(program):
    assert program("--version") == (0, f"minigpt {minigpt.__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian", "--config", "tiny"], "Unknown command 'trian'. Did you mean 'train'?"),
        (["zzz"], "Unknown command 'zzz'. The commands are train, generate, evaluate, compare, export, app, sweep."),
        (["--config", "tiny"], "'--config' needs a command before it, such as: "),
        (["generate", "--promt", "a"], "Unknown option '--promt'. Did you mean '--prompt'?"),
        (["generate"], "There is no run under lightning_logs/ yet. Start one: "),
        (["train"], "Pass a recipe with --config, such as --config tiny."),
        (["train", "--trainer.max_steps", "5"], "Pass a recipe with --config, such as --config tiny."),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2(program, args, sentence):
    result = program(*args)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(sentence)
    assert len(result.err.splitlines()) == 1
    if sentence.endswith(": "):
        assert result.err.endswith(" train --config tiny\n")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_a_command_names_the_command_as_it_is_typed(program, call, name):
    result = program(name, "--help")
    assert result.status == 0
    assert f"-m minigpt {name} " in " ".join(result.out.split())
    assert name not in ("train", "sweep") or re.search("a file, or (the|a) name", result.out)
    assert f"scripts/{name}.py " in " ".join(call(name, "--help").out.split())


def test_a_process_that_lightning_started_as_minigpt_train_keeps_its_rank(program, monkeypatch):
    def train(args: list[str]) -> int:
        print(args, os.environ.get("LOCAL_RANK"), os.environ.get("WORLD_SIZE"))
        return 0

    monkeypatch.setattr(commands, "train", train)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert program("train", "-c", "tiny").out == "['-c', 'tiny'] 1 2\n"


@pytest.mark.slow
def test_the_package_help_and_mistakes_import_no_torch_and_sampling_no_lightning(trained_run):
    script = (
        "import sys\nfrom minigpt.commands import main\n"
        "for args in ([], ['--version'], ['trian']):\n"
        "    sys.argv[1:] = args\n    main()\n"
        "import minigpt\nprint('torch' in sys.modules)\n"
        f"sys.argv[1:] = ['generate', '--ckpt_path', {str(trained_run)!r}]\nassert main() == 0\n"
        f"minigpt.load({str(trained_run)!r}).generate('un matin,')\n"
        "print({'torch', 'lightning', 'torchmetrics', 'jsonargparse', 'tensorboard'} & set(sys.modules))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "\nFalse\n" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "{'torch'}"


@pytest.mark.parametrize(
    ("made", "name", "found"),
    [
        ([], "tiny", ROOT / "configs/tiny.yaml"),
        ([], "debug/overfit", ROOT / "configs/debug/overfit.yaml"),
        ([], "configs/tiny.yaml", ROOT / "configs/tiny.yaml"),
        (["configs/tiny.yaml"], "tiny", "configs/tiny.yaml"),
        (["configs/tiny.yaml"], "configs/tiny.yaml", "configs/tiny.yaml"),
        (["configs/my.own.yaml"], "my.own", "configs/my.own.yaml"),
        (["tiny"], "tiny", "tiny"),
        (["tiny/a.yaml"], "tiny", ROOT / "configs/tiny.yaml"),
        (["tiny.yaml"], "tiny.yaml", "tiny.yaml"),
        (["tiny.yaml"], "tiny", ROOT / "configs/tiny.yaml"),
        (["configs/tiny.yaml/a"], "tiny", ROOT / "configs/tiny.yaml"),
        (["a.yaml"], "../a", "../a"),
        ([], "tiny.yaml", "tiny.yaml"),
        ([], "nothing", "nothing"),
    ],
)
def test_a_config_is_a_path_else_a_recipe_here_else_a_shipped_one(folder, capfd, made, name, found):
    for file in made:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    assert find_config(name) == str(found)
    other = "To use the file in this folder, pass tiny.yaml." in capfd.readouterr().err
    assert other == (made == ["tiny.yaml"] and name == "tiny")


def test_a_space_has_a_name_too(folder):
    assert find_config("nano", "sweeps") == str(ROOT / "configs/sweeps/nano.yaml")
    (folder / "configs" / "sweeps").mkdir(parents=True)
    (folder / "configs" / "sweeps" / "nano.yaml").write_text("")
    assert find_config("nano", "sweeps") == "configs/sweeps/nano.yaml"


def test_a_name_that_is_nowhere_gets_both_places_and_the_nearest_name(program, folder):
    places = f"'configs' or '{ROOT / 'configs'}'"
    result = program("train", "--config", "tinny")
    assert (result.status, result.err) == (2, f"There is no recipe 'tinny' in {places}. Did you mean 'tiny'?\n")
    (folder / "configs").mkdir()
    (folder / "configs" / "mine.yaml").write_text("")
    (folder / "other.yaml").write_text("")
    assert no_config("mne").endswith("Did you mean 'mine'?")
    assert no_config("overfit").endswith("Did you mean 'debug/overfit'?")
    assert no_config("othr").endswith("Did you mean 'other.yaml'?")
    assert no_config("zzzzzz").endswith(
        "minigpt has bpe, debug/overfit, finetune, finetune_hf, gpt_nano, llama_nano, mine, modern_nano, quick_nano, "
        "shakespeare, speedrun_cpu, tiny, word."
    )
    assert no_config("tiny.yml") == (
        "The config file 'tiny.yml' cannot be read: it does not exist. Did you mean 'tiny'?"
    )
    spaces = program("sweep", "--config", "tiny", *QUICK, "--space", "nanno")
    places = f"'configs/sweeps' or '{ROOT / 'configs/sweeps'}'"
    assert (spaces.status, spaces.err) == (2, f"There is no space 'nanno' in {places}. Did you mean 'nano'?\n")


@pytest.mark.slow
def test_a_run_of_a_named_recipe_is_that_of_its_file_and_goes_on(program, folder):
    named, file = (program("train", "--config", config, "--print_config").out for config in ("tiny", TINY))
    assert named == file
    (folder / "tiny").mkdir()
    flags = ["--config=tiny", *QUICK, "--trainer.max_steps"]
    first = program("train", *flags, "2")
    assert first.status == 0, first.err
    assert (folder / "lightning_logs/tiny/version_0/checkpoints/last.ckpt").exists()
    again = program("train", *flags, "4", "--ckpt_path", "last")
    assert "after 4 steps, the last 2 " in again.out


@pytest.mark.slow
def test_a_sweep_takes_names_for_the_recipe_and_the_space(program, folder):
    result = program("sweep", "-c", "tiny", "--space", "tiny", "--trials", "1", *QUICK, "--trainer.max_steps", "2")
    assert result.status == 0, result.err
    assert (folder / "lightning_logs/tiny-tiny/trial_0/version_1337/checkpoints/last.ckpt").exists()
    assert "-m minigpt train --config tiny --trainer.accelerator cpu" in result.out


@pytest.fixture
def places(folder, monkeypatch):
    """A virtual environment in the working folder, with and without `minigpt`, and a PATH that lacks both."""
    for name in ("venv/bin/python", "venv/bin/minigpt", "bare/bin/python", "other/bin/minigpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "empty"))
    return folder


MODULE = str(ROOT / "minigpt" / "__main__.py")


@pytest.mark.parametrize(
    ("started", "python", "path", "printed"),
    [
        ("venv/bin/minigpt", "venv", "venv", "minigpt train 'a b'"),
        ("venv/bin/minigpt", "venv", "", "venv/bin/minigpt train 'a b'"),
        ("venv/bin/minigpt", "venv", "other", "venv/bin/minigpt train 'a b'"),
        (MODULE, "venv", "venv", "minigpt train 'a b'"),
        (MODULE, "venv", "other", "venv/bin/python -m minigpt train 'a b'"),
        (MODULE, "bare", "bare", "python -m minigpt train 'a b'"),
        ("scripts/train.py", "bare", "bare", f"python {ROOT}/scripts/train.py 'a b'"),
        ("notebook", "venv", "venv", f"python {ROOT}/scripts/train.py 'a b'"),
    ],
)
def test_commands_are_printed_in_the_form_in_which_the_process_was_started(
    places, monkeypatch, started, python, path, printed
):
    if (places / started).is_file():
        started = str(places / started)
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setattr(sys, "executable", str(places / python / "bin" / "python"))
    monkeypatch.setenv("PATH", str(places / path / "bin"))
    assert command("train", "a b") == printed


def test_a_program_in_the_working_folder_is_typed_with_its_folder(places, monkeypatch):
    monkeypatch.chdir(places / "venv" / "bin")
    monkeypatch.setattr(sys, "executable", str(places / "venv" / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", ["minigpt"])
    assert command("train") == "./minigpt train"
    assert command_line.tool("tensorboard") == "./tensorboard"
    monkeypatch.setattr(sys, "argv", [MODULE])
    assert command("train") == "./python -m minigpt train"


def test_without_a_clone_python_prints_the_installed_command(places, monkeypatch):
    monkeypatch.setattr(command_line, "CLONE", None)
    monkeypatch.setattr(sys, "argv", ["notebook"])
    monkeypatch.setattr(sys, "executable", str(places / "venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(places / "venv" / "bin"))
    assert command_line.first_training() == "minigpt train --config tiny"


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_automatic_device_is_a_gpu_of_either_kind(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert loading.pick_device("auto") == device


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what a wheel is built from, in which building leaves its files."""
    place = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    for name in ("minigpt", "configs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "minigpt" / "new" / "deep").mkdir(parents=True)
    (place / "minigpt" / "new" / "deep" / "table.json").write_text("{}")
    (place / "configs" / "new").mkdir()
    (place / "configs" / "new" / "recipe.yaml").write_text("")
    return place


def build(source: Path, what: str, place: Path) -> Path:
    """Build a wheel with setuptools alone, without a network."""
    script = f"from setuptools import build_meta; print(build_meta.{what}({str(place)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / done.stdout.splitlines()[-1]


@pytest.mark.full
def test_an_installed_copy_has_every_file_and_runs_the_first_command_anywhere(source, folder):
    wheel = build(source, "build_wheel", folder)
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("minigpt/")}
    files = [(file, "") for file in (source / "minigpt").rglob("*")]
    files += [(file, "minigpt/") for file in (source / "configs").rglob("*")]
    assert packed == {prefix + file.relative_to(source).as_posix() for file, prefix in files if file.is_file()}
    assert "minigpt/py.typed" in packed

    site, work = folder / "site", folder / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), wheel]
    subprocess.run(install, check=True)
    environment = os.environ | {"PYTHONPATH": str(site), "PATH": os.defpath}  # without another minigpt
    train = ["train", "--config", "tiny", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]
    train += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]  # Lightning starts the second process the same way

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            words, cwd=work, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
        )

    where = run(sys.executable, "-c", "import minigpt; print(minigpt.__file__)").stdout
    assert Path(where.strip()) == site / "minigpt" / "__init__.py"
    for way in ([sys.executable, "-m", "minigpt"], [str(site / "bin" / "minigpt")]):
        result = run(*way, *train)
        assert result.returncode == 0, result.stderr
        assert len(list(work.glob("lightning_logs/tiny/*/checkpoints/last.ckpt"))) == 1
        printed = shlex.split(result.stdout.splitlines()[-1])
        assert printed[: len(way)] == way
        assert run(*printed, "--max_new_tokens", "3").returncode == 0
        shutil.rmtree(work / "lightning_logs")


@pytest.mark.slow
def test_an_editable_install_finds_the_recipes_of_its_clone(source, folder):
    wheel = build(source, "build_editable", folder)
    zipfile.ZipFile(wheel).extractall(folder / "site")
    script = (
        f"import site; site.addsitedir({str(folder / 'site')!r})\n"
        "from minigpt.command_line import find_config\nprint(find_config('new/recipe'))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, cwd=folder)
    assert done.stdout == f"{source / 'configs' / 'new' / 'recipe.yaml'}\n", done.stderr
