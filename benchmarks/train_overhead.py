"""Overhead of Lightning for a small model: TinyGPT's steps per second, with all contenders in one run.

    python benchmarks/train_overhead.py

The article's settings (batch 4, block 64, AdamW) in turn, several times: the article's own loop with its DataLoader;
Lightning's Trainer with nothing on; `scripts/train.py`'s training with logging and checkpoints; the same with
validation, then with samples, at the recipe's intervals. Then `modern_nano`, a bare loop over the very modules that
Lightning trains beside that training, without validations. The clock runs from the moment a loop asks for its 100th
batch until it asks for its last, so that what happens once counts for nothing. The ratios are taken within a round,
whose loops ran one after the other. These loops draw no figures. What figures cost is too little to tell so: it is the
share of the whole training of a recipe, as it is shipped, that passes inside their callback. Prints a table of medians
and writes JSON.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from operator import truediv
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import CharDataset, TextDataModule, TinyGPT
from minigpt.cpu.layers import optimize
from minigpt.training.callbacks import Figures
from minigpt.training.cli import MiniGPTCLI

WARM_UP = 100
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class Clock:
    """An endless loader that records the times of its requests."""

    def __init__(self, loader):
        self.loader = loader
        self.times: list[float] = []

    def __iter__(self) -> Iterator:
        for batch in chain.from_iterable(repeat(self.loader)):
            self.times.append(time.perf_counter())
            yield batch

    def seconds(self, steps: int) -> float:
        """Return the seconds between the request for batch 100 and the one `steps` later."""
        return self.times[WARM_UP + steps - 1] - self.times[WARM_UP - 1]


def article_data() -> tuple[int, Clock]:
    data = TextDataModule(lower=True, strip=True)
    data.setup()
    dataset = CharDataset(data.train_ids, 64)
    return data.vocab_size, Clock(torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True))


def article_loop(steps: int) -> Clock:
    """Run the article's loop, as a reader of the article would type it."""
    vocab_size, clock = article_data()
    model = TinyGPT(vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss()
    batches = iter(clock)
    for step in range(steps):
        x, y = next(batches)
        loss = loss_fn(model(x).view(-1, vocab_size), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            loss.item()
    return clock


class Plain(LightningModule):
    """The article's step as a LightningModule."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.model = TinyGPT(vocab_size)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def lightning_empty(steps: int) -> Clock:
    """Run Lightning's Trainer without any options over the article's DataLoader."""
    vocab_size, clock = article_data()
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(vocab_size), clock)
    return clock


def prepare(recipe: str, steps: int, *flags: str) -> tuple[MiniGPTCLI, Clock]:
    """Return the training of a recipe as in scripts/train.py, without figures."""
    options = ["--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu", "--figures.every_n_steps", "0"]
    cli = MiniGPTCLI(["--config", str(CONFIGS / f"{recipe}.yaml"), *options, *flags])
    return cli, Clock(cli.datamodule.train_dataloader())


def project(recipe: str, steps: int, *flags: str) -> Clock:
    """Train a recipe as scripts/train.py does."""
    cli, clock = prepare(recipe, steps, *flags)
    cli.datamodule.train_dataloader = lambda: clock
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return clock


def bare(recipe: str, steps: int) -> Clock:
    """Train with the modules, batches, optimizer and clipping of a recipe in a loop of a few lines."""
    cli, clock = prepare(recipe, steps)
    optimize(cli.model.network)  # as a training does
    optimizer = cli.model.build_optimizer()
    batches = iter(clock)
    for _ in range(steps):
        cli.model.loss(*next(batches)).backward()
        nn.utils.clip_grad_norm_(cli.model.network.parameters(), cli.config.trainer.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad()
    return clock


ALONE = ["--samples.every_n_steps", "0", "--validation.every_n_steps", "0"]
LOOPS: dict[str, Callable[[int], Clock]] = {
    "article's bare loop": article_loop,
    "Lightning, nothing on": lightning_empty,
    "minigpt: bar, logs, checkpoints": lambda n: project("tiny", n, *ALONE),
    "minigpt: and validation": lambda n: project("tiny", n, "--samples.every_n_steps", "0"),
    "minigpt: and samples": lambda n: project("tiny", n),
}
LARGER: dict[str, Callable[[int], Clock]] = {
    "modern_nano: bare loop": lambda n: bare("modern_nano", n),
    "modern_nano: minigpt": lambda n: project("modern_nano", n, *ALONE),
}


def share_of_figures(recipe: str) -> float:
    """Return the share of the time of a recipe's training that figures take, first and last steps included."""
    cli = MiniGPTCLI(["--config", str(CONFIGS / f"{recipe}.yaml"), "--trainer.accelerator", "cpu"])
    (figures,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, Figures))
    spent = []

    def timed(hook: Callable) -> Callable:
        def run(*args) -> None:
            began = time.perf_counter()
            hook(*args)
            spent.append(time.perf_counter() - began)

        return run

    for name in ("on_train_start", "on_validation_end", "on_train_end"):
        setattr(figures, name, timed(getattr(figures, name)))
    began = time.perf_counter()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return sum(spent) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="steps that are counted, after 100 that are not")
    parser.add_argument("--rounds", type=int, default=11, help="how often each loop is timed")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument(
        "--share", metavar="RECIPE", help="only print what share of this recipe's training figures take"
    )
    asked = parser.parse_args()
    if asked.share:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            with contextlib.redirect_stderr(io.StringIO()):
                share = share_of_figures(asked.share)
        print(share)
        return

    speeds: dict[str, list[float]] = {name: [] for name in LOOPS | LARGER}
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for _ in range(asked.rounds):
            for name, loop in (LOOPS | LARGER).items():
                steps = asked.steps // 5 if name in LARGER else asked.steps
                with contextlib.redirect_stderr(io.StringIO()):
                    clock = loop(WARM_UP + steps)
                speeds[name].append(steps / clock.seconds(steps))
        os.chdir(home)
    again = [sys.executable, __file__, "--share"]  # in new processes, since what is drawn first takes longest
    shares = {
        name: [float(subprocess.run([*again, name], capture_output=True, check=True).stdout) for _ in range(3)]
        for name in ("tiny", "modern_nano")
    }

    for loops, bases in ((LOOPS, list(LOOPS)[:2]), (LARGER, list(LARGER)[:1])):
        print(f"\n{'':34}{'steps/s (min to max)':>26}" + "".join(f"{'of ' + base:>28}" for base in bases))
        for name in loops:
            values = speeds[name]
            spread = f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"
            ratios = (statistics.median(map(truediv, values, speeds[base])) for base in bases)
            print(f"{name:34}{spread:>26}" + "".join(f"{ratio:>28.2f}" for ratio in ratios))
    for name, values in shares.items():
        print(f"figures, of a whole training of {name}: {statistics.median(values):.1%} (up to {max(values):.1%})")
    if asked.json:
        results = {"threads": torch.get_num_threads(), "steps_per_s": speeds, "share_of_figures": shares}
        asked.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
