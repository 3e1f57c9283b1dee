"""Cost of the data: batches and megabytes tokenised per second, and the memory and time of large corpora.

    python benchmarks/data.py --corpus FILE [--nanogpt DIR] [--rounds 5] [--sizes 1 100 1000] [--out data.json]

Batches of 4 windows of 64 ids and of 64 windows of 256: from memory, from a mapped file, from the article's DataLoader
over the same dataset, and from the `get_batch` in nanoGPT's train.py, which reads a mapped file too. Tokenising: each
tokenizer on the corpus in pieces of a megabyte, on one core, beside the `tokenizers` library called alone with the same
byte pairs, on one core and then on all. The contenders take turns, round by round, and ratios are medians of the ratios
within a round. Then whole processes, `train.py` with the article's recipe on texts of so many megabytes (the corpus
repeated, its lines in another order each time): the highest memory and the time to the first step's loss, for a first
start, which tokenises, and a second, which finds the ids; beside them the same command on the embedded corpus, which is
imports and start alone. With --nanogpt also its prepare.py for characters, at 100 MB at most. Prints a table, and
writes JSON with --out.
"""

import argparse
import ast
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import CharDataset
from minigpt.data.corpus import Corpus
from minigpt.data.memmap import Ids
from minigpt.data.order import BatchOrder
from minigpt.data.prepare import tokenize

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"4 x 64": (4, 64), "64 x 256": (64, 256)}


def ours(data: Ids, batch_size: int, block_size: int) -> Iterator[Any]:
    """Yield batches as in training, without Lightning."""
    dataset = CharDataset(data, block_size)
    order = BatchOrder(len(dataset), batch_size, seed=0)
    return iter(DataLoader(dataset, batch_size=None, sampler=order, collate_fn=lambda batch: batch))


def article(data: torch.Tensor, batch_size: int, block_size: int) -> Iterator[Any]:
    """Yield the batches of the article's loader, again and again."""
    dataset = CharDataset(data, block_size)
    while True:
        yield from DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True)


