"""Sweeps: what a study finds and keeps, how it goes on, what it refuses, and that several processes share one."""

import errno
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
import yaml
from conftest import QUICK, ROOT, TINY

from minigpt import MiniGPTError, files
from minigpt.comparison import study
from minigpt.training import recipes, sweep

SPACE = "model.learning_rate: {low: 1e-4, high: 1e-1, log: true}\nmodel.network.n_embd: [8, 16]\n"
SHORT = ["--trainer.max_steps", "20", "--validation.every_n_steps", "5", "--figures.every_n_steps", "0"]
FLAGS = ["--config", TINY, *QUICK, *SHORT, "--space", "space.yaml"]
STUDY = Path("lightning_logs/tiny-space")


@pytest.fixture(autouse=True)
def space(folder, monkeypatch):
    (folder / "space.yaml").write_text(SPACE)
    for module in (study, sweep):
        monkeypatch.setattr(module, "GRACE", 1)  # so that interrupted trials are retried at once
    monkeypatch.setattr(study, "HEARTBEAT", 1)


def trials(folder: Path = STUDY, storage: Path | None = None) -> list[optuna.trial.FrozenTrial]:
    """Return the trials of a study. An interrupted trial is marked as failed when it is retried."""
    url = f"sqlite:///{storage or folder / 'study.db'}"
    return optuna.load_study(study_name=folder.name, storage=url).trials


def states() -> list[str]:
    return [trial.state.name for trial in trials()]


@pytest.mark.slow
def test_the_recipe_may_be_a_pipe(call, folder):
    os.mkfifo(folder / "recipe.yaml")
    recipe = Path(TINY).read_text(encoding="utf-8")
    threading.Thread(target=(folder / "recipe.yaml").write_text, args=(recipe,), daemon=True).start()
    result = call("sweep", "--config", "recipe.yaml", *QUICK, *SHORT, "--space", "space.yaml", "--trials", "1")
    assert result.status == 0, result.err
    assert [trial.state.name for trial in trials(Path("lightning_logs/recipe-space"))] == ["COMPLETE"]


