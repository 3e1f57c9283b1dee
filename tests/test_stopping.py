"""Early stopping: it is told, it lasts, and more steps are trained when they are asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICK, TINY
from test_resume import Interrupt, fit

import minigpt
from minigpt.training import recipes

RUN = "lightning_logs/tiny/version_0"
LAST = ["--ckpt_path", "last"]
STOPPER = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss", "--validation.every_n_steps=2"]
STUCK = [*STOPPER, "--model.learning_rate=0", "--trainer.callbacks.patience"]  # each validation is like the first


def stopped_at(folder: Path) -> int:
    return torch.load(folder / RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def test_a_run_says_why_and_where_it_stopped_and_stays_stopped(train, folder):
    first = train("--trainer.max_steps", "50", *STUCK, "1")
    assert first.status == 0, first.err
    why = "after step 4: Monitored metric val/loss did not improve in the last 1 records. Best score: "
    assert f"Stopped early, {why}" in first.err
    assert " after 4 of 50 steps in " in first.out
    assert "(stopped early)" in first.out
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = train("--trainer.max_steps", "50", *STUCK, "1", *LAST)
    assert again.status == 0
    assert f"last.ckpt stopped early, {why}" in again.err
    assert "To continue, raise --trainer.max_steps" in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_says_so_in_french_where_the_locale_is_french(train, monkeypatch):
    monkeypatch.setenv("LC_MESSAGES", "fr_FR.UTF-8")
    first = train("--trainer.max_steps", "50", *STUCK, "1")
    assert "Arrêt anticipé après l'étape 4 : Monitored metric" in first.err
    assert "après 4 étapes sur 50 en " in first.out
    assert " s (arrêt anticipé)\n" in first.out
    again = train("--trainer.max_steps", "50", *STUCK, "1", *LAST)
    assert "last.ckpt : arrêt anticipé après l'étape 4 : Monitored metric" in again.err
    assert "Pour continuer, augmentez --trainer.max_steps." in again.err


@pytest.mark.parametrize(
    ("more", "step"),
    [
        (["--trainer.max_steps", "60", *STUCK, "1"], 6),  # has patience anew, and for one more validation
        (["--trainer.max_steps", "60", *STUCK, "3"], 10),
        (["--trainer.max_steps", "50", *STUCK, "2"], 8),  # a patience of its own in place of the checkpoint's
        (["--trainer.max_steps", "5", *STUCK, "1"], 5),
        (["--trainer.max_steps", "12", "--model.learning_rate=0"], 12),  # without the callback
    ],
)
def test_a_run_that_stopped_goes_on_when_more_is_asked_for(train, folder, more, step):
    train("--trainer.max_steps", "50", *STUCK, "1")
    assert stopped_at(folder) == 4
    result = train(*more, *LAST)
    assert result.status == 0, result.err
    assert stopped_at(folder) == step
    assert f"the last {step - 4} in" in result.out
    assert ("Stopped early" in result.err) == (step not in (5, 12))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["last", "best"])
def test_a_repeated_validation_does_not_count(train, folder, name):
    """A resume validates the step that it starts from again, which is no better than it was."""
    improving = [*STOPPER, "--trainer.callbacks.patience=1"]
    train("--trainer.max_steps", "4", *improving)
    result = train("--trainer.max_steps", "8", *improving, "--ckpt_path", f"{RUN}/checkpoints/{name}.ckpt")
    assert result.status == 0, result.err
    assert " after 8 steps, the last 4 in " in result.out


@pytest.mark.parametrize("stop", [Interrupt(5), Interrupt(6), Interrupt(6, "validation")], ids=["5", "6", "6v"])
def test_an_interruption_does_not_change_where_a_run_stops(folder, stop):
    flags = ["--trainer.accelerator=cpu", "--samples.every_n_steps=0", "--trainer.max_steps=50", *STUCK, "3", *LAST]
    fit(*flags, stop=stop)
    assert stopped_at(folder) < 8
    fit(*flags)
    assert stopped_at(folder) == 8


def test_a_new_patience_holds_in_a_run_that_was_interrupted(folder):
    flags = ["--trainer.accelerator=cpu", "--samples.every_n_steps=0", "--trainer.max_steps=50", *LAST, *STUCK]
    fit(*flags, "5", stop=Interrupt(5))
    fit(*flags, "2")
    assert stopped_at(folder) == 6


@pytest.mark.slow
def test_what_was_asked_of_lightning_is_shown_and_nothing_else_is(train):
    plain = train("--trainer.max_steps", "4")
    heard = ["Profiler Report", "Total params", "Time limit reached"]
    noise = ["GPU available", "Tip", "litlogger", "`Trainer.fit`", "Seed set", "Restor", "Warning", "many workers"]
    assert not [word for word in heard + noise if word in plain.err]
    for flags, word in [
        (["--trainer.profiler=simple"], "FIT Profiler Report"),
        (["--trainer.profiler=advanced"], "Profile stats for"),
        (["--trainer.callbacks+=ModelSummary"], "Total params"),
        (["--trainer.callbacks+=RichModelSummary"], "Total params"),
        (["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:00:00"], "Time limit reached"),
        (["--trainer.max_time=00:00:00:00"], "Time limit reached"),
        ([*STUCK, "1", "--trainer.callbacks.verbose=true"], "Metric val/loss improved"),
    ]:
        result = train("--trainer.max_steps", "6", *flags)
        assert result.status == 0, result.err
        assert word in result.err
        assert word not in result.out
        assert not [word for word in noise if word in result.err]
        assert result.out == "" or result.out.startswith("validation loss ")


def test_a_timer_is_written_down_and_read_back(train, call, folder):
    """Its interval is of a type that YAML lacks."""
    train("--trainer.max_steps", "2", "--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:01:00:00")
    kept = recipes.load((folder / RUN / "config.yaml").read_text(encoding="utf-8"))
    assert kept["trainer"]["callbacks"][0]["init_args"]["interval"] == "step"
    assert call("train", *LAST, "--trainer.max_steps", "4").status == 0
    assert stopped_at(folder) == 4


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="only Unix limits the size of files")
def test_a_disk_that_is_full_for_curves_or_pictures_is_answered_in_a_sentence(folder):
    limited = (
        "import resource, sys; from minigpt import commands; from minigpt.training import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "raise SystemExit(commands.run(commands.train, sys.argv[1:]))"
    )
    flags = ["--trainer.max_steps", "120", "--figures.every_n_steps", "20", "--validation.every_n_steps", "20"]
    done = subprocess.run(
        [sys.executable, "-c", limited, "--config", TINY, *QUICK, *flags], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "The records for TensorBoard are not complete: File too large." in done.stderr
    assert "A file could not be written: File too large. Free some space" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = folder.glob("lightning_logs/tiny/*")
    assert minigpt.load(run).generate("un matin,", 5, seed=0).startswith("un matin,")
