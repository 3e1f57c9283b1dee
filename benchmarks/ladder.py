"""The ladder: the gain of each change from the bigram to a modern transformer, on one corpus, in one table.

    python benchmarks/ladder.py --corpus exemple

Trains every rung with the same number of tokens and the same parameters (within 5 %), several seeds each, and scores
the whole validation text. Writes ladder/NAME.json as it goes (a run that is in it is not trained again), and at the
end ladder/NAME.png, ladder/NAME.svg and ladder.md, the page of all corpora, in the folder --out.
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
from concurrent.futures import ProcessPoolExecutor, as_completed
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minigpt.comparison.intervals import over_seeds  # noqa: E402

CONFIG = ROOT / "configs" / "gpt_nano.yaml"
PROMPT = {"exemple": "un matin,"}
BUDGET = 0.05  # how far the parameters of a rung may be from GPT-2's

ADAMW = {"optimizer": "adamw", "learning_rate": 3e-3, "beta2": 0.99, "min_lr": 3e-4, "warmup_steps": 50}
MUON = {"optimizer": "muon", "lr_schedule": "wsd", "min_lr": 0.0, "warmup_steps": 0, "weight_decay": 0.0}
# Each rung keeps what the ones before it brought, but for SwiGLU, which ReLU squared replaces.
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("GPT-2", {"preset": "gpt2", "bias": True, "ngrams": 0} | ADAMW),
    ("+ RMSNorm, no biases", {"norm": "rmsnorm", "bias": False}),
    ("+ RoPE", {"position": "rope"}),
    ("+ SwiGLU", {"mlp": "swiglu"}),
    ("ReLU² in its place", {"mlp": "relu2"}),
    ("+ QK-norm", {"qk_norm": True}),
    ("+ Muon for the matrices", MUON),
    ("+ zero-initialised outputs", {"zero_init": True, "tie_weights": False}),
    ("+ soft-cap: `modern`", {"softcap": 15.0}),
]


def rungs() -> dict[str, dict[str, Any]]:
    """Return the settings of each rung, by name."""
    settings, ladder = {}, {"bigram (TinyGPT)": {"network": "TinyGPT", "decay_vectors": True} | ADAMW}
    for name, change in STEPS:
        settings = settings | change
        ladder[name] = settings
    return ladder


def train(
    name: str, settings: dict[str, Any], seed: int, corpus: str, tokenizer: str, steps: int, threads: int
) -> dict[str, Any]:
    """Train one rung with one seed in a separate process, and return its row of the table."""
    import torch

    from minigpt import GPT
    from minigpt.evaluation import evaluate
    from minigpt.generation.text import LanguageModel
    from minigpt.training.cli import MiniGPTCLI

    torch.set_num_threads(threads)
    of_network = signature(GPT).parameters
    flags = {f"model.{'network.' * (key in of_network)}{key}": value for key, value in settings.items()} | {
        "data.path": corpus, "data.tokenizer": tokenizer, "seed_everything": seed, "trainer.max_steps": steps,
        "trainer.accelerator": "cpu", "validation.every_n_steps": 0, "checkpoint.every_n_steps": 10**9,
        "samples.every_n_steps": 0, "figures.every_n_steps": 0,
    }  # fmt: skip
    if settings.get("network") == "TinyGPT":
        flags["model.network.n_embd"] = bigram_width(corpus, tokenizer)
    args = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        os.chdir(folder)
        cli = MiniGPTCLI(["--config", str(CONFIG), *args])
        start = time.perf_counter()
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
        seconds = time.perf_counter() - start
        os.chdir(ROOT)
    data, model = cli.datamodule, cli.model.network
    lm = LanguageModel(model, data.tokenizer)
    sample = lm.generate(
        PROMPT.get(corpus, "\n"), 120, temperature=0.8, top_k=30, top_p=0.9, seed=0, unknown="skip"
    )  # fmt: skip
    return {
        "rung": name, "seed": seed, "parameters": sum(p.numel() for p in model.parameters()),
        **evaluate(model, data.val_ids, data.tokenizer.lengths), "seconds": seconds,
        "tokens_per_s": steps * data.batch_size * data.block_size / seconds, "sample": sample,
        "baselines": data.baselines,
    }  # fmt: skip


def bigram_width(corpus: str, tokenizer: str) -> int:
    """Return the width at which TinyGPT has as many parameters as the second rung."""
    from minigpt import GPT, TextDataModule

    data = TextDataModule(path=corpus, tokenizer=tokenizer)
    budget = sum(p.numel() for p in GPT(data.vocab_size, 64, preset="gpt2").parameters())
    return (budget - data.vocab_size) // (2 * data.vocab_size)


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the rungs of one corpus, with the baselines and a sample of each rung."""
    lines = [
        "| rung | parameters | val bits per character | change from the rung above, 95 % | nats | seconds | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    samples = []
    above: list[float] = []
    for name in rungs():
        runs = sorted((run for run in results if run["rung"] == name), key=lambda run: run["seed"])
        bits = [run["bits_per_char"] for run in runs]
        spread = f"± {statistics.stdev(bits):.4f}" if len(bits) > 1 else "(one seed)"
        nats, seconds, speed = (
            statistics.mean(run[key] for run in runs) for key in ("loss", "seconds", "tokens_per_s")
        )
        lines.append(
            f"| {name} | {runs[0]['parameters']:,} | {statistics.mean(bits):.4f} {spread} | {change(above, bits)} "
            f"| {nats:.4f} | {seconds:.0f} | {speed:,.0f} |"
        )
        above = bits
        samples += [f"{name}:", "", *(f"    {line}" for line in runs[0]["sample"].splitlines()), ""]
    baselines = ", ".join(f"{name} {bits:.4f}" for name, bits in results[0]["baselines"].items())
    return "\n".join([*lines, "", f"Baselines in bits per character: {baselines}.", "", *samples])


def change(above: list[float], bits: list[float]) -> str:
    """Return the difference of the means of two rungs with Welch's interval over seeds; bold if it leaves out zero."""
    if not above:
        return ""
    mean, half_width = statistics.mean(bits) - statistics.mean(above), over_seeds(above, bits)
    if half_width is None:
        return f"{mean:+.3f}"
    text = f"{mean:+.3f} ± {half_width:.3f}".replace("-", "−")
    return f"**{text}**" if abs(mean) > half_width else text


INTRO = """# The ladder

From the bigram to a modern transformer: the gain of each change, with the same corpus, the same number of tokens, and
numbers of parameters within 5 % (with words or byte pairs, the untied output layer of the last two rungs takes more).
Each rung keeps the changes of the rungs before it, except that ReLU² replaces SwiGLU. Validation is the last 10 % of
the text; ± is the standard deviation over the seeds. A change has Welch's 95 % interval over the seeds
(`minigpt/comparison/intervals.py`) and is bold where that leaves out zero. Every run had one thread on a machine of two
cores that also did other work, so seconds and tokens/s are only roughly comparable. The samples are from the first
seed, with the same prompt, temperature 0.8, top-k 30 and top-p 0.9. [LOG.md](LOG.md) has the conclusions.
"""


def page(out: Path) -> str:
    """Return the page with all corpora that have results."""
    sections = [INTRO]
    for file in sorted((out / "ladder").glob("*.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        sections += [
            f"## {file.stem}", "", f"`{about['command']}`", "", f"![The ladder on {file.stem}](ladder/{file.stem}.png)",
            "", table(about["runs"]),
        ]  # fmt: skip
    return "\n".join(sections)


def plot(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw a dot per run and a line through the means, with the baselines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in rungs() if any(run["rung"] == name for run in results)]
    figure, axes = plt.subplots(figsize=(9, 5))
    means = []
    for x, name in enumerate(names):
        bits = [run["bits_per_char"] for run in results if run["rung"] == name]
        axes.plot([x] * len(bits), bits, "o", color="#1f77b4", alpha=0.4)
        means.append(statistics.mean(bits))
    axes.plot(range(len(names)), means, "-o", color="#1f77b4", label="validation, mean of the seeds")
    for (name, bits), style in zip(results[0]["baselines"].items(), ((0, (1, 4)), ":", "--", "-."), strict=True):
        if bits < max(means) * 1.3:
            axes.axhline(bits, color="grey", linestyle=style, linewidth=1, label=f"{name} baseline: {bits:.2f}")
    axes.set_xticks(range(len(names)), [name.replace("`", "") for name in names], rotation=30, ha="right")
    axes.set_ylabel("bits per character, lower is better")
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="exemple", help="a corpus name or a text file")
    parser.add_argument("--tokenizer", default="char", choices=["char", "word", "bpe"], help="what a token is")
    parser.add_argument("--steps", type=int, default=250, help="optimizer steps of 12 windows of 64 tokens")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds each rung is trained with")
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where the results go")
    asked = parser.parse_args()

    chars = asked.tokenizer == "char"
    name = Path(asked.corpus).stem + (f"-{asked.tokenizer}" if not chars else "")
    (asked.out / "ladder").mkdir(parents=True, exist_ok=True)
    file = asked.out / "ladder" / f"{name}.json"
    command = f"python benchmarks/ladder.py --corpus {Path(asked.corpus).stem} --steps {asked.steps}"
    command += f" --seeds {asked.seeds}" + (f" --tokenizer {asked.tokenizer}" if not chars else "")
    results = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.exists() else []
    corpus = asked.corpus if not Path(asked.corpus).exists() else str(Path(asked.corpus).resolve())
    done = {(run["rung"], run["seed"]) for run in results}
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as pool:
        runs = [
            pool.submit(train, rung, settings, seed, corpus, asked.tokenizer, asked.steps, asked.threads)
            for seed in range(1, asked.seeds + 1)
            for rung, settings in rungs().items()
            if (rung, seed) not in done
        ]
        for run in as_completed(runs):
            results.append(run.result())
            kept = json.dumps({"command": command, "runs": results}, indent=1, ensure_ascii=False)
            file.write_text(kept, encoding="utf-8")
            print(f"{results[-1]['rung']}, seed {results[-1]['seed']}: {results[-1]['bits_per_char']:.4f}", flush=True)
    reference = next(run["parameters"] for run in results if run["rung"] == "GPT-2")
    same = all(abs(run["parameters"] / reference - 1) < BUDGET for run in results)
    assert same or not chars, "the same parameters within 5 %"
    title = f"{name}: {asked.steps} steps of 768 tokens, {reference / 1e6:.1f} M parameters"
    plot(results, asked.out / "ladder" / name, title)
    (asked.out / "ladder.md").write_text(page(asked.out), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
