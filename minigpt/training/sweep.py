"""Sweeps: studies of Optuna, whose trials are ordinary runs with settings drawn from a space.

The runs of trial N are in `lightning_logs/STUDY/trial_N`, one for each seed. An interrupted trial stays in the state
"running" without heartbeats, so that it is retried. `comparison/study.py` has what concerns Optuna alone.
"""

import itertools
import math
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from lightning.pytorch import Trainer, callbacks
from optuna.trial import FixedTrial, Trial, TrialState

from minigpt import runs
from minigpt.command_line import CommandLine, example_config, split_seeds
from minigpt.comparison.study import GRACE, heartbeats, name_of, next_trial, open_study, set_search, suggest
from minigpt.errors import MiniGPTError, causes, check_choice, note
from minigpt.training import recipes, trust
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.parser import flatten
from minigpt.training.repeated import dry_run, validated_text
from minigpt.words import message

EXAMPLE, SEED, SAMPLERS = "sweeps/nano", "seed_everything", ("tpe", "random", "grid")
# Settings that may change in a study.
FREE = ("trainer.default_root_dir", "trainer.enable_progress_bar", "progress.", "data.path", "data.cache_dir")


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
    tried = {}  # the values of a list; the ends and the first step of a range
    for key, choices in space.items():
        if any(re.match(rf"--{re.escape(key)}(=|$)", arg) for arg in args):
            raise MiniGPTError(f"{path} searches {key}, which is also set by a flag. Omit one of them.")
        try:
            listed = isinstance(choices, list)
            if not choices or len({*choices}) < len(choices) or (not listed and (sampler == "grid" or key == SEED)):
                raise TypeError
            tried[key] = choices if listed else [low := choices["low"], choices["high"], low + choices.get("step", 0)]
            if not listed:
                suggest(FixedTrial({key: low}), key, choices)
        except (LookupError, TypeError, ValueError) as error:
            wanted = f"{path}: write {key} as a list of different values, or as a range such as {{low: 1, high: 6}}."
            raise MiniGPTError(f"{wanted} {error}" if type(error) is ValueError else wanted) from error
    first = {key: values[0] for key, values in tried.items()}
    try:
        text = validated_text(dry_run(args, first))
        for key, choices in space.items():
            others = dict.fromkeys(value for value in tried[key] if value != first[key])
            if any(validated_text(dry_run(args, first | {key: value})) != text for value in others):
                raise MiniGPTError(f"{key} would give trials different texts to validate on, which do not compare.")
            if isinstance(choices, dict):
                low, high, _ = tried[key]
                with suppress(MiniGPTError):  # of a setting that takes whole numbers only
                    dry_run(args, first | {key: low + (high - low) / math.pi})
                    choices |= {"low": float(low), "high": float(high)}
    except MiniGPTError as error:
        raise MiniGPTError(f"{path}: {error}") from error
    return sampler, space


class Sweep:
    """A study of runs that share the flags `args` of `minigpt train`; the rest are the options of `minigpt sweep`.

    Raises:
        MiniGPTError: The recipe, a flag or the space is wrong, or the study has other settings.
    """

    def __init__(self, args: list[str], space: str, study: str | None, storage: str | None, seed: int | None):
        seeds, self.args = split_seeds(args)
        recipe = dry_run(self.args, {})
        sampler, self.space = read_space(space, [*self.args, *recipes.as_flags({SEED: seeds[0]} if seeds else {})])
        self.seeds = self.space.pop(SEED, seeds) or [recipe.config[SEED]]  # repetitions, whose mean counts
        study = study or re.sub(r"[^\w.-]+", "_", f"{recipe.name}-{Path(space).stem}")
        self.folder = Path(recipe.trainer.default_root_dir).absolute() / runs.ROOT / study
        # A study keeps these settings. The path of the text may change, and its checksum may not.
        settings = flatten(recipes.load(recipe._recipe()))
        settings = {key: value for key, value in settings.items() if not key.startswith(FREE)} | self.space
        settings |= {SEED: self.seeds, "sampler": sampler, "data.path (SHA-256 of the text)": validated_text(recipe)[0]}
        grid = itertools.product(*self.space.values()) if sampler == "grid" else ()
        self.grid = [dict(zip(self.space, values, strict=True)) for values in grid]
        self.study = open_study(storage or str(self.folder / "study.db"), study, settings, self.grid)
        set_search(self.study, sampler, seed, recipe.trainer.max_steps)

    def run(self, n: int | None) -> None:
        """Train until the study has `n` trials, those of other processes included; None for 20, or the whole grid.

        Raises:
            MiniGPTError: A trial was interrupted for a reason outside its settings, such as a full disk.
        """
        n = min(n or len(self.grid) or 20, len(self.grid) or n or 20)
        while trial := next_trial(self.study, n):
            value, state = None, TrialState.PRUNED
            try:
                with heartbeats(trial), suppress(optuna.TrialPruned):
                    value, state = self._train(trial), TrialState.COMPLETE
            except optuna.exceptions.UpdateFinishedTrialError:
                note(message("trial_taken", GRACE))
            self.study.tell(trial, value, state, skip_if_finished=True)

    def _train(self, trial: Trial) -> float:
        """Return the mean of the last bits per character over the seeds of a trial."""
        values = {key: suggest(trial, key, choices) for key, choices in self.space.items()}
        folder = self.folder / name_of(self.study.trials[trial.number])
        note(f"\n{folder.name}: {', '.join(f'{key} {recipes.as_text(value)}' for key, value in values.items())}")
        try:
            return float(np.mean([self._train_seed(trial, seed, values, folder) for seed in self.seeds]))
        except (MiniGPTError, torch.OutOfMemoryError) as error:  # these settings fail, which is a result too
            if any(isinstance(each, OSError) for each in causes(error)):
                raise
            note(str(error))
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error

    def _train_seed(self, trial: Trial, seed: int, values: dict[str, Any], folder: Path) -> float:
        """Train the run of a seed, or continue it, and return its last bits per character."""
        run, args = folder / f"version_{seed}", [*self.args, *recipes.as_flags(values | {SEED: seed})]
        if (run / "checkpoints" / "last.ckpt").exists():
            args += [f"--ckpt_path={run}", "--init_from=null"]
        if len(self.seeds) > 1:
            note(message("seed_begins", seed, self.seeds.index(seed) + 1, len(self.seeds)))
        cli = MiniGPTCLI(args, run)
        # The score is stored before the last checkpoint is written. Lightning sets `callbacks` outside its class.
        report = callbacks.LambdaCallback(on_validation_end=partial(self._report, trial, seed))
        cli.trainer.callbacks.insert(0, report)  # type: ignore[attr-defined]
        self._pruned = False
        if not cli.finished:
            cli.fit()
        if self._pruned:
            note(message("pruned"))
            raise optuna.TrialPruned
        if math.isnan(score := trial.user_attrs.get("scores", {}).get(str(seed), math.nan)):
            raise MiniGPTError("There is no validation: set more trainer.max_steps, or, if it was NaN, lower rates.")
        return score

    def _report(self, trial: Trial, seed: int, trainer: Trainer, *_: Any) -> None:
        """Store the score of a seed, in bits per character; the run of the first seed may be pruned."""
        score = trainer.callback_metrics["val/bits_per_char"].item()
        trial.set_user_attr("scores", trial.user_attrs.get("scores", {}) | {str(seed): score})
        if seed == self.seeds[0]:
            trial.report(score, trainer.global_step)
            if trainer.global_step != trainer.max_steps and trial.should_prune():
                self._pruned = trainer.should_stop = True
