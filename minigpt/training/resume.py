"""Exact resume: an interrupted run ends with the same bits as an uninterrupted one.

Batch t, and the random numbers of its step, are functions of (seed, t), so no generator state is saved. Weights,
optimizer and scheduler come from the checkpoint. What the function `callbacks` returns, which
`LitLanguageModel.configure_callbacks` adds to any `Trainer`, restores everything else, some of it from what
`description.py` has written into the checkpoint.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, LearningRateFinder
from torch.optim.lr_scheduler import LambdaLR

from minigpt.errors import MiniGPTError, note
from minigpt.seeds import derive_seed
from minigpt.training.early_stopping import EarlyStoppingOnResume
from minigpt.training.optim import OPTIMIZERS, Schedule
from minigpt.training.typed import callbacks_of, lit
from minigpt.words import message


class Reseeding(Callback):
    """Seeds the generators at each batch from the seed, the number of the batch, and the rank if there are several."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators that dropout uses."""
        rank = [trainer.global_rank] * (trainer.world_size > 1)
        seed = derive_seed(lit(pl_module).hparams.seed, "step", trainer.fit_loop.total_batch_idx, *rank)
        torch.default_generator.manual_seed(seed)  # a hundred times cheaper than torch.manual_seed
        if pl_module.device.type == "cuda":
            torch.cuda.default_generators[pl_module.device.index or 0].manual_seed(seed)
        elif pl_module.device.type == "mps":
            torch.mps.manual_seed(seed)


