"""Training from the page: an ordinary `minigpt train` in a process of its own, which outlives the page.

What runs is found on disk, in `lightning_logs/page`: `training.json` describes the training that was started last,
`training.log` holds its output, and its process holds the lock of `training.lock`. So a page that is opened again, also
by another `minigpt app` in the same folder, shows the training and can stop it.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from minigpt import files, runs
from minigpt.app.visitors import Problem, is_loopback
from minigpt.command_line import CLONE, CONFIGS
from minigpt.inspection.curves import Curves, cached_curves
from minigpt.training import recipes as recipe_files
from minigpt.words import MESSAGES

FOLDER = Path(runs.ROOT) / "page"
MAX_MINUTES = 5.0  # that a recipe may have taken when it was measured
SNAPSHOTS = 5  # that a training keeps, so that its steps can be compared
POINTS = 5  # validations of a training with fewer steps than its recipe
MAX_PROMPT = 30  # characters at the beginning of the text that its samples continue
LOG_BYTES = 100_000  # at the end of a log that are searched for its last line
# Lines of a training's output, in the languages of the terminal.
FINISHED = {texts["curves"] for texts in MESSAGES.values()}
PROGRESS = [texts["step"].removesuffix("{}") for texts in MESSAGES.values()]
RUN_FOLDER = [texts["run_folder"].removesuffix("{}") for texts in MESSAGES.values()]


class Recipe(NamedTuple):
    """A recipe that the page offers.

    Attributes:
        name: Its name.
        file: Its file.
        minutes: Its measured time, from the comment at its beginning.
        steps: Its number of steps.
    """

    name: str
    file: Path
    minutes: float
    steps: int


class Status(NamedTuple):
    """The state of the training that was started last.

    Attributes:
        state: `starting` until its first step, `running`, `stopping`, or how it ended.
        recipe: The name of its recipe.
        text: The file of its text.
        run: Its run folder; None until it has one.
        step: The number of finished steps that it has recorded.
        max_steps: The number of steps that it is to do.
        seconds_left: The expected time until the last step; None if it is unknown.
        last_words: The last line of its output; empty if that is a sample or a line of its progress.
    """

    state: Literal["starting", "running", "stopping", "finished", "stopped", "failed"]
    recipe: str
    text: Path
    run: Path | None
    step: int
    max_steps: int
    seconds_left: float | None
    last_words: str

    @property
    def runs(self) -> bool:
        """Return whether its process runs."""
        return self.state in ("starting", "running", "stopping")

    @property
    def can_go_on(self) -> bool:
        """Return whether it ended before its last step and left a checkpoint."""
        ended_early = self.state in ("stopped", "failed") and self.step < self.max_steps
        return ended_early and self.run is not None and (self.run / "checkpoints" / "last.ckpt").exists()


@cache
def offered_recipes() -> dict[str, Recipe]:
    """Return the recipes that train a network from nothing within minutes on any CPU, the fastest first."""
    offered = []
    for file in CONFIGS.glob("*.yaml"):
        recipe = recipe_files.read(str(file))
        measured = re.search(r"^# Machine, minutes:[^\n]*?, (\d+(?:\.\d+)?)\b", recipe, re.MULTILINE)
        model, trainer = (recipe.settings.get(part) or {} for part in ("model", "trainer"))
        steps, exact = trainer.get("max_steps", -1), str(trainer.get("precision") or 32).startswith("32")
        if measured and float(measured[1]) <= MAX_MINUTES and "network" in model and steps > 0 and exact:
            offered.append(Recipe(file.stem, file, float(measured[1]), steps))
    return {recipe.name: recipe for recipe in sorted(offered, key=lambda recipe: (recipe.minutes, recipe.name))}


class Trainings:
    """Starts, watches, stops and continues the trainings of the page, one at a time.

    Args:
        allowed: Whether visitors may train.
        anywhere: Whether visitors may train, too, who reach the page under a name that is not this machine's own.
    """

    def __init__(self, allowed: bool = True, anywhere: bool = False):
        self.allowed = allowed
        self.anywhere = anywhere
        self._process: subprocess.Popen | None = None  # if this page started the training
        self._lock = threading.Lock()

    def is_for(self, host: str | None) -> bool:
        """Return whether a visitor may train who reaches the page at this host, as the browser gives it.

        A page on this machine is reached under another name through a proxy, or by a web site whose name was made to
        lead here.
        """
        return self.allowed and (self.anywhere or is_loopback(urlsplit(f"//{host or ''}").hostname))

    def check_free(self) -> None:
        """Check that a training may be started now.

        Raises:
            Problem: Visitors may not train, or a training is running.
        """
        if not self.allowed:
            raise Problem("training_off")
        with self._lock:
            record = self._record()
            if self._runs(record):
                raise Problem("already_training", record.get("recipe", ""))

    def start(self, recipe: str | None, text: Path, steps: int | None = None) -> None:
        """Start a training.

        Args:
            recipe: The name of an offered recipe.
            text: The file of its text.
            steps: The number of steps, at most the recipe's; None for the recipe's.

        Raises:
            Problem: Visitors may not train, a training is running, or an argument is wrong.
        """
        chosen = offered_recipes().get(recipe or "")
        if chosen is None:
            raise Problem("no_recipe")
        max_steps = chosen.steps if steps is None else steps
        if not (1 <= max_steps <= chosen.steps and max_steps == int(max_steps)):
            raise Problem("wrong_steps", chosen.steps, chosen.name)
        max_steps = int(max_steps)
        args = ["--config", chosen.file, "--data.path", text.as_posix(), "--trainer.max_steps", max_steps]
        args += ["--samples.prompts", json.dumps([first_words(text)]), "--checkpoint.snapshots", SNAPSHOTS]
        if max_steps < chosen.steps:
            for option in ("validation", "samples", "checkpoint"):
                args += [f"--{option}.every_n_steps", max(1, max_steps // POINTS)]
            args += ["--trainer.log_every_n_steps", max(1, max_steps // (5 * POINTS))]
        self._launch(
            args, recipe=chosen.name, text=text.as_posix(), max_steps=max_steps, run=None, start_step=0, stopped=False
        )

    def go_on(self) -> None:
        """Continue the last training if it ended early.

        Raises:
            Problem: Visitors may not train, a training is running, or there is none to continue.
        """
        self.check_free()
        status = self.status()
        if status is None or status.run is None or not status.can_go_on:
            raise Problem("no_training")
        record = self._record() | {"run": status.run.as_posix(), "start_step": status.step, "stopped": False}
        self._launch(["--ckpt_path", status.run], **record)

    def stop(self) -> None:
        """Ask the running training to save its state and end.

        Raises:
            Problem: Visitors may not train, or no training is running.
        """
        if not self.allowed:
            raise Problem("training_off")
        with self._lock:
            record = self._record()
            if not record or not self._runs(record):
                raise Problem("no_training")
            _write(record | {"stopped": True})
            with suppress(ProcessLookupError):
                os.kill(record["pid"], signal.SIGTERM)

    def status(self) -> Status | None:
        """Return the state of the training that was started last; None if there was none."""
        with self._lock:
            record = self._record()
            alive = bool(record) and self._runs(record)
        if not record:
            return None
        log = _end_of_log()
        run = Path(record["run"]) if record["run"] else _run_in(log)
        curves = cached_curves(run) if run else Curves({}, {})
        steps = [
            points[-1][0] for tag, points in curves.scalars.items() if points and tag.startswith(("train/", "val/"))
        ]
        step = max(steps, default=0)
        state: Any
        if alive:
            state = "stopping" if record["stopped"] else "running" if step > record["start_step"] else "starting"
        elif any(line.strip() in FINISHED for line in log):
            state = "finished"
        else:
            state = "stopped" if record["stopped"] else "failed"
        left = _seconds_left(run, record["start_step"], step, record["max_steps"]) if state == "running" else None
        return Status(
            state, record["recipe"], Path(record["text"]), run, step, record["max_steps"], left, _last_words(log)
        )

    def _launch(self, args: Sequence[object], **record: Any) -> None:
        if not self.allowed:
            raise Problem("training_off")
        with self._lock:
            FOLDER.mkdir(parents=True, exist_ok=True)
            lock = None if self._runs(self._record()) else _acquire()
            if lock is None:
                raise Problem("already_training", self._record().get("recipe", ""))
            # Without `-P` Python would look for modules in the working folder first.
            command = [sys.executable, "-P", "-m", "minigpt", "train", *map(str, args)]
            paths = [str(CLONE)] * (CLONE is not None) + os.environ.get("PYTHONPATH", "").split(os.pathsep)
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
            try:
                with (FOLDER / "training.log").open("wb") as log:
                    self._process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                        start_new_session=True, pass_fds=[lock] if lock >= 0 else [],
                    )  # fmt: skip
                _write(record | {"pid": self._process.pid})
            finally:
                _close(lock)  # the process holds it now

    def _runs(self, record: dict[str, Any]) -> bool:
        """Return whether a training is running, started by this page or by an earlier one."""
        if self._process and self._process.poll() is None:
            return True
        if not record or (lock := _acquire()) is None:
            return bool(record)
        _close(lock)
        return False

    def _record(self) -> dict[str, Any]:
        try:
            return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def first_words(text: Path) -> str:
    """Return the words at the beginning of a text that samples of the training continue."""
    with text.open(encoding="utf-8") as file:
        words = file.read(10 * MAX_PROMPT).split()[:3]
    return " ".join(words)[:MAX_PROMPT]


def _seconds_left(run: Path | None, start_step: int, step: int, max_steps: int) -> float | None:
    """Return the expected time until the last step, at the mean speed since the process began to train."""
    events = max(run.glob("events.out.tfevents.*"), default=None) if run else None  # their names begin with the time
    began = re.match(r"events\.out\.tfevents\.(\d+)", events.name) if events else None
    if events is None or began is None or step <= start_step:
        return None
    written = events.stat().st_mtime
    per_step = (written - int(began[1])) / (step - start_step)
    return max(0.0, (max_steps - step) * per_step - (time.time() - written))


def _acquire() -> int | None:
    """Return a file descriptor that holds the lock, -1 if files cannot be locked; None if another process holds it.

    A process that inherits the descriptor holds the lock until it ends, which filelock's locks do not offer.
    """
    if sys.platform == "win32":  # has no such locks, so a restarted page does not know of a training
        return -1
    import fcntl

    descriptor = os.open(FOLDER / "training.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _write(record: dict[str, Any]) -> None:
    partial = files.fresh(FOLDER / "training.json")
    partial.write_text(json.dumps(record, indent=2), encoding="utf-8")
    os.replace(partial, FOLDER / "training.json")


def _end_of_log() -> list[str]:
    try:
        with (FOLDER / "training.log").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _last_words(log: Sequence[str]) -> str:
    line = next((line for line in reversed(log) if line.strip()), "")
    return "" if line.startswith((" ", *PROGRESS)) else line.strip()


def _run_in(log: Sequence[str]) -> Path | None:
    """Return the run folder that a training has named in its output."""
    for line in log:
        for words in RUN_FOLDER:
            if line.startswith(words):
                return Path(line.removeprefix(words))
    return None
