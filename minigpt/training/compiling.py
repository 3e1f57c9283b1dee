"""Callbacks for speed: faster modules on a CPU, and a step compiled with `torch.compile`."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from minigpt.cpu.layers import optimize, order_gradients
from minigpt.errors import note
from minigpt.training.optim import matmul_dtype
from minigpt.training.typed import lit
from minigpt.words import message

if TYPE_CHECKING:  # the module imports this file
    from minigpt.training.module import LitLanguageModel


class OptimizeForCPU(Callback):
    """Gives a network that trains on a CPU the modules of `minigpt.cpu`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace modules before the network is sharded over processes, and warn if bf16 is the slow precision."""
        device = trainer.strategy.root_device
        if stage == "fit" and device.type == "cpu":
            optimize(lit(pl_module).network)
            if trainer.precision in ("bf16-mixed", "bf16-true") and matmul_dtype(device) is torch.float32:
                note(message("slow_bf16", trainer.precision))


class Compiling(Callback):
    """Compiles the module's `loss` before the first step. If that fails, training runs uncompiled, with a note."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Discard the code of an earlier training, which may have had another network or precision."""
        order_gradients(lit(pl_module).network)
        vars(pl_module).pop("loss", None)
        self._done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compile with the first batch, which draws random numbers, so `Reseeding` must come later."""
        if not self._done:
            self._done = True
            with trainer.precision_plugin.train_step_context():
                vars(pl_module)["loss"] = _compiled(lit(pl_module), *batch)


def _compiled(module: "LitLanguageModel", x: torch.Tensor, y: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Return `module.loss` compiled, or unchanged if compiling fails or changes the gradients."""
    note(message("compiling"))
    torch.compiler.reset()  # the compiler has a limit of models per function, which earlier trainings may have reached
    compiled, began = torch.compile(module.loss), time.monotonic()
    try:
        right = _same_gradients(module, compiled, x, y)
    except Exception:  # each stage of the compiler has its own exceptions
        note(message("not_compiled"))
        return module.loss
    if not right:
        note(message("compiled_differs"))
        return module.loss
    note(message("compiled", time.monotonic() - began))
    return compiled


def _same_gradients(module: "LitLanguageModel", compiled: Callable, x: torch.Tensor, y: torch.Tensor) -> bool:
    """Return whether compiled code gives the gradients of `loss`, up to rounding and random dropout."""
    # Unlike `backward`, `grad` stores no gradients and does not trigger the hooks that sum gradients over processes.
    weights = [p for p in module.network.parameters() if p.requires_grad]

    def gradients(loss: Callable) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss(x, y), weights, allow_unused=True)

    three = zip(gradients(module.loss), gradients(module.loss), gradients(compiled), strict=True)
    # FSDP2 computes with its own copies of the weights, so these gradients are None.
    finite = [each for each in three if each[0] is not None and each[0].isfinite().all()]
    all_of_them = sum(one.norm() for one, _, _ in finite)
    return all(
        (other - one).norm() <= 3 * (two - one).norm() + 0.1 * one.norm() + 1e-3 * all_of_them
        for one, two, other in finite
    )


def callbacks(compile: bool) -> list[Callback]:
    """Return the callbacks of this module that a training needs, in the order of their hooks."""
    return [OptimizeForCPU(), *([Compiling()] if compile else [])]
