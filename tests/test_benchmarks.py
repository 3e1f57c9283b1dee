"""The ladder's rungs are comparable, and its page holds what was run. (Speed is measured, never tested.)"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from minigpt import GPT, TextDataModule, TinyGPT

sys.path.insert(0, str(ROOT / "benchmarks"))
import ladder


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
    from minigpt.models.gpt import PRESETS

    settings = list(ladder.rungs().values())[-1]
    assert {key: settings[key] for key in PRESETS["modern"] if key in settings} == PRESETS["modern"]


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


@pytest.mark.slow
def test_a_few_kills_leave_no_trace():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--kills", "6"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kills: 6" in done.stdout
    assert "differing runs: 0" in done.stdout
