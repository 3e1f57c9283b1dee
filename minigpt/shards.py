"""A checkpoint in shards: the folder that torch.distributed.checkpoint writes, with a part from each process.

Its index is a pickle, and so are its values that are no tensors: PyTorch's own reader would run what a stranger put
there. This one allows what such a checkpoint consists of, and nothing else.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint import filesystem as files
from torch.distributed.checkpoint import metadata as index
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from minigpt.errors import MiniGPTError

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


class _Unpickler(pickle._Unpickler):  # the one in Python: that in C takes as much memory as a file tells it to
    def find_class(self, module: str, name: str) -> Any:
        """What an index may name; paths in it are of another time and not followed."""
        if module.startswith("pathlib"):
            return PurePosixPath
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return KNOWN[module, name]

    def load_build(self) -> None:
        """Give an object its state: one of these kinds, and no class or function attributes that it did not have."""
        if type(self.stack[-2]) not in KNOWN.values():
            raise pickle.UnpicklingError("a state for what has none")
        super().load_build()

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}


class _Reader(FileSystemReader):
    def __init__(self, folder: Path):
        super().__init__(folder)
        with open(_part(folder, Path(self._get_metadata_path()).name), "rb") as file:
            self.metadata = _Unpickler(file).load()
        for name in {info.relative_path for info in self.metadata.storage_data.values()}:
            _part(folder, name)
        entries, paths = self.metadata.state_dict_metadata, self.metadata.planner_data
        tensors = [entry for entry in entries.values() if isinstance(entry, index.TensorStorageMetadata)]
        if any(sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size) for tensor in tensors):
            raise ValueError("a tensor of which not every number is there once")
        if any(isinstance(step, int) and not 0 <= step < len(entries) for path in paths.values() for step in path):
            raise ValueError("a place in a longer list than there are values")

    def read_metadata(self) -> index.Metadata:
        """The index, read before PyTorch asks for it, which would write of its troubles on the way."""
        return self.metadata

    def _slice_file(self, file: IO[bytes], info: files._StorageInfo) -> IO[bytes]:
        """A part of a file, of which PyTorch looks at no checksum."""
        return _whole_archive(io.BytesIO(super()._slice_file(file, info).read()))


class _Plain(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Hand on a value that is no tensor, written anew, since PyTorch would run what it might hold."""
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


class _Whole(_Plain, _EmptyStateDictLoadPlanner):
    """Loads all that there is."""


def _part(folder: Path, name: str) -> Path:
    """A file of a checkpoint, and nothing that lies elsewhere."""
    part = folder / name
    if Path(name).name != name or part.is_symlink() or not part.is_file():
        raise ValueError(f"'{name}' is no part of this checkpoint")
    return part


def _whole_archive(file: IO[bytes]) -> IO[bytes]:
    """What torch.save wrote, once its checksums are found right."""
    with zipfile.ZipFile(file) as archive:
        if archive.testzip():
            raise ValueError("a checksum that differs")
    file.seek(0)
    return file


@contextmanager
def _answering(folder: Path) -> Iterator[None]:
    try:
        yield
    except (Exception, CheckpointException) as error:  # one for each way a file can be broken, and one that is neither
        raise MiniGPTError(
            f"The checkpoint '{folder}' is damaged: not all of its shards can be read. Name another."
        ) from error


def read_rest(folder: Path) -> dict[str, Any]:
    """What a checkpoint in shards holds besides weights and moments, which may be more than a machine can hold.

    Raises:
        MiniGPTError: It is missing, damaged or not plain.
    """
    with _answering(folder), open(_part(folder, REST), "rb") as file:
        return torch.load(_whole_archive(file), map_location="cpu", weights_only=True)


def read(folder: Path) -> dict[str, Any]:
    """A checkpoint in shards as one, on the CPU: what a run on one device would have written.

    Raises:
        MiniGPTError: Something is missing, damaged or not allowed.
    """
    place, state = folder.resolve(), {}  # a training may let the link lead elsewhere meanwhile
    try:
        checkpoint = read_rest(place)
        with _answering(folder):
            _load_state_dict(state, _Reader(place), planner=_Whole(), no_dist=True)
            weights, moments = state["state_dict"], numbered(state["optimizer_0"])
    except MiniGPTError:
        if folder.resolve() == place:
            raise
        return read(folder)
    return checkpoint | {"state_dict": weights, "optimizer_states": [moments]}


def load_share(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of `state`, of which this process holds a share, from shards, however many there are.

    Raises:
        MiniGPTError: Something is missing, damaged or not allowed.
    """
    with _answering(folder):
        load(state, storage_reader=_Reader(folder), planner=_Plain())


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
