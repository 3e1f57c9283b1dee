"""FSDP: each process holds a shard of weights and optimizer state; a block is gathered only while it computes.

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
    """Lightning's ModelParallelStrategy with data parallelism only: each process has its own rows of every batch.

    A checkpoint is one file, like that of a single device: the first process gathers weights and optimizer state, which
    takes the memory of the whole model. Any number of processes can continue a run.

    Args:
        process_group_backend: `gloo` or `nccl`; None for the default of the device.
        timeout: The longest time that a process waits for the others in a collective operation.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout):
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Create a mesh of all processes once their number is known."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Shard the network, then set up as every strategy does.

        ModelParallelStrategy would require the LightningModule to do this in `configure_model`. The network is sharded
        before it moves to the device, so that the device need not hold all of it.
        """
        network = network_of(trainer)
        if not isinstance(network, FSDPModule):  # an earlier Trainer may have sharded it
            shard_network(network, self.device_mesh["data_parallel"])
        super(ModelParallelStrategy, self).setup(trainer)

    def _set_up_model(self) -> nn.Module:
        assert self.model is not None, "the strategy is set up"
        return self.model

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the state in the first process, with the parameter numbers of a single device; others get nothing.

        Lightning would number the parameters in the order of the model, but PyTorch numbers them by groups.
        """
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(self._set_up_model(), optimizer, options=options)
        return numbered(state) if self.is_global_zero else state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write one file from the first process. Lightning's method would delete a folder at the path first."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the shard of each process from a file, and return the rest of the checkpoint.

        The file is always read with `weights_only=True`.
        """
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        model = self._set_up_model()
        set_model_state_dict(model, checkpoint.pop("state_dict"), options=options)
        names = {parameter: name for name, parameter in model.named_parameters()}
        if self.optimizers:  # only a training has optimizers
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                state = renamed(state, [names[p] for group in optimizer.param_groups for p in group["params"]])
                set_optimizer_state_dict(model, optimizer, state, options=options)
        return checkpoint


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="Weights, gradients and optimizer state sharded (FSDP2)")


def check_mesh(data_parallel: int | str, tensor_parallel: int | str, processes: int) -> None:
    """Check that the mesh has data parallelism over all processes.

    Raises:
        MiniGPTError: The mesh is another one, such as Lightning's default, with which the processes of a machine would
            not sum their gradients.
    """
    if (data_parallel, tensor_parallel) != (processes, 1):
        raise MiniGPTError(
            f"The mesh of the processes is {data_parallel} (data) by {tensor_parallel} (tensor), and minigpt needs "
            f"{processes} by 1. Use --trainer.strategy fsdp2, which creates this mesh."
        )


# For each sharded network, a copy on the meta device, which has no numbers. A full copy of the network is made from it,
# since the arguments with which a network was built may be unknown.
_outlines: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


def shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network's parameters over a mesh of one dimension: each block, then all other parameters together.

    Raises:
        MiniGPTError: The network cannot be copied or sharded.
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
    except Exception as error:  # copying runs the network's code, and fully_shard raises several errors
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise MiniGPTError(f"{name} cannot be sharded: {reason}. Use --trainer.strategy ddp.") from error


def full_network(trainer: Trainer) -> nn.Module | None:
    """Return the network of a training in the first process, for reading only, and None in the others.

    A sharded network is gathered into a copy on the CPU, in eval mode. The copy has the current parameters and buffers;
    its other attributes are from before the sharding. All processes must call this together.
    """
    network = network_of(trainer)
    if not isinstance(network, FSDPModule):
        return network if trainer.is_global_zero else None
    weights: dict[str, Any] = get_model_state_dict(
        network, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if not trainer.is_global_zero:
        return None
    buffers = {name: buffer.cpu() for name, buffer in network.named_buffers()}  # also buffers outside the state dict
    return _copy(_outlines[network], weights | buffers).eval()


def _copy(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a deep copy of a network with other parameters and buffers; tied parameters stay tied."""
    new = {id(buffer): tensors[name] for name, buffer in network.named_buffers()}
    new |= {id(p): nn.Parameter(tensors[name], p.requires_grad) for name, p in network.named_parameters()}
    return copy.deepcopy(network, new)  # deepcopy takes `new` as copies made already


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the shard of a tensor in this process, or the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with parameter numbers, as PyTorch stores it, instead of names."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    return renamed(optimizer, {name: number for number, name in enumerate(names)})


def renamed(optimizer: dict[str, Any], new: Mapping[Any, Any] | Sequence[Any]) -> dict[str, Any]:
    """Return the state of an optimizer with each parameter's name or number replaced by `new[name]`."""
    return {
        "state": {new[name]: values for name, values in optimizer["state"].items()},
        "param_groups": [
            group | {"params": [new[name] for name in group["params"]]} for group in optimizer["param_groups"]
        ],
    }
