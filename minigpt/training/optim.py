"""Optimization: parameter groups, Muon and AdamW in one optimizer, and learning-rate schedules."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from minigpt.errors import MiniGPTError, check_choice, check_number
from minigpt.models import lora

SCHEDULES = ("constant", "cosine", "wsd")


def parameter_groups(
    model: nn.Module,
    optimizer: str,
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Return the parameter groups of a model; every parameter that is not frozen is in exactly one group.

    Args:
        model: The network; Muon is for the matrices of its `blocks`.
        optimizer: `adamw` or `muon`.
        learning_rate: AdamW's step size.
        muon_learning_rate: Muon's step size.
        weight_decay: The weight decay of matrices and embeddings.
        decay_vectors: Whether to apply weight decay to biases and norms too.

    Raises:
        MiniGPTError: The optimizer is unknown, or the model has no parameters for it.
    """
    check_choice("model.optimizer", optimizer, OPTIMIZERS)
    hidden, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if optimizer == "muon" and parameter.dim() == 2 and "blocks." in name:
            hidden.append(parameter)
        elif parameter.dim() >= 2 or decay_vectors:
            matrices.append(parameter)
        else:
            vectors.append(parameter)
    if optimizer == "muon" and lora.describe(model):
        raise MiniGPTError(
            "model.optimizer muon is for whole matrices, and --lora.rank trains two factors of each. Use adamw."
        )
    if optimizer == "muon" and not hidden:
        raise MiniGPTError(
            "model.optimizer muon is for matrices in a network's `blocks`, and this network has none. Use adamw."
        )
    groups: list[dict[str, Any]] = [
        {"params": hidden, "muon": True, "lr": muon_learning_rate, "weight_decay": weight_decay},
        {"params": matrices, "muon": False, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": vectors, "muon": False, "lr": learning_rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise MiniGPTError(f"{type(model).__name__} has no parameters, so there is nothing to train.")
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad), (
        "each parameter in exactly one group"
    )
    return groups


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups that have `muon` set, AdamW for the others, as one optimizer.

    Lightning's automatic optimization, with clipping and accumulation, supports one optimizer and counts its steps.

    Muon (Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024) replaces the momentum of a matrix by
    the nearest matrix whose singular values are all about 1, with a few Newton-Schulz iterations. Matrices of equal
    shape are orthogonalised together.

    Args:
        groups: Parameter groups with `lr`, `weight_decay` and `muon`; groups for Muon contain matrices only.
        momentum: Muon's Nesterov momentum.
        betas: AdamW's betas.
        ns_dtype: The precision of Newton-Schulz; None for that of `matmul_dtype`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        ns_dtype: torch.dtype | None = None,
    ):
        self.momentum, self.betas, self.ns_dtype = momentum, betas, ns_dtype
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "muon": False})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, which creates new group objects, and discard the AdamW that has the old ones."""
        super().__setstate__(state)
        self.__dict__.pop("_adamw", None)

    @cached_property
    def _adamw(self) -> torch.optim.AdamW | None:
        """An AdamW that shares the group objects and the state of this optimizer."""
        groups = [group for group in self.param_groups if not group["muon"]]
        if not groups:
            return None
        adamw = torch.optim.AdamW(groups, betas=self.betas, fused=True)
        adamw.state = self.state
        return adamw

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, and return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._muon_step(group)
        if self._adamw:
            self._adamw.step()
        return loss

    def _muon_step(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append((parameter, parameter.grad))
        for (rows, columns), pairs in by_shape.items():
            updates = []
            for parameter, gradient in pairs:
                buffer = self._buffer(parameter).lerp_(gradient, 1 - self.momentum)
                updates.append(full_tensor(gradient.lerp(buffer, self.momentum)))
            dtype = self.ns_dtype or matmul_dtype(updates[0].device)
            orthogonal = orthogonalise(torch.stack(updates), dtype).to(updates[0].dtype)
            scale = group["lr"] * max(1, rows / columns) ** 0.5
            for (parameter, _), update in zip(pairs, orthogonal, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(_share(update, parameter), alpha=-scale)

    def _buffer(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).

    Args:
        groups: Parameter groups with `lr` and `weight_decay`.
        betas: The decay rates of the means of gradients and squared gradients.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, betas=betas, fused=True)
        # A fused step would undo the loss scaling of mixed precision itself, after clipping, so Lightning refuses that.
        self._step_supports_amp_scaling = False


# The values of `model.optimizer`: classes that take the groups from `parameter_groups` and AdamW's betas.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": AdamW, "muon": MuonAdamW}


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor in every process if each holds a shard, for example for singular values."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _share(matrix: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return the shard of a full matrix that corresponds to this process's shard of a parameter."""
    if not isinstance(parameter, DTensor):
        return matrix
    return distribute_tensor(matrix, parameter.device_mesh, parameter.placements, src_data_rank=None)


def matmul_dtype(device: torch.device) -> torch.dtype:
    """Return the precision in which a device multiplies matrices fast: bfloat16, but float32 on a CPU without AVX-512.

    PyTorch has no bfloat16 kernel for such CPUs, so that products take forty times as long as in float32.
    """
    slow = device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.float32 if slow else torch.bfloat16


def orthogonalise(matrices: torch.Tensor, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> torch.Tensor:
    """Return `(N, rows, columns)` matrices with singular values near 1, by a Newton-Schulz iteration of order five.

    Jordan's coefficients trade convergence to exactly 1 for speed: the singular values end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


class Schedule:
    """The factor on the learning rates as a function of the number of optimizer steps done.

    Args:
        kind: `constant`; `cosine` (Loshchilov and Hutter, "SGDR", 2017); or `wsd`, constant and then a linear decay (Hu
            et al., "MiniCPM", 2024).
        warmup_steps: Steps of a linear warm-up; a tenth of all steps if there are not more than these.
        steps: The step at which the factor reaches its end.
        end: The factor at which cosine and wsd end.
        cooldown: The share of the steps over which wsd decays.
        decay_steps: Replaces `steps` if it is not None.

    Raises:
        MiniGPTError: The schedule is unknown, or its parts do not fit the steps.
    """

    def __init__(
        self, kind: str, warmup_steps: int, steps: int, end: float, cooldown: float, decay_steps: int | None = None
    ):
        check_choice("model.lr_schedule", kind, SCHEDULES)
        check_number("model.warmup_steps", warmup_steps, at_least=0, whole=True)
        check_number("model.cooldown", cooldown, above=0, at_most=1)
        check_number("model.decay_steps", decay_steps, at_least=1, whole=True, optional=True)
        steps = decay_steps or steps
        self.kind, self.steps, self.end = kind, steps, end
        self.constant = kind == "constant" and warmup_steps == 0
        self.shortened: tuple[int, int] | None = None  # the steps of a shortened warm-up, and the steps requested
        if 0 < steps <= warmup_steps:
            self.shortened = steps // 10, warmup_steps
            warmup_steps = steps // 10
        if kind != "constant" and steps <= warmup_steps:
            raise MiniGPTError(
                f"model.lr_schedule {kind} has {steps} steps, with {warmup_steps} to warm up. Set model.decay_steps or "
                "trainer.max_steps."
            )
        self.warmup_steps = warmup_steps
        self.down = min(cooldown * steps, steps - warmup_steps)  # steps of the decay of wsd, after the warm-up

    def factor(self, step: int) -> float:
        """Return the factor after so many steps."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            done = min(1.0, (step - self.warmup_steps) / (self.steps - self.warmup_steps))
            return self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * done))
        left = max(0.0, (self.steps - step) / self.down)
        return self.end + (1 - self.end) * min(1.0, left)
