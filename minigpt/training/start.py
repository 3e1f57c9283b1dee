"""Starting from a model: the network, the weights and the tokenizer of a new run come from an earlier run or elsewhere.

Batches, optimizer and schedule are new. A resume is the other thing: see `continuation.py`.
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minigpt import checkpoints, loading, runs
from minigpt.data import tokenizers
from minigpt.errors import MiniGPTError, note
from minigpt.models import NETWORKS, check_allowed
from minigpt.models.settings import PRESETS
from minigpt.training.recipes import as_text
from minigpt.words import message

FREE = ("vocab_size", "block_size", "dropout")  # settings of a network that may differ from the source's


class Source:
    """The model that a run starts from, in plain values.

    Args:
        description: The `class_path` and `init_args` of the network.
        data: What the checkpoint stores about its data: the tokenizer, and the block_size.
        name: The name of the source in messages.
    """

    def __init__(self, description: dict[str, Any], data: dict[str, Any], name: str):
        self.network, self.init_args = description["class_path"], description["init_args"]
        self.tokenizer = tokenizers.from_dict(data["tokenizer"])
        self.block_size: int = (self.init_args or {}).get("block_size", data["block_size"])
        self.name = name

    def flags(self, given: dict[str, Any], allow_code: Collection[str]) -> list[str]:
        """Return the flags that set the network and the tokenizer, where they are not given.

        Args:
            given: The settings of the recipe and the command line, by their full names.
            allow_code: The modules outside minigpt whose classes may be imported.

        Raises:
            MiniGPTError: The network is not allowed, or its arguments are unknown.
        """
        check_allowed(self.network, allow_code)
        if self.init_args is None:
            raise MiniGPTError(
                f"The network of {self.name} was created in Python, so its arguments are unknown and it cannot be "
                "built again here."
            )
        settings = self._of_tokenizer() | {"data.max_vocab_size": None}
        if "data.block_size" not in given:
            settings["data.block_size"] = min(self.block_size, checkpoints.USUAL_BLOCK)
        arguments = {key: value for key, value in self.init_args.items() if key not in ("vocab_size", "block_size")}
        settings |= {f"model.network.{key}": value for key, value in arguments.items() if value is not None}
        flags = [f"--{key}={as_text(value)}" for key, value in settings.items() if key not in given]
        return [f"--model.network={self.network}", *flags]  # the class first, since the parser needs it for the rest

    def _of_tokenizer(self) -> dict[str, Any]:
        """Return the settings that the tokenizer determines."""
        tokenizer = self.tokenizer
        settings = {"data.tokenizer": tokenizer.kind, "data.lower": tokenizer.lower, "data.nfc": tokenizer.nfc}
        return settings | {"data.byte_fallback": getattr(tokenizer, "byte_fallback", False)}

    def check(self, given: dict[str, Any]) -> None:
        """Compare settings with the source.

        Args:
            given: The settings of the recipe and the command line, by their full names.

        Raises:
            MiniGPTError: A setting contradicts the source.
        """
        theirs = {f"model.network.{key}": value for key, value in self.init_args.items() if key not in FREE}
        theirs |= self._of_tokenizer() | {"model.network": self.network}
        if "model.network.preset" in given:
            preset = PRESETS.get(given["model.network.preset"], {})
            given = {f"model.network.{key}": value for key, value in preset.items()} | given
        short = {kind.__name__: path for path, kind in NETWORKS.items()}
        for key, value in given.items():
            if key == "model.network":
                value = short.get(value, value)
            of_network = key.startswith("model.network.") and key.rpartition(".")[2] not in (*FREE, "preset")
            if (of_network or key in theirs) and value is not None and value != theirs.get(key):
                raise MiniGPTError(
                    f"{key} is {value} here and {theirs.get(key, 'unknown')} in {self.name}, which a run that starts "
                    "from it cannot change. Omit it."
                )
        if given.get("data.max_vocab_size") is not None:
            raise MiniGPTError(
                f"data.max_vocab_size means nothing here, since the tokenizer is that of {self.name}. Omit it."
            )


class Start(Source):
    """The source of a new run, with its weights.

    Args:
        source: `last`, a run folder, `RUN@STEP`, a checkpoint file, a folder for transformers, or its name on the hub.

    Raises:
        MiniGPTError: There is nothing to start from there, or it cannot be read.
    """

    def __init__(self, source: str):
        self.file = runs.find_source(source)
        checkpoint = loading.read_checkpoint(self.file)
        metadata = checkpoint["minigpt"]
        super().__init__(metadata["model"], metadata["data"], f"'{source}'")
        self._weights = {key.removeprefix("network."): value for key, value in checkpoint["state_dict"].items()}
        folder = runs.run_of(self.file) or self.file.parent
        self._licence = next((file for file in sorted(folder.glob("LICEN[CS]E*")) if file.is_file()), None)
        self.origin = {
            "source": source, "path": str(self.file.absolute()), "sha256": checkpoints.checksum(self.file),
            "licence": self._licence.name if self._licence else None,
        }  # fmt: skip

    def load_weights(self, network: nn.Module) -> None:
        """Copy the weights into a network, whose vocabulary may be larger and whose windows may have another length.

        The rows of new tokens start at the mean of the others.

        Raises:
            MiniGPTError: The weights do not fit the network.
        """
        sizes = network.state_dict()
        if sizes.keys() != self._weights.keys():
            other = sorted(sizes.keys() ^ self._weights.keys())[0]
            raise MiniGPTError(f"The weights of {self.name} do not fit the network: only one of them has '{other}'.")
        vocab_size, block_size = self.tokenizer.vocab_size, getattr(network, "block_size", None) or self.block_size
        fitted = {}
        for name, ours in sizes.items():
            theirs = self._weights.pop(name)  # so that only one copy of the weights stays in memory
            rows_differ = theirs.shape != ours.shape and theirs.shape[1:] == ours.shape[1:]
            if rows_differ and len(theirs) == vocab_size < len(ours):
                mean = theirs.mean(0, keepdim=True)
                theirs = torch.cat((theirs, mean.expand(len(ours) - vocab_size, *mean.shape[1:])))
            elif rows_differ and len(theirs) > len(ours) == block_size:
                theirs = theirs[: len(ours)]  # the vectors of the first positions
            if theirs.shape != ours.shape:
                if rows_differ and len(theirs) < len(ours) == block_size:
                    raise MiniGPTError(
                        f"data.block_size is {block_size}, and {self.name} has learned {len(theirs)} positions. Pass "
                        f"--data.block_size {len(theirs)} or less."
                    )
                raise MiniGPTError(
                    f"The weights of {self.name} do not fit the network: '{name}' is {tuple(theirs.shape)} there and "
                    f"{tuple(ours.shape)} here."
                )
            fitted[name] = theirs
        network.load_state_dict(fitted)
        if block_size > self.block_size:
            note(message("longer_windows", block_size, self.block_size))

    def copy_licence(self, run_dir: Path) -> None:
        """Copy the licence of the weights, if there is one, into the run folder."""
        if self._licence:
            shutil.copyfile(self._licence, run_dir / self._licence.name)
