"""Tokens per second of training at nanoGPT's architecture and batches, compared with nanoGPT in one run.

    python benchmarks/throughput.py --nanogpt DIR [--device cuda]

DIR is a clone of github.com/karpathy/nanoGPT. Each contender is a loop in a process of its own, and they take turns, so
that ratios come from a round. nanoGPT's step is its own: its model, its AdamW with clipping, in float32 on a CPU and
under bf16 autocast on a GPU, as its train.py has it. Ours is what `scripts/train.py` does at a step, without Lightning
(whose price train_overhead.py tells): the preset `gpt2` without biases, fused AdamW and clipping, in float32 on a CPU
and with `--trainer.precision bf16-mixed` on both, each also with `--model.compile true`. The first loop of a table is
what ratios are to: nanoGPT as it is on a CPU, compiled on a GPU, which is how its settings run it there. Dropout is
what nanoGPT publishes for a size; the larger one is timed without, too. The share of peak holds 6 floating-point
operations per parameter and token to what a product of two matrices reaches here (float32 on a CPU, bf16 on a GPU), and
lets attention go for nothing. Prints a table and writes JSON.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from multiprocessing.connection import Connection
from operator import truediv
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LARGE = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256}
SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0}
SIZES = {  # nanoGPT's settings for characters: sizes, batch and steps a round. A CPU cannot bear a batch of 64 windows.
    "cpu": {
        "0.80 M, 12 x 64": (SMALL, 12, 60),
        "10.65 M, 8 x 256": (LARGE | {"dropout": 0.2}, 8, 4),
        "10.65 M, no dropout, 8 x 256": (LARGE | {"dropout": 0.0}, 8, 4),
    },
    "cuda": {
        "0.80 M, 12 x 64": (SMALL, 12, 200),
        "10.65 M, 64 x 256": (LARGE | {"dropout": 0.2}, 64, 100),
        "10.65 M, no dropout, 64 x 256": (LARGE | {"dropout": 0.0}, 64, 100),
    },
}
VOCAB, NANOGPT = 65, "nanoGPT"
LOOPS = {  # the first is what the others are held to
    "cpu": [
        "nanoGPT, float32", "nanoGPT, float32, compiled", "minigpt, float32", "minigpt, float32, compiled",
        "minigpt, bf16", "minigpt, bf16, compiled",
    ],
    "cuda": ["nanoGPT, bf16, compiled", "nanoGPT, bf16", "minigpt, bf16, compiled", "minigpt, bf16"],
}  # fmt: skip


def peak(device: str) -> float:
    """Return the operations per second of a matrix product, in the precision of the first loop."""
    size, dtype = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


Loop = tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], torch.nn.Module, torch.optim.Optimizer]


def nanogpt_loop(sizes: dict, device: str, compiled: bool) -> Loop:
    """Return the loss of `(x, y)`, the model and the optimizer of nanoGPT's train.py."""
    from model import GPT, GPTConfig

    torch.backends.cuda.matmul.allow_tf32 = True  # as there
    model = GPT(GPTConfig(vocab_size=VOCAB, bias=False, **sizes)).to(device)
    forward = torch.compile(model) if compiled else model
    return lambda x, y: forward(x, y)[1], model, model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), device)


def minigpt_loop(sizes: dict, device: str, compiled: bool) -> Loop:
    """Return the loss of `(x, y)`, the model and the optimizer of scripts/train.py."""
    from minigpt import GPT, LitLanguageModel
    from minigpt.cpu.layers import optimize, order_gradients
    from minigpt.processes import keep_memory

    keep_memory()
    network = GPT(VOCAB, preset="gpt2", bias=False, **sizes)
    if device == "cpu":  # as the callbacks of `training/compiling.py` do
        optimize(network)
    if compiled:
        order_gradients(network)
    lit = LitLanguageModel(network, learning_rate=1e-3, weight_decay=0.1, beta2=0.99).to(device)
    return torch.compile(lit.loss) if compiled else lit.loss, network, lit.build_optimizer()


