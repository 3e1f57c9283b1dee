"""Which snapshots of a run are kept. Its folder `snapshots/` is the only state, so that a resume simply goes on."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from minigpt import runs


def snapshot_file(run_dir: Path, step: int) -> Path:
    """Return the file for the snapshot of a step."""
    return run_dir / "snapshots" / f"step_{step:06d}.safetensors"


def thin_out(run_dir: Path, most: int) -> None:
    """Delete snapshots until at most so many are left, which are spread evenly over the steps.

    Args:
        run_dir: The run folder.
        most: The number of snapshots to keep, 1 or more.
    """
    kept = runs.snapshots(run_dir)
    while len(kept) > most:
        kept.pop(surplus([*kept])).unlink(missing_ok=True)


def surplus(steps: Sequence[int]) -> int:
    """Return the step whose snapshot is to be removed, so that no gap becomes wider than about two average ones.

    The first and the last step stay, and of two steps the last. The last gap may grow until it is as wide as the widest
    of the others. Only then do two other gaps, the narrowest pair, become one.

    Args:
        steps: Two or more steps in ascending order.
    """
    if len(steps) <= 3:
        return steps[len(steps) - 2]
    gaps = [after - before for before, after in pairwise(steps)]
    if gaps[-2] + gaps[-1] <= max(gaps[:-2]):
        return steps[-2]
    pairs = [one + other for one, other in pairwise(gaps[:-1])]
    return steps[1 + pairs.index(min(pairs))]
