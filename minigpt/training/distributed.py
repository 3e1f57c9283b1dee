"""FSDP: each process holds a share of the weights and moments, and a block is gathered only while it computes.

The sharding is PyTorch's `fully_shard` (FSDP2; Zhao et al., "PyTorch FSDP", 2023), run by Lightning.
"""

import copy
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from minigpt.errors import MiniGPTError
from minigpt.training.typed import network_of


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with data parallelism alone: each process has its own rows of every batch.

    A checkpoint is one file, as one device writes it: the first process gathers weights and moments, which takes the
    memory of the whole model there. One process can continue what several began, and the reverse.

    Args:
        process_group_backend: `gloo` or `nccl`; None for the one that the device needs.
        timeout: How long a process waits for the others in an exchange.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout):
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Make a mesh of all processes, as soon as their number is known."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Share the network out, then set up as every strategy does.

        ModelParallelStrategy's method would require the LightningModule to share it out, in `configure_model`. The
        network is shared out before it moves to the device, so that the device need not hold all of it.
        """
        network = network_of(trainer)
        if not isinstance(network, FSDPModule):  # an earlier Trainer may have shared it out
            share_out(network, self.device_mesh["data_parallel"])
        super(ModelParallelStrategy, self).setup(trainer)

    def _set_up_model(self) -> nn.Module:
        assert self.model is not None, "the strategy is set up"
        return self.model

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the state in the first process, under the numbers that one device gives; the others get nothing.

        Lightning would number the parameters in the order of the model, where PyTorch takes that of the groups.
        """
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self._set_up_model(), optimizer, options=options)
        return numbered(state) if self.is_global_zero else state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write one file from the first process; Lightning's method would first delete a sharded folder at the path."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Give each process its share of the weights and moments in a file, and return the rest of the checkpoint.

        The file is read with `weights_only=True`, whatever is asked.
        """
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        model = self._set_up_model()
        set_model_state_dict(model, checkpoint.pop("state_dict"), options=options)
        names = {parameter: name for name, parameter in model.named_parameters()}
        if self.optimizers:  # there are none outside a training
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                state = renamed(state, [names[p] for group in optimizer.param_groups for p in group["params"]])
                set_optimizer_state_dict(model, optimizer, state, options=options)
        return checkpoint


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="Weights, gradients and moments shared out (FSDP2)")


def check_mesh(data_parallel: int | str, tensor_parallel: int | str, processes: int) -> None:
    """Make sure that each process has a share of every batch and of every matrix.

    Raises:
        MiniGPTError: The mesh is another one, such as Lightning's default, in which every process of a machine would
            train on rows of its own and nothing would be added up.
    """
    if (data_parallel, tensor_parallel) != (processes, 1):
        raise MiniGPTError(
            f"The mesh of the processes is {data_parallel} (data) by {tensor_parallel} (tensor), and minigpt needs "
            f"{processes} by 1. Set --trainer.strategy fsdp2, which lays it so."
        )


# For each network that is shared out, a copy whose tensors hold no numbers (they are on the meta device). It serves to
# make a full copy of a network of any class: the arguments that it was made with may not be known.
_outlines: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def share_out(network: nn.Module, mesh: DeviceMesh) -> None:
    """Share out a network's parameters over a mesh of one dimension: block by block, and what is left together.

    Raises:
        MiniGPTError: A network of one's own cannot be copied or shared out.
    """
    name = type(network).__name__
    blocks = getattr(network, "blocks", None)
    try:
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        _outlines[network] = _copy(network, {key: t.detach().to("meta") for key, t in tensors.items()})
        for block in blocks if isinstance(blocks, (nn.ModuleList, nn.Sequential)) else ():
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # copying runs code of the network, and fully_shard has several errors of its own
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise MiniGPTError(f"{name} cannot be shared out: {reason}. Use --trainer.strategy ddp.") from error


def full_network(trainer: Trainer) -> nn.Module | None:
    """Return the network in training, to look at, in the first process, and None in the others.

    A network that is shared out is gathered into a copy on the CPU, in eval mode. Parameters and buffers are those of
    now, and other attributes those from before the network was shared out. All processes have to ask at once.
    """
    network = network_of(trainer)
    if not isinstance(network, FSDPModule):
        return network if trainer.is_global_zero else None
    weights: dict[str, Any] = get_model_state_dict(
        network, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if not trainer.is_global_zero:
        return None
    buffers = {name: buffer.cpu() for name, buffer in network.named_buffers()}  # also those that are not saved
    return _copy(_outlines[network], weights | buffers).eval()


def _copy(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a deep copy of a network with other parameters and buffers; what was tied stays tied."""
    new = {id(buffer): tensors[name] for name, buffer in network.named_buffers()}
    new |= {id(p): nn.Parameter(tensors[name], p.requires_grad) for name, p in network.named_parameters()}
    return copy.deepcopy(network, new)  # takes them for copies that it has made before


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the share of a tensor that this process holds: all of it, unless it is shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with its parameters' numbers, as PyTorch keeps it, in place of their names."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    return renamed(optimizer, {name: number for number, name in enumerate(names)})


def renamed(optimizer: dict[str, Any], new: Mapping[Any, Any] | Sequence[Any]) -> dict[str, Any]:
    """Return the state of an optimizer with `new[name]` in place of each parameter's name or number."""
    return {
        "state": {new[name]: values for name, values in optimizer["state"].items()},
        "param_groups": [
            group | {"params": [new[name] for name in group["params"]]} for group in optimizer["param_groups"]
        ],
    }