@pytest.mark.slow
def test_a_sweep_finds_keeps_and_goes_on(call, folder):
    result = call("sweep", *FLAGS, "--trials", "2", "--seed", "0")
    assert result.status == 0, result.err
    result = call("sweep", *FLAGS, "--trials", "3", "--seed", "0")
    assert result.status == 0, result.err
    assert "trial_2: " in result.err
    assert "trial_1: " not in result.err
    assert states() == ["COMPLETE"] * 3
    assert len({trial.params["model.learning_rate"] for trial in trials()}) == 3  # a second start draws other values
    for trial in trials():
        run = STUDY / f"trial_{trial.number}" / "version_1337"
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]
        assert settings["learning_rate"] == trial.params["model.learning_rate"]
        assert settings["network"]["init_args"]["n_embd"] == trial.params["model.network.n_embd"]
        scores = call("evaluate", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
        assert json.loads(scores.out)["bits_per_char"] == pytest.approx(trial.value, abs=1e-5)
    for kind in ("optimization_history", "intermediate_values", "slice", "param_importances"):
        assert (STUDY / f"{kind}.png").read_bytes().startswith(b"\x89PNG")

    best, second, _ = sorted(trials(), key=lambda trial: trial.value)
    head, first = (line.split() for line in result.out.splitlines()[:2])
    row = dict(zip(head, first, strict=True))
    assert (row["trial"], row["bits/char"]) == (f"trial_{best.number}", f"{best.value:.4f}")
    train, compare = (line.split() for line in result.out.splitlines()[6::2])
    assert f"--model.learning_rate={best.params['model.learning_rate']}" in train
    assert call("train", *train[2:]).status == 0
    settings = yaml.safe_load((folder / "lightning_logs/tiny/version_0/config.yaml").read_text(encoding="utf-8"))
    assert settings["model"]["learning_rate"] == best.params["model.learning_rate"]
    assert [Path(name).name for name in compare[2:]] == [f"trial_{best.number}", f"trial_{second.number}"]
    compared = json.loads(call("compare", *compare[2:]).out)
    assert "model.learning_rate" in compared["settings"]
    short = call("compare", f"tiny-space/trial_{best.number}", f"tiny-space/trial_{second.number}")
    assert json.loads(short.out)["differences"] == compared["differences"]

    before = sorted(folder.glob("lightning_logs/*/*"))
    again = call("sweep", *FLAGS, "--trials", "3")
    assert (again.status, again.out) == (0, result.out)
    assert sorted(folder.glob("lightning_logs/*/*")) == before


@pytest.mark.slow
def test_seeds_of_a_space_are_repetitions_whose_mean_counts(call, folder):
    (folder / "space.yaml").write_text("seed_everything: [3, 5]\nmodel.network.n_embd: [8, 16]\nsampler: grid\n")
    result = call("sweep", *FLAGS)
    assert result.status == 0, result.err
    assert states() == ["COMPLETE"] * 2  # the whole grid
    assert sorted(trial.params["model.network.n_embd"] for trial in trials()) == [8, 16]
    for trial in trials():
        runs = sorted((STUDY / f"trial_{trial.number}").iterdir())
        assert [run.name for run in runs] == ["version_3", "version_5"]
        scores = [json.loads(call("evaluate", "--ckpt_path", f"{run}@last").out)["bits_per_char"] for run in runs]
        assert scores[0] != scores[1]
        assert trial.value == pytest.approx(sum(scores) / 2, abs=1e-5)
    assert result.out.count(" ± ") == 2
    assert "--seeds=3,5" in next(line for line in result.out.splitlines() if "--config" in line)
    compared = json.loads(call("compare", "tiny-space/trial_0", "tiny-space/trial_1").out)
    assert [len(side["runs"]) for side in compared["sides"]] == [2, 2]


@pytest.mark.slow
def test_seeds_of_the_command_line_are_repetitions_too(call, folder):
    (folder / "space.yaml").write_text("model.network.n_embd: [8]\nsampler: random\n")
    assert call("sweep", *FLAGS, "--trials", "1", "--seeds", "2").status == 0
    assert sorted(run.name for run in (STUDY / "trial_0").iterdir()) == ["version_1", "version_2"]
    (folder / "space.yaml").write_text("model.network.n_embd: [8]\nseed_everything: [1, 2]\n")
    result = call("sweep", *FLAGS, "--seeds", "2")
    assert result.status == 2
    assert "space.yaml searches seed_everything, which is also set by a flag" in result.err


@pytest.mark.slow
def test_a_grid_is_trained_once_and_ends(call, folder):
    choices = {"model.network.n_embd": [8, 16], "model.weight_decay": [0.0, 0.1]}
    (folder / "space.yaml").write_text(yaml.dump(choices | {"sampler": "grid"}))
    assert call("sweep", *FLAGS, "--trials", "3").status == 0
    assert states() == ["COMPLETE"] * 3 + ["WAITING"]
    for _ in range(2):
        assert call("sweep", *FLAGS, "--trials", "9", "--seed", "4").status == 0
        drawn = sorted(tuple(trial.params[key] for key in choices) for trial in trials())
        assert drawn == sorted(itertools.product(*choices.values()))


@pytest.mark.slow
def test_every_config_file_counts_and_flags_win_over_them_wherever_they_stand(call, folder):
    """In a folder and with names that a shell and a pattern would read as something else."""
    (folder / "ma recette [v2].yaml").write_bytes(Path(TINY).read_bytes())
    (folder / "more.yaml").write_text("data: {batch_size: 2}\nmodel: {weight_decay: 0.5, beta2: 0.5}\n")
    flags = ["--model.beta2", "0.9", "--trials=1", *QUICK, *SHORT, "--space=space.yaml", "-c", "ma recette [v2].yaml"]
    result = call("sweep", *flags, "--trainer.default_root_dir", "in [1]*", "--config=more.yaml")
    assert result.status == 0, result.err
    (run,) = (folder / "in [1]*/lightning_logs/ma_recette_v2_-space/trial_0").iterdir()
    kept = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (kept["data"]["batch_size"], kept["model"]["weight_decay"], kept["model"]["beta2"]) == (2, 0.5, 0.9)
    words = shlex.split(result.out.splitlines()[-1])
    assert Path(words[1]).is_file()
    assert call(Path(words[1]).stem, *words[2:]).status == 0
    assert (folder / "in [1]*/lightning_logs/ma recette [v2]/version_0").is_dir()


@pytest.mark.slow
def test_a_choice_that_looks_like_a_number_stays_a_text(call, folder):
    (folder / "1e5").write_text("un matin, il fit beau. " * 90)
    (folder / "space.yaml").write_text("data.path: ['1e5']")
    assert call("sweep", *FLAGS, "--trials", "1").status == 0
    run = folder / STUDY / "trial_0/version_1337"
    assert recipes.load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["path"] == "1e5"
    assert call("train", "--ckpt_path", str(run), "--trainer.max_steps", "22").status == 0


def test_a_space_that_gives_a_setting_twice_is_refused(call, folder):
    (folder / "space.yaml").write_text("model.network.n_embd: [8]\nmodel.beta2: [0.9]\nmodel.network.n_embd: [16]\n")
    result = call("sweep", *FLAGS)
    assert result.status == 2
    assert "'space.yaml' gives 'model.network.n_embd' twice, on lines 1 and 3" in result.err


@pytest.mark.slow
def test_a_study_keeps_to_its_space_its_settings_and_its_text(call, folder):
    (folder / "text.txt").write_text("un matin, il fit beau. " * 90)
    flags = [*FLAGS, "--data.path", "text.txt", "--trials", "1"]
    assert call("sweep", *flags).status == 0

    def refused(*words: str, more: tuple[str, ...] = ()) -> None:
        result = call("sweep", *flags, *more)
        assert result.status == 2
        assert len(result.err.strip().splitlines()) == 1, result.err
        for word in (*words, "'tiny-space'", "--study"):
            assert word in result.err

    refused("data.block_size is 32 here and 64 in", more=("--data.block_size", "32"))
    (folder / "space.yaml").write_text(SPACE.replace("16", "32"))
    refused("model.network.n_embd is [8, 32] here and [8, 16] in")
    (folder / "space.yaml").write_text(SPACE + "sampler: random")
    refused("sampler is random here and tpe in")
    (folder / "space.yaml").write_text(SPACE)
    refused("seed_everything is [1, 2] here and [1337] in", more=("--seeds", "2"))
    (folder / "space.yaml").write_text(SPACE.splitlines()[0])
    refused("model.network.n_embd is 64 here and [8, 16] in")
    (folder / "space.yaml").write_text(SPACE)
    (folder / "text.txt").write_text("un soir, il fit nuit. " * 90)
    refused("SHA-256")
    assert call("sweep", *flags, "--study", "soir").status == 0
    assert len(trials()) == len(trials(STUDY.with_name("soir"))) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.n_emb: [8, 16]", ["'--model.n_emb'", "Did you mean '--model.network.n_embd'"]),
        ("model: {n_embd: [8, 16]}", ["write model as a list of different values"]),
        ("sampler: tpee\nmodel.beta2: [0.9]", ["sampler is 'tpee'", "tpe, random or grid", "Did you mean 'tpe'"]),
        ("sampler: grid\nmodel.beta2: {low: 0.9, high: 0.99}", ["write model.beta2 as a list of different values"]),
        ("sampler: grid", ["has no settings to search"]),
        ("1: [2, 3]", ["'--1'"]),
        ("data.path: [exemple, other.txt]", ["data.path would give trials different texts"]),
        ("data.val_fraction: [0.1, 0.2]", ["data.val_fraction would give trials different texts"]),
        ("seed_everything: [1, 1]\nmodel.beta2: [0.9]", ["write seed_everything as a list of different values"]),
        ("seed_everything: [1, 2]", ["has no settings to search"]),
        (
            "seed_everything: {low: 1, high: 3}\nmodel.beta2: [0.9]",
            ["write seed_everything as a list of different values"],
        ),
        ("seed_everything: [1, x]\nmodel.beta2: [0.9]", ["seed_everything is 'x'", "a whole number"]),
        ("model.network.n_embd: {low: 8, high: 16.5}", ["n_embd is '16.5'", "a whole number"]),
        ("model.network.n_embd: [8, wide]", ["n_embd is 'wide'", "a whole number"]),
        ("model.network.n_embd: [8, 0]", ["n_embd is 0"]),
        ("model.network.n_embd: {low: 16, high: 8}", ["write model.network.n_embd as", "low=16, high=8"]),
        ("model.network.n_embd: {low: 8, high: 16, step: 0.5}", ["n_embd is '8.5'", "a whole number"]),
        (
            "model.network.n_embd: {low: 8, high: 16, log: true, step: 4}",
            ["write model.network.n_embd as", "step", "log"],
        ),
        (
            "model.network.n_embd: {low: 8, hihg: 16}",
            ["write model.network.n_embd as a list of different values, or as a range"],
        ),
        ("model.network.n_embd: 8", ["write model.network.n_embd as"]),
        ("model.network.n_embd: [[8], [16]]", ["write model.network.n_embd as"]),
        ("model.learning_rate: {low: 0, high: 1.0, log: true}", ["write model.learning_rate as", "low > 0"]),
        ("model.learning_rate: {low: .nan, high: 1.0}", ["model.learning_rate"]),
        ("trainer.gradient_clip_val: {low: .nan, high: 1.0}", ["write trainer.gradient_clip_val as"]),
        ("model.beta2: []", ["write model.beta2 as a list of different values"]),
        ("model.beta2: [0.9]\nckpt_path: [last]", ["ckpt_path"]),
        ("model.network: {low: GPT, high: TinyGPT}", ["write model.network as a list"]),
        ("model.network: [TinyGPT, TinyGTP]", ["TinyGTP"]),
        ("model.seed: [1, 2]", ["model.seed"]),
        (
            "model.lr_schedule: [cosine]\nmodel.warmup_steps: {low: -1, high: 100}",
            ["model.warmup_steps is -1"],
        ),
        ("trainer.max_steps: [20, 40]", ["space.yaml searches trainer.max_steps, which is also set by a flag"]),
        ("trainer.callbacks: [os.system]", ["os.system", "--allow_code"]),
        ("{}", ["has no settings to search", "configs/sweeps/nano.yaml"]),
        ("[]", ["has no settings", "configs/sweeps/nano.yaml"]),
    ],
)
def test_a_space_is_held_to_the_settings_own_types(call, folder, text, words):
    (folder / "space.yaml").write_text(text)
    (folder / "other.txt").write_text("un matin, il fit beau. " * 90)
    result = call("sweep", *FLAGS)
    assert result.status == 2, result.out
    assert len(result.err.strip().splitlines()) == 1, result.err
    for word in ["space.yaml", *words]:
        assert word in result.err
    assert not (folder / "lightning_logs").exists()