class ScheduleOnResume(Callback):
    """Applies the current learning rates instead of the checkpoint's, with a schedule over the larger number of steps.

    PyTorch restores the checkpoint's rates with the optimizer, and LambdaLR does not recompute them before the first
    step.
    """

    def __init__(self) -> None:
        self.kept = 0  # the length of the checkpoint's schedule
        self.steps = 0  # the length of the present one

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset the lengths of an earlier training.

        Raises:
            MiniGPTError: Lightning's learning-rate finder is used with Muon, which has two learning rates.
        """
        if stage != "fit":
            return
        self.kept = self.steps = 0
        if lit(pl_module).hparams.optimizer == "muon" and callbacks_of(trainer, LearningRateFinder):
            raise MiniGPTError(
                "lr_find sets one learning rate for all parameters, and muon has two (learning_rate and "
                "muon_learning_rate). Search with optimizer='adamw', or with `minigpt sweep`."
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the length of the schedule."""
        self.steps = self.kept = checkpoint.get("minigpt", {}).get("schedule_steps") or 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the schedule and the rates, and note the consequences of a changed length."""
        module, schedulers = lit(pl_module), [config.scheduler for config in trainer.lr_scheduler_configs]
        if not (_from_settings(trainer.optimizers) and all(map(_follows_schedule, schedulers))):
            return  # the optimizer or scheduler is the user's or lr_find's
        kept, last, step = self.kept, total_steps(trainer), trainer.global_step
        schedule = module.build_schedule(schedule_steps(trainer))
        self.steps = schedule.steps
        given = module.build_optimizer().param_groups
        for group, new in zip(trainer.optimizers[0].param_groups, given, strict=True):
            group.update(lr=new["lr"], weight_decay=new["weight_decay"])
            if "betas" in group:  # the groups of MuonAdamW have no betas before their first step
                group["betas"] = (0.9, module.hparams.beta2)
        if not schedulers:
            return
        (scheduler,) = schedulers
        assert isinstance(scheduler, LambdaLR)
        scheduler.base_lrs = [group["lr"] for group in given]
        scheduler.lr_lambdas = [schedule.factor] * len(given)
        scheduler.last_epoch = step
        for group, base in zip(trainer.optimizers[0].param_groups, scheduler.base_lrs, strict=True):
            group.update(initial_lr=base, lr=base * schedule.factor(step))
        if schedule.shortened:
            note(message("shortened", schedule.steps, *schedule.shortened))
        if step and kept and schedule.steps != kept:
            rate = module.hparams.learning_rate * schedule.factor(step)
            note(message("schedule_longer", schedule.steps, kept, step, rate))
        if (last < 0 or last > schedule.steps) and schedule.factor(schedule.steps) == 0:
            first = max(step, schedule.steps)
            note(message("rate_zero_to", first, last) if last > 0 else message("rate_zero_on", first))


def _from_settings(optimizers: list[torch.optim.Optimizer]) -> bool:
    """Return whether `LitLanguageModel.build_optimizer` has built the optimizer of a training."""
    return len(optimizers) == 1 and type(optimizers[0]) in OPTIMIZERS.values()


def _follows_schedule(scheduler: Any) -> bool:
    """Return whether a scheduler multiplies the learning rates by the factor of a `Schedule`."""
    lambdas: list[Any] = scheduler.lr_lambdas if isinstance(scheduler, LambdaLR) else [None]
    return all(isinstance(getattr(factor, "__self__", None), Schedule) for factor in lambdas)


class PassOnResume(Callback):
    """Makes Lightning treat the rest of a pass, with which a resume begins, like a whole pass."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the accumulation of the pass, which GradientAccumulationScheduler sets only at the start of a pass."""
        for scheduler in callbacks_of(trainer, GradientAccumulationScheduler):
            trainer.accumulate_grad_batches = scheduler.get_accumulate_grad_batches(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make Lightning step ReduceLROnPlateau, which it would skip in the pass of a restart."""
        trainer.fit_loop._restarting = False  # the public setter would set True when max_steps ends the training


class DueValidation(Callback):
    """Runs after a resume the validation that was due when the checkpoint was written, which Lightning would skip.

    A validation that was completed is repeated if a logger hides its records (TensorBoard's `purge_step`). The metrics
    of the last validation are stored, since a scheduler such as ReduceLROnPlateau may need them before the next one.
    """

    def __init__(self) -> None:
        self._validated = -1  # the step of the last validation
        self._metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the metrics of the last validation."""
        return {"validated": self._validated, "metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step and the metrics of the last validation."""
        self._validated, self._metrics = state_dict["validated"], state_dict.get("metrics", {})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the step and the metrics."""
        if not trainer.sanity_checking:
            self._validated = trainer.global_step
            metrics = trainer.callback_metrics.items()
            self._metrics = {name: value.item() for name, value in metrics if not name.startswith("train/")}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the validation that is due."""
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics.items()})
        step = trainer.global_step
        known = self._validated == step and all(getattr(each, "purge_step", None) != step for each in trainer.loggers)
        known = trainer.strategy.reduce_boolean_decision(known)  # only the first process has loggers
        if step and not known and validation_due(trainer):
            trainer.validating = True
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # start with the first batch
            loop.run()
            trainer.training = True


class FinalValidation(Callback):
    """Ends a training with a validation at max_steps, even if no pass and no interval ends there."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Make Lightning validate and stop after the last step, even if min_steps or min_epochs are larger."""
        if trainer.global_step == trainer.max_steps and trainer.enable_validation:
            trainer.should_stop = True
            if not trainer.fit_loop._can_stop_early:
                trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None


def total_steps(trainer: Trainer) -> int:
    """Return the number of optimizer steps of a training; -1 if only max_time ends it."""
    passes = trainer.max_epochs or -1
    if trainer.max_steps >= 0 or passes < 0:
        return trainer.max_steps
    estimate, n_batches = int(trainer.estimated_stepping_batches), trainer.num_training_batches
    schedulers = callbacks_of(trainer, GradientAccumulationScheduler)
    return steps_of_passes(passes, n_batches, schedulers) if schedulers and isinstance(n_batches, int) else estimate


def schedule_steps(trainer: Trainer) -> int:
    """Return the steps of the schedule: those of the training, or those of the run that it resumes if they are more."""
    return max(0, total_steps(trainer), *(callback.kept for callback in callbacks_of(trainer, ScheduleOnResume)))


def steps_of_passes(passes: int, n_batches: int, callbacks: Iterable[Callback], accumulate: int = 1) -> int:
    """Return the number of optimizer steps in so many passes.

    Args:
        passes: The number of passes.
        n_batches: The number of batches in a pass.
        callbacks: The callbacks of the training, one of which may set the accumulation of each pass.
        accumulate: The accumulation if no callback sets it.
    """
    for scheduler in accumulation_schedulers(callbacks):
        return sum(math.ceil(n_batches / scheduler.get_accumulate_grad_batches(n)) for n in range(passes))
    return passes * math.ceil(n_batches / accumulate)


def accumulation_schedulers(callbacks: Iterable[Callback]) -> list[GradientAccumulationScheduler]:
    """Return the callbacks that change the accumulation from pass to pass."""
    return [callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)]


def validation_due(trainer: Trainer) -> bool:
    """Return whether a validation follows the optimizer step just done: on the interval and at the end."""
    if not trainer.enable_validation:
        return False
    stops = trainer.should_stop and trainer.fit_loop._can_stop_early
    if stops or trainer.global_step == trainer.max_steps:
        return True
    every = trainer.val_check_batch
    batches: float = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    if trainer.check_val_every_n_epoch is not None:  # counted within a pass, in some passes
        n_pass, batches = divmod(batches - 1, trainer.num_training_batches)
        if (n_pass + 1) % trainer.check_val_every_n_epoch:
            return False
        batches += 1
    return isinstance(every, int) and batches % every == 0


def callbacks(trainer: Trainer) -> list[Callback]:
    """Return callbacks for an exact resume and a validation at the end of a training, in the order of their hooks."""
    early = [EarlyStoppingOnResume()] if callbacks_of(trainer, EarlyStopping) else []
    return [Reseeding(), ScheduleOnResume(), PassOnResume(), *early, DueValidation(), FinalValidation()]
