"""Generation speed compared with llama.cpp, in one run, from the same weights.

    pip install xllamacpp gguf
    python benchmarks/generate_vs_llama_cpp.py [--rounds 5] [--shape 10.65M] [--out llama_cpp.json]

An untrained model with Llama's switches is exported as GGUF in float32, bf16 and 8 bits, and continues one character up
to its block, with temperature 0.8, top-k 30, top-p 0.9, min-p 0.02 and a repetition penalty of 1.1: here with the
compiled step, from a prompt's ids to a text, and in llama.cpp through the completions of the package xllamacpp, also to
a text. Both draw until the block is full. llama.cpp runs with keys and values in float32, as here, and in 16 bits, its
default, which is faster. Each contender has a process of its own, which is stopped while others have their turn, so
that its threads take no time from theirs. It first tries one thread and all cores and keeps what is faster. Then they
take turns, round by round; ratios are medians of the ratios within a round. `limit` is the memory's: how often a second
the weights could be read, at the bandwidth measured in each round. Prints a table, and writes JSON with --out.
"""

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from generate import bandwidth

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import GPT, CharTokenizer, LanguageModel
from minigpt.cpu.decoding import compile_decoding
from minigpt.export import files_of
from minigpt.loading import for_inference

ALPHABET = "".join(chr(code) for code in range(33, 98))  # 65 characters, as tinyshakespeare has
SHAPES = {"0.80M": (64, 4, 4, 128), "10.65M": (256, 6, 6, 384)}  # block_size, n_layer, n_head, n_embd
SAMPLING = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1}
BYTES = {"32": 4, "bf16": 2, "int8": 34 / 32}  # a weight's; Q8_0 has a 16-bit scale for 32 weights
CACHES = {"float32 cache": "F32", "16-bit cache": "F16"}
PROMPT = "A"
Contender = Callable[[int], int]  # writes a text with this seed; how many tokens it has


def network(shape: tuple[int, ...]) -> GPT:
    torch.manual_seed(0)
    return GPT(len(ALPHABET), *shape, preset="llama").eval()


def project(shape: tuple[int, ...], precision: str) -> Contender:
    model = network(shape)
    for_inference(model, precision=precision)
    compile_decoding(model)
    lm = LanguageModel(model, CharTokenizer.from_text(ALPHABET))
    return lambda seed: len(lm.generate(PROMPT, shape[0] - 1, seed=seed, **SAMPLING)) - 1


def llama_cpp(shape: tuple[int, ...], file: Path, cache: str, threads: int) -> Contender:
    import xllamacpp

    block_size = shape[0]
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = max(256, block_size)
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache}")
    params.warmup = True
    params.ctx_shift = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    request = {
        "prompt": PROMPT, "max_tokens": block_size - 1, "temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.02,
        "repeat_penalty": 1.1, "repeat_last_n": block_size, "ignore_eos": True, "cache_prompt": False,
        "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
    }  # fmt: skip

    def run(seed: int) -> int:
        answer = server.handle_completions(request | {"seed": seed})
        return answer["usage"]["completion_tokens"]

    return run


def serve(pipe: Connection, make: Callable[..., Contender], args: tuple, threads: int) -> None:
    """Write a text for each seed that comes through the pipe, and answer with the tokens per second."""
    torch.set_num_threads(threads)
    run = make(*args)
    while True:
        seed = pipe.recv()
        started = time.perf_counter()
        pipe.send(run(seed) / (time.perf_counter() - started))


class Side:
    """A contender in a process of its own, which is stopped between its turns."""

    def __init__(self, make: Callable[..., Contender], args: tuple, threads: int):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(other, make, args, threads), daemon=True)
        self.process.start()
        self.speed(0)  # it is ready then

    def speed(self, seed: int) -> float:
        """Return the tokens per second of a text."""
        os.kill(self.process.pid, signal.SIGCONT)
        self.pipe.send(seed)
        result = self.pipe.recv()
        os.kill(self.process.pid, signal.SIGSTOP)
        return result

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def measure(shape: tuple[int, ...], precision: str, folder: Path, rounds: int) -> dict:
    """Each side's tokens per second in each round, its threads, and the limit."""
    model = network(shape)
    file = folder / f"{precision}.gguf"
    file.write_bytes(
        files_of("gguf", {}, LanguageModel(model, CharTokenizer.from_text(ALPHABET)), precision)["model.gguf"]
    )
    counts = sorted({1, os.cpu_count() or 1})
    contenders: dict[str, tuple] = {f"llama.cpp, {name}": (llama_cpp, file, kind) for name, kind in CACHES.items()}
    contenders["minigpt"] = (project, precision)
    best, sides = {}, {}
    for name, (make, *args) in contenders.items():
        trials = {}
        for n in counts:
            side = Side(make, (shape, *args, *([n] if make is llama_cpp else [])), n)
            trials[n] = max(side.speed(seed) for seed in range(4)), side
        best[name] = max(trials, key=lambda n: trials[n][0])
        for n, (_, side) in trials.items():
            if n != best[name]:
                side.end()
        sides[name] = trials[best[name]][1]
    weights = BYTES[precision] * sum(p.numel() for p in model.blocks.parameters())
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    limits = []
    for seed in range(rounds):
        torch.set_num_threads(max(counts))
        limits.append(bandwidth() / weights)
        for name, side in sides.items():
            speeds[name].append(side.speed(seed))
    for side in sides.values():
        side.end()
    return {"precision": precision, "threads": best, "tokens_per_second": speeds, "limit": limits}


def table(results: list[dict]) -> str:
    """Medians, their spread, and ratios, as a Markdown table."""
    lines = ["| precision | | threads | tokens/s (min to max) | minigpt's ratio to it | of the limit |"]
    lines.append("|---|---|---|---|---|---|")
    for result in results:
        speeds = result["tokens_per_second"]
        for name, runs in speeds.items():
            ratios = [a / b for a, b in zip(speeds["minigpt"], runs, strict=True)]
            share = statistics.median(a / b for a, b in zip(runs, result["limit"], strict=True))
            spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if name != "minigpt" else ""
            lines.append(
                f"| {result['precision']} | {name} | {result['threads'][name]} | {statistics.median(runs):,.0f} "
                f"({min(runs):,.0f} to {max(runs):,.0f}) | {statistics.median(ratios):.2f}{spread} | {share:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each side writes a text")
    parser.add_argument("--shape", choices=SHAPES, default="10.65M", help="which model")
    parser.add_argument("--precisions", nargs="*", choices=BYTES, default=list(BYTES), help="of the weights")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    asked = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(SHAPES[asked.shape], kind, Path(folder), asked.rounds) for kind in asked.precisions]
    print(table(results))
    if asked.out:
        about = {"torch": torch.__version__, "cores": os.cpu_count(), "shape": asked.shape}
        asked.out.write_text(json.dumps(about | {"results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
