"""Fault injection: trainings that are killed repeatedly must end with the same bits as an uninterrupted one.

    python benchmarks/chaos.py --kills 200 [--seed 0] [--out chaos.json]

Real `train.py` processes are forked after the imports, so that kills land in training and not in start-up, and die by
SIGKILL, SIGTERM or SIGINT at a random moment, while a checkpoint is being written, or in a validation; or by a limit on
the size of files, as on a full disk. The same command starts them again until the run is done. Two recipes take turns:
the article's bigram, and a transformer with dropout, Muon, averaged weights, gradient accumulation and byte pairs read
from a mapped file. After each death the checkpoints are read, and the steps that are lost are counted; at the end of a
run weights, optimizer, best checkpoint and logged curves are held to the undisturbed run's. Prints the counts, and
exits with 1 unless those that must be 0 are.
"""

import argparse
import contextlib
import json
import mmap
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import MiniGPTError, commands, loading, runs
from minigpt.training.module import LitLanguageModel

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"
INTERVAL = 25  # steps between checkpoints
COMMON = [
    "--trainer.accelerator", "cpu", "--checkpoint.every_n_steps", str(INTERVAL), "--validation.every_n_steps", "60",
    "--samples.every_n_steps", "0", "--trainer.log_every_n_steps", "10", "--data.cache_dir", "cache",
    "--ckpt_path", "last",
]  # fmt: skip
RECIPES = {
    "tiny": ["--trainer.max_steps", "700"],
    "modern": [
        "--trainer.max_steps", "240", "--model.network", "GPT", "--model.network.preset", "modern",
        "--model.network.n_layer", "1",
        "--model.network.n_head", "2", "--model.network.n_embd", "16", "--model.network.dropout", "0.2",
        "--model.optimizer", "muon",
        "--model.lr_schedule", "wsd", "--trainer.gradient_clip_val", "1.0", "--trainer.accumulate_grad_batches", "2",
        "--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging", "--data.block_size", "16",
        "--data.tokenizer", "bpe", "--data.max_vocab_size", "300", "--data.in_memory_mb", "0",
    ],
}  # fmt: skip
WAYS = ("at a random moment", "while a checkpoint is written", "in a validation", "by a full disk")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Life:
    """A process that trains in a folder until it is done or killed."""

    def __init__(self, folder: Path, flags: list[str], full_disk: int | None = None):
        self.log = folder / "stderr.txt"
        self._step = mmap.mmap(-1, 8)  # shared: the last optimizer step that was done
        self._validates, says = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 99
            try:
                status = self._train(folder, flags, full_disk, says)
            finally:
                os._exit(status)
        os.close(says)

    def _train(self, folder: Path, flags: list[str], full_disk: int | None, says: int) -> int:
        os.chdir(folder)
        for number, name in ((1, os.devnull), (2, str(self.log))):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        on_train_batch_end, validation_step = LitLanguageModel.on_train_batch_end, LitLanguageModel.validation_step

        def counted(module, *args):
            self._step[:] = module.global_step.to_bytes(8, "little")
            return on_train_batch_end(module, *args)

        def told(module, *args):
            os.write(says, b"v")
            return validation_step(module, *args)

        LitLanguageModel.on_train_batch_end, LitLanguageModel.validation_step = counted, told
        if full_disk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (full_disk, full_disk))
        sys.argv = ["train.py", "--config", str(CONFIG), *COMMON, *flags]
        try:
            return commands.run(commands.train)
        except SystemExit as stop:
            return stop.code

    @property
    def step(self) -> int:
        """Return the last optimizer step of this process."""
        return int.from_bytes(self._step[:], "little")

    def wait_until(self, way: str, folder: Path, seconds: float) -> None:
        """Wait for the moment to kill the process: after so many seconds, at the next event of this kind."""
        end, limit = time.monotonic() + seconds, time.monotonic() + 60
        while time.monotonic() < end and not self._ended():
            time.sleep(0.001)
        while way in WAYS[1:3] and time.monotonic() < limit and not self._ended():
            if way == WAYS[1] and any(folder.glob("lightning_logs/tiny/*/checkpoints/.*.ckpt.*")):
                return
            ready, _, _ = select.select([self._validates], [], [], 0.0005)
            if ready and os.read(self._validates, 1 << 16) and way == WAYS[2]:
                return

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> int:
        """Return the exit status, or minus the signal that killed the process."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self._validates)
        return os.waitstatus_to_exitcode(status)


def last_of(folder: Path) -> Path | None:
    run = runs.newest_run("tiny", folder / "lightning_logs")
    return run and run / "checkpoints" / "last.ckpt"


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the differences between two final states of a run."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            place
            for key in one.keys() | other.keys()
            for place in differences(one.get(key), other.get(key), f"{name}/{key}")
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [f"{name}: {one} in place of {other}"]


def bits(folder: Path) -> dict[str, Any]:
    """Return everything that must be equal at the end of a run."""
    last = last_of(folder)
    ends = {
        name: loading.read_checkpoint(last.with_name(f"{name}.ckpt"))
        for name in ("last", "best")
    }  # fmt: skip
    kept = {
        name: {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states")}
        for name, checkpoint in ends.items()
    }
    curves: dict[str, dict[int, float]] = {}
    for file in sorted(last.parent.parent.glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        for event in EventFileLoader(str(file)).Load():
            if event.HasField("session_log"):  # a step back hides what it repeats
                curves = {tag: {s: v for s, v in points.items() if s < event.step} for tag, points in curves.items()}
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars" and "per_second" not in value.tag:
                    curves.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
    return kept | {"curves": curves}


def check(folder: Path, life: Life, gentle: bool, counts: dict[str, int]) -> None:
    """Count the damage after a kill."""
    for file in folder.glob("lightning_logs/tiny/*/checkpoints/*.ckpt"):
        try:
            checkpoint = loading.read_checkpoint(file)
        except MiniGPTError:
            counts["unreadable checkpoints"] += 1
            continue
        if file == last_of(folder):
            lost = life.step - checkpoint["global_step"]
            counts["lost steps beyond the interval"] += max(0, lost - (1 if gentle else INTERVAL))


def torment(recipe: str, whole: dict[str, Any], kills: int, chance: random.Random, counts: dict[str, int]) -> None:
    """Train one run to its end, killing it up to so many times."""
    target = counts["kills"] + kills
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while True:
            way = chance.choice(WAYS) if counts["kills"] < target else None
            last = last_of(folder)
            full = int(last.stat().st_size * chance.uniform(0.5, 0.95)) if way == WAYS[3] and last else None
            life = Life(folder, RECIPES[recipe], full)
            number = None
            if way and not full:
                life.wait_until(way, folder, chance.uniform(0, 0.8))
                number = chance.choice(SIGNALS)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(life.pid, number)
            status = life.end()
            if status == 0:
                break
            counts["kills"] += 1
            counts[f"died {way}"] = counts.get(f"died {way}", 0) + 1
            counts["restarts"] += 1
            if status not in (2 if full else 0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 143, 130):
                counts["other deaths"] += 1
                print(f"{recipe}, {way}: status {status}\n{life.log.read_text(encoding='utf-8')}", file=sys.stderr)
                if counts["other deaths"] > 3:
                    raise SystemExit(1)
            check(folder, life, gentle=status in (143, 130), counts=counts)
        counts["runs"] += 1
        if places := sorted(differences(bits(folder), whole)):
            counts["differing runs"] += 1
            print(f"{recipe} differs in {len(places)} places: {places[:5]}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--out", type=Path, help="where to write the counts as JSON")
    asked = parser.parse_args()

    torch.set_num_threads(1)  # a process with threads of its own cannot be forked
    import minigpt.training.cli  # noqa: F401 (before the first fork)

    chance = random.Random(asked.seed)
    zero = ("unreadable checkpoints", "lost steps beyond the interval", "differing runs", "other deaths")
    counts = dict.fromkeys(("kills", "restarts", "runs", *zero), 0)
    started, whole = time.monotonic(), {}
    for recipe, flags in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            assert Life(Path(folder), flags).end() == 0, "the undisturbed run"
            whole[recipe] = bits(Path(folder))
    while counts["kills"] < asked.kills:
        for recipe in RECIPES:
            if counts["kills"] < asked.kills:
                torment(recipe, whole[recipe], min(10, asked.kills - counts["kills"]), chance, counts)
                print(f"{counts['kills']} kills, {counts['runs']} runs", file=sys.stderr, flush=True)
    counts["seconds"] = round(time.monotonic() - started)
    for name, count in counts.items():
        print(f"{name}: {count}")
    if asked.out:
        asked.out.write_text(json.dumps(counts, indent=1), encoding="utf-8")
    sys.exit(any(counts[name] for name in zero))


if __name__ == "__main__":
    main()
