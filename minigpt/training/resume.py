"""Exact resume: an interrupted run ends with the same bits as an uninterrupted one.

Batch t, and the random numbers of its step, are functions of (seed, t), so no generator state is saved. Weights,
optimizer and scheduler come from the checkpoint. The callbacks of this module, which
`LitLanguageModel.configure_callbacks` adds to any `Trainer`, restore everything else.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import minigpt
from minigpt.errors import MiniGPTError, note
from minigpt.models import lora
from minigpt.seeds import derive_seed
from minigpt.training.optim import OPTIMIZERS, Schedule
from minigpt.training.typed import callbacks_of, lit, text_data
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


class EarlyStoppingOnResume(Callback):
    """Lets a run with EarlyStopping continue from its checkpoint.

    A resume repeats the validation at its first step, which Lightning would count against the patience a second time.
    Lightning would also restore the patience of the checkpoint, and never train again after an early stop.
    """

    def __init__(self) -> None:
        self.max_steps = 0  # the setting of the run that wrote the checkpoint
        self._validated = -1  # the last step whose validation has been counted
        self._patience: dict[EarlyStopping, int] = {}
        self._counted: dict[EarlyStopping, dict[str, Any]] = {}
        self._should_stop = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the current settings before the checkpoint is loaded."""
        self.max_steps = trainer.max_steps
        self._patience = {callback: callback.patience for callback in callbacks_of(trainer, EarlyStopping)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `stopped_early` and a resume."""
        return {"max_steps": self.max_steps, "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of the last counted validation."""
        self._validated = state_dict["validated"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset a callback that has stopped, and store the counts from before a repeated validation."""
        self._should_stop = trainer.should_stop  # max_time has been reached
        for callback, patience in self._patience.items():
            callback.patience = patience
            stopped = callback.stopping_reason != callback.stopping_reason.NOT_STOPPED
            if stopped and not trainer.fit_loop._can_stop_early:  # min_steps or min_epochs are not reached yet
                trainer.should_stop = self._should_stop = True
            elif stopped:
                fresh = EarlyStopping(callback.monitor, mode=callback.mode).state_dict()
                callback.load_state_dict(fresh | {"best_score": callback.best_score, "patience": patience})
            if self._validated == trainer.global_step > 0:
                self._counted[callback] = callback.state_dict()

    def on_train_batch_start(self, *_: Any) -> None:
        """Count every later validation."""
        self._counted.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo the count of a repeated validation."""
        if trainer.sanity_checking:
            return
        self._validated = trainer.global_step
        for callback, state in self._counted.items():
            callback.load_state_dict(state)
            trainer.should_stop = self._should_stop
        self._counted.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the reason and the step of an early stop."""
        if trainer.global_step == trainer.max_steps:
            return
        for callback in callbacks_of(trainer, EarlyStopping):
            if callback.stopping_reason != callback.stopping_reason.NOT_STOPPED:
                note(message("stopped_early", trainer.global_step, _reason(callback.stopping_reason_message)))


class FinalValidation(Callback):
    """Ends a training with a validation at max_steps, even if no pass and no interval ends there."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Make Lightning validate and stop after the last step, even if min_steps or min_epochs are larger."""
        if trainer.global_step == trainer.max_steps and trainer.enable_validation:
            trainer.should_stop = True
            if not trainer.fit_loop._can_stop_early:
                trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None


class RunDescription(Callback):
    """Adds the metadata that sampling, evaluation and a resume need to each checkpoint, in plain values."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the setting before GradientAccumulationScheduler changes it."""
        self._accumulate_grad_batches = trainer.accumulate_grad_batches

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the metadata, if the data are a TextDataModule's."""
        data, module = text_data(trainer), lit(pl_module)
        if data is None:
            return
        checkpoint["minigpt"] = {
            "version": minigpt.__version__,
            "model": module.architecture,
            "optimizer": module.optimizer_class,
            "data": data.describe(trainer.log_dir),
            "accumulate_grad_batches": self._accumulate_grad_batches,
            "schedule_steps": callbacks_of(trainer, ScheduleOnResume)[0].steps,
            "environment": environment(trainer),
            "origin": module.origin,
            "lora": None,
        }
        if settings := lora.describe(module.network):
            self._add_adapters(trainer, module.network, settings, checkpoint)

    def _add_adapters(
        self, trainer: Trainer, network: nn.Module, settings: dict[str, Any], checkpoint: dict[str, Any]
    ) -> None:
        """Add the settings of the adapters, and leave out the frozen weights if they can be read from their file."""
        origin, state = checkpoint["minigpt"]["origin"], checkpoint["state_dict"]
        base, frozen = None, {}
        if origin:
            base = _relative(origin["path"], trainer.log_dir)
            named = network.named_parameters(remove_duplicate=False)  # twice if two modules share it, as in state dicts
            frozen = {f"network.{name}": len(each) for name, each in named if not each.requires_grad}
        checkpoint["minigpt"]["lora"] = settings | {"base": base, "frozen": frozen}
        checkpoint["state_dict"] = {name: weight for name, weight in state.items() if name not in frozen}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore where the weights came from.

        Raises:
            MiniGPTError: The checkpoint lacks an adapter of the network.
        """
        module = lit(pl_module)
        if module.strict_loading or not module.origin:
            module.origin = checkpoint.get("minigpt", {}).get("origin")
        else:  # adapters, whose base has been found
            names = [f"network.{name}" for name in lora.adapters(module.network)]
            if missing := [name for name in names if name not in checkpoint["state_dict"]]:
                raise MiniGPTError(f"The checkpoint is damaged: it lacks {missing[0]}. Pass a different one.")


def _relative(path: str, folder: str | None) -> str:
    """Return a path relative to a folder, so that both can be moved together; absolute if there is no folder."""
    return Path(os.path.relpath(path, Path(folder).resolve()) if folder else path).as_posix()


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


def environment(trainer: Trainer) -> dict[str, str]:
    """Return the environment that determines the bits of a training besides its settings."""
    device = trainer.strategy.root_device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "torch": str(torch.__version__), "device": gpu, "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "processes": f"{trainer.world_size}{', sharded' * isinstance(trainer.strategy, ModelParallelStrategy)}",
        "precision": str(trainer.precision),
    }  # fmt: skip


def stopped_early(trainer: Trainer, checkpoint: dict[str, Any]) -> str | None:
    """Return why the run of a checkpoint stopped early, or None if it did not or more steps are asked for.

    Args:
        trainer: The current trainer.
        checkpoint: The checkpoint to continue from.
    """
    states = checkpoint.get("callbacks", {})
    then = states.get(EarlyStoppingOnResume.__name__, {}).get("max_steps")
    if then is None or trainer.max_steps != then:
        return None
    passes = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if checkpoint["global_step"] < (trainer.min_steps or 0) or passes < (trainer.min_epochs or 0):
        return None  # it waited for min_steps or min_epochs
    for callback in callbacks_of(trainer, EarlyStopping):
        state = states.get(callback.state_key, {})
        if state.get("stopping_reason") and state["patience"] == callback.patience:
            return _reason(state["stopping_reason_message"])
    return None


def _reason(text: str | None) -> str:
    return (text or "").replace(" Signaling Trainer to stop.", "")


def callbacks(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of this module that a training needs, in the order of their hooks."""
    early = [EarlyStoppingOnResume()] if callbacks_of(trainer, EarlyStopping) else []
    return [
        Reseeding(), ScheduleOnResume(), PassOnResume(), *early, DueValidation(), FinalValidation(), RunDescription(),
    ]  # fmt: skip
