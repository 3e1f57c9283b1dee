"""Continuing from a checkpoint: its settings, the settings that must not differ, and its run folder."""

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from minigpt import loading, runs
from minigpt.checkpoints import EXPORTED, is_snapshot
from minigpt.data.corpus import locate
from minigpt.data.tokenizers import difference
from minigpt.data.tokenizers import from_dict as tokenizer_from_dict
from minigpt.errors import MiniGPTError, note
from minigpt.models.pretrained import CONFIG
from minigpt.training.datamodule import TextDataModule
from minigpt.training.description import environment
from minigpt.training.module import LitLanguageModel
from minigpt.training.parser import flatten
from minigpt.words import message


class Continuation:
    """A checkpoint that a training continues, without weights and optimizer state; the file is read once.

    Args:
        file: The checkpoint.

    Raises:
        MiniGPTError: It is a snapshot, or the folder of an export or of Hugging Face.
    """

    def __init__(self, file: Path):
        if is_snapshot(file):
            raise MiniGPTError(
                f"'{file}' is a snapshot, which has weights and no optimizer state to resume. Continue its run with "
                f"--ckpt_path {runs.run_of(file) or 'RUN'}, or start a new run from it: --init_from {file}."
            )
        if file.name in (EXPORTED, CONFIG):
            kind = "an export" if file.name == EXPORTED else "a model of Hugging Face"
            raise MiniGPTError(
                f"'{file.parent}' is {kind}, which has no training to resume. Pass --ckpt_path a run, or start a new "
                f"run from this model: --init_from {file.parent}."
            )
        self.file = file
        run = runs.run_of(file)
        self.run = run if run and (run / "config.yaml").is_file() else None  # the run folder of the checkpoint

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of the checkpoint without weights and optimizer state."""
        checkpoint = loading.read_checkpoint(self.file, merge=False)
        return {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}

    def own_flags(self) -> list[str]:
        """Return the flags to add to the run's config.yaml, with the corpus relative to the run's current folder."""
        assert self.run is not None, "there is a config.yaml"
        logs = self.run.absolute().parent.parent
        root = logs.parent if logs.name == runs.ROOT else Path.cwd()  # never a folder named in a stranger's settings
        flags = [f"--trainer.default_root_dir={root}", "--data.cache_dir=null"]
        corpus = loading.corpus_of(self.file, self.content["minigpt"]["data"])
        with suppress(MiniGPTError):  # not found relative to the run; it may be at the path in the settings
            locate(corpus)
            flags.append(f"--data.path={corpus}")
        return flags

    def check(
        self, data: TextDataModule, model: LitLanguageModel, trainer: Trainer, lora: dict[str, Any] | None = None
    ) -> None:
        """Compare the settings with the checkpoint's, and note differences that may change the last bits.

        Raises:
            MiniGPTError: The checkpoint has weights alone, or the network, the tokenizer, the text or the layout of the
                optimizer's state differs; the message shows both values.
        """
        if "loops" not in self.content:
            raise MiniGPTError(f"'{self.file}' has weights alone, which cannot be resumed. Pass its run instead.")
        metadata = self.content["minigpt"]
        then = resume_invariants(
            metadata["data"], metadata["model"], self.content["hyper_parameters"], metadata["accumulate_grad_batches"]
        )
        now = resume_invariants(data.describe("."), model.architecture, model.hparams, trainer.accumulate_grad_batches)
        then["optimizer"], now["optimizer"] = metadata.get("optimizer"), model.optimizer_class
        for key in ("rank", "alpha", "dropout"):
            then[f"lora.{key}"], now[f"lora.{key}"] = (
                (each or {"rank": 0}).get(key) for each in (metadata.get("lora"), lora)
            )
        for key in then | now:
            if then.get(key) != now.get(key):
                raise MiniGPTError(
                    f"{key} is {now.get(key)} here and {then.get(key)} in {self.file}, which a resume cannot change. "
                    "Pass the checkpoint's value, omit --config to use all of its settings, or start a new run."
                )
        if unlike := difference(data.tokenizer, tokenizer_from_dict(metadata["data"]["tokenizer"])):
            raise MiniGPTError(
                f"The text gives a different tokenizer than that of {self.file}: {unlike}. Start a new run."
            )
        then, now = metadata.get("environment", {}), environment(trainer)
        if others := [message("in_place", key, now[key], then[key]) for key in then if then[key] != now.get(key)]:
            note(message("other_bits", ", ".join(others)))

    def run_to_continue(self) -> Path | None:
        """Return the run folder if the checkpoint is its latest one; else None, with a note about a new run."""
        step = self.content["global_step"]
        if self.run is None or not (last := self.run / "checkpoints" / "last.ckpt").exists():
            note(message("outside_run", self.file, step))
        elif self.file.resolve() != last.resolve() and Continuation(last).content["global_step"] > step:
            note(message("older", self.file, step))
        else:
            return self.run.absolute()
        return None


def note_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Print a note for each setting that has changed since the run began."""
    before, now = flatten(before), flatten(now)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key != "trainer.default_root_dir":
            note(message("setting_changed", key, before.get(key), now.get(key)))


def resume_invariants(data: dict, network: dict, settings: dict, accumulate_grad_batches: int) -> dict[str, Any]:
    """Return the settings that a resume cannot change, by the names of their options."""
    cleaning = ("max_vocab_size", "byte_fallback", "val_fraction", "lower", "strip", "nfc", "unknown")
    return {
        "data.tokenizer": data["tokenizer"]["kind"],
        **{f"data.{key}": data[key] for key in cleaning},
        "data.path (SHA-256 of the text)": data["sha256"],
        "data.block_size": data["block_size"],
        "model.network": network["class_path"],
        **{f"model.network.{key}": value for key, value in (network["init_args"] or {}).items()},
        # These determine the layout of the optimizer's state.
        **{f"model.{key}": settings[key] for key in ("optimizer", "decay_vectors")},
        "trainer.accumulate_grad_batches": accumulate_grad_batches,
    }
