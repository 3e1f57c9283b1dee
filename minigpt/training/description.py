"""The metadata in a checkpoint that sampling, evaluation and a resume need."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

import minigpt
from minigpt.errors import MiniGPTError
from minigpt.models import lora
from minigpt.training.resume import ScheduleOnResume
from minigpt.training.typed import callbacks_of, lit, text_data


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
    """Return a path relative to a folder, so that both can be moved together, or the path itself without a folder."""
    return Path(os.path.relpath(path, Path(folder).resolve()) if folder else path).as_posix()


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
