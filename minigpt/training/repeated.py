"""Training one recipe with several seeds: ordinary runs, which the same command finds again after an interruption."""

import json
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from minigpt import files, runs
from minigpt.command_line import short
from minigpt.errors import MiniGPTError, writing
from minigpt.inspection.curves import read_curves
from minigpt.words import message


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