def test_a_trial_needs_a_run(call, folder):
    (folder / "space.yaml").write_text("model.beta2: [0.9, 0.99]")
    result = call("sweep", *FLAGS, "--trainer.fast_dev_run", "true")
    assert result.status == 2
    assert (
        result.err.strip()
        == "Several runs need folders and one process: pass --trainer.devices 1, and omit fast_dev_run."
    )
    assert not (folder / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ckpt_path", "last"], "omit --ckpt_path. To continue a sweep, repeat"),
        (["--study", "../mine"], "The study's name is '../mine'"),
    ],
)
def test_a_study_has_a_name_and_begins_anew(call, folder, flags, words):
    result = call("sweep", *FLAGS, *flags)
    assert result.status == 2
    assert words in result.err
    assert not (folder / "lightning_logs").exists()


@pytest.mark.parametrize("storage", ["text.db", "sqlite:///text.db", "postgresql://host/x", "sqlite://", "folder"])
def test_a_storage_that_is_no_study_is_left_as_it_is(call, folder, storage):
    (folder / "text.db").write_text("un matin\n")
    (folder / "folder").mkdir()
    result = call("sweep", *FLAGS, "--storage", storage)
    assert result.status == 2
    assert storage.removeprefix("sqlite:///") in result.err
    assert "--storage" in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert (folder / "text.db").read_text() == "un matin\n"


