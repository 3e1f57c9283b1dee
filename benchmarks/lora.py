"""Memory and seconds a step of LoRA beside training all weights, in one run.

    python benchmarks/lora.py [--ranks 8 64] [--rounds 3] [--steps 2] [--batch_size 1] [--device cuda] [--json FILE]

The network has the shape of SmolLM2-135M and random weights, which cost what trained ones cost. Each contender is a
process of its own, and they take turns, so that the ratios of a round have the same conditions. A step is that of
`minigpt train` without Lightning: the modules of `minigpt.cpu`, AdamW, clipping, float32 on a CPU and bf16 autocast on
a GPU. Memory is the peak of a process (its resident set) on a CPU, and the peak of PyTorch's allocator on a GPU. The
resident set includes some 300 MB of PyTorch itself. Prints a table and may write JSON.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import GPT
from minigpt.cpu.layers import optimize
from minigpt.models import lora
from minigpt.training.optim import OPTIMIZERS, parameter_groups

SHAPE = {
    "vocab_size": 49152, "block_size": 256, "n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576,
    "mlp_width": 1536, "preset": "llama", "tie_weights": True, "rope_base": 100_000.0,
}  # fmt: skip


def contender(rank: int, args: argparse.Namespace, pipe: Connection) -> None:
    """Train in a process of its own: at each message, some steps. Rank 0 trains all weights."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    with device:
        network = GPT(**SHAPE)
    if rank:
        lora.add(network, rank)
    if device.type == "cpu":
        optimize(network)
    groups = parameter_groups(network, "adamw", 1e-4, 0.02, weight_decay=0.01)
    optimizer = OPTIMIZERS["adamw"](groups, betas=(0.9, 0.999))
    trained = [parameter for group in groups for parameter in group["params"]]
    ids = torch.randint(SHAPE["vocab_size"], (args.batch_size, SHAPE["block_size"] + 1), device=device)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(network(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        return time.perf_counter() - began

    step()  # allocates the optimizer's state
    pipe.send(sum(parameter.numel() for parameter in trained))
    while pipe.recv():
        pipe.send([step() for _ in range(args.steps)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    pipe.send(torch.cuda.max_memory_allocated() if device.type == "cuda" else peak)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each contender: parameters that train, seconds a step, bytes, and their ratios to the first."""
    context = multiprocessing.get_context("spawn")
    rows, pipes = [], []
    for rank in (0, *args.ranks):
        ours, theirs = context.Pipe()
        context.Process(target=contender, args=(rank, args, theirs), daemon=True).start()
        rows.append({"rank": rank, "parameters": ours.recv()})
        pipes.append(ours)
    seconds: list[list[float]] = [[] for _ in rows]
    for _ in range(args.rounds):
        for pipe, measured in zip(pipes, seconds, strict=True):
            pipe.send(True)
            measured.append(statistics.mean(pipe.recv()))
    for row, pipe, measured in zip(rows, pipes, seconds, strict=True):
        pipe.send(False)
        ratios = [one / first for one, first in zip(measured, seconds[0], strict=True)]
        row |= {"seconds": statistics.median(measured), "of full": statistics.median(ratios), "bytes": pipe.recv()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure(args)
    for row in rows:
        name = f"rank {row['rank']}" if row["rank"] else "all weights"
        speed = f"{row['seconds']:7.2f} s a step ({row['of full']:.2f})"
        memory = f"{row['bytes'] / 1e9:6.2f} GB ({row['bytes'] / rows[0]['bytes']:.2f})"
        print(f"{name:12} {row['parameters']:>13,} parameters train  {speed}  {memory}")
    if args.json:
        conditions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
        args.json.write_text(
            json.dumps({"conditions": conditions | vars(args) | {"json": None}, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
