"""Reading GPT-2 and Llama from folders of Hugging Face.

A folder holds `config.json` and `model.safetensors`, or several such files with `model.safetensors.index.json`. It may
come from anywhere: everything is checked against the config before a weight is read.
"""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from minigpt import processes
from minigpt.errors import MiniGPTError
from minigpt.models.families import BIASES, LLAMA, Family, settings_of
from minigpt.models.gpt import GPT
from minigpt.models.rope import Rope
from minigpt.models.settings import Settings

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
FLOATS = ("F32", "F16", "BF16")  # the types that are read, as safetensors names them
# Tensors that older versions of transformers stored, and that follow from the config.
BUFFERS = re.compile(r"(^|\.)(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)$")


class Pretrained(NamedTuple):
    """The content of a folder: the arguments of GPT, its weights by name in float32, and the config."""

    init_args: dict[str, Any]
    weights: dict[str, torch.Tensor]
    config: dict[str, Any]


def read_pretrained(folder: Path) -> Pretrained:
    """Read a GPT-2 or a Llama from a folder of Hugging Face.

    Memory is taken for the weights once, and for one tensor of the file at a time.

    Raises:
        MiniGPTError: A file is missing or damaged, GPT cannot represent the model, the weights contradict the config,
            or they do not fit into memory.
    """
    config = read_json(folder / CONFIG)
    family, settings = settings_of(config, folder / CONFIG)
    with ExitStack() as files:
        stored = _open_weights(folder, files)
        sources = _match(folder, config, family, settings, stored)
        _check_memory(folder, sources)
        weights = {source.name: source.read(stored) for source in sources}
    if settings.tie_weights:
        weights["lm_head.weight"] = weights["embed.weight"]
    return Pretrained(asdict(settings), weights, config)


