"""Training one recipe several times: a dry run, and the ordinary runs of several seeds.

The same command finds these runs again after an interruption.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from hashlib import sha256
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minigpt import files, runs
from minigpt.command_line import short
from minigpt.errors import MiniGPTError, writing
from minigpt.inspection.curves import read_curves
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.recipes import as_flags
from minigpt.words import message


def dry_run(args: Sequence[str], values: Mapping[str, Any]) -> MiniGPTCLI:
    """Build what `minigpt train` would train with these flags and values, in a folder that is deleted.

    Raises:
        MiniGPTError: A flag or a value is wrong, or the recipe cannot be trained several times.
    """
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # the runs themselves print these notes
        cli = MiniGPTCLI([*args, *as_flags(values)], Path(folder))
    check_repeatable(cli)
    if cli.config.ckpt_path:
        raise MiniGPTError("Several runs start anew: omit ckpt_path.")
    if cli.config.init_from == "last":
        raise MiniGPTError("Each run would start from the run before it. Pass --init_from a run folder.")
    return cli


def check_repeatable(cli: MiniGPTCLI) -> Path:
    """Return the run folder.

    Raises:
        MiniGPTError: The run has no folder, or has several processes.
    """
    if cli.run_dir is None or cli.trainer.world_size > 1:
        raise MiniGPTError(
            "Several runs need folders and one process: pass --trainer.devices 1, and omit fast_dev_run."
        )
    return cli.run_dir


def validated_text(cli: MiniGPTCLI) -> tuple[str, float]:
    """Return the checksum of a run's text and the part that validates; runs compare if these are equal."""
    return cli.datamodule.tokens.sha256, cli.datamodule.tokens.val_fraction


class SeedGroup:
    """The runs of one command with several seeds, by their seeds, in a file under `lightning_logs/`.

    Args:
        args: The command line without --seeds; another command line is another group.
    """

    def __init__(self, args: Sequence[str]):
        name = sha256("\0".join(args).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self.file = Path(runs.ROOT) / f"seeds-{name}.json"
        self.runs: dict[int, Path] = {}
        try:
            for seed, run in json.loads(self.file.read_text(encoding="utf-8")).items():
                self.runs[int(seed)] = Path(os.path.normpath(self.file.parent / run))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise MiniGPTError(
                f"The list of runs '{self.file}' is damaged. Delete it to train all seeds anew."
            ) from error

    def arguments(self, seed: int) -> list[str]:
        """Return the arguments that train a seed, or continue its run."""
        run = self.runs.get(seed)
        has_checkpoint = run is not None and (run / "checkpoints" / "last.ckpt").exists()
        return ["--seed_everything", str(seed), *(["--ckpt_path", str(run)] if has_checkpoint else [])]

    def add(self, seed: int, run: Path) -> None:
        """Note the run of a seed, before its first step."""
        self.runs[seed] = run
        paths = {str(seed): os.path.relpath(run, self.file.parent) for seed, run in sorted(self.runs.items())}
        with writing(self.file.parent, "--trainer.default_root_dir"):
            temporary = files.fresh(self.file)
            temporary.write_text(json.dumps(paths, indent=2), encoding="utf-8")
            os.replace(temporary, self.file)

    def summary(self, seeds: Iterable[int]) -> list[str]:
        """Return the lines of a table: the bits per character of each run, their mean and their standard deviation."""
        lines, scores = [], []
        for seed in seeds:
            points = read_curves(self.runs[seed]).scalars.get("val/bits_per_char", [])
            if points:
                scores.append(points[-1][1])
                lines.append(message("seed_row", seed, points[-1][1], short(self.runs[seed])))
        if len(scores) > 1:
            lines.append(message("seed_mean", len(scores), np.mean(scores), np.std(scores, ddof=1)))
        return lines
