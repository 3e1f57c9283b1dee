"""The ladder's rungs are comparable, and its page holds what was run. (Speed is measured, never tested.)"""

import ast
import importlib
import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from minigpt import GPT, TextDataModule, TinyGPT

sys.path.insert(0, str(ROOT / "benchmarks"))
import growth
import ladder
import scaling
import throughput


def test_every_rung_has_the_same_parameters_within_five_percent():
    vocab_size = TextDataModule().vocab_size
    bigram = TinyGPT(vocab_size, ladder.bigram_width("exemple", "char"))
    counts = {"bigram (TinyGPT)": sum(p.numel() for p in bigram.parameters())}
    switches = ("preset", "position", "norm", "mlp", "qk_norm", "bias", "tie_weights", "softcap", "zero_init")
    for name, settings in ladder.rungs().items():
        if "name" not in settings:
            model = GPT(vocab_size, 64, **{key: settings[key] for key in switches if key in settings})
            counts[name] = sum(p.numel() for p in model.parameters())
    assert list(counts) == list(ladder.rungs())
    for name, count in counts.items():
        assert abs(count / counts["GPT-2"] - 1) < ladder.BUDGET, name


def test_the_last_rung_is_the_modern_preset():
    from minigpt.models.settings import PRESETS

    settings = list(ladder.rungs().values())[-1]
    assert {key: settings[key] for key in PRESETS["modern"] if key in settings} == PRESETS["modern"]


@pytest.mark.slow
def test_a_rung_is_trained_and_put_on_the_page(folder, monkeypatch):
    monkeypatch.setattr(ladder, "STEPS", ladder.STEPS[:1])
    monkeypatch.setattr(ladder, "ROOT", folder)
    rungs = {name: rung | {"warmup_steps": 0} for name, rung in ladder.rungs().items()}
    runs = [ladder.train(name, rung, 1, "exemple", "char", 3, 1) for name, rung in rungs.items()]
    assert [run["rung"] for run in runs] == ["bigram (TinyGPT)", "GPT-2"]
    (folder / "ladder").mkdir()
    (folder / "ladder" / "exemple.json").write_text(json.dumps({"command": "python this", "runs": runs}))
    page = ladder.page(folder)
    assert "`python this`" in page
    for run in runs:
        assert f"| {run['rung']} | {run['parameters']:,} | {run['bits_per_char']:.4f} (one seed) |" in page
        assert run["sample"].splitlines()[0] in page
    pytest.importorskip("matplotlib")
    ladder.plot(runs, folder / "ladder" / "exemple", "title")
    assert {path.suffix for path in (folder / "ladder").iterdir()} == {".json", ".png", ".svg"}


def test_the_slope_is_the_exponent_of_the_growth():
    assert growth.slope([1, 4, 16, 64], [3, 6, 12, 24]) == pytest.approx(0.5)


@pytest.mark.parametrize(("n_layer", "n_embd"), [(4, 128), (6, 384), (12, 768)])
def test_the_calculator_knows_the_models_parameters(n_layer, n_embd):
    with torch.device("meta"):
        model = GPT(1000, n_layer=n_layer, n_head=4, n_embd=n_embd, preset="modern")
    count = sum(p.numel() for p in model.parameters())
    assert scaling.Model(n_layer, n_embd, 1000).parameters == pytest.approx(count, rel=0.005)
    inside = count - 2 * 1000 * n_embd
    near = scaling.of_size(inside, vocab=1000)
    assert near.parameters - 2 * 1000 * near.n_embd == pytest.approx(inside, rel=0.2)  # widths are multiples of 64


def test_sharing_out_saves_memory_and_costs_network():
    model, plans = scaling.of_size(1e9), {}
    for strategy, devices in (("one", 1), ("ddp", 8), ("fsdp", 8)):
        plans[strategy] = scaling.plan(model, scaling.H200, strategy, devices, 4096, 1024, 4, False)
    assert plans["ddp"]["memory"] == plans["one"]["memory"] + 4 * model.parameters  # buckets of gradients
    assert plans["one"]["memory"] > plans["fsdp"]["memory"] + 13 * model.parameters
    assert plans["one"]["sent"] == 0
    assert plans["fsdp"]["sent"] == 1.5 * plans["ddp"]["sent"] > 0


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_every_name_that_a_benchmark_imports_is_there(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "minigpt":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_what_is_timed_is_a_step_that_learns(monkeypatch):
    monkeypatch.setattr(
        throughput.torch, "randint", lambda high, shape, **_: torch.arange(math.prod(shape)).view(shape) % 8
    )
    losses = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss.item()) or backward(loss))
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 16}
    for precision in ("float32", "bf16"):
        step = throughput.step_of(f"minigpt, {precision}", sizes, 4, "cpu")
        for _ in range(60):
            step()
        assert losses.pop() < losses[0] - 1
        losses.clear()
    assert growth.step(16, 16, 1).keys() == {"parameters", "seconds", "MB"}


STAND_IN = """
import torch
from torch.nn import functional as F
from minigpt import GPT as OurGPT

class GPTConfig:
    def __init__(self, **settings):
        self.settings = settings

class GPT(OurGPT):
    def __init__(self, config):
        super().__init__(**config.settings)

    def forward(self, x, y):
        logits = super().forward(x)
        assert logits.dtype == torch.bfloat16
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device):
        return torch.optim.SGD(self.parameters(), learning_rate)
"""


@pytest.mark.full
def test_a_table_holds_every_loop_to_the_first(folder, monkeypatch, capsys):
    # As on a GPU, where nanoGPT trains under autocast, too; a stand-in takes its place.
    (folder / "model.py").write_text(STAND_IN)
    loops = ["nanoGPT, bf16", "minigpt, bf16"]
    monkeypatch.setitem(throughput.LOOPS, "cpu", loops)
    monkeypatch.setitem(throughput.SIZES, "cpu", {"small": (throughput.SMALL | {"n_layer": 1}, 2, 3)})
    monkeypatch.setattr(sys, "argv", ["it", "--nanogpt", str(folder), "--rounds", "2", "--json", "figures.json"])
    monkeypatch.chdir(folder)
    throughput.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-2:]] == loops
    assert "1.00 (1.00 to 1.00)" in lines[-2]
    speeds = json.loads((folder / "figures.json").read_text())["results"]["small"]["tokens_per_s"]
    assert all(len(speeds[loop]) == 2 and min(speeds[loop]) > 0 for loop in loops)


@pytest.mark.parametrize(
    ("asked", "said"),
    [(["--device", "cuda"], "torch sees no GPU here"), (["--sizes", "10.65 M, 64 x 256"], "none of --device cpu")],
)
def test_a_size_or_a_device_that_is_not_there_is_named(monkeypatch, capsys, asked, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["it", "--nanogpt", ".", *asked])
    with pytest.raises(SystemExit) as stopped:
        throughput.main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.full
def test_a_few_kills_leave_no_trace():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--kills", "6"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 6" in done.stdout
    assert "differing runs: 0" in done.stdout
