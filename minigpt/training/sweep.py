"""Sweeps: studies of Optuna, whose trials are ordinary runs with settings drawn from a space.

The runs of trial N are in `lightning_logs/STUDY/trial_N`, one for each seed. Optuna keeps the study in SQLite. A
process gives signs of life for its trial; when they end, another process gets the trial and resumes its runs.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from minigpt import files, runs
from minigpt.command_line import split_seeds
from minigpt.errors import MiniGPTError, note, writing
from minigpt.inspection.curves import read_curves
from minigpt.training import recipes
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.parser import flatten
from minigpt.training.space import SEED, DryRun, as_flags, read_space, suggest
from minigpt.words import message

OBJECTIVE = "val/bits_per_char"  # of the last validation; compares across tokenizers
HEARTBEAT, GRACE = 10, 60  # seconds between two signs of life, and without one until a trial is retried
# Settings that may change in a study. The text is compared by its checksum.
FREE = ("trainer.default_root_dir", "trainer.enable_progress_bar", "progress.", "data.path", "data.cache_dir")


class Pruning(Callback):
    """Reports each validation to a trial by its step, and stops the run if the study's pruner says so.

    Optuna's own callback reports once an epoch, and a run here is one long epoch. It also raises an exception, after
    which there would be no last checkpoint.
    """

    def __init__(self, trial: Trial):
        self.trial, self.pruned = trial, False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop the run if its trial is pruned; the run can still be resumed."""
        self.trial.report(trainer.callback_metrics[OBJECTIVE].item(), trainer.global_step)
        if trainer.global_step != trainer.max_steps and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