@pytest.mark.slow
def test_settings_that_only_fit_together_are_searched_together(folder):
    """n_embd 66 is wrong with the recipe's 4 heads, which no trial has; 64 is wrong with 6, which one may have."""
    flags = ["--config", TINY.replace("tiny", "gpt_nano"), *QUICK]
    (folder / "space.yaml").write_text("model.network.n_embd: [66, 132]\nmodel.network.n_head: [6, 3]")
    assert sweep.Sweep(flags, "space.yaml", None, None, 0).space.keys() == {
        "model.network.n_embd",
        "model.network.n_head",
    }
    (folder / "space.yaml").write_text("model.network.n_embd: [64, 128]\nmodel.network.n_head: [4, 6]")
    with pytest.raises(sweep.MiniGPTError, match=r"n_head 6"):
        sweep.Sweep(flags, "space.yaml", None, None, 0)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "sweeps").iterdir()), ids=lambda file: file.stem)
def test_a_space_of_ours_fits_the_recipe_that_it_names(file):
    words = file.read_text(encoding="utf-8").split("minigpt sweep ")[1].split("\n")[0].split()
    assert words[2:4] == ["--space", file.stem]
    args = [*words[:2], *QUICK]
    assert sweep.read_space(str(file), args)


@pytest.mark.slow
def test_a_run_that_is_worse_than_the_others_is_pruned_and_can_go_on(call):
    flags = [*FLAGS, "--seeds", "1,2"]
    assert call("sweep", *flags, "--trials", "1").status == 0
    known = optuna.load_study(study_name="tiny-space", storage=f"sqlite:///{STUDY}/study.db")
    (real,) = known.trials
    good = {step: 1.0 for step in (5, 10, 15, 20)}
    for _ in range(5):
        made_up = optuna.trial.create_trial(
            params=real.params, distributions=real.distributions, value=1.0, intermediate_values=good,
            user_attrs=real.user_attrs,
        )  # fmt: skip
        known.add_trial(made_up)
    result = call("sweep", *flags, "--trials", "7")
    assert result.status == 0, result.err
    assert "Pruned" in result.err
    pruned = trials()[6]
    assert pruned.state == optuna.trial.TrialState.PRUNED
    assert [*pruned.intermediate_values] == [5]  # the first validation that is past a quarter of the steps
    assert result.out.splitlines()[7].split()[:4:2] == ["trial_6", "pruned"]
    (run,) = (STUDY / "trial_6").iterdir()  # its second seed is not trained
    assert call("train", "--ckpt_path", str(run), "--validation.every_n_steps", "5").status == 0


