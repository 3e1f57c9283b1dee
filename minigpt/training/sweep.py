"""A sweep: many runs of one recipe, for which Optuna draws settings from a space, in a study that is kept on disk.

A trial is an ordinary run. The process that trains it holds a lock, which the system takes back however the process
ends; so a trial that is running while its lock is free was interrupted, and the next process to look for work goes on
with it where its run stopped. All processes that share a study need to see its storage, the locks beside it, and the
runs.
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

OBJECTIVE = "val/bits_per_char"  # of the last validation: it compares across tokenizers
# What may differ between two machines that share a study. The text is compared by its checksum, wherever it is.
OF_A_MACHINE = {
    "trainer.default_root_dir", "trainer.accelerator", "trainer.devices", "trainer.enable_progress_bar",
    "progress.every_n_steps", "data.path", "data.cache_dir",
}  # fmt: skip


class Pruning(Callback):
    """Reports each validation to a trial, and ends the run when the study's pruner sees no use in it.

    Optuna's own callback for Lightning will not do. It reports under the number of the epoch, and a run here is one
    long epoch, so that only its first validation would count. And it ends a run by an exception, which means here that
    the training broke: there would be no best checkpoint, no last samples and a wrong message.

    Args:
        trial: The trial that the run belongs to.
    """

    def __init__(self, trial: Trial):
        self.trial = trial
        self.pruned = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and stop the run if its trial is pruned; it stays one that can be resumed."""
        step = trainer.global_step
        self.trial.report(trainer.callback_metrics[OBJECTIVE].item(), step)
        if step != trainer.max_steps and self.trial.should_prune():
            self.pruned = trainer.should_stop = True