class Sweep:
    """A study, with the settings that its trials have in common.

    Args:
        args: The flags of `minigpt train` for all trials, including `--config`. The value of a trial is the mean over
            the seeds of --seeds, or of the space; the run of the first one decides whether it is pruned.
        space: The YAML file with the settings to search.
        study: The name of the study; None for RECIPE-SPACE.
        storage: The SQLite file of the study; None for study.db in the study's folder.
        seed: The seed of the draws; None for other draws at each start.

    Raises:
        MiniGPTError: The recipe, a flag or the space is wrong, or the study has other settings.
    """

    def __init__(self, args: list[str], space: str, study: str | None, storage: str | None, seed: int | None):
        if any(re.match("--ckpt_path(=|$)", arg) for arg in args):
            raise MiniGPTError("A sweep starts new runs, so omit --ckpt_path. To continue a sweep, repeat the command.")
        seeds, self.args = split_seeds(args)
        recipe = DryRun(self.args)
        sampler, self.space = read_space(space, [*self.args, *as_flags({SEED: seeds[0]} if seeds else {})])
        of_space: list[int] = self.space.pop(SEED, [])
        self.seeds = of_space or seeds or [recipe.config[SEED]]
        alone = {SEED: of_space[0]} if len(of_space) == 1 else {"seeds": ",".join(map(str, of_space))}
        self.seed_flags = as_flags(alone) if of_space else []
        self.name = study or re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{Path(space).stem}")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise MiniGPTError(f"The study's name is '{self.name}'. Use letters, digits, - and _ only.")
        self.folder = Path(recipe.trainer.default_root_dir).absolute() / runs.ROOT / self.name
        settings = flatten(recipes.load(recipe._recipe()))
        settings = {key: value for key, value in settings.items() if not key.startswith(FREE)} | self.space
        settings |= {SEED: self.seeds, "sampler": sampler, "data.path (SHA-256 of the text)": recipe.text[0]}
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        warnings.filterwarnings("ignore", module="optuna")  # such as about a validation that a resume repeats
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # about retries
        self.retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        self.study = self._open(storage)
        # The first quarter does not rank trials: rates are still rising, and every model learns letters first.
        self.study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=max(recipe.trainer.max_steps // 4, 0))
        self._check_settings(settings)
        self.n_grid = math.prod(map(len, self.space.values())) if sampler == "grid" else None
        if sampler == "grid":  # one seed for its order, since a trial stores its place in it
            self.study.sampler = optuna.samplers.GridSampler(self.space, seed=0)
        else:
            samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
            next_seed = None if seed is None else (seed + len(self.study.trials)) % 2**32  # not the first draws again
            self.study.sampler = samplers[sampler](seed=next_seed)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Check that the study has these settings; a new one gets them."""
        if "settings" not in self.study.user_attrs:
            self.study.set_user_attr("settings", settings)
        stored = self.study.user_attrs["settings"]
        for key in sorted(settings.keys() | stored.keys()):
            values = (each.get(key) for each in (settings, stored))
            here, there = (value if isinstance(value, str) else json.dumps(value) for value in values)
            if here != there:
                raise MiniGPTError(
                    f"{key} is {here} here and {there} in the study '{self.name}', whose trials would no longer be "
                    "comparable. Restore the setting, or start another study with --study NAME."
                )

    def _open(self, storage: str | None) -> optuna.Study:
        """Return the study in its SQLite file, which is created if needed."""
        path = (storage or "").removeprefix("sqlite:///")
        file = Path(os.path.expanduser(path) if path else self.folder / "study.db").absolute()
        if "://" in path or file.is_dir():
            raise MiniGPTError(f"A study is stored in a file, and '{storage}' is not one. Pass a path with --storage.")
        self.lock = Path(f"{file}.lock")
        with writing(file.parent, "--storage" if path else "--trainer.default_root_dir"), files.lock(self.lock):
            file.open("ab").close()  # created with the umask, where SQLite would restrict the permissions
            url = sqlalchemy.URL.create("sqlite", database=str(file)).render_as_string()
            patient = {"connect_args": {"timeout": 60}}  # seconds, while another process writes
            try:
                stored = optuna.storages.RDBStorage(url, patient, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
                return optuna.create_study(study_name=self.name, storage=stored, load_if_exists=True)
            except Exception as error:  # a file of another kind fails in many ways
                raise MiniGPTError(f"'{file}' cannot store a study. Pass a new file with --storage.") from error

    def run(self, n: int | None) -> None:
        """Train until the study has `n` trials, those of other processes included; None for 20, or the whole grid.

        Raises:
            MiniGPTError: A trial was interrupted for a reason outside its settings, such as a full disk.
        """
        n = min(n or self.n_grid, self.n_grid) if self.n_grid else n or 20
        try:
            while self._requeue() < n:
                self.study.optimize(self._train, n_trials=1)
        except BaseException as error:
            chain = list(_chain(error))
            if stops := [each for each in chain if isinstance(each, (KeyboardInterrupt, SystemExit))]:
                raise stops[-1] from None  # Optuna may have met it in its own code, and failed there
            if any(type(each) is UpdateFinishedTrialError or "Cannot tell a FAIL" in str(each) for each in chain):
                raise MiniGPTError(
                    f"This process gave no sign of life for {GRACE} seconds, and another one took its trial. Repeat "
                    "the command to join in again."
                ) from error
            raise

    def _requeue(self) -> int:
        """Queue interrupted trials again, and return the number of trials that are complete, pruned or running."""
        with files.lock(self.lock):
            optuna.storages.fail_stale_trials(self.study)
            trials = self.study.trials
            retried = {number for trial in trials for number in self.retry.retry_history(trial)}
            for trial in trials:
                if trial.state == TrialState.FAIL and trial.number not in retried:
                    self.retry(self.study, trial)
        return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING) for trial in trials)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in these states, those with the fewest bits per character first."""
        return sorted(self.study.get_trials(states=states), key=lambda trial: trial.values or [math.inf])

    def _train(self, trial: Trial) -> float:
        """Return the mean of the last bits per character over the seeds of a trial.

        Optuna marks a trial as failed after an exception, which means here that it was interrupted and will be retried.
        """
        values = {key: suggest(trial, key, choices) for key, choices in self.space.items()}
        folder = self.folder_of(self.study.trials[trial.number])
        note(f"\n{folder.name}: {', '.join(f'{key} {recipes.as_text(value)}' for key, value in values.items())}")
        scores: dict[str, float] = trial.user_attrs.get("scores", {})  # those from before an interruption
        try:
            for seed in self.seeds:
                if str(seed) not in scores:
                    scores[str(seed)] = self._score(trial, values, folder / f"version_{seed}", seed)
                    trial.set_user_attr("scores", scores)
        except SystemExit as stop:  # Optuna would leave the trial running
            raise KeyboardInterrupt from stop
        except (MiniGPTError, torch.OutOfMemoryError) as error:
            if any(isinstance(each, OSError) for each in _chain(error)):
                raise
            note(str(error))  # a result too: these settings fail
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error
        return float(np.mean([*scores.values()]))

    def _score(self, trial: Trial, values: dict[str, Any], run: Path, seed: int) -> float:
        """Train one run of a trial, or continue it, and return its last bits per character."""
        args = [*self.args, *as_flags(values | {SEED: seed})]
        if (run / "checkpoints" / "last.ckpt").exists():
            args += ["--ckpt_path", str(run), "--init_from=null"]
        if len(self.seeds) > 1:
            note(message("seed_begins", seed, self.seeds.index(seed) + 1, len(self.seeds)))
        cli, pruning = MiniGPTCLI(args, run), Pruning(trial)
        if seed == self.seeds[0]:  # before the callback that writes the last checkpoint
            cli.trainer.callbacks.insert(0, pruning)  # type: ignore[attr-defined]  # Lightning sets it from outside
        if not cli.finished:
            cli.fit()
        if pruning.pruned:
            note(message("pruned"))
            raise optuna.TrialPruned
        last = cli.trainer.callback_metrics.get(OBJECTIVE)
        curve = read_curves(run).scalars.get(OBJECTIVE, []) if last is None else [(0, last.item())]
        if not curve:
            raise MiniGPTError("The run ended before a validation. Set trainer.max_steps or a longer trainer.max_time.")
        return curve[-1][1]

    def folder_of(self, trial: FrozenTrial) -> Path:
        """Return the folder with the runs of a trial; a retried trial continues in that of the first."""
        first = self.retry.retried_trial_number(trial)
        return self.folder / f"trial_{trial.number if first is None else first}"

    def table(self) -> list[str]:
        """Return the lines of a table of the trials, best first."""
        cells = [[*message("sweep_columns").split("|"), *(key.rpartition(".")[2] for key in self.space)]]
        for trial in [*self.trials(TrialState.COMPLETE), *self.trials(TrialState.PRUNED)]:
            scores = [*trial.user_attrs.get("scores", {}).values()] or trial.values or [math.nan]
            spread = f" ± {np.std(scores, ddof=1):.4f}" if len(scores) > 1 else ""
            state = message("trial_broke" if "error" in trial.user_attrs else f"trial_{trial.state.name.lower()}")
            steps = str(max(trial.intermediate_values, default=0))
            drawn = (f"{each:.4g}" if type(each) is float else str(each) for each in map(trial.params.get, self.space))
            cells.append([self.folder_of(trial).name, f"{np.mean(scores):.4f}{spread}", state, steps, *drawn])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]

    def draw(self) -> list[Path]:
        """Draw Optuna's plots into the folder of the study, and return the files."""
        import matplotlib

        matplotlib.use("Agg")  # files, no window
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as plots

        drawn = []
        for name in ("optimization_history", "intermediate_values", "slice", "param_importances"):
            with warnings.catch_warnings(action="ignore"), suppress(ValueError, RuntimeError):  # of too few trials
                options = {} if name == "intermediate_values" else {"target_name": "bits per character"}
                getattr(plots, f"plot_{name}")(self.study, **options)
                pyplot.savefig(self.folder / f"{name}.png", bbox_inches="tight")
                drawn.append(self.folder / f"{name}.png")
            pyplot.close("all")
        return drawn


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