def step_of(loop: str, sizes: dict, batch: int, device: str) -> Callable[[], torch.Tensor]:
    """Return a function that does one step of a loop on random ids and returns the loss."""
    name, precision, *how = loop.split(", ")
    with redirect_stdout(io.StringIO()):  # nanoGPT tells of its parameters
        loss_of, model, optimizer = (nanogpt_loop if name == NANOGPT else minigpt_loop)(sizes, device, bool(how))
    autocast = torch.autocast(device, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()

    def step() -> torch.Tensor:
        x = torch.randint(VOCAB, (batch, sizes["block_size"]), device=device)
        with autocast:
            loss = loss_of(x, x.roll(-1, dims=1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def serve(loop: str, sizes: dict, batch: int, device: str, threads: int, clone: str, connection: Connection) -> None:
    """Do as many steps as requested, repeatedly, and report their time."""
    torch.set_num_threads(threads)
    sys.path.insert(0, clone)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # so that a first step compiles, whatever ran before
        step = step_of(loop, sizes, batch, device)
        while steps := connection.recv():
            began = time.perf_counter()
            for _ in range(steps):
                loss = step()
            loss.item()  # waits for a GPU
            connection.send(time.perf_counter() - began)


def measure(
    loops: list[str], sizes: dict, batch: int, steps: int, device: str, rounds: int, clone: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the tokens per second of each loop in each round, and the seconds of its first step."""
    spawn, workers, first = multiprocessing.get_context("spawn"), {}, {}
    for loop in loops:
        workers[loop], end = spawn.Pipe()
        arguments = (loop, sizes, batch, device, torch.get_num_threads(), clone, end)
        spawn.Process(target=serve, args=arguments, daemon=True).start()
        end.close()  # so that a worker that dies is an EOFError here
        workers[loop].send(1)
        first[loop] = workers[loop].recv()
    speeds: dict[str, list[float]] = {loop: [] for loop in loops}
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
    parser.add_argument("--device", choices=SIZES, default="cpu", help="where to train")
    parser.add_argument("--sizes", nargs="+", help="which tables to make; all of the device's if not given")
    parser.add_argument("--loops", nargs="+", help="which loops to time; all of the device's if not given")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    device, known = asked.device, SIZES[asked.device]
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here. Leave it out to train on the CPU.")
    if missing := [name for name in asked.sizes or () if name not in known]:
        parser.error(f"--sizes '{missing[0]}' is none of --device {device}. It takes {'; '.join(known)}.")
    if missing := [name for name in asked.loops or () if name not in LOOPS[device]]:
        parser.error(f"--loops '{missing[0]}' is none of --device {device}. It takes {'; '.join(LOOPS[device])}.")
    loops = [name for name in LOOPS[device] if name in (asked.loops or LOOPS[device])]
    from minigpt import GPT

    most, results = peak(device), {}
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    print(f"products reach {most / 1e9:,.0f} GFLOP/s on {where}")
    for name in asked.sizes or known:
        sizes, batch, steps = known[name]
        parameters = sum(p.numel() for p in GPT(VOCAB, preset="gpt2", bias=False, **sizes).parameters())
        speeds, first = measure(loops, sizes, batch, steps, device, asked.rounds, str(asked.nanogpt.resolve()))
        results[name] = {"tokens_per_s": speeds, "first_step_s": first}
        print(f"\n{name:28}{'tokens/s (min to max)':>28}{'of the first':>22}{'of peak':>9}{'first step, s':>15}")
        for loop, values in speeds.items():
            spread = f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            ratios = list(map(truediv, values, speeds[loops[0]]))
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            share = statistics.median(values) * 6 * parameters / most
            print(f"{loop:28}{spread:>28}{ratio:>22}{share:>9.2f}{first[loop]:>15.1f}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"flops_per_s": most, "results": results}, indent=2))


if __name__ == "__main__":
    main()
