"""The law of resume: what makes an interrupted run end with the same bits as one that never stopped.

Batch t, and the randomness of its step, are functions of (seed, t), so that no generator's state is saved. Weights,
optimizer and scheduler come from the checkpoint. The callbacks below see to the rest, in any `Trainer`:
`LitLanguageModel.configure_callbacks` brings them.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.strategies import ModelParallelStrategy

import minigpt
from minigpt.errors import MiniGPTError, note
from minigpt.seeds import derive_seed
from minigpt.training.typed import callbacks_of, lit, text_data
from minigpt.words import message


class Reseeding(Callback):
    """Seeds the generators at each batch from the seed and the batch's number, and of several processes the rank."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators that dropout draws from."""
        rank = [trainer.global_rank] * (trainer.world_size > 1)
        seed = derive_seed(lit(pl_module).hparams.seed, "step", trainer.fit_loop.total_batch_idx, *rank)
        torch.default_generator.manual_seed(seed)  # a hundred times cheaper than torch.manual_seed
        if pl_module.device.type == "cuda":
            torch.cuda.default_generators[pl_module.device.index or 0].manual_seed(seed)
        elif pl_module.device.type == "mps":
            torch.mps.manual_seed(seed)


class ScheduleOnResume(Callback):
    """Has this start's rates win over the checkpoint's, and its schedule cover the checkpoint's steps and its own.

    PyTorch restores the rates with the optimizer, and LambdaLR does not compute them anew before the first step.
    """

    def __init__(self) -> None:
        self._kept = 0  # the steps of the checkpoint's schedule

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the schedule of an earlier training of this module.

        Raises:
            MiniGPTError: Lightning's search for a learning rate is asked of two optimizers in one.
        """
        if stage != "fit":
            return
        lit(pl_module).schedule_steps = 0
        if lit(pl_module).hparams.optimizer == "muon" and callbacks_of(trainer, LearningRateFinder):
            raise MiniGPTError(
                "lr_find gives one learning rate to all parameters, and muon takes two (learning_rate and "
                "muon_learning_rate). Search with optimizer='adamw', or with `minigpt sweep`."
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take back the length of the schedule."""
        lit(pl_module).schedule_steps = self._kept = checkpoint.get("minigpt", {}).get("schedule_steps") or 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute schedule and rates, and say what follows from a length that changed."""
        module = lit(pl_module)
        optimizers, schedulers = module.configured
        in_use = [config.scheduler for config in trainer.lr_scheduler_configs]
        if trainer.optimizers != optimizers or in_use != schedulers:  # of one's own, or lr_find's
            return
        kept, last, step = self._kept, total_steps(trainer), trainer.global_step
        schedule = module.schedule(max(kept, last))
        module.schedule_steps = schedule.steps
        given = module.optimizer().param_groups
        for group, new in zip(trainer.optimizers[0].param_groups, given, strict=True):
            group.update(lr=new["lr"], weight_decay=new["weight_decay"])
            if "betas" in group:  # MuonAdamW's groups have them from their first step on
                group["betas"] = (0.9, module.hparams.beta2)
        if not schedulers:
            return
        (scheduler,) = schedulers
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


class PassOnResume(Callback):
    """Treats the rest of a pass, which a resume begins with, as Lightning treats a whole pass."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the accumulation of the pass, which GradientAccumulationScheduler does only where a pass begins."""
        for scheduler in callbacks_of(trainer, GradientAccumulationScheduler):
            trainer.accumulate_grad_batches = scheduler.get_accumulate_grad_batches(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have Lightning step ReduceLROnPlateau, which it does not do in the pass that it restarted in."""
        trainer.fit_loop._restarting = False  # the public setter sets it to True where max_steps ends the training


class DueValidation(Callback):
    """Runs, after a resume, the validation that its checkpoint preceded, which Lightning would skip.

    Also one that the checkpoint followed, where a logger hides what was written at that step (TensorBoard's
    `purge_step`). The last validation's metrics are kept, since a scheduler such as ReduceLROnPlateau may ask for them
    before the next validation.
    """

    def __init__(self) -> None:
        self._validated = -1  # the step of the last validation
        self._metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the metrics of the last validation."""
        return {"validated": self._validated, "metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self._validated, self._metrics = state_dict["validated"], state_dict.get("metrics", {})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step and the metrics."""
        if not trainer.sanity_checking:
            self._validated = trainer.global_step
            metrics = trainer.callback_metrics.items()
            self._metrics = {name: value.item() for name, value in metrics if not name.startswith("train/")}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate before the first step."""
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics.items()})
        step = trainer.global_step
        known = self._validated == step and all(getattr(each, "purge_step", None) != step for each in trainer.loggers)
        known = trainer.strategy.reduce_boolean_decision(known)  # the first of several processes alone has loggers
        if step and not known and validation_due(trainer):
            trainer.validating = True
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # from its first batch
            loop.run()
            trainer.training = True


class EarlyStoppingOnResume(Callback):
    """Lets a run with EarlyStopping go on from its checkpoint.

    A resume repeats the validation of the step that it starts from, which Lightning would count against the patience a
    second time. It would also take the patience from the checkpoint, and never train again once it has stopped.
    """

    def __init__(self) -> None:
        self.max_steps = 0  # that the run with the checkpoint was to have
        self._validated = -1  # the last step whose validation has been counted
        self._patience: dict[EarlyStopping, int] = {}
        self._counted: dict[EarlyStopping, dict[str, Any]] = {}
        self._should_stop = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the settings of this start before the checkpoint's come."""
        self.max_steps = trainer.max_steps
        self._patience = {callback: callback.patience for callback in callbacks_of(trainer, EarlyStopping)}

    def state_dict(self) -> dict[str, Any]:
        """Return what `stopped_early` and a resume need."""
        return {"max_steps": self.max_steps, "validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back which validation has been counted."""
        self._validated = state_dict["validated"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a callback that has stopped its patience again, and keep the count from before a repeated validation."""
        self._should_stop = trainer.should_stop  # when the time is used up
        for callback, patience in self._patience.items():
            callback.patience = patience
            stopped = callback.stopping_reason != callback.stopping_reason.NOT_STOPPED
            if stopped and not trainer.fit_loop._can_stop_early:  # it still waits for min_steps or min_epochs
                trainer.should_stop = self._should_stop = True
            elif stopped:
                fresh = EarlyStopping(callback.monitor, mode=callback.mode).state_dict()
                callback.load_state_dict(fresh | {"best_score": callback.best_score, "patience": patience})
            if self._validated == trainer.global_step > 0:
                self._counted[callback] = callback.state_dict()

    def on_train_batch_start(self, *_: Any) -> None:
        """Count every validation from here on."""
        self._counted.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back the count of a repeated validation."""
        if trainer.sanity_checking:
            return
        self._validated = trainer.global_step
        for callback, state in self._counted.items():
            callback.load_state_dict(state)
            trainer.should_stop = self._should_stop
        self._counted.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why and where the training has stopped."""
        if trainer.global_step == trainer.max_steps:
            return
        for callback in callbacks_of(trainer, EarlyStopping):
            if callback.stopping_reason != callback.stopping_reason.NOT_STOPPED:
                note(message("stopped_early", trainer.global_step, _reason(callback.stopping_reason_message)))


class FinalValidation(Callback):
    """Ends a training by steps with a validation, which Lightning does only where a pass ends or an interval does."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Have Lightning validate and stop after the last step, although min_steps or min_epochs may be more."""
        if trainer.global_step == trainer.max_steps and trainer.enable_validation:
            trainer.should_stop = True
            if not trainer.fit_loop._can_stop_early:
                trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, None


class RunDescription(Callback):
    """Adds to each checkpoint what sampling, evaluating and resuming need, in plain values."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the setting of this start, which GradientAccumulationScheduler changes."""
        self._accumulate_grad_batches = trainer.accumulate_grad_batches

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Describe network, data and environment, unless the data are not a TextDataModule's."""
        data, module = text_data(trainer), lit(pl_module)
        if data is None:
            return
        checkpoint["minigpt"] = {
            "version": minigpt.__version__,
            "model": module.architecture,
            "optimizer": module.optimizer_class,
            "data": data.describe(trainer.log_dir),
            "accumulate_grad_batches": self._accumulate_grad_batches,
            "schedule_steps": module.schedule_steps,
            "environment": environment(trainer),
        }


def total_steps(trainer: Trainer) -> int:
    """Return the optimizer steps that a Trainer will do; -1 where only time ends them."""
    passes = trainer.max_epochs or -1
    if trainer.max_steps >= 0 or passes < 0:
        return trainer.max_steps
    estimate, n_batches = int(trainer.estimated_stepping_batches), trainer.num_training_batches
    schedulers = callbacks_of(trainer, GradientAccumulationScheduler)
    return steps_of_passes(passes, n_batches, schedulers) if schedulers and isinstance(n_batches, int) else estimate


def steps_of_passes(passes: int, n_batches: int, callbacks: Iterable[Callback], accumulate: int = 1) -> int:
    """Return the optimizer steps of so many passes of so many batches.

    Args:
        passes: How many passes.
        n_batches: The batches of a pass.
        callbacks: The callbacks of the training, of which one may set the accumulation of each pass.
        accumulate: The accumulation where none does.
    """
    for scheduler in accumulation_schedulers(callbacks):
        return sum(math.ceil(n_batches / scheduler.get_accumulate_grad_batches(n)) for n in range(passes))
    return passes * math.ceil(n_batches / accumulate)


def accumulation_schedulers(callbacks: Iterable[Callback]) -> list[GradientAccumulationScheduler]:
    """Return the callbacks that change the accumulation from pass to pass."""
    return [callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)]


def validation_due(trainer: Trainer) -> bool:
    """Return whether a validation follows the optimizer step just done: on the interval, and once at the end."""
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
    """Return what the bits of a training depend on besides its settings."""
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
        trainer: The trainer of this start.
        checkpoint: The checkpoint that it would go on from.
    """
    states = checkpoint.get("callbacks", {})
    then = states.get(EarlyStoppingOnResume.__name__, {}).get("max_steps")
    if then is None or trainer.max_steps != then:
        return None
    passes = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if checkpoint["global_step"] < (trainer.min_steps or 0) or passes < (trainer.min_epochs or 0):
        return None  # it was to stop, but not yet
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