def build_around(init_args: dict[str, Any], weights: dict[str, torch.Tensor]) -> GPT:
    """Build a GPT whose parameters are the given tensors.

    Nothing is copied, and no weights are drawn that would be overwritten.

    Raises:
        RuntimeError: The names or shapes are not those of the model.
    """
    with torch.device("meta"):
        model = GPT(**init_args)
    model.load_state_dict(weights, assign=True)
    settings = model.settings
    if settings.tie_weights:
        model.lm_head.weight = model.embed.weight
    if model.rope is not None:  # its tables are not in the state dict
        model.rope = Rope(settings.block_size, settings.head_size, settings.rope_base)
    return model


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a folder.

    Raises:
        MiniGPTError: The file is missing, cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MiniGPTError(
            f"The folder '{file.parent}' has no {file.name}. Pass a folder that save_pretrained wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise MiniGPTError(f"'{file}' cannot be read as JSON. Download the folder again.") from error
    if not isinstance(content, dict):
        raise MiniGPTError(f"'{file}' is not a JSON object. Download the folder again.")
    return content


class StoredTensor(NamedTuple):
    """A tensor of an open safetensors file, which has not been read yet."""

    shape: list[int]
    dtype: str
    read: Callable[[], torch.Tensor]


def _open_weights(folder: Path, files: ExitStack) -> dict[str, StoredTensor]:
    """Open the weights of a folder and return their tensors by name, after reading the headers only.

    Raises:
        MiniGPTError: There are none, or a file is missing or damaged.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        names = [WEIGHTS]
    else:
        weight_map = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        # A name in the index must not lead out of the folder.
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise MiniGPTError(f"'{folder / INDEX}' does not name the files of the weights. Download the folder again.")
    stored: dict[str, StoredTensor] = {}
    for name in names:
        if not (folder / name).exists():
            raise _no_weights(folder, name)
        try:
            file = files.enter_context(safe_open(folder / name, framework="pt"))
            for key in file.keys():  # noqa: SIM118  (the file is no dict)
                header = file.get_slice(key)
                stored[key] = StoredTensor(header.get_shape(), header.get_dtype(), _reader(file, key))
        except (SafetensorError, OSError, ValueError) as error:
            raise MiniGPTError(f"'{folder / name}' is damaged, or cannot be read. Download it again.") from error
    return stored


def _reader(file: Any, name: str) -> Callable[[], torch.Tensor]:
    return lambda: file.get_tensor(name)


def _no_weights(folder: Path, name: str) -> MiniGPTError:
    if name == WEIGHTS and (any(folder.glob(f"{PICKLE}*")) or any(folder.glob("pytorch_model-*.bin"))):
        return MiniGPTError(
            f"The folder '{folder}' has {PICKLE} alone, a format that can run code and is not read. Convert it with "
            "transformers:\n"
            "    from transformers import AutoModelForCausalLM\n"
            f"    AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    return MiniGPTError(f"The folder '{folder}' has no {name}, the weights. Download it again.")


class Source(NamedTuple):
    """A tensor of GPT, and the tensors of the file that are its rows; None stands for zeros."""

    name: str
    shape: torch.Size
    rows: list[tuple[int, str | None]]  # how many rows, and the name of the tensor in the file
    transposed: bool

    def expected(self) -> dict[str, list[int]]:
        """Return the shapes of the tensors in the file."""
        shapes = {theirs: [n, *self.shape[1:]] for n, theirs in self.rows if theirs is not None}
        return {theirs: shape[::-1] if self.transposed else shape for theirs, shape in shapes.items()}

    def read(self, stored: dict[str, StoredTensor]) -> torch.Tensor:
        """Return the tensor in float32."""
        tensor = torch.zeros(self.shape)
        for part, (_, theirs) in zip(tensor.split([n for n, _ in self.rows]), self.rows, strict=True):
            if theirs is not None:
                read = stored[theirs].read()
                part.copy_(read.T if self.transposed else read)
        return tensor


def _match(
    folder: Path, config: dict[str, Any], family: Family, settings: Settings, stored: dict[str, StoredTensor]
) -> list[Source]:
    """Find the tensors of a GPT with these settings among those in the files.

    Raises:
        MiniGPTError: The names, shapes or types of the tensors are not those of the config.
    """
    wrong = f"The weights in '{folder}' are not those of its {CONFIG}: "
    if settings.n_layer > len(stored):
        raise MiniGPTError(f"{wrong}{settings.n_layer:,} layers cannot have {len(stored):,} tensors.")
    try:
        with torch.device("meta"):
            model = GPT(**asdict(settings))
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise MiniGPTError(f"{wrong}a model of these sizes is too large for any memory.") from error
    sources = _sources(config, family, model, stored.keys())
    expected = {theirs: shape for source in sources for theirs, shape in source.expected().items()}
    if missing := next((theirs for theirs in expected if theirs not in stored), None):
        raise MiniGPTError(f"{wrong}{missing} is missing.")
    for theirs, (shape, dtype, _) in stored.items():
        if theirs not in expected:
            if BUFFERS.search(theirs) or (theirs == "lm_head.weight" and settings.tie_weights):
                continue
            raise MiniGPTError(f"{wrong}there is {theirs[:100]}, which a {family.architecture} of it does not have.")
        if dtype not in FLOATS:
            raise MiniGPTError(
                f"The weights in '{folder}' are stored as {dtype}, and minigpt reads {', '.join(FLOATS)}. Pass a model "
                "that is not quantised."
            )
        if shape != expected[theirs]:
            raise MiniGPTError(f"{wrong}{theirs} has the shape {shape} instead of {expected[theirs]}.")
    return sources


def _sources(config: dict[str, Any], family: Family, model: GPT, stored: Iterable[str]) -> list[Source]:
    """Return where each tensor of a model is in files that hold tensors of these names."""
    prefix = f"{family.block.partition('.')[0]}."  # the first files of GPT-2 have names without it
    removed = "" if any(name.startswith(prefix) for name in stored) else prefix
    # Llama has a switch each for the biases of attention and MLP, and GPT one for both.
    without = [part for part in ("attn", "mlp") if family is LLAMA and not config.get(BIASES[part])]
    sources = []
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.settings.tie_weights:
            continue
        names = [theirs.removeprefix(removed) for theirs in family.names(name)]
        counts = model.blocks[0].attn.widths if len(names) > 1 else [len(tensor)]
        zeros = name.endswith(".bias") and any(f".{part}." in name for part in without)
        rows = [(n, None if zeros else theirs) for n, theirs in zip(counts, names, strict=True)]
        sources.append(Source(name, tensor.shape, rows, family.is_transposed(name, tensor)))
    return sources


def _check_memory(folder: Path, sources: list[Source]) -> None:
    """Compare the size of the weights with the memory of the machine.

    Raises:
        MiniGPTError: They do not fit.
    """
    needed, available = 4 * sum(source.shape.numel() for source in sources), processes.available_memory()
    if available is not None and needed > available:
        raise MiniGPTError(
            f"The model in '{folder}' takes {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are "
            "available. Close other programs, or pass a smaller model."
        )
