"""A checkpoint in shards: the folder that torch.distributed.checkpoint writes, with a part from each process.

Its index is a pickle, and so are its values that are no tensors: PyTorch's own reader would run what a stranger put
there. This one allows what such a checkpoint consists of, and nothing else.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import filesystem as files
from torch.distributed.checkpoint import metadata as index
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from minigpt.errors import MiniGPTError

DAMAGED = "The checkpoint '{}' is damaged: not all of its shards can be read. Name another."
REST = "meta.pt"  # what Lightning keeps besides weights and moments
KNOWN = {
    (index.__name__, kind.__name__): kind
    for kind in (
        index.Metadata, index.MetadataIndex, index.StorageMeta, index.TensorStorageMetadata,
        index.BytesStorageMetadata, index.ChunkStorageMetadata, index.TensorProperties, index._MEM_FORMAT_ENCODING,
    )
} | {
    (files.__name__, "_StorageInfo"): files._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What an index may name; paths in it are of another time and not followed."""
        if module.startswith("pathlib"):
            return PurePosixPath
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return KNOWN[module, name]


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> index.Metadata:
        """The index, and nothing that lies outside the folder."""
        with open(self._get_metadata_path(), "rb") as file:
            metadata = _Unpickler(file).load()
        if any(Path(info.relative_path).name != info.relative_path for info in metadata.storage_data.values()):
            raise pickle.UnpicklingError("a part that lies elsewhere")
        return metadata


class _Planner(_EmptyStateDictLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Hand on a value that is no tensor, if it is a plain one."""
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


def read(folder: Path, weights: bool = True) -> dict[str, Any]:
    """A checkpoint in shards as one, on the CPU: what a run on one device would have written.

    Args:
        folder: Where the shards lie.
        weights: Read weights and moments; without, they are left out, and all else is read and found harmless.

    Raises:
        MiniGPTError: Something is missing, damaged or not allowed.
    """
    try:
        reader, state = _Reader(folder), {}
        entries = reader.read_metadata().state_dict_metadata
        plain = {name for name, entry in entries.items() if isinstance(entry, index.BytesStorageMetadata)}
        _load_state_dict(state, reader, planner=_Planner(None if weights else plain), no_dist=True)
        checkpoint = torch.load(folder / REST, map_location="cpu", weights_only=True)
        if weights:
            checkpoint["state_dict"] = state["state_dict"]
            checkpoint["optimizer_states"] = [numbered(state["optimizer_0"])]
    except (Exception, CheckpointException) as error:  # one for each way a file can be broken, and one that is neither
        raise MiniGPTError(DAMAGED.format(folder)) from error
    return checkpoint


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer under the numbers of its parameters, as PyTorch keeps it, in place of their names."""
    names = [name for group in optimizer["param_groups"] for name in group["params"]]
    return renamed(optimizer, {name: number for number, name in enumerate(names)})


def renamed(optimizer: dict[str, Any], new: Mapping[Any, Any] | Sequence[Any]) -> dict[str, Any]:
    """The state of an optimizer with `new[name]` in place of each parameter's name or number."""
    return {
        "state": {new[name]: values for name, values in optimizer["state"].items()},
        "param_groups": [
            group | {"params": [new[name] for name in group["params"]]} for group in optimizer["param_groups"]
        ],
    }
