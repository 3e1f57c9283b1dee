"""The rank of this process among those of a training, and its memory.

Launchers such as torchrun and srun set the rank in environment variables. Such variables may also be left over in the
environment of a process that no launcher started.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SIZES = {  # from the variable with the rank to the variable with the number of processes
    "RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "SLURM_PROCID": "SLURM_NTASKS",
    "JSM_NAMESPACE_RANK": "JSM_NAMESPACE_SIZE",
}  # fmt: skip
SRUN = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID")
known: int | None = None  # the rank, once the Trainer or the command has determined it


def rank() -> int:
    """Return the rank of this process: 0 for the first process of several, and for a single process."""
    if known is not None:
        return known
    return max((_number(name) or 0) * ((_number(size) or 1) > 1) for name, size in SIZES.items())


def forget_leftovers(alone: bool) -> list[str]:
    """Remove left-over variables, which would make Lightning wait for processes that do not exist.

    torchrun and srun set all of their variables, and Lightning sets LOCAL_RANK and WORLD_SIZE. An incomplete set is
    left over from elsewhere.

    Args:
        alone: Whether the settings ask for one process.

    Returns:
        The names of the removed variables that named other processes.
    """
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ and None not in map(_number, ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    without_srun = alone and (_number("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_ID" not in os.environ
    names = [name for name in SIZES if _number(name) is None]  # Lightning fails on values that are not numbers
    if not torchrun:
        names.append("TORCHELASTIC_RUN_ID")
        if alone or (_number("WORLD_SIZE") or 1) == 1:
            names += ["RANK", "LOCAL_RANK"]
    if None in map(_number, SRUN) or without_srun:
        names += ["SLURM_PROCID", "SLURM_NTASKS"]
    removed = {name: os.environ.pop(name) for name in names if name in os.environ}
    return [name for name, value in removed.items() if value != ("1" if name in SIZES.values() else "0")]


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None


def keep_memory() -> None:
    """Keep the memory that a training step frees for the next step, if the C library is glibc.

    By default glibc returns the memory of activations to the system and requests it again page by page: 2,000 page
    faults a step for 0.8 million parameters, and up to a sixth of the step's time (docs/LOG.md). Do not use this with
    FSDP2, which allocates and frees whole blocks to save memory: the memory kept is fragmented and grows with each
    step.
    """
    import ctypes

    if mallopt := getattr(ctypes.CDLL(None) if sys.platform == "linux" else None, "mallopt", None):
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap
        mallopt(-3, 2**30) or mallopt(
            -3, 2**25
        )  # M_MMAP_THRESHOLD: larger blocks from the heap; an old glibc allows 32 MB


def available_memory() -> int | None:
    """Return how many bytes of memory this process can still take; None where the system does not say.

    On Linux this is the least of what the machine has, MemAvailable in /proc/meminfo, and of what the limits of the
    process's control group and of the groups above it leave. File caches do not count as taken.
    """
    free: list[int] = []
    with suppress(OSError, ValueError):
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        free += [
            1024 * int(kilobytes) for kilobytes in re.findall(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
        ]
    for group, (limit, used, cache) in _control_groups():
        with suppress(OSError, ValueError):  # `max` instead of a number is no limit
            most = int((group / limit).read_text(encoding="ascii"))
            stat = (group / "memory.stat").read_text(encoding="ascii")
            cached = sum(map(int, re.findall(rf"^{cache} (\d+)$", stat, re.MULTILINE)))
            free.append(max(0, most - int((group / used).read_text(encoding="ascii")) + cached))
    return min(free, default=None)


def _control_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the control groups of this process, each with the names of its limit, its use and its file cache."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                root = Path("/sys/fs/cgroup/memory")
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            own = root / path.lstrip("/")
            yield from ((group, names) for group in (own, *own.parents) if group.is_relative_to(root))
