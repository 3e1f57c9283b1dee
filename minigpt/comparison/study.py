"""A study of Optuna: its SQLite file, which of its trials are better, a table of them, and Optuna's plots."""

import json
import math
import os
import re
import time
import warnings
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import sqlalchemy
from optuna.pruners import MedianPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import get_heartbeat_thread  # `Study.optimize` alone has it; it can lose a Ctrl-C
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from minigpt import files
from minigpt.errors import MiniGPTError, note, writing
from minigpt.words import message

HEARTBEAT, GRACE = 5, 30  # seconds between two heartbeats of a trial, and without one until it is retried
PLOTS = ("optimization_history", "intermediate_values", "slice", "param_importances")


def open_study(storage: str, name: str, settings: dict[str, Any], queue: list[dict[str, Any]]) -> optuna.Study:
    """Return a study in an SQLite file, which is created if needed.

    Args:
        storage: The file, also as `sqlite:///FILE`.
        name: The name of the study.
        settings: What all trials have in common; the study stores it.
        queue: The values of the first trials of a new study.

    Raises:
        MiniGPTError: The name is no folder's, the file cannot store a study, or the study has other settings.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise MiniGPTError(f"The study's name is '{name}'. Use letters, digits, - and _ only.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Such as about a validation that a resume repeats; from Python 3.12 on Optuna's warnings are those of its callers.
    warnings.filterwarnings("ignore", module=r"optuna|minigpt\.(training\.sweep|comparison\.study)")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # about retries
    path = storage.removeprefix("sqlite:///")
    file = Path(os.path.expanduser(path)).absolute()
    if "://" in path or file.is_dir():
        raise MiniGPTError(f"A study is stored in a file, and '{storage}' is not one. Pass a path with --storage.")
    settings = json.loads(json.dumps(settings))  # as they are read back
    url = sqlalchemy.URL.create("sqlite", database=str(file)).render_as_string()
    patient = {"connect_args": {"timeout": 60}}  # seconds, while another process writes
    retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    with writing(file.parent, "--trainer.default_root_dir or --storage"), files.lock(Path(f"{file}.lock")):
        file.open("ab").close()  # created with the umask, where SQLite would restrict the permissions
        try:
            database = RDBStorage(
                url, patient, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=retry
            )
            study = optuna.create_study(study_name=name, storage=database, load_if_exists=True)
        except Exception as error:  # a file of another kind fails in many ways
            raise MiniGPTError(f"'{file}' cannot store a study. Pass a new file with --storage.") from error
        if "settings" not in study.user_attrs:
            study.set_user_attr("settings", settings)
        for values in queue[len(study.trials) :]:
            study.enqueue_trial(values)
    stored = study.user_attrs["settings"]
    for key in settings | stored:
        if (here := settings.get(key)) != (there := stored.get(key)):
            raise MiniGPTError(
                f"{key} is {here} here and {there} in the study '{name}', whose trials would no longer be comparable. "
                "Restore the setting, or start another study with --study NAME."
            )
    return study


def set_search(study: optuna.Study, sampler: str, seed: int | None, max_steps: int) -> None:
    """Set how a study draws settings, `tpe` or at random, and which trials it prunes: those worse than the median."""
    seed = None if seed is None else (seed + len(study.trials)) % 2**32  # not the first draws again
    study.sampler = TPESampler(seed=seed) if sampler == "tpe" else RandomSampler(seed=seed)
    # The first quarter does not rank trials: rates are still rising, and every model learns letters first.
    study.pruner = MedianPruner(n_warmup_steps=max(max_steps // 4, 0))


def suggest(trial: Trial | FixedTrial, key: str, choices: Any) -> Any:
    """Draw a value from a list, or from a range, which has Optuna's keys low, high, log and step.

    Raises:
        TypeError: A range has other keys.
        ValueError: A list or a range is empty, or a range that begins at 0 is logarithmic.
    """
    if isinstance(choices, list):
        return trial.suggest_categorical(key, choices)
    fractions = float in map(type, choices.values())
    return (trial.suggest_float if fractions else trial.suggest_int)(key, **choices)


def next_trial(study: optuna.Study, n: int) -> Trial | None:
    """Return a trial to train, or None once `n` trials are finished.

    Waits while other processes train the last ones. A trial without heartbeats is marked as failed and queued again.
    """
    waiting = False
    while (done := len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))) < n:
        optuna.storages.fail_stale_trials(study)
        running = study.get_trials(states=[TrialState.RUNNING])
        if done + len(running) < n:
            return study.ask()
        if not waiting:
            note(message("trials_running", GRACE))
            for each in running:  # Optuna never retries a trial without a first heartbeat
                study._storage.record_heartbeat(each._trial_id)  # type: ignore[attr-defined]  # it is RDBStorage's
        waiting = True
        time.sleep(HEARTBEAT)
    return None


def heartbeats(trial: Trial) -> AbstractContextManager[Any]:
    """Return a context in which a thread sends heartbeats for a trial."""
    return cast(AbstractContextManager[Any], get_heartbeat_thread(trial._trial_id, trial.study._storage))


def name_of(trial: FrozenTrial) -> str:
    """Return the name of a trial and of its folder; a retried trial continues in that of the first."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return f"trial_{trial.number if first is None else first}"


def ranked(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Return the trials in these states, those with the fewest bits per character first."""
    return sorted(study.get_trials(states=states), key=lambda trial: trial.values or [math.inf])


def as_lines(study: optuna.Study) -> list[str]:
    """Return the lines of a table of the finished trials, best first."""
    trials = [*ranked(study, TrialState.COMPLETE), *ranked(study, TrialState.PRUNED)]
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    cells = [[*message("sweep_columns").split("|"), *(key.rpartition(".")[2] for key in keys)]]
    for trial in trials:
        scores = [*trial.user_attrs.get("scores", {}).values()] or trial.values or [math.nan]
        spread = f" ± {np.std(scores, ddof=1):.4f}" if len(scores) > 1 else ""
        state = message("trial_broke" if "error" in trial.user_attrs else f"trial_{trial.state.name.lower()}")
        steps = str(max(trial.intermediate_values, default=0))
        drawn = (f"{each:.4g}" if type(each) is float else str(each) for each in map(trial.params.get, keys))
        cells.append([name_of(trial), f"{np.mean(scores):.4f}{spread}", state, steps, *drawn])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]


def draw(study: optuna.Study, folder: Path) -> list[Path]:
    """Draw Optuna's plots into a folder, and return the files."""
    import matplotlib

    matplotlib.use("Agg")  # files, no window
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    drawn = []
    for name in PLOTS:
        with warnings.catch_warnings(action="ignore"), suppress(ValueError, RuntimeError):  # of too few trials
            options = {} if name == "intermediate_values" else {"target_name": "bits per character"}
            getattr(plots, f"plot_{name}")(study, **options)
            pyplot.savefig(folder / f"{name}.png", bbox_inches="tight")
            drawn.append(folder / f"{name}.png")
        pyplot.close("all")
    return drawn
