"""A callback that makes Lightning's EarlyStopping work across a resume, and that notes an early stop."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from minigpt.errors import note
from minigpt.training.typed import callbacks_of
from minigpt.words import message


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
