"""Tokens per second of training at nanoGPT's architecture and batches, side by side with nanoGPT in one run.

    python benchmarks/throughput.py --nanogpt DIR

DIR is a clone of github.com/karpathy/nanoGPT. Each contender is a loop in a process of its own, and they take turns, so
that ratios come from a round. nanoGPT's step is its own: its model, its AdamW with clipping, its `loss.item()`. Ours
is what `scripts/train.py` does at a step, without Lightning (whose price train_overhead.py tells): the preset `gpt2`
without biases, fused AdamW and clipping, in float32 and with `--trainer.precision bf16-mixed`, each also with
`--model.compile true`. Dropout is what nanoGPT publishes for a size; the larger one is timed without, too. The share
of peak holds 6 floating-point operations per parameter and token to what a product of two float32 matrices reaches
here, and lets attention go for nothing. Prints a table and writes JSON.
"""

import argparse
import io
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from multiprocessing.connection import Connection
from operator import truediv
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LARGE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
SIZES = {  # nanoGPT's settings for characters: on a CPU, and those for a GPU with the batch that a CPU can bear
    "0.80 M, 12 x 64": ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0}, 12, 60),
    "10.65 M, 8 x 256": (LARGE | {"dropout": 0.2}, 8, 4),
    "10.65 M, no dropout, 8 x 256": (LARGE | {"dropout": 0.0}, 8, 4),
}
VOCAB, NANOGPT = 65, "nanoGPT"
LOOPS = [
    "nanoGPT", "nanoGPT, compiled", "minigpt, float32", "minigpt, float32, compiled", "minigpt, bf16",
    "minigpt, bf16, compiled",
]  # fmt: skip


def peak() -> float:
    """Floating-point operations per second of a product of float32 matrices."""
    a = torch.randn(2048, 2048)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def nanogpt_step(sizes: dict, batch: int, compiled: bool) -> Callable[[], None]:
    """A step of nanoGPT's train.py, on random ids."""
    from model import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=VOCAB, bias=False, **sizes))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    forward = torch.compile(model) if compiled else model
    return lambda: train(lambda x, y: forward(x, y)[1], model, optimizer, (batch, sizes["block_size"]))


def minigpt_step(sizes: dict, batch: int, precision: str, compiled: bool) -> Callable[[], None]:
    """A step of scripts/train.py without Lightning, on random ids."""
    from minigpt import LitLanguageModel
    from minigpt.training.cli import keep_memory

    keep_memory()
    lit = LitLanguageModel(
        VOCAB, name="gpt", preset="gpt2", bias=False, learning_rate=1e-3, weight_decay=0.1, beta2=0.99, **sizes
    )
    optimizer = lit.configure_optimizers()
    loss = torch.compile(lit.loss) if compiled else lit.loss
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with autocast:
            return loss(x, y)

    return lambda: train(loss_of, lit.model, optimizer, (batch, sizes["block_size"]))


def train(loss_of: Callable, model: torch.nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, int]) -> None:
    x = torch.randint(VOCAB, shape)
    loss = loss_of(x, x.roll(-1, dims=1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()


def serve(loop: str, sizes: dict, batch: int, threads: int, clone: str, connection: Connection) -> None:
    """Do as many steps as asked, as often as asked, and tell how long they took."""
    torch.set_num_threads(threads)
    sys.path.insert(0, clone)
    name, *how = loop.split(", ")
    compiled = "compiled" in how
    with redirect_stdout(io.StringIO()):  # nanoGPT tells of its parameters
        step = nanogpt_step(sizes, batch, compiled) if name == NANOGPT else minigpt_step(sizes, batch, how[0], compiled)
    while steps := connection.recv():
        began = time.perf_counter()
        for _ in range(steps):
            step()
        connection.send(time.perf_counter() - began)


def measure(sizes: dict, batch: int, steps: int, rounds: int, clone: str) -> tuple[dict[str, list[float]], dict]:
    """Tokens per second of each loop in each round, and the seconds of its first step."""
    spawn, workers, first = multiprocessing.get_context("spawn"), {}, {}
    for loop in LOOPS:
        workers[loop], end = spawn.Pipe()
        arguments = (loop, sizes, batch, torch.get_num_threads(), clone, end)
        spawn.Process(target=serve, args=arguments, daemon=True).start()
        end.close()  # so that a worker that dies is an EOFError here
        workers[loop].send(1)
        first[loop] = workers[loop].recv()
    speeds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    for n in range(rounds + 1):
        for loop, worker in workers.items():
            worker.send(steps)
            seconds = worker.recv()
            if n:  # the first round warms up
                speeds[loop].append(steps * batch * sizes["block_size"] / seconds)
    for worker in workers.values():
        worker.send(0)
    return speeds, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=9, help="how often each loop is timed")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="which tables to make")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    from minigpt import GPT

    most, results = peak(), {}
    print(f"float32 products reach {most / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    for name in asked.sizes:
        sizes, batch, steps = SIZES[name]
        parameters = sum(p.numel() for p in GPT(VOCAB, preset="gpt2", bias=False, **sizes).parameters())
        speeds, first = measure(sizes, batch, steps, asked.rounds, str(asked.nanogpt.resolve()))
        results[name] = {"tokens_per_s": speeds, "first_step_s": first}
        print(f"\n{name:28}{'tokens/s (min to max)':>28}{'of nanoGPT':>22}{'of peak':>9}{'first step, s':>15}")
        for loop, values in speeds.items():
            spread = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            ratios = list(map(truediv, values, speeds[NANOGPT]))
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            share = statistics.median(values) * 6 * parameters / most
            print(f"{loop:28}{spread:>28}{ratio:>22}{share:>9.2f}{first[loop]:>15.1f}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"flops_per_s": most, "results": results}, indent=2))


if __name__ == "__main__":
    main()
