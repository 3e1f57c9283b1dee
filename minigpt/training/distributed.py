"""FSDP: each process holds a share of the weights and moments, and a block is whole only while it computes.

The sharding is PyTorch's `fully_shard` (FSDP2; Zhao et al., "PyTorch FSDP", 2023), run by Lightning.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from minigpt.errors import MiniGPTError
from minigpt.files import can_sync
from minigpt.shards import REST, load_share, numbered, read_rest, renamed


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy over one mesh: every process has data of its own, and none half a matrix.

    Args:
        save_distributed_checkpoint: Each process writes its share into a folder; if not, the first gathers all and
            writes one file, which takes the memory of the whole model there.
    """

    def __init__(self, save_distributed_checkpoint: bool = True):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        """Lay all processes into the mesh, however many there turn out to be."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state for a checkpoint: of this process's share, or of all under the numbers that one device gives.

        Lightning numbers parameters as the model lists them, and PyTorch as the optimizer's groups do.
        """
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        whole = not self._save_distributed_checkpoint
        options = StateDictOptions(full_state_dict=whole, cpu_offload=True)
        state = get_optimizer_state_dict(self.model, optimizer, options=options)
        return numbered(state) if whole and self.is_global_zero else state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write shards, flushed to disk where possible, or one file as one device does.

        Lightning would remove the last file first, and fail where shards cannot be flushed.
        """
        if self._save_distributed_checkpoint:
            path = Path(self.broadcast(filepath))
            path.mkdir(parents=True, exist_ok=True)
            (moments,) = checkpoint.pop("optimizer_states")
            state = {"state_dict": checkpoint.pop("state_dict"), "optimizer_0": moments}
            save(state, storage_writer=FileSystemWriter(path, sync_files=can_sync(path)))
            if self.is_global_zero:
                torch.save(checkpoint, path / REST)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Take weights and moments from shards, however many there are, or from one file; returns all else."""
        path, (optimizer,) = Path(self.broadcast(checkpoint_path)), self.optimizers
        if path.is_dir():  # not as Lightning would, which runs what a stranger's folder says
            weights = {"state_dict": get_model_state_dict(self.model)}
            load_share(weights, path)
            self.model.load_state_dict(weights["state_dict"])
            moments = {"optimizer_0": get_optimizer_state_dict(self.model, optimizer)}
            load_share(moments, path)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(self.model, optimizer, moments["optimizer_0"], options=options)
            return read_rest(path)
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        (state,) = checkpoint["optimizer_states"]
        state = renamed(state, [names[p] for group in optimizer.param_groups for p in group["params"]])
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        set_optimizer_state_dict(self.model, optimizer, state, options=options)
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


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share out a model's parameters over a mesh of one dimension: block by block, and what is left together."""
    for block in getattr(model, "blocks", ()):  # TinyGPT has none
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The share of a tensor that this process holds: all of it, unless it is shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