@pytest.mark.slow
def test_a_trial_that_goes_on_after_its_first_run_is_pruned_no_more(call, monkeypatch):
    flags = [*FLAGS, "--seeds", "1,2", "--trials", "1"]
    report = sweep.Sweep._report

    def interrupted(self, trial, seed, trainer, pl_module):
        report(self, trial, seed, trainer, pl_module)
        if seed == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.Sweep, "_report", interrupted)
        assert call("sweep", *flags).status == 130
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: True)
    result = call("sweep", *flags)
    assert result.status == 0, result.err
    assert states() == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_trial_that_ended_before_its_first_sign_of_life_is_retried(call):
    assert call("sweep", *FLAGS, "--trials", "1").status == 0
    optuna.load_study(study_name="tiny-space", storage=f"sqlite:///{STUDY}/study.db").ask()
    result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 0, result.err
    assert states() == ["COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.slow
def test_a_score_that_is_no_number_is_kept_as_one_that_broke(call, monkeypatch):
    nan = lambda self, trial, seed, *_: trial.set_user_attr("scores", {str(seed): math.nan})  # noqa: E731
    monkeypatch.setattr(sweep.Sweep, "_report", nan)
    result = call("sweep", *FLAGS, "--trials", "1")
    assert result.status == 0, result.err
    assert "if it was NaN" in trials()[0].user_attrs["error"]


@pytest.mark.slow
def test_a_run_that_ended_before_a_validation_is_kept_as_one_that_broke(call, monkeypatch):
    monkeypatch.setattr(sweep.Sweep, "_report", lambda *_: None)
    result = call("sweep", *FLAGS, "--trials", "1")
    assert result.status == 0, result.err
    assert "There is no validation" in trials()[0].user_attrs["error"]


@pytest.mark.slow
def test_a_trial_that_breaks_is_kept_and_the_sweep_goes_on(call, folder):
    (folder / "space.yaml").write_text("model.learning_rate: [1.0e+30]")
    result = call("sweep", *FLAGS, "--trials", "2", "--trainer.log_every_n_steps", "1")
    assert result.status == 0, result.err
    assert [line.split()[2] for line in result.out.splitlines()] == ["state", "broke", "broke"]
    assert "is NaN or infinite" in trials()[0].user_attrs["error"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which nobody can make a file")
def test_what_the_file_system_refuses_is_no_result(call, folder):
    STUDY.mkdir(parents=True)
    (STUDY / "trial_0").symlink_to("/proc/self")
    result = call("sweep", *FLAGS, "--trials", "2", "--seed", "0")
    assert result.status == 2
    assert "trial_0/version_1337' cannot be written to" in result.err
    (STUDY / "trial_0").unlink()
    result = call("sweep", *FLAGS, "--trials", "2", "--seed", "0")
    assert result.status == 0, result.err
    first, *others = trials()
    assert states() == ["FAIL", "COMPLETE", "COMPLETE"]
    assert first.params in [trial.params for trial in others]  # at once, or after a new one: a second has to pass
    assert {run.parent.name for run in STUDY.glob("trial_*/version_*")} == {study.name_of(trial) for trial in others}
    assert (STUDY / "trial_0").is_dir()


@pytest.mark.slow
def test_a_full_disk_is_no_result_either(call, monkeypatch):
    def full(*args, **kwargs):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("enforce fail")  # noqa: B904 - as torch.save has it

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 2
    assert "could not be written" in result.err
    assert states() == ["RUNNING"]
    assert call("sweep", *FLAGS, "--trials", "2").status == 0
    assert states() == ["FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "sign", "status"),
    [("tpe", signal.SIGINT, 130), pytest.param("grid", signal.SIGTERM, 143, marks=pytest.mark.full)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_trial_that_was_interrupted_is_retried_from_its_checkpoint(call, monkeypatch, folder, sampler, sign, status):
    (folder / "space.yaml").write_text("model.network.n_embd: [8, 16]\nmodel.weight_decay: [0.0]\nsampler: " + sampler)
    flags = [*FLAGS, "--seeds", "1,2", "--trials", "2", "--seed", "0"]
    assert call("sweep", *flags, "--study", "undisturbed").status == 0
    report = sweep.Sweep._report

    def interrupted(self, trial, seed, trainer, pl_module):
        report(self, trial, seed, trainer, pl_module)
        if trial.number == 1 and trainer.global_step == 10:
            os.kill(os.getpid(), sign)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.Sweep, "_report", interrupted)
        result = call("sweep", *flags)
    assert result.status == status
    assert "Continue with:" in result.err
    assert states() == ["COMPLETE", "RUNNING"]
    result = call("sweep", *flags)
    assert result.status == 0, result.err
    assert "trial_1: " in result.err
    assert "step 5/" not in result.err.partition("Seed 2")[0]
    assert states() == ["COMPLETE", "FAIL", "COMPLETE"]
    first, _, second = trials()
    for one, other in zip((first, second), trials(STUDY.with_name("undisturbed")), strict=True):
        assert one.params == other.params
        assert one.value == other.value
        assert one.intermediate_values == other.intermediate_values
    assert sorted(path.name for path in STUDY.glob("trial_*")) == ["trial_0", "trial_1"]


def start(*args: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *FLAGS, "--storage", "shared.db", *args]
    command += ["--trainer.max_steps", "600", "--validation.every_n_steps", "300"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.full
def test_a_trial_of_a_process_that_was_killed_is_retried_once_there_is_no_sign_of_life(call, folder, monkeypatch):
    killed = start("--trials", "1")
    last = folder / STUDY / "trial_0/version_1337/checkpoints/last.ckpt"
    try:
        while not last.exists():
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.communicate()
    flags = [*FLAGS, "--storage", "shared.db", "--trials", "1"]
    flags += ["--trainer.max_steps", "600", "--validation.every_n_steps", "300"]
    for module in (study, sweep):
        monkeypatch.setattr(module, "GRACE", 6)
    result = call("sweep", *flags)
    assert result.status == 0, result.err
    assert "an interrupted one is retried after some 6 seconds" in result.err
    assert last.exists()
    assert "step 1/600" not in result.err
    assert [trial.state.name for trial in trials(storage=folder / "shared.db")] == ["FAIL", "COMPLETE"]
    assert [path.name for path in STUDY.glob("trial_*")] == ["trial_0"]


@pytest.mark.full
def test_two_processes_share_a_new_study(folder):
    both = [start("--trials", "4"), start("--trials", "4")]
    told = "".join(process.communicate(timeout=120)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0], told
    assert "[I " not in told  # Optuna's messages
    shared = trials(storage=folder / "shared.db")
    assert {trial.state.name for trial in shared} == {"COMPLETE"}
    assert len(shared) in (4, 5)  # two processes may begin a last trial at the same moment
    assert len({trial.params["model.learning_rate"] for trial in shared}) == len(shared)


@pytest.mark.slow
def test_ctrl_c_between_two_trials_ends_the_sweep_too(call, monkeypatch):
    def interrupt(trainer, pl_module):
        os.kill(os.getpid(), signal.SIGINT)

    train = sweep.MiniGPTCLI.fit

    def fit(self):
        self.trainer.callbacks[0].on_fit_end = interrupt  # after the last validation
        train(self)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.MiniGPTCLI, "fit", fit)
        result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 130, result.err
    assert "trial_1" not in result.err
    result = call("sweep", *FLAGS, "--trials", "1")
    assert result.status == 0, result.err
    assert "step " not in result.err  # its run was finished
    assert states() == ["FAIL", "COMPLETE"]


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["before it reports", "before it fails"])
def test_a_process_whose_trial_was_given_to_another_says_so_and_joins_in_again(call, monkeypatch, fails):
    report = sweep.Sweep._report

    def taken(self, trial, *others):
        if trial.number == 0:
            trial.study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
            if fails:
                raise MiniGPTError("The training failed.")
        report(self, trial, *others)

    monkeypatch.setattr(sweep.Sweep, "_report", taken)
    result = call("sweep", *FLAGS, "--trials", "1")
    assert result.status == 0, result.err
    assert "Another process took this trial after 1 seconds without a sign of life. Joining in again." in result.err
    assert states() == ["FAIL", "COMPLETE"]


@pytest.mark.slow
def test_trials_that_start_from_a_run_continue_too(call, folder, trained_run, monkeypatch):
    (folder / "start.yaml").write_text(f"init_from: {trained_run}\n")
    (folder / "space.yaml").write_text("model.learning_rate: [0.001]\n")
    flags = [*FLAGS[:2], "-c", "start.yaml", *FLAGS[2:], "--trials", "1"]
    report = sweep.Sweep._report

    def interrupted(self, trial, seed, trainer, pl_module):
        report(self, trial, seed, trainer, pl_module)
        if trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.Sweep, "_report", interrupted)
        assert call("sweep", *flags).status == 130
    (name,) = [path.name for path in (folder / "lightning_logs").iterdir()]
    result = call("sweep", *flags)
    assert result.status == 0, result.err
    assert "step 5/" not in result.err
    assert [trial.state.name for trial in trials(Path("lightning_logs") / name)] == ["FAIL", "COMPLETE"]
    (folder / "start.yaml").write_text("init_from: last\n")
    refused = call("sweep", *flags)
    assert refused.status == 2
    assert "Each run would start from the run before it" in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q?x", "p%41#x"])
def test_a_study_is_stored_in_a_folder_of_any_name(call, folder, monkeypatch, name):
    (folder / name).mkdir()
    monkeypatch.chdir(name)
    (folder / name / "space.yaml").write_text("model.network.n_embd: [8]\n")
    result = call("sweep", *FLAGS, "--trials", "1", "--trainer.max_steps", "2")
    assert result.status == 0, result.err
    assert (folder / name / STUDY / "study.db").stat().st_size > 0
    assert {path.name for path in folder.iterdir()} <= {name, "space.yaml", "user cache"}


def test_a_range_of_whole_numbers_is_one_of_fractions_where_the_setting_takes_them(folder):
    (folder / "space.yaml").write_text(
        "model.network.n_embd: {low: 8, high: 16}\nmodel.beta2: {low: 0, high: 0.99}\n"
        "model.weight_decay: {low: 0, high: 1}\ntrainer.gradient_clip_val: {low: 1, high: 2}\n"
        "model.network.init_args.n_embd: {low: 8, high: 16}\n"
    )
    _, found = sweep.read_space("space.yaml", FLAGS[:-2])
    kinds = {key: {type(choices[end]) for end in ("low", "high")} for key, choices in found.items()}
    assert kinds == {
        "model.network.n_embd": {int}, "model.beta2": {float}, "model.weight_decay": {float},
        "trainer.gradient_clip_val": {float}, "model.network.init_args.n_embd": {int},
    }  # fmt: skip
    trial = optuna.trial.FixedTrial({"model.beta2": 0.5})
    assert study.suggest(trial, "model.beta2", found["model.beta2"]) == 0.5


def test_what_a_sweep_needs_is_named_where_it_is_not_installed(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for module in ("training.sweep", "comparison.study"):
        monkeypatch.delitem(sys.modules, f"minigpt.{module}")
    result = call("sweep", *FLAGS)
    assert result.status == 2
    assert "pip install 'minigpt-lightning[sweep]'" in result.err


@pytest.mark.slow
def test_a_sweep_runs_where_files_can_be_neither_flushed_nor_locked(call, monkeypatch):
    def not_supported(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(files, "_noted", set())
    for name in ("os.fsync", "os.symlink", "fcntl.flock"):
        monkeypatch.setattr(name, not_supported)
    result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 0, result.err
    assert result.err.count("cannot flush to disk") == result.err.count("cannot lock files") == 1
    assert states() == ["COMPLETE"] * 2
