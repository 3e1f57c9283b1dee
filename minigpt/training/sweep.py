"""Sweeps: studies of Optuna, whose trials are ordinary runs with settings drawn from a space.

The runs of trial N are in `lightning_logs/STUDY/trial_N`, one for each seed. Optuna keeps the study in SQLite. A
process sends heartbeats for its trial; when they end, the trial is retried, and its runs continue.
"""

import itertools
import math
import re
import sys
import time
from contextlib import redirect_stderr, suppress
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import optuna
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread  # `Study.optimize` alone has it; it can lose a Ctrl-C
from optuna.trial import FixedTrial, Trial, TrialState

from minigpt import runs
from minigpt.command_line import CommandLine, example_config, split_seeds
from minigpt.comparison.study import GRACE, HEARTBEAT, name_of, open_study
from minigpt.errors import MiniGPTError, causes, check_choice, note
from minigpt.training import recipes, trust
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.parser import flatten
from minigpt.words import message

EXAMPLE, SEED, SAMPLERS = "sweeps/nano", "seed_everything", ("tpe", "random", "grid")
# Settings that may change in a study.
FREE = ("trainer.default_root_dir", "trainer.enable_progress_bar", "progress.", "data.path", "data.cache_dir")


def dry_run(args: list[str], values: dict[str, Any] | None = None) -> tuple[MiniGPTCLI, tuple[str, float]]:
    """Build a run in a folder that is deleted, and return it, and the checksum and the validated part of its text."""
    if CommandLine(args).values("--ckpt_path"):
        raise MiniGPTError("A sweep starts new runs, so omit --ckpt_path. To continue a sweep, repeat the command.")
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # each trial prints these notes
        cli = MiniGPTCLI([*args, *recipes.as_flags(values or {})], Path(folder))
    if cli.config.init_from == "last":
        raise MiniGPTError("Each trial would start from the run before it. Pass --init_from a run folder.")
    if cli.run_dir is None or cli.trainer.world_size > 1:
        raise MiniGPTError("A trial has a run folder and one process: omit fast_dev_run and --trainer.devices.")
    return cli, (cli.datamodule.tokens.sha256, cli.datamodule.tokens.val_fraction)


