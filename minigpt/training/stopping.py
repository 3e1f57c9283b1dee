"""Early stopping: why a run stopped, and how it goes on when more steps are asked for."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from minigpt.errors import note
from minigpt.words import message


def early_stoppings(trainer: Trainer) -> list[EarlyStopping]:
    """Return the callbacks of a trainer that can stop it early."""
    return [callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping)]


class GoOn(Callback):
    """Lets a run with EarlyStopping go on from its checkpoint.

    A resume repeats the validation of the step that it starts from, which Lightning would count against the patience a
    second time. It would also take the patience from the checkpoint, and never train again once it has stopped.
    """

    def __init__(self):
        self.max_steps = 0  # that the run with the checkpoint was to have
        self._validated = -1  # the last step whose validation has been counted
        self._patience: dict[EarlyStopping, int] = {}
        self._counted: dict[EarlyStopping, dict[str, Any]] = {}
        self._should_stop = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the settings of this start before the checkpoint's come."""
        self.max_steps = trainer.max_steps
        self._patience = {callback: callback.patience for callback in early_stoppings(trainer)}

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
            if callback.stopping_reason != callback.stopping_reason.NOT_STOPPED:
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
        for callback in early_stoppings(trainer):
            if callback.stopping_reason != callback.stopping_reason.NOT_STOPPED:
                note(message("stopped_early", trainer.global_step, _reason(callback.stopping_reason_message)))


def stopped_early(trainer: Trainer, checkpoint: dict[str, Any]) -> str | None:
    """Return why the run of a checkpoint stopped early, or None if it did not or more steps are asked for.

    Args:
        trainer: The trainer of this start.
        checkpoint: The checkpoint that it would go on from.
    """
    states = checkpoint.get("callbacks", {})
    then = states.get(GoOn.__name__, {}).get("max_steps")
    if then is None or trainer.max_steps != then:
        return None
    for callback in early_stoppings(trainer):
        state = states.get(callback.state_key, {})
        if state.get("stopping_reason") and state["patience"] == callback.patience:
            return _reason(state["stopping_reason_message"])
    return None


def _reason(text: str | None) -> str:
    return (text or "").replace(" Signaling Trainer to stop.", "")
