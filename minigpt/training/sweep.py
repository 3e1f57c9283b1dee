"""Sweeps: many runs of one recipe, with settings that Optuna draws from a space, in a study on disk.

A trial is an ordinary run. The process that trains it holds a lock, which the system releases however the process ends.
So a running trial whose lock is free was interrupted, and the next process that looks for work resumes it. All
processes of a study need access to its storage, the locks beside it, and the runs.
"""

import contextlib
import csv
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import Timeout
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from minigpt import files, runs
from minigpt.command_line import short
from minigpt.errors import MiniGPTError, note, writing
from minigpt.seeds import derive_seed
from minigpt.training import recipes
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.parser import flatten
from minigpt.training.space import Distribution, DryRun, as_flags, as_text, in_words, read_space
from minigpt.words import message

OBJECTIVE = "val/bits_per_char"  # of the last validation; compares across tokenizers
# Settings that may differ between machines that share a study. The text is compared by its checksum.
OF_A_MACHINE = {
    "trainer.default_root_dir", "trainer.accelerator", "trainer.devices", "trainer.enable_progress_bar",
    "progress.every_n_steps", "data.path", "data.cache_dir",
}  # fmt: skip


class Pruning(Callback):
    """Reports each validation to a trial, and stops the run if the study's pruner says so.

    Optuna's own callback for Lightning is not suitable. It reports under the number of the epoch, and here a run is one
    long epoch, so that only its first validation would count. It also ends a run by an exception, which here means that
    the training failed: there would be no best checkpoint, no last samples and a wrong message.

    Args:
        trial: The trial that the run belongs to.
    """

    def __init__(self, trial: Trial):
        self.trial = trial
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop the run if its trial is pruned; the run can still be resumed."""
        step = trainer.global_step
        self.trial.report(trainer.callback_metrics[OBJECTIVE].item(), step)
        if step != trainer.max_steps and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


class Sweep:
    """A study and the common settings of its trials.

    Args:
        args: The flags of `minigpt train` for all trials, including `--config`.
        space: The YAML file with the settings to search.
        study: The name of the study; None for RECIPE-SPACE.
        storage: The file of the study: SQLite if it ends in .db or begins with sqlite:///, else a journal, which also
            works on network file systems; None for a journal in lightning_logs/sweeps.
        seed: The seed of the draws; those of trial i are a function of (seed, i) and of the trials before it.

    Raises:
        MiniGPTError: The recipe, a flag or the space is wrong, or the study has other settings.
    """

    def __init__(self, args: list[str], space: str, study: str | None, storage: str | None, seed: int):
        if any(re.match("--ckpt_path(=|$)", arg) for arg in args):
            raise MiniGPTError("A sweep starts new runs, so omit --ckpt_path. To continue a sweep, repeat the command.")
        recipe = DryRun(args)
        self.args, self.seed = args, seed
        self.space = read_space(space, recipe, args)
        self.name = re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{Path(space).stem}") if study is None else study
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise MiniGPTError(f"The study's name is '{self.name}'. Use letters, digits, - and _ only.")
        if storage and "://" in storage.removeprefix("sqlite:///"):
            raise MiniGPTError(
                f"A study is stored in a file, and '{storage}' is not a path. Pass a path with --storage."
            )
        default = Path(recipe.trainer.default_root_dir) / runs.ROOT / "sweeps" / f"{self.name}.journal"
        self.storage = Path(os.path.expanduser(storage.removeprefix("sqlite:///")) if storage else default).absolute()
        self.folder = self.storage.parent
        settings = flatten(recipes.load(recipe._recipe()))
        settings = {key: value for key, value in settings.items() if key not in OF_A_MACHINE}
        settings["data.path (SHA-256 of the text)"] = recipe.datamodule.tokens.sha256
        settings |= {key: in_words(distribution) for key, distribution in self.space.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", module="optuna")  # such as about a validation that a resume repeats
        with writing(self.folder, "--storage FILE"):
            self._lock("study").parent.mkdir(exist_ok=True)
        with files.lock(self._lock("study")):
            self.study = self._open(sqlite=str(storage).startswith("sqlite:///") or self.storage.suffix == ".db")
            # The first quarter does not rank trials: rates are still rising, and every model learns letters first.
            self.study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=max(recipe.trainer.max_steps // 4, 0))
            if "settings" not in self.study.user_attrs:
                self.study.set_user_attr("settings", settings)
        self._check_same(settings)

    def _lock(self, name: str) -> Path:
        return self.folder / f"{self.name}.locks" / name

    def _open(self, sqlite: bool) -> optuna.Study:
        try:
            if sqlite:
                self.storage.open("ab").close()  # created with the umask, where SQLite would restrict the permissions
                patient = {"connect_args": {"timeout": 60}}  # seconds to wait while another process writes
                storage: optuna.storages.BaseStorage = optuna.storages.RDBStorage(
                    f"sqlite:///{self.storage}", engine_kwargs=patient
                )
            else:
                if self.storage.exists() and self.storage.read_bytes()[:10] not in (b"", b'{"op_code"'):
                    raise ValueError("not a journal; Optuna would write to it nevertheless")
                backend = _Journal(str(self.storage), JournalFileOpenLock(str(self.storage)))
                storage = optuna.storages.JournalStorage(backend)
            return optuna.create_study(study_name=self.name, storage=storage, load_if_exists=True)
        except Exception as error:  # a file of another kind fails in many ways
            raise MiniGPTError(f"'{self.storage}' cannot store a study. Pass a new file with --storage.") from error

    def _check_same(self, settings: dict[str, Any]) -> None:
        then = self.study.user_attrs.get("settings", {})
        for key in sorted(settings.keys() | then.keys()):
            if then.get(key) != settings.get(key):
                raise MiniGPTError(
                    f"{key} is {settings.get(key)} here and {then.get(key)} in the study '{self.name}', whose trials "
                    "would no longer be comparable. Restore the setting, or start another study with --study NAME."
                )

    def run(self, n: int) -> None:
        """Train until the study has `n` trials, including the trials of other processes."""
        while taken := self._next(n):
            trial, lock = taken
            try:
                self._train(trial)
            finally:
                lock.close()

    def _next(self, n: int) -> tuple[Trial, contextlib.ExitStack] | None:
        """Return a trial to train, interrupted or new, and its lock; None if there is nothing to do."""
        with files.lock(self._lock("study")):
            for running in self.study.get_trials(states=(TrialState.RUNNING,)):
                with contextlib.suppress(Timeout):
                    lock = files.lock(self._lock(str(running.number)), blocking=False)
                    note(message("trial_resumed", running.number))
                    return Trial(self.study, running._trial_id), lock
            if len(self.study.trials) >= n:
                return None
            trial = self.study.ask()
            return trial, files.lock(self._lock(str(trial.number)))

    def _train(self, trial: Trial) -> None:
        self.study.sampler = optuna.samplers.TPESampler(seed=derive_seed(self.seed, trial.number) % 2**32)
        values = {key: _suggest(trial, key, distribution) for key, distribution in self.space.items()}
        drawn = ", ".join(f"{key} {as_text(value)}" for key, value in values.items())
        note("\n" + message("trial", trial.number, drawn))
        args = [*self.args, *as_flags(values)]
        run = self.run_of(trial)
        if run and (run / "checkpoints" / "last.ckpt").exists():
            args += ["--ckpt_path", str(run)]
        pruning = Pruning(trial)
        try:
            cli = MiniGPTCLI(args)
            if not cli.finished:
                assert cli.run_dir is not None, "DryRun refuses fast_dev_run, which has none"
                trial.set_user_attr("run", os.path.relpath(cli.run_dir, self.folder))
                # Before the one that writes the last checkpoint.
                cli.trainer.callbacks.insert(0, pruning)  # type: ignore[attr-defined]  # Lightning sets it from outside
                cli.fit()
            reports = self.study.trials[trial.number].intermediate_values
            if not reports:
                raise MiniGPTError(
                    "The run ended before a validation. Set trainer.max_steps or a longer trainer.max_time."
                )
        except (MiniGPTError, torch.OutOfMemoryError) as error:
            if any(isinstance(reason, OSError) for reason in _reasons(error)):
                raise  # caused by the file system, not by the settings, so the trial can be resumed
            note(str(error))  # a result too: these settings fail
            trial.set_user_attr("why", str(error))
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        except SystemExit as stop:
            if stop.code == 1:  # Lightning's exit on a Ctrl-C outside the time of our handler
                raise KeyboardInterrupt from None
            raise
        if pruning.pruned:
            note(message("trial_pruned"))
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, reports[max(reports)])

    def run_of(self, trial: Trial | FrozenTrial) -> Path | None:
        """Return the run folder of a trial; None if it has none yet."""
        run = trial.user_attrs.get("run")
        return Path(os.path.normpath(self.folder / run)) if run else None

    def rows(self) -> list[dict[str, Any]]:
        """Return the trials, best first: value, state, settings, steps and run folder."""
        rows = []
        for trial in self.study.trials:
            state = "broke" if "why" in trial.user_attrs else trial.state.name.lower()
            steps = max(trial.intermediate_values, default=0)
            value = trial.intermediate_values.get(steps)
            values = {key: trial.params.get(key) for key in self.space}
            rows.append({"bits_per_char": value, "state": state, **values, "steps": steps, "run": self.run_of(trial)})
        return sorted(rows, key=lambda row: (row["state"] != "complete", row["bits_per_char"] or math.inf))

    def table(self) -> list[str]:
        """Return the lines of a table of the trials, best first."""
        rows = [row | {"run": row["run"] and short(row["run"])} for row in self.rows()]
        cells = [[key.rpartition(".")[2] for key in rows[0]]]
        for row in rows:
            texts = (f"{value:.4g}" if type(value) is float else str(value) for value in row.values())
            cells.append(["-" if text == "None" else text for text in texts])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]

    def write(self) -> list[Path]:
        """Write the table as CSV and the plots as PNG beside the storage, and return the files."""
        table = self.folder / f"{self.name}.csv"
        rows = self.rows()
        with writing(self.folder, "--storage FILE"):
            with open(table, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(row | {"run": row["run"] and os.path.relpath(row["run"], self.folder)} for row in rows)
            return [table, *self._draw()]

    def _draw(self) -> list[Path]:
        complete = self.study.get_trials(states=(TrialState.COMPLETE,))
        if len(complete) < 2:
            return []
        import matplotlib

        matplotlib.use("Agg")  # files, no window
        from optuna.visualization import matplotlib as plots

        kinds: dict[str, Callable[..., Any]] = {"history": plots.plot_optimization_history, "slices": plots.plot_slice}
        if len({trial.value for trial in complete}) > 1:
            kinds["importances"] = plots.plot_param_importances
        drawn = []
        for kind, plot in kinds.items():
            with warnings.catch_warnings(action="ignore"):
                axes = plot(self.study, target_name="bits per character")
            figure = getattr(axes, "flat", [axes])[0].figure
            drawn.append(self.folder / f"{self.name}.{kind}.png")
            figure.savefig(drawn[-1], bbox_inches="tight")
            matplotlib.pyplot.close(figure)
        return drawn


class _Journal(JournalFileBackend):
    """Optuna's journal, also for file systems that cannot flush to disk."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries, which Optuna flushes to disk at the end."""
        with files.syncing(Path(self._file_path)):
            super().append_logs(logs)


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _suggest(trial: Trial, key: str, distribution: Distribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(key, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    return trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
