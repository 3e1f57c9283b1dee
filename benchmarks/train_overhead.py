"""What training inside Lightning costs a small model: TinyGPT's steps per second, side by side in one run.

    python benchmarks/train_overhead.py

Four loops over the article's settings (batch 4, block 64, AdamW), in turn, several times: the article's own loop
with its DataLoader; Lightning's Trainer with nothing on; `scripts/train.py`'s training with logging, validation and
checkpoints on; the same with samples too. Each is timed at two lengths and charged for the difference, so that
what happens once counts for nothing. Prints a table of medians and writes JSON.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import CharDataset, TextDataModule, TinyGPT
from minigpt.training.cli import MiniGPTCLI

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"


def article_loop(steps: int) -> None:
    """The article's loop, as a reader of the article would type it."""
    data = TextDataModule(lower=True, strip=True)
    data.setup()
    loader = torch.utils.data.DataLoader(CharDataset(data.train_ids, 64), batch_size=4, shuffle=True)
    model = TinyGPT(data.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss()
    batches = iter(loader)
    for step in range(steps):
        x, y = next(batches)
        loss = loss_fn(model(x).view(-1, data.vocab_size), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            loss.item()


class Plain(LightningModule):
    """The article's step as a LightningModule, and nothing else."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.model = TinyGPT(vocab_size)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def lightning_empty(steps: int) -> None:
    """Lightning's Trainer with nothing on, over the article's DataLoader."""
    data = TextDataModule(lower=True, strip=True)
    data.setup()
    loader = torch.utils.data.DataLoader(CharDataset(data.train_ids, 64), batch_size=4, shuffle=True)
    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(data.vocab_size), loader)


def project(steps: int, *flags: str) -> None:
    """What scripts/train.py does with the recipe of the article."""
    options = ["--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu", *flags]
    cli = MiniGPTCLI(["--config", str(CONFIG), *options])
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


LOOPS: dict[str, Callable[[int], None]] = {
    "article's bare loop": article_loop,
    "Lightning, nothing on": lightning_empty,
    "minigpt: logs, validation, checkpoints": lambda n: project(n, "--samples.every_n_steps", "0"),
    "minigpt: and samples": project,
}


def seconds(loop: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        loop(steps)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="steps that are counted, after 500 that are not")
    parser.add_argument("--rounds", type=int, default=5, help="how often each loop is timed")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()

    speeds: dict[str, list[float]] = {name: [] for name in LOOPS}
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for _ in range(asked.rounds):
            for name, loop in LOOPS.items():
                speeds[name].append(asked.steps / (seconds(loop, asked.steps + 500) - seconds(loop, 500)))
        os.chdir(home)

    medians = {name: statistics.median(values) for name, values in speeds.items()}
    bare, empty, *_ = medians.values()
    print(f"{'':40}{'steps/s (min to max)':>26}{'of bare':>10}{'of empty':>10}")
    for name, median in medians.items():
        spread = f"{median:,.0f} ({min(speeds[name]):,.0f} to {max(speeds[name]):,.0f})"
        print(f"{name:40}{spread:>26}{median / bare:>10.2f}{median / empty:>10.2f}")
    if asked.json:
        asked.json.write_text(json.dumps({"threads": torch.get_num_threads(), "steps_per_s": speeds}, indent=2))


if __name__ == "__main__":
    main()