class Sweep:
    """A study and what its trials have in common.

    Args:
        args: The flags of `minigpt train` for all trials, `--config` among them.
        space: The YAML file with the settings to search.
        study: The study's name; None for the recipe's and the space's.
        storage: The study's file: SQLite where it ends in .db or begins with sqlite:///, else a journal, which network
            file systems take too; None for a journal under lightning_logs/sweeps.
        seed: Where the draws come from: those of trial i are a function of (seed, i) and of the trials before it.

    Raises:
        MiniGPTError: The recipe, a flag or the space is wrong, or the study was made with others.
    """

    def __init__(self, args: list[str], space: str, study: str | None, storage: str | None, seed: int):
        if any(re.match("--ckpt_path(=|$)", arg) for arg in args):
            raise MiniGPTError("A sweep makes new runs, so --ckpt_path has no use here. To go on, repeat the command.")
        recipe = DryRun(args)
        self.args, self.seed = args, seed
        self.space = read_space(space, recipe, args)
        self.name = re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{Path(space).stem}") if study is None else study
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise MiniGPTError(f"The study's name is '{self.name}'. Make it of letters, digits, and - or _ between.")
        if storage and "://" in storage.removeprefix("sqlite:///"):
            raise MiniGPTError(f"A study is kept in a file, and '{storage}' is none. Give --storage a path.")
        place = Path(recipe.trainer.default_root_dir) / runs.ROOT / "sweeps" / f"{self.name}.journal"
        self.storage = Path(os.path.expanduser(storage.removeprefix("sqlite:///")) if storage else place).absolute()
        self.folder = self.storage.parent
        about = flatten(recipes.load(recipe._recipe()))
        about = {key: value for key, value in about.items() if key not in OF_A_MACHINE}
        about["data.path (SHA-256 of the text)"] = recipe.datamodule.tokens.sha256
        about |= {key: in_words(distribution) for key, distribution in self.space.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", module="optuna")  # of a validation that a resume repeats, for one
        with writing(self.folder, "--storage FILE"):
            self._lock("study").parent.mkdir(exist_ok=True)
        with files.lock(self._lock("study")):
            self.study = self._open(sqlite=str(storage).startswith("sqlite:///") or self.storage.suffix == ".db")
            # A first quarter says little: rates are still rising, and every model learns the letters first.
            self.study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=max(recipe.trainer.max_steps // 4, 0))
            if "about" not in self.study.user_attrs:
                self.study.set_user_attr("about", about)
        self._check_same(about)

    def _lock(self, name: str) -> Path:
        return self.folder / f"{self.name}.locks" / name

    def _open(self, sqlite: bool) -> optuna.Study:
        try:
            if sqlite:
                self.storage.open("ab").close()  # by umask, which SQLite would narrow
                patient = {"connect_args": {"timeout": 60}}  # seconds, while another process writes
                storage: optuna.storages.BaseStorage = optuna.storages.RDBStorage(
                    f"sqlite:///{self.storage}", engine_kwargs=patient
                )
            else:
                if self.storage.exists() and self.storage.read_bytes()[:10] not in (b"", b'{"op_code"'):
                    raise ValueError("not a journal, to which Optuna would write all the same")
                backend = _Journal(str(self.storage), JournalFileOpenLock(str(self.storage)))
                storage = optuna.storages.JournalStorage(backend)
            return optuna.create_study(study_name=self.name, storage=storage, load_if_exists=True)
        except Exception as error:  # a file that is something else fails in many ways
            raise MiniGPTError(f"There can be no study in '{self.storage}'. Give --storage a new file.") from error

    def _check_same(self, about: dict[str, Any]) -> None:
        then = self.study.user_attrs.get("about", {})
        for key in sorted(about.keys() | then.keys()):
            if then.get(key) != about.get(key):
                raise MiniGPTError(
                    f"{key} is {about.get(key)} here and {then.get(key)} in the study '{self.name}', whose trials "
                    "would no longer compare. Set it back, or begin another study with --study NAME."
                )

    def run(self, n: int) -> None:
        """Train until the study has `n` trials, those that other processes are at included."""
        while taken := self._next(n):
            trial, lock = taken
            try:
                self._train(trial)
            finally:
                lock.close()

    def _next(self, n: int) -> tuple[Trial, contextlib.ExitStack] | None:
        """A trial to train and its lock: one that was interrupted, or a new one; None if there is nothing to do."""
        with files.lock(self._lock("study")):
            for running in self.study.get_trials(states=(TrialState.RUNNING,)):
                with contextlib.suppress(Timeout):
                    lock = files.lock(self._lock(str(running.number)), blocking=False)
                    note(f"Trial {running.number} was interrupted: it is taken up again.")
                    return Trial(self.study, running._trial_id), lock
            if len(self.study.trials) >= n:
                return None
            trial = self.study.ask()
            return trial, files.lock(self._lock(str(trial.number)))

    def _train(self, trial: Trial) -> None:
        self.study.sampler = optuna.samplers.TPESampler(seed=derive_seed(self.seed, trial.number) % 2**32)
        values = {key: _suggest(trial, key, distribution) for key, distribution in self.space.items()}
        note(f"\ntrial {trial.number}: {', '.join(f'{key} {as_text(value)}' for key, value in values.items())}")
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
                raise MiniGPTError("The run ended before a validation. Set trainer.max_steps, or a longer max_time.")
        except (MiniGPTError, torch.OutOfMemoryError) as error:
            if any(isinstance(reason, OSError) for reason in _reasons(error)):
                raise  # the file system's answer, not that of the settings: the trial can be taken up again
            note(str(error))  # a result too, and one to keep away from
            trial.set_user_attr("why", str(error))
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        except SystemExit as stop:
            if stop.code == 1:  # so Lightning leaves on a Ctrl-C that our handler did not see
                raise KeyboardInterrupt from None
            raise
        if pruning.pruned:
            note("Pruned: at this step half of the others were better.")
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, reports[max(reports)])

    def run_of(self, trial: Trial | FrozenTrial) -> Path | None:
        """The run folder of a trial, if it has come so far."""
        run = trial.user_attrs.get("run")
        return Path(os.path.normpath(self.folder / run)) if run else None

    def rows(self) -> list[dict[str, Any]]:
        """The trials, best first: value, state, settings, steps and run folder."""
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
        """Write the table as CSV and the plots as PNG beside the storage; the files."""
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
    """Optuna's journal, also where a file cannot be flushed to disk."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries; flushing is the last that Optuna does for them."""
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
