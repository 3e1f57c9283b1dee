"""Time to nanoGPT's loss, compared with nanoGPT on the same CPU and the same text.

    python benchmarks/train_vs_nanogpt.py --nanogpt DIR --corpus FILE

DIR is a clone of github.com/karpathy/nanoGPT, FILE tinyshakespeare. In turn, several times: nanoGPT's own train.py with
its published CPU settings, and scripts/train.py with configs/speedrun_cpu.yaml, each in a process of its own and with
another seed each time. Both checkpoints are scored by the same evaluation, in windows of the same 64 characters over
the whole validation split. Training time leaves out evaluations; the whole process has everything, imports included.
Then the speed of training at the same architecture and batch. Prints tables and writes JSON.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minigpt.evaluation import evaluate  # noqa: E402

STEPS = 2000
FLAGS = [
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_interval=250", "--block_size=64",
    "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", f"--max_iters={STEPS}", f"--lr_decay_iters={STEPS}",
    "--dropout=0.0", "--eval_iters=20", "--log_interval=1",
]  # fmt: skip


def nanogpt(clone: Path, folder: Path, seed: int, lengths: torch.Tensor) -> dict[str, float]:
    """Run nanoGPT's train.py, and return its seconds and its final loss on the whole split.

    It has no flag for its seed, so its process begins with another.
    """
    flags = [*FLAGS, f"--out_dir={folder}", "--always_save_checkpoint=True"]
    program = (
        "import sys, torch; real = torch.manual_seed; "
        f"torch.manual_seed = lambda seed: real(seed - 1337 + {seed}); sys.argv = ['train.py', *{flags!r}]; "
        "exec(compile(open('train.py').read(), 'train.py', 'exec'))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=clone, capture_output=True, text=True, check=True)
    whole = time.perf_counter() - began
    steps = {int(n): float(ms) / 1000 for n, ms in re.findall(r"iter (\d+): .* time ([\d.]+)ms", done.stdout)}
    plain = [seconds for n, seconds in steps.items() if n % 250]  # the others hold an evaluation
    sys.path.insert(0, str(clone))
    from model import GPT, GPTConfig

    class AllLogits(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model, self.block_size = model, model.config.block_size

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return self.model(idx, idx)[0]  # without targets it gives the last position alone

    checkpoint = torch.load(folder / "ckpt.pt", weights_only=False)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    ids = torch.from_numpy(np.fromfile(clone / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16).astype(int))
    loss = evaluate(AllLogits(model), ids, lengths)["loss"]
    return {"training": statistics.mean(plain) * STEPS, "whole": whole, "loss": loss}


def minigpt(corpus: Path, folder: Path, seed: int, config: Path, precision: str | None) -> dict[str, float]:
    """Run scripts/train.py, and return its seconds and its final loss on the whole split."""
    flags = ["--config", str(config), "--data.path", str(corpus), "--seed_everything", str(seed)]
    flags += ["--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu"]
    flags += ["--trainer.precision", precision] if precision else []
    began = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "scripts" / "train.py"), *flags], capture_output=True, check=True)
    whole = time.perf_counter() - began
    (run,) = (folder / "lightning_logs" / config.stem).iterdir()
    (events,) = run.glob("events.*")
    times = {}
    for event in EventFileLoader(str(events)).Load():
        if any(value.tag == "train/loss" for value in event.summary.value):
            times[event.step] = event.wall_time
    first, last = min(times), max(times)
    training = (times[last] - times[first]) * last / (last - first)
    score = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), "--ckpt_path"]
    score.append(str(run / "checkpoints" / "last.ckpt"))
    scores = json.loads(subprocess.run(score, capture_output=True, text=True, check=True).stdout)
    return {"training": training, "whole": whole, "loss": scores["loss"], "steps": last}


def prepare(clone: Path, corpus: Path) -> torch.Tensor:
    """Prepare the text with nanoGPT's own script, and return the lengths of the characters, which are all 1."""
    place = clone / "data" / "shakespeare_char"
    (place / "input.txt").write_bytes(corpus.read_bytes())
    subprocess.run([sys.executable, "prepare.py"], cwd=place, check=True, capture_output=True)
    return torch.ones(len(set(corpus.read_text(encoding="utf-8"))), dtype=torch.long)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--corpus", type=Path, required=True, help="tinyshakespeare, as a text file")
    recipe = ROOT / "configs" / "speedrun_cpu.yaml"
    parser.add_argument("--config", type=Path, default=recipe, help="the recipe to race")
    parser.add_argument("--precision", help="of minigpt's training; the recipe's, bf16-mixed, if not given")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run")
    parser.add_argument("--nanogpt_rounds", type=int, default=3, help="how often nanoGPT, which takes long, is run")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()
    lengths = prepare(asked.nanogpt.resolve(), asked.corpus)
    runs: dict[str, list[dict[str, float]]] = {"nanoGPT": [], "minigpt": []}
    for n in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            if n < asked.nanogpt_rounds:
                runs["nanoGPT"].append(nanogpt(asked.nanogpt.resolve(), Path(folder), 1337 + n, lengths))
            ours = minigpt(asked.corpus.resolve(), Path(folder), 1337 + n, asked.config.resolve(), asked.precision)
            runs["minigpt"].append(ours)
        print({name: found[-1] for name, found in runs.items()}, file=sys.stderr, flush=True)
    print(f"{'':10}{'training s':>24}{'whole process s':>24}{'validation loss':>28}")
    for name, found in runs.items():
        cells = ""
        for key, width, form in (("training", 24, ".1f"), ("whole", 24, ".1f"), ("loss", 28, ".4f")):
            values = [run[key] for run in found]
            middle = statistics.mean(values) if key == "loss" else statistics.median(values)
            cells += f"{f'{middle:{form}} ({min(values):{form}} to {max(values):{form}})':>{width}}"
        print(f"{name:10}{cells}")
    for key in ("training", "whole"):
        ratio = statistics.median(r[key] for r in runs["nanoGPT"]) / statistics.median(r[key] for r in runs["minigpt"])
        print(f"{key}: {ratio:.1f} times sooner")
    if asked.json:
        about = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
        asked.json.write_text(json.dumps(about | {"runs": runs}, indent=2))


if __name__ == "__main__":
    main()
