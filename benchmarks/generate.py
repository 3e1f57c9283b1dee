"""Generation speed in tokens per second, compared in one run with the article, nanoGPT and Hugging Face.

    python benchmarks/generate.py [--nanogpt DIR] [--rounds 5] [--out generate.json]

Untrained models: TinyGPT, and GPT-2-shaped ones of 0.80 M parameters (4 layers of 128, block 64) and of 10.65 M (6 of
384, block 256), 65 characters of vocabulary. Each contender continues one id up to its block (200 ids for TinyGPT),
with the article's controls, temperature 0.8, top-k 30 and top-p 0.9 (which nanoGPT lacks), one text at a time and
sixteen. The contenders take turns, round by round, so that a slow minute of the machine falls on all; ratios are
medians of the ratios within a round. nanoGPT keeps no cache and is slow: it runs in the first round alone. `limit` is
the memory's: how often a second the weights could be read, at the read bandwidth measured in each round; a batch shares
one reading, and weights that stay in a CPU's own cache come faster. Prints a table, and writes JSON with --out.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import GPT, CharTokenizer, LanguageModel, TinyGPT
from minigpt.cpu.decoding import compile_decoding
from minigpt.loading import for_inference

V = 65
SAMPLING = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}
SHAPES = {"0.80 M": (64, 4, 4, 128), "10.65 M": (256, 6, 6, 384)}  # block_size, n_layer, n_head, n_embd
TOKENIZER = CharTokenizer.from_text("".join(chr(33 + i) for i in range(V)))
Contender = Callable[[int], None]  # continues a batch of this size


@torch.no_grad()
def article(model: TinyGPT, n: int) -> None:
    """Generate with the article's function, as a reader of the article would type it."""
    ids = torch.zeros(1, 1, dtype=torch.int64)
    text = []
    for _ in range(n):
        logits = model(ids[:, -model.block_size :])[:, -1, :] / SAMPLING["temperature"]
        values, indices = torch.topk(logits, SAMPLING["top_k"])
        logits = torch.full_like(logits, float("-inf")).scatter_(1, indices, values)
        ordered, order = torch.sort(logits, descending=True)
        cut = torch.cumsum(F.softmax(ordered, dim=-1), dim=-1) > SAMPLING["top_p"]
        cut[..., 1:] = cut[..., :-1].clone()
        cut[..., 0] = False
        logits[0, order[0][cut[0]]] = float("-inf")
        drawn = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
        ids = torch.cat([ids, drawn], dim=1)
        text.append(drawn.item())


def ours(model, batch_size: int, n: int) -> None:
    list(LanguageModel(model, TOKENIZER).stream_batch([[0]] * batch_size, n, **SAMPLING))


def nanogpt(folder: Path, shape: tuple[int, ...]) -> Contender:
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    block, n_layer, n_head, n_embd = shape
    config = module.GPTConfig(
        block_size=block, vocab_size=V, n_layer=n_layer, n_head=n_head, n_embd=n_embd, dropout=0.0, bias=False
    )
    model = module.GPT(config).eval()

    def run(batch_size: int) -> None:
        model.generate(torch.zeros(batch_size, 1, dtype=torch.int64), block - 1, temperature=0.8, top_k=30)

    return run


def hugging_face(shape: tuple[int, ...]) -> Contender:
    import transformers

    transformers.logging.set_verbosity_error()
    block, n_layer, n_head, n_embd = shape
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=block, n_embd=n_embd, n_layer=n_layer, n_head=n_head, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()

    def run(batch_size: int) -> None:
        ids = torch.zeros(batch_size, 1, dtype=torch.int64)
        model.generate(ids, max_new_tokens=block - 1, do_sample=True, pad_token_id=0, **SAMPLING)

    return run


def project(shape: tuple[int, ...], compiled: bool, precision: str) -> tuple[Contender, float]:
    """`minigpt` with a model of this shape, and the seconds that compiling it took."""
    block, n_layer, n_head, n_embd = shape
    torch.manual_seed(0)
    model = GPT(V, block, n_layer, n_head, n_embd)
    for_inference(model, precision=precision)
    started = time.perf_counter()
    if compiled:
        compile_decoding(model)
    return lambda batch_size: ours(model, batch_size, block - 1), time.perf_counter() - started