def nanogpt(folder: Path, clone: Path, batch_size: int, block_size: int) -> Iterator[Any]:
    """Return the function `get_batch` of nanoGPT's train.py, extracted unchanged."""
    tree = ast.parse((clone / "train.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_batch"]
    scope = {"os": os, "np": np, "torch": torch, "data_dir": str(folder), "device": "cpu", "device_type": "cpu"}
    scope |= {"batch_size": batch_size, "block_size": block_size}
    exec(compile(tree, "train.py", "exec"), scope)
    while True:
        yield scope["get_batch"]("train")


def batches_per_second(batches: Iterator[Any], seconds: float) -> float:
    for _ in range(3):
        next(batches)
    start, n = time.perf_counter(), 0
    while (now := time.perf_counter()) - start < seconds:
        next(batches)
        n += 1
    return n / (now - start)


def seconds_of(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(contenders: dict[str, Callable[[], float]], rounds: int, reference: str) -> dict[str, dict[str, float]]:
    """Return the median and spread of each contender, and the median of its ratio to the reference."""
    runs: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            runs[name].append(measure())
    return {
        name: {
            "median": statistics.median(figures), "min": min(figures), "max": max(figures),
            "ratio": statistics.median(a / b for a, b in zip(figures, runs[reference], strict=True)),
        }
        for name, figures in runs.items()
    }  # fmt: skip


def loaders(corpus: Path, clone: Path | None, rounds: int, place: Path) -> dict[str, Any]:
    memory = tokenize(Corpus(str(corpus)), in_memory_mb=1e9).train
    mapped = tokenize(Corpus(str(corpus)), in_memory_mb=0, cache_dir=str(place)).train
    (place / "nano").mkdir()
    memory.numpy().astype(np.uint16).tofile(place / "nano" / "train.bin")
    results = {}
    for name, shape in SHAPES.items():
        sources = {
            "the article's DataLoader": article(memory, *shape), "minigpt, in memory": ours(memory, *shape),
            "minigpt, from a mapped file": ours(mapped, *shape),
        }  # fmt: skip
        if clone:
            sources["nanoGPT's get_batch"] = nanogpt(place / "nano", clone, *shape)
        contenders = {what: lambda source=source: batches_per_second(source, 1.0) for what, source in sources.items()}
        results[name] = in_turn(contenders, rounds, "the article's DataLoader")
    return results


def tokenisers(corpus: Path, rounds: int) -> dict[str, Any]:
    """Return the megabytes per second of `encode_array`; all contenders end with numpy arrays."""
    text = "".join(Corpus(str(corpus)).pieces())
    pieces = [text[start : start + 1_000_000] for start in range(0, len(text), 1_000_000)]
    megabytes = len(text.encode()) / 1e6
    contenders: dict[str, Callable[[], float]] = {}
    for kind in ("char", "word", "bpe"):
        tokenizer = tokenize(Corpus(str(corpus)), kind, in_memory_mb=1e9).tokenizer

        def encode(tokenizer=tokenizer) -> float:
            if hasattr(tokenizer, "_cache"):
                tokenizer._cache.clear()  # each time as the first
            return megabytes / seconds_of(lambda: [tokenizer.encode_array(piece) for piece in pieces])

        contenders[kind] = encode
    lines = text.splitlines(keepends=True)  # the library spreads the texts of a batch over its threads

    def alone(backend=tokenizer.backend) -> float:
        return megabytes / seconds_of(lambda: [np.array(e.ids) for e in backend.encode_batch_fast(lines)])

    contenders["tokenizers alone"] = alone
    return in_turn(contenders, rounds, "tokenizers alone")


def enlarge(corpus: Path, megabytes: int, file: Path) -> None:
    """Write repetitions of the corpus up to a size, each with its lines in another order."""
    lines, size, order = corpus.read_bytes().splitlines(keepends=True), 0, random.Random(0)
    with file.open("wb") as out:
        while size < megabytes * 1_000_000:
            order.shuffle(lines)
            size += out.write(b"".join(lines)[: megabytes * 1_000_000 - size])


def watch(command: list[str], until: str | None, cwd: Path) -> tuple[float, float]:
    """Return the seconds until a process writes such a line (or ends), and its peak memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds, said = None, []
    for line in process.stderr:
        said.append(line)
        if until and seconds is None and line.startswith(until):
            seconds = time.perf_counter() - start
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("".join(said))
    return seconds or time.perf_counter() - start, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def starts(corpus: Path, sizes: list[int], clone: Path | None, place: Path) -> dict[str, Any]:
    train = [
        sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(ROOT / "configs" / "tiny.yaml"),
        "--trainer.accelerator", "cpu", "--trainer.max_steps", "100", "--samples.every_n_steps", "0",
        "--data.cache_dir", str(place / "cache"),
    ]  # fmt: skip
    results = {"the embedded corpus": dict(zip(("seconds", "MB"), watch(train, "step 1/", place), strict=True))}
    for size in sizes:
        text = place / f"{size}.txt"
        enlarge(corpus, size, text)
        for kind in ("char", "bpe"):
            command = [*train, "--data.path", str(text), "--data.tokenizer", kind]
            for which in ("first", "second"):
                seconds, memory = watch(command, "step 1/", place)
                results[f"{size} MB, {kind}, {which} start"] = {"seconds": seconds, "MB": memory}
                print(f"{size} MB, {kind}, {which} start: {seconds:.1f} s, {memory:,.0f} MB", file=sys.stderr)
        if clone and size <= 100:
            (place / "prepare").mkdir(exist_ok=True)
            shutil.copy(clone / "data" / "shakespeare_char" / "prepare.py", place / "prepare" / "prepare.py")
            shutil.copy(text, place / "prepare" / "input.txt")
            seconds, memory = watch([sys.executable, "prepare.py"], None, place / "prepare")
            results[f"{size} MB, nanoGPT's prepare.py for characters"] = {"seconds": seconds, "MB": memory}
        text.unlink()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a text file of a few megabytes")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5, help="how often the contenders take turns")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 100, 1000], help="megabytes of the large corpora")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    asked = parser.parse_args()

    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        results["batches"] = loaders(asked.corpus, asked.nanogpt, asked.rounds, Path(folder))
        for cores in sorted({1, os.cpu_count()}):
            os.environ["RAYON_NUM_THREADS"] = str(cores)  # the library's, which reads it once in a process
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(tokenisers, asked.corpus, asked.rounds).result()
            results.setdefault("tokenising", {})[f"the library on {cores}"] = found
        results["starts"] = starts(asked.corpus, asked.sizes, asked.nanogpt, Path(folder))
    for title, unit, tables in (
        ("batches", "batches/s", results["batches"]),
        ("tokenising", "MB/s", results["tokenising"]),
    ):
        for name, table in tables.items():
            print(f"\n| {title}: {name} | {unit} (min to max) | ratio |\n|---|---|---|")
            for who, run in table.items():
                median, least, most = (f"{run[key]:,.{run[key] < 100:d}f}" for key in ("median", "min", "max"))
                print(f"| {who} | {median} ({least} to {most}) | {run['ratio']:.2f} |")
    print("\n| start | seconds to the first step | highest memory, MB |\n|---|---|---|")
    for name, run in results["starts"].items():
        print(f"| {name} | {run['seconds']:.1f} | {run['MB']:,.0f} |")
    if asked.out:
        asked.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