def read_space(path: str, args: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the sampler, and the list or range of values for each setting; `args` are the flags of all trials.

    Raises:
        MiniGPTError: The YAML file is wrong, or a value fails in a dry run with the first values of the others.
    """
    space = {str(key): choices for key, choices in recipes.read(path, EXAMPLE).settings.items()}
    trust.check_names(space, path, CommandLine(args).values("--allow_code"))
    sampler = space.pop("sampler", "tpe")
    check_choice(f"{path}: sampler", sampler, SAMPLERS)
    if not space.keys() - {SEED}:
        raise MiniGPTError(f"{path} has no settings to search. Start from a copy of {example_config(EXAMPLE)}.")
    values = {}  # those of a list; the ends of a range, and its first step
    for key, choices in space.items():
        if any(re.match(rf"--{re.escape(key)}(=|$)", arg) for arg in args):
            raise MiniGPTError(f"{path} searches {key}, which is also set by a flag. Omit one of them.")
        try:
            if isinstance(choices, dict) and sampler != "grid" and key != SEED:
                suggest(FixedTrial({key: choices["low"]}), key, choices)
                steps = [choices["low"] + choices["step"]] if "step" in choices else []
                values[key] = [choices["low"], choices["high"], *steps]
            elif isinstance(choices, list) and 0 < len(choices) == len({*choices}):  # a TypeError for lists within it
                values[key] = choices
            else:
                raise TypeError
        except (LookupError, TypeError, ValueError) as error:
            wanted = f"{path}: write {key} as a list of different values, or as a range such as {{low: 1, high: 6}}."
            raise MiniGPTError(f"{wanted} {error}" if type(error) is ValueError else wanted) from error
    first = {key: each[0] for key, each in values.items()}
    try:
        _, text = dry_run(args, first)
        for key, choices in space.items():
            if any(dry_run(args, first | {key: value})[1] != text for value in values[key][1:]):
                raise MiniGPTError(f"{key} would give trials different texts to validate on, which do not compare.")
            if isinstance(choices, dict):
                low, high = values[key][:2]
                with suppress(MiniGPTError):  # of a setting that takes whole numbers only
                    dry_run(args, first | {key: low + (high - low) / math.pi})
                    choices |= {"low": float(low), "high": float(high)}
    except MiniGPTError as error:
        raise MiniGPTError(f"{path}: {error}") from error
    return sampler, space


def suggest(trial: Trial | FixedTrial, key: str, choices: Any) -> Any:
    """Draw a value from a list, or from a range, which has Optuna's keys low, high, log and step."""
    if isinstance(choices, list):
        return trial.suggest_categorical(key, choices)
    fractions = float in map(type, choices.values())
    return (trial.suggest_float if fractions else trial.suggest_int)(key, **choices)


class Sweep:
    """A study of runs that have the flags `args` of `minigpt train`, with --config, in common.

    The arguments `space`, `study`, `storage` and `seed` are the options of `minigpt sweep`.

    Raises:
        MiniGPTError: The recipe, a flag or the space is wrong, or the study has other settings.
    """

    def __init__(self, args: list[str], space: str, study: str | None, storage: str | None, seed: int | None):
        seeds, self.args = split_seeds(args)
        recipe, text = dry_run(self.args)
        sampler, self.space = read_space(space, [*self.args, *recipes.as_flags({SEED: seeds[0]} if seeds else {})])
        self.seeds = self.space.pop(SEED, seeds) or [recipe.config[SEED]]  # repetitions, whose mean counts
        study = study or re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{Path(space).stem}")
        if not re.fullmatch(r"\w[\w.-]*", study):
            raise MiniGPTError(f"The study's name is '{study}'. Use letters, digits, - and _ only.")
        self.folder = Path(recipe.trainer.default_root_dir).absolute() / runs.ROOT / study
        # A study keeps these settings. The path of the text may change, and its checksum may not.
        settings = flatten(recipes.load(recipe._recipe()))
        settings = {key: value for key, value in settings.items() if not key.startswith(FREE)} | self.space
        settings |= {SEED: self.seeds, "sampler": sampler, "data.path (SHA-256 of the text)": text[0]}
        grid = itertools.product(*self.space.values()) if sampler == "grid" else ()
        self.grid = [dict(zip(self.space, values, strict=True)) for values in grid]
        self.study = open_study(storage or str(self.folder / "study.db"), study, settings, self.grid)
        # The first quarter does not rank trials: rates are still rising, and every model learns letters first.
        self.study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=max(recipe.trainer.max_steps // 4, 0))
        seed = None if seed is None else (seed + len(self.study.trials)) % 2**32  # not the first draws again
        self.study.sampler = TPESampler(seed=seed) if sampler == "tpe" else RandomSampler(seed=seed)

    def run(self, n: int | None) -> None:
        """Train until the study has `n` trials, those of other processes included; None for 20, or the whole grid.

        An interrupted trial remains in the state "running" without a heartbeat, so it will be retried.

        Raises:
            MiniGPTError: A trial was interrupted for a reason outside its settings, such as a full disk.
        """
        n = min(n or len(self.grid) or 20, len(self.grid) or sys.maxsize)
        storage, waiting = cast(RDBStorage, self.study._storage), False  # the storage that open_study made
        while (done := len(self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))) < n:
            optuna.storages.fail_stale_trials(self.study)
            running = self.study.get_trials(states=[TrialState.RUNNING])
            if done + len(running) >= n:
                if not waiting:
                    note(message("trials_running", GRACE))
                    for each in running:  # Optuna never retries a trial without a first heartbeat
                        storage.record_heartbeat(each._trial_id)
                waiting = True
                time.sleep(HEARTBEAT)
                continue
            trial = self.study.ask()
            with get_heartbeat_thread(trial._trial_id, storage):
                try:
                    value, state = self._train(trial), TrialState.COMPLETE
                except optuna.TrialPruned:
                    value, state = None, TrialState.PRUNED
                except optuna.exceptions.UpdateFinishedTrialError:
                    note(message("trial_taken", GRACE))
                    continue
            self.study.tell(trial, value, state, skip_if_finished=True)

    def _train(self, trial: Trial) -> float:
        """Return the mean of the last bits per character over the seeds of a trial."""
        values = {key: suggest(trial, key, choices) for key, choices in self.space.items()}
        folder = self.folder / name_of(self.study.trials[trial.number])
        note(f"\n{folder.name}: {', '.join(f'{key} {recipes.as_text(value)}' for key, value in values.items())}")
        try:
            score = float(np.mean([self._train_seed(trial, n, values, folder) for n in range(len(self.seeds))]))
            if math.isnan(score):
                raise MiniGPTError("The validation gave NaN: the training diverged.")
            return score
        except (MiniGPTError, torch.OutOfMemoryError) as error:
            if any(isinstance(each, OSError) for each in causes(error)):
                raise
            note(str(error))  # a result too: these settings fail
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error

    def _train_seed(self, trial: Trial, n: int, values: dict[str, Any], folder: Path) -> float:
        """Train the run of seed `n` (from 0) of a trial, or continue it, and return its last bits per character."""
        seed = self.seeds[n]
        run, args = folder / f"version_{seed}", [*self.args, *recipes.as_flags(values | {SEED: seed})]
        if (run / "checkpoints" / "last.ckpt").exists():
            args += ["--ckpt_path", str(run), "--init_from=null"]
        if len(self.seeds) > 1:
            note(message("seed_begins", seed, n + 1, len(self.seeds)))
        cli = MiniGPTCLI(args, run)
        report = LambdaCallback(on_validation_end=partial(self._report, trial, seed))
        # The score is stored before the last checkpoint is written. Lightning sets `callbacks` from outside its class.
        cli.trainer.callbacks.insert(0, report)  # type: ignore[attr-defined]
        self._pruned = False
        if not cli.finished:
            cli.fit()
        if self._pruned:
            note(message("pruned"))
            raise optuna.TrialPruned
        if str(seed) not in trial.user_attrs.get("scores", {}):
            raise MiniGPTError("The run ended before a validation. Set trainer.max_steps or a longer trainer.max_time.")
        return trial.user_attrs["scores"][str(seed)]

    def _report(self, trial: Trial, seed: int, trainer: Trainer, *_: Any) -> None:
        """Store the score of a seed, in bits per character; the run of the first seed may be pruned."""
        score = trainer.callback_metrics["val/bits_per_char"].item()
        trial.set_user_attr("scores", trial.user_attrs.get("scores", {}) | {str(seed): score})
        if seed == self.seeds[0]:
            trial.report(score, trainer.global_step)
            if trainer.global_step != trainer.max_steps and trial.should_prune():
                self._pruned = trainer.should_stop = True
