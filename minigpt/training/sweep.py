"""Sweeps: studies of Optuna, whose trials are ordinary runs with settings drawn from a space.

The runs of trial N are in `lightning_logs/STUDY/trial_N`, one for each seed. Optuna keeps the study in a database. A
process gives signs of life for its trial; when they end, another process gets the trial and resumes its runs.
"""

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
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
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
# Settings that may differ between machines that share a study. The text is compared by its checksum.
OF_A_MACHINE = {
    "trainer.default_root_dir", "trainer.accelerator", "trainer.enable_progress_bar", "progress.every_n_steps",
    "data.path", "data.cache_dir",
}  # fmt: skip


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
        storage: A file for SQLite, or the URL of a database; None for study.db in the study's folder.
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
        self.seeds: list[int] = self.space.pop(SEED, seeds) or [recipe.config[SEED]]
        self.name = study or re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{Path(space).stem}")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise MiniGPTError(f"The study's name is '{self.name}'. Use letters, digits, - and _ only.")
        self.folder = Path(recipe.trainer.default_root_dir).absolute() / runs.ROOT / self.name
        settings = flatten(recipes.load(recipe._recipe())) | self.space | {SEED: self.seeds, "sampler": sampler}
        settings = {key: value for key, value in settings.items() if key not in OF_A_MACHINE}
        settings["data.path (SHA-256 of the text)"] = recipe.datamodule.tokens.sha256
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")  # such as about a validation that a resume repeats
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # about retries
        self.retry = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        url = self._url(storage)
        with writing(self.folder, "--trainer.default_root_dir"), files.lock(self.folder / ".lock"):
            self.study = self._open(url)
            # The first quarter does not rank trials: rates are still rising, and every model learns letters first.
            self.study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=max(recipe.trainer.max_steps // 4, 0))
            if "settings" not in self.study.user_attrs:
                self.study.set_user_attr("settings", settings)
        then = self.study.user_attrs["settings"]
        for key in sorted(settings.keys() | then.keys()):
            if then.get(key) != settings.get(key):
                raise MiniGPTError(
                    f"{key} is {settings.get(key)} here and {then.get(key)} in the study '{self.name}', whose trials "
                    "would no longer be comparable. Restore the setting, or start another study with --study NAME."
                )
        self.n_grid = math.prod(map(len, self.space.values())) if sampler == "grid" else None
        if sampler == "grid":
            self.study.sampler = optuna.samplers.GridSampler(self.space, seed)
        else:
            of_start = None if seed is None else (seed + len(self.study.trials)) % 2**32  # draws go on, not again
            kind = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.RandomSampler
            self.study.sampler = kind(seed=of_start)

    def _url(self, storage: str | None) -> str:
        """Return the URL of the database; the file of SQLite exists then."""
        path = (storage or "").removeprefix("sqlite:///")
        if "://" in path:
            return path
        file = Path(os.path.expanduser(path) if path else self.folder / "study.db").absolute()
        with writing(file.parent, "--storage" if path else "--trainer.default_root_dir"):
            file.open("ab").close()  # created with the umask, where SQLite would restrict the permissions
        return f"sqlite:///{file}"

    def _open(self, url: str) -> optuna.Study:
        patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}  # while another process writes
        try:
            storage = optuna.storages.RDBStorage(
                url, patient, heartbeat_interval=HEARTBEAT, grace_period=GRACE,
                heartbeat_stale_trial_callback=self.retry,
            )  # fmt: skip
            return optuna.create_study(study_name=self.name, storage=storage, load_if_exists=True)
        except Exception as error:  # a file of another kind fails in many ways
            reason = str(error).partition("\n")[0].rstrip(".")
            raise MiniGPTError(f"'{url}' cannot store a study: {reason}. Pass a new file with --storage.") from error

    def run(self, n: int | None) -> None:
        """Train until the study has `n` trials, those of other processes included; None for 20, or the whole grid."""
        n = min(n or self.n_grid, self.n_grid) if self.n_grid else n or 20
        try:
            while self.n_running() + len(self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < n:
                self.study.optimize(self._train, n_trials=1)
        except KeyboardInterrupt as interrupt:
            raise interrupt.__cause__ or interrupt from None

    def complete(self) -> list[FrozenTrial]:
        """Return the complete trials, best first."""
        return sorted(self.study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: trial.value or math.inf)

    def n_running(self) -> int:
        """Return the number of trials that seem to be running, in this or another process."""
        optuna.storages.fail_stale_trials(self.study)
        return len(self.study.get_trials(states=(TrialState.RUNNING,)))

    def _train(self, trial: Trial) -> float:
        """Return the mean of the last bits per character over the seeds of a trial."""
        values = {key: suggest(trial, key, choices) for key, choices in self.space.items()}
        folder = self.folder_of(self.study.trials[trial.number])
        note(f"\n{folder.name}: {', '.join(f'{key} {recipes.as_text(value)}' for key, value in values.items())}")
        try:
            scores = [self._score(trial, values, folder / f"version_{seed}", seed) for seed in self.seeds]
        except (MiniGPTError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit) as error:
            if isinstance(error, Exception) and not any(isinstance(reason, OSError) for reason in _reasons(error)):
                note(str(error))  # a result too: these settings fail
                trial.set_user_attr("why", str(error))
                raise optuna.TrialPruned from error
            self.retry(self.study, self.study.trials[trial.number])  # interrupted
            raise KeyboardInterrupt from error
        trial.set_user_attr("scores", scores)
        return float(np.mean(scores))

    def _score(self, trial: Trial, values: dict[str, Any], run: Path, seed: int) -> float:
        """Train one run of a trial, or continue it, and return its last bits per character."""
        args = [*self.args, *as_flags(values | {SEED: seed})]
        if (run / "checkpoints" / "last.ckpt").exists():
            args += ["--ckpt_path", str(run)]
        if len(self.seeds) > 1:
            note(message("seed_begins", seed, self.seeds.index(seed) + 1, len(self.seeds)))
        cli, pruning = MiniGPTCLI(args, run), Pruning(trial)
        if seed == self.seeds[0]:  # before the callback that writes the last checkpoint
            cli.trainer.callbacks.insert(0, pruning)  # type: ignore[attr-defined]  # Lightning sets it from outside
        if not cli.finished:
            cli.fit()
        if pruning.pruned:
            note(message("trial_pruned"))
            raise optuna.TrialPruned
        last = cli.trainer.callback_metrics.get(OBJECTIVE)
        curve = read_curves(run).scalars.get(OBJECTIVE, []) if last is None else [(0, last.item())]
        if not curve:
            raise MiniGPTError("The run ended before a validation. Set trainer.max_steps or a longer trainer.max_time.")
        return curve[-1][1]

    def folder_of(self, trial: FrozenTrial) -> Path:
        """Return the folder with the runs of a trial; a retried trial has the number of the first."""
        first = self.retry.retried_trial_number(trial)
        return self.folder / f"trial_{trial.number if first is None else first}"

    def table(self) -> list[str]:
        """Return the lines of a table of the trials, best first."""
        cells = [["trial", "bits/char", "state", "steps", *(key.rpartition(".")[2] for key in self.space)]]
        for trial in [*self.complete(), *self.study.get_trials(states=(TrialState.PRUNED,))]:
            scores = trial.user_attrs.get("scores", [math.nan if trial.value is None else trial.value])
            spread = f" ± {np.std(scores, ddof=1):.4f}" if len(scores) > 1 else ""
            state = "broke" if "why" in trial.user_attrs else trial.state.name.lower()
            steps = str(max(trial.intermediate_values, default=0))
            values = (f"{each:.4g}" if type(each) is float else str(each) for each in trial.params.values())
            cells.append([self.folder_of(trial).name, f"{np.mean(scores):.4f}{spread}", state, steps, *values])
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
                named = {} if name == "intermediate_values" else {"target_name": "bits per character"}
                getattr(plots, f"plot_{name}")(self.study, **named)
                pyplot.savefig(self.folder / f"{name}.png", bbox_inches="tight")
                drawn.append(self.folder / f"{name}.png")
            pyplot.close("all")
        return drawn


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