def bandwidth() -> float:
    """Return the bytes read per second from memory, the best of three sums over 256 MB."""
    buffer = torch.ones(64 * 2**20)
    best = min(_timed(buffer.sum) for _ in range(3))
    return buffer.numel() * 4 / best


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(contenders: dict[str, Contender], batch_size: int, tokens: int, rounds: int, weights: float) -> dict:
    """Return the tokens per second of each contender in each round, and the limit."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    limits = []
    for n in range(rounds):
        limits.append(batch_size * bandwidth() / weights)
        for name, run in contenders.items():
            if name == "nanoGPT" and n:
                continue
            if n == 0 and name != "nanoGPT":
                run(batch_size)  # the first call makes what later ones reuse
            speeds[name].append(batch_size * tokens / _timed(lambda run=run: run(batch_size)))
    return {"tokens_per_second": speeds, "limit": limits}


def table(results: list[dict]) -> str:
    """Return medians, spreads, and ratios to the reference of each group as a Markdown table."""
    lines = ["| model | batch | | tokens/s (min to max) | ratio | of the limit |", "|---|---|---|---|---|---|"]
    for result in results:
        speeds = result["tokens_per_second"]
        reference = next(name for name in ("Hugging Face", "the article") if name in speeds)
        for name, runs in speeds.items():
            ratio = statistics.median(a / b for a, b in zip(runs, speeds[reference], strict=False))
            share = statistics.median(a / b for a, b in zip(runs, result["limit"], strict=False))
            compiling = result["compile_seconds"].get(name)
            lines.append(
                f"| {result['model']} | {result['batch_size']} | {name}"
                + (f" (compiled in {compiling:.0f} s)" if compiling else "")
                + f" | {statistics.median(runs):,.0f} ({min(runs):,.0f} to {max(runs):,.0f}) | {ratio:.2f} "
                + ("| |" if result["model"] == "TinyGPT" or "precision" in name else f"| {share:.2f} |")
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT, to run beside")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs")
    parser.add_argument("--models", nargs="*", default=["TinyGPT", *SHAPES], help="which models")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    asked = parser.parse_args()
    results = []
    for name in asked.models:
        for batch_size in (1, 16):
            compile_seconds = {}
            if name == "TinyGPT":
                model, tokens = TinyGPT(V).eval(), 200
                weights = sum(p.numel() * 4 for p in model.parameters())
                contenders = {"minigpt": lambda batch_size, model=model: ours(model, batch_size, 200)}
                one_by_one = lambda n, model=model: [article(model, 200) for _ in range(n)]  # noqa: E731
                contenders = {"the article": one_by_one} | contenders
            else:
                shape = SHAPES[name]
                tokens = shape[0] - 1
                weights = 4 * sum(p.numel() for p in GPT(V, *shape).blocks.parameters())
                contenders = {"Hugging Face": hugging_face(shape)}
                if asked.nanogpt:
                    contenders["nanoGPT"] = nanogpt(asked.nanogpt, shape)
                for label, (compiled, precision) in {
                    "minigpt": (False, "32"),
                    "minigpt --compile": (True, "32"),
                    "minigpt --compile --precision bf16": (True, "bf16"),
                    "minigpt --precision int8": (False, "int8"),
                    "minigpt --compile --precision int8": (True, "int8"),
                }.items():
                    contenders[label], seconds = project(shape, compiled, precision)
                    if compiled:
                        compile_seconds[label] = seconds
            measured = measure(contenders, batch_size, tokens, asked.rounds, weights)
            results.append({"model": name, "batch_size": batch_size, **measured, "compile_seconds": compile_seconds})
            print(table(results[-1:]), "\n", flush=True)
    if asked.out:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
        asked.out.write_text(json.dumps(about | {"results": results}, indent=2) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
