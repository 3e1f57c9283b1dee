"""Cost of several processes compared with the predictions of scaling.py: memory, bytes sent, seconds per step.

    python benchmarks/several.py

Two processes of one thread each, over gloo and the machine's own loopback, train the preset `modern` with four layers,
float32 and AdamW: as one, with a whole copy each (DDP), sharing the model out (FSDP2), and computing activations again
besides. Memory is the most that a process held, less what it held before there was a model; bytes sent are those that
the loopback counted. The speeds that predictions need, of a product, of memory and of the loopback, are measured by the
same processes first. Linux only. Prints a table and writes JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from growth import held
from scaling import Machine, Model, plan
from torch import distributed

VOCAB = 65
CONTEXT = 64
WAYS = {"one": ("one", False), "ddp": ("ddp", False), "fsdp": ("fsdp", False), "fsdp, checkpointing": ("fsdp", True)}


def sent() -> int:
    """Return the bytes that the loopback interface has carried."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def timed(work, times: int = 5) -> float:
    """Return the median seconds of a call, after one call that does not count."""
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def join(rank: int, world: int, port: int) -> None:
    """Initialise this process as one of so many, with one thread."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=world)


def speeds(rank: int, world: int, port: int, results: SimpleQueue) -> None:
    """Measure the speeds of each process while the others run too; the first process reports."""
    join(rank, world, port)
    a, large = torch.randn(1024, 1024), torch.ones(1 << 25)
    share = torch.ones(1 << 23)
    product, read = timed(lambda: a @ a), timed(large.sum)
    exchange = timed(lambda: distributed.all_reduce(share))  # each sends its share once, of two processes
    if rank == 0:
        results.put(Machine(2 * 1024**3 / product, 4 * len(large) / read, 4 * len(share) / exchange, 0.0, 15e-6))
    distributed.destroy_process_group()


def steps(rank: int, world: int, port: int, results: SimpleQueue, way: str, width: int, tokens: int, n: int) -> None:
    """Train for a while as one of the processes; the first process reports."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.nn.parallel import DistributedDataParallel

    from minigpt import GPT, LitLanguageModel
    from minigpt.cpu.layers import optimize
    from minigpt.processes import keep_memory
    from minigpt.training.distributed import shard_network

    strategy, checkpointing = WAYS[way]
    if strategy != "fsdp":  # as in a training
        keep_memory()
    join(rank, world, port)
    before = held()
    model = GPT(VOCAB, CONTEXT, 4, max(1, width // 64), width, "modern")
    optimize(model)  # as a training does
    lit = LitLanguageModel(model, activation_checkpointing=checkpointing)
    parameters = sum(p.numel() for p in model.parameters())
    if strategy == "ddp":
        model = DistributedDataParallel(model)
    elif strategy == "fsdp":
        shard_network(model, init_device_mesh("cpu", (world,)))
    optimizer = lit.build_optimizer()

    def step() -> None:
        x = torch.randint(VOCAB, (tokens // CONTEXT, CONTEXT))
        torch.nn.functional.cross_entropy(model(x).flatten(0, 1), x.roll(-1, dims=1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    distributed.barrier()
    then = sent()
    seconds = timed(step, n)
    distributed.barrier()
    if rank == 0:
        bytes_sent = (sent() - then) / (n + 1) / world
        results.put({"parameters": parameters, "seconds": seconds, "MB": held() - before, "sent MB": bytes_sent / 1e6})
    distributed.destroy_process_group()


def together(task: Callable[..., None], world: int, port: int, *arguments: str | int) -> dict | Machine:
    """Run a task in so many processes and return the report of the first one."""
    context = get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=task, args=(rank, world, port, results, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    found = results.get()
    for process in processes:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024], help="widths of the models")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a process and step")
    parser.add_argument("--steps", type=int, default=7, help="steps that are timed")
    parser.add_argument("--json", type=Path, default=Path("several.json"), help="where to write the figures")
    asked = parser.parse_args()
    port = 29_530
    machine = together(speeds, 2, port)
    print(
        f"Of each of two processes: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s of memory, "
        f"{machine.network / 1e9:.2f} GB/s to the other"
    )
    rows = []
    columns = "predicted | measured | error"
    print(f"| | | MB, {columns} | MB sent, {columns} | s, {columns} |")
    print(f"|{'---|' * 11}")
    for width in asked.widths:
        for way, (strategy, checkpointing) in WAYS.items():
            port += 1
            devices = 1 if strategy == "one" else 2
            found = together(steps, devices, port, way, width, asked.tokens, asked.steps)
            said = plan(Model(4, width, VOCAB), machine, strategy, devices, asked.tokens, CONTEXT, 4, checkpointing)
            cells = []
            for key, name, unit in (("memory", "MB", 1e6), ("sent", "sent MB", 1e6), ("seconds", "seconds", 1)):
                predicted, real = said[key] / unit, found[name]
                error = f"{predicted / real - 1:+.0%}" if predicted and real else ""
                cells += [f"{predicted:.3g}", f"{real:.3g}", error]
            print(f"| {found['parameters']:,} | {way} | {' | '.join(cells)} |", flush=True)
            rows.append({"way": way, "width": width, **found, "predicted": said})
    asked.json.write_text(json.dumps({"machine": vars(machine), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
