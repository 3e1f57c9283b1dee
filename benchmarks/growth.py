"""Growth of the cost of training with model, context and text: seconds and peak memory, on log-log axes.

    python benchmarks/growth.py --corpus FILE --plot docs/images/growth.png

FILE is a text of a few megabytes. Each point is a process of its own, which steps through batches of the same number of
tokens with the preset `modern`, AdamW and float32: sizes of the model (its width doubled, its parameters four times as
many), then contexts. Memory is the most that the process held, less what it held before there was a model. For texts of
growing size, repeated from FILE with lines in another order, it is `scripts/train.py` with the article's recipe: the
seconds to its first step, where the text is new and where its ids are there already, and the most that it held. The
slope is that of a straight line through the logarithms: 1 where the cost grows as fast as the thing. Prints tables and
writes JSON.
"""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from data import ROOT, enlarge, watch

WIDTHS = [64, 128, 256, 512, 1024]  # four times the parameters each time
CONTEXTS = [64, 128, 256, 512, 1024]
MEGABYTES = [1, 10, 100, 1000]
TOKENS = 1024  # in a batch
VOCAB = 65


def held() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def step(width: int, context: int, steps: int) -> dict[str, float]:
    """Return the number of parameters, the median seconds of a step, and its memory in MB."""
    import torch

    from minigpt import GPT, LitLanguageModel
    from minigpt.cpu.layers import optimize
    from minigpt.processes import keep_memory

    keep_memory()
    before = held()
    lit = LitLanguageModel(GPT(VOCAB, context, 4, max(1, width // 64), width, "modern"), weight_decay=0.1)
    optimize(lit.network)  # as a training does
    optimizer, seconds = lit.build_optimizer(), []
    for _ in range(steps + 2):
        began = time.perf_counter()
        x = torch.randint(VOCAB, (TOKENS // context, context))
        lit.loss(x, x.roll(-1, dims=1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    parameters = sum(p.numel() for p in lit.network.parameters())
    return {"parameters": parameters, "seconds": statistics.median(seconds[2:]), "MB": held() - before}


def alone(*arguments: int) -> dict[str, float]:
    """`step` in a new process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(step, *arguments).result()


def start(corpus: Path, megabytes: int, place: Path) -> dict[str, float]:
    """Return the seconds to the first step on a text of this size, new and known, and the peak memory in MB."""
    text = place / f"{megabytes}.txt"
    enlarge(corpus, megabytes, text)
    command = [
        sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(ROOT / "configs" / "tiny.yaml"),
        "--trainer.accelerator", "cpu", "--trainer.max_steps", "100", "--samples.every_n_steps", "0",
        "--figures.every_n_steps", "0", "--data.cache_dir", str(place / "cache"), "--data.path", str(text),
    ]  # fmt: skip
    (new, memory), (known, _) = (watch(command, "step 1/", place) for _ in range(2))
    text.unlink()
    return {"seconds": new, "seconds, known": known, "MB": memory}


def slope(xs: list[float], ys: list[float]) -> float:
    """Return the exponent b of the best-fitting power law a * x ** b."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def plot(results: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Draw seconds above and memory below, with a column for each quantity that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        2, len(results), figsize=(4 * len(results), 6), sharex="col", sharey="row", layout="constrained"
    )
    for column, (thing, table) in enumerate(results.items()):
        xs = table[thing]
        for row, name in enumerate(("seconds", "MB")):
            axis = axes[row][column]
            for key in (key for key in table if key.startswith(name)):
                axis.loglog(xs, table[key], "o-", label=f"{key} (slope {slope(xs, table[key]):.2f})")
            axis.grid(alpha=0.3)
            axis.legend()
            axis.label_outer()
        axes[1][column].set_xlabel(thing)
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("peak memory, MB")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a text file of a few megabytes")
    parser.add_argument("--steps", type=int, default=15, help="steps that are timed")
    parser.add_argument("--plot", type=Path, help="where to draw the curves; takes matplotlib")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    sizes = [alone(width, 64, asked.steps) for width in WIDTHS]
    contexts = [{"context, tokens": context} | alone(256, context, asked.steps) for context in CONTEXTS]
    with tempfile.TemporaryDirectory() as place:
        texts = [{"text, MB": size} | start(asked.corpus.resolve(), size, Path(place)) for size in MEGABYTES]
    results = {
        thing: {key: [row[key] for row in rows] for key in (thing, *(key for key in rows[0] if key != thing))}
        for thing, rows in (("parameters", sizes), ("context, tokens", contexts), ("text, MB", texts))
    }
    results["context, tokens"].pop("parameters")
    for thing, table in results.items():
        print(f"\n| {' | '.join(table)} |\n|{'---|' * len(table)}")
        for row in zip(*table.values(), strict=True):
            print("| " + " | ".join(f"{value:,.{max(0, 2 - int(math.log10(value)))}f}" for value in row) + " |")
        slopes = [f"{slope(table[thing], table[key]):.2f}" for key in table if key != thing]
        print(f"| slope | {' | '.join(slopes)} |")
    if asked.plot:
        plot(results, asked.plot)
    if asked.json:
        asked.json.write_text(json.dumps({"cores": os.cpu_count(), "results": results}, indent=2))


if __name__ == "__main__":
    main()
