"""Sweeps: what a study finds and keeps, how it goes on, what it refuses, and that several processes share one."""

import csv
import errno
import json
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

from minigpt import files
from minigpt.training import recipes, sweep

SPACE = "model.learning_rate: {low: 1e-4, high: 1e-1, log: true}\nmodel.network.n_embd: [8, 16]\n"
SHORT = ["--trainer.max_steps", "20", "--validation.every_n_steps", "5", "--figures.every_n_steps", "0"]
FLAGS = ["--config", TINY, *QUICK, *SHORT, "--space", "space.yaml"]
STUDY = Path("lightning_logs/sweeps/tiny-space.journal")


@pytest.fixture(autouse=True)
def space(folder):
    (folder / "space.yaml").write_text(SPACE)


def table() -> list[dict[str, str]]:
    with open(STUDY.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def study(file: Path = STUDY) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(file))
    return optuna.load_study(study_name=file.stem, storage=optuna.storages.JournalStorage(backend))


def test_a_recipe_that_can_be_read_once_is_refused(call, folder):
    os.mkfifo(folder / "recipe.yaml")
    recipe = Path(TINY).read_text(encoding="utf-8")
    threading.Thread(target=(folder / "recipe.yaml").write_text, args=(recipe,), daemon=True).start()
    result = call("sweep", "--config", "recipe.yaml", *QUICK, *SHORT, "--space", "space.yaml")
    assert result.status == 2
    assert "Each trial reads the recipe" in result.err
    assert not STUDY.exists()


@pytest.mark.slow
def test_a_sweep_finds_keeps_and_goes_on(call, folder):
    result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 0, result.err
    result = call("sweep", *FLAGS, "--trials", "3")
    assert result.status == 0, result.err
    assert "trial 2" in result.err
    assert "trial 1" not in result.err
    rows = table()
    assert [row["state"] for row in rows] == ["complete"] * 3
    values = [float(row["bits_per_char"]) for row in rows]
    assert values == sorted(values)
    assert len({row["model.learning_rate"] for row in rows}) == 3  # a second start does not draw the first's again
    for row in rows:
        run = (STUDY.parent / row["run"]).resolve()
        settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]
        assert settings["learning_rate"] == float(row["model.learning_rate"])
        assert settings["network"]["init_args"]["n_embd"] == int(row["model.network.n_embd"])
        scores = call("evaluate", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
        assert json.loads(scores.out)["bits_per_char"] == pytest.approx(float(row["bits_per_char"]), abs=1e-5)
    assert {trial.user_attrs["run"] for trial in study().trials} == {row["run"] for row in rows}
    for kind in ("history", "slices", "importances"):
        assert STUDY.with_suffix(f".{kind}.png").read_bytes().startswith(b"\x89PNG")

    head, best = (line.split() for line in result.out.splitlines()[:2])
    assert dict(zip(head, best, strict=True))["bits_per_char"] == f"{values[0]:.4g}"
    longer, text = result.out.splitlines()[-2:]
    assert f"--config {best[-1]}/config.yaml --trainer.max_steps 80" in longer
    assert call("generate", *text.split("generate.py ")[1].split()).status == 0
    before = sorted(folder.glob("lightning_logs/tiny/*"))
    again = call("sweep", *FLAGS, "--trials", "3")
    assert (again.status, again.out) == (0, result.out)
    assert sorted(folder.glob("lightning_logs/tiny/*")) == before


@pytest.mark.slow
def test_every_config_file_counts_and_flags_win_over_them_wherever_they_stand(call, folder):
    """In a folder and with names that a shell and a pattern would read as something else."""
    (folder / "ma recette [v2].yaml").write_bytes(Path(TINY).read_bytes())
    (folder / "more.yaml").write_text("data: {batch_size: 2}\nmodel: {weight_decay: 0.5, beta2: 0.5}\n")
    flags = ["--model.beta2", "0.9", "--trials=1", *QUICK, *SHORT, "--space=space.yaml", "-c", "ma recette [v2].yaml"]
    result = call("sweep", *flags, "--trainer.default_root_dir", "in [1]*", "--config=more.yaml")
    assert result.status == 0, result.err
    (run,) = (folder / "in [1]*/lightning_logs/ma recette [v2]").iterdir()
    kept = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (kept["data"]["batch_size"], kept["model"]["weight_decay"], kept["model"]["beta2"]) == (2, 0.5, 0.9)
    for line in result.out.splitlines()[-2:]:
        words = shlex.split(line.partition(":")[2])
        assert Path(words[1]).is_file()
        assert call(Path(words[1]).stem, *words[2:]).status == 0


@pytest.mark.slow
def test_a_choice_that_looks_like_a_number_stays_a_text(call, folder):
    (folder / "1e5").write_text("un matin, il fit beau. " * 90)
    (folder / "space.yaml").write_text("data.path: ['1e5']")
    assert call("sweep", *FLAGS, "--trials", "1").status == 0
    run = folder / "lightning_logs/tiny/version_0"
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
    (folder / "space.yaml").write_text(SPACE.splitlines()[0])
    refused("model.network.n_embd is 64 here and [8, 16] in")
    (folder / "space.yaml").write_text(SPACE)
    (folder / "text.txt").write_text("un soir, il fit nuit. " * 90)
    refused("SHA-256")
    assert call("sweep", *flags, "--study", "soir").status == 0
    assert len(study().trials) == len(study(STUDY.with_stem("soir")).trials) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.n_emb: [8, 16]", ["'model.n_emb' is not a setting", "Did you mean 'model.network.n_embd'"]),
        ("model: {n_embd: [8, 16]}", ["'model' is not a setting"]),
        ("ckpt_path: [last]", ["'ckpt_path' is not a setting"]),
        ("model.network.n_embd: {low: 8, high: 16.5}", ["n_embd is '16.5'", "a whole number"]),
        ("model.network.n_embd: [8, wide]", ["n_embd is 'wide'", "a whole number"]),
        ("model.network.n_embd: [8, 0]", ["n_embd is 0"]),
        ("model.network.n_embd: {low: 16, high: 8}", ["model.network.n_embd begins at 16 and ends at 8"]),
        ("model.network.n_embd: {low: 8, high: 16, step: 0.5}", ["has a step of 0.5"]),
        ("model.network.n_embd: {low: 8, high: 16, log: true, step: 4}", ["not both"]),
        ("model.network.n_embd: {low: 8, hihg: 16}", ["write model.network.n_embd as a list of values, or as a range"]),
        ("model.network.n_embd: 8", ["write model.network.n_embd as"]),
        ("model.learning_rate: {low: 0, high: 1.0, log: true}", ["model.learning_rate", "Begin it above 0"]),
        ("model.learning_rate: {low: .nan, high: 1.0}", ["model.learning_rate"]),
        ("model.network: {low: GPT, high: TinyGPT}", ["model.network cannot have a range", "List the values"]),
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
    assert result.err.strip() == "A sweep compares runs, but fast_dev_run does not leave one. Omit it."
    assert not (folder / "lightning_logs").exists()


@pytest.mark.parametrize("storage", ["text.journal", "text.db", "postgresql://host/studies"])
def test_a_storage_that_is_no_study_is_left_as_it_is(call, folder, storage):
    for file in ("text.journal", "text.db"):
        (folder / file).write_text("un matin\n")
    result = call("sweep", *FLAGS, "--storage", storage)
    assert result.status == 2
    assert storage in result.err
    assert "--storage" in result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    assert (folder / "text.journal").read_text() == (folder / "text.db").read_text() == "un matin\n"


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
    assert sweep.read_space(str(file), sweep.DryRun(args), args)


@pytest.mark.slow
def test_a_run_that_is_worse_than_the_others_is_pruned_and_can_go_on(call):
    assert call("sweep", *FLAGS, "--trials", "1").status == 0
    (real,) = study().trials
    good = {step: 1.0 for step in (5, 10, 15, 20)}
    for _ in range(5):
        made_up = optuna.trial.create_trial(
            params=real.params, distributions=real.distributions, value=1.0, intermediate_values=good,
            user_attrs=real.user_attrs,
        )  # fmt: skip
        study().add_trial(made_up)
    result = call("sweep", *FLAGS, "--trials", "7")
    assert result.status == 0, result.err
    assert "Pruned" in result.err
    assert study().trials[6].state == optuna.trial.TrialState.PRUNED
    assert [*study().trials[6].intermediate_values] == [5]  # the first validation that is past a quarter of the steps
    row = table()[-1]
    assert (row["state"], row["steps"]) == ("pruned", "5")
    run = str((STUDY.parent / row["run"]).resolve())
    assert call("train", "--ckpt_path", run, "--validation.every_n_steps", "5").status == 0


@pytest.mark.slow
def test_a_trial_that_breaks_is_kept_and_the_sweep_goes_on(call, folder):
    (folder / "space.yaml").write_text("model.learning_rate: [1.0e+30]")
    result = call("sweep", *FLAGS, "--trials", "2", "--trainer.log_every_n_steps", "1")
    assert result.status == 0, result.err
    assert [row["state"] for row in table()] == ["broke", "broke"]
    assert "is NaN or infinite" in study().trials[0].user_attrs["why"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder in which nobody can make a file")
def test_what_the_file_system_refuses_is_no_result(call, folder):
    runs = folder / "lightning_logs" / "tiny"
    runs.parent.mkdir()
    runs.symlink_to("/proc/self")
    result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 2
    assert "tiny' cannot be written to" in result.err
    runs.unlink()
    result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 0, result.err
    assert "Trial 0 was interrupted" in result.err
    assert [row["state"] for row in table()] == ["complete"] * 2


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
    assert [trial.state.name for trial in study().trials] == ["RUNNING"]
    assert call("sweep", *FLAGS, "--trials", "2").status == 0
    assert [row["state"] for row in table()] == ["complete"] * 2


@pytest.mark.slow
def test_ctrl_c_leaves_a_trial_that_goes_on_where_it_stopped(call, monkeypatch):
    assert call("sweep", *FLAGS, "--trials", "2", "--study", "undisturbed").status == 0
    report = sweep.Pruning.on_validation_end

    def interrupted(self, trainer, pl_module):
        report(self, trainer, pl_module)
        if self.trial.number == 1 and trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(sweep.Pruning, "on_validation_end", interrupted)
        result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 130
    assert "Continue with:" in result.err
    assert [trial.state.name for trial in study().trials] == ["COMPLETE", "RUNNING"]
    run = study().trials[1].user_attrs["run"]
    result = call("sweep", *FLAGS, "--trials", "2")
    assert result.status == 0, result.err
    assert "Trial 1 was interrupted" in result.err
    assert "step 5/" not in result.err
    assert study().trials[1].user_attrs["run"] == run
    for one, other in zip(study().trials, study(STUDY.with_stem("undisturbed")).trials, strict=True):
        assert one.params == other.params
        assert one.intermediate_values == other.intermediate_values
        assert one.value == other.value


@pytest.mark.full
def test_two_processes_share_a_study_and_take_up_what_a_killed_one_left(folder):
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *FLAGS, "--storage", "shared.db", "--trials", "3"]
    command += ["--trainer.max_steps", "600", "--validation.every_n_steps", "300"]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed = start()
    try:
        while not (folder / "lightning_logs/tiny/version_0/checkpoints/last.ckpt").exists():
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.communicate()
    both = [start(), start()]
    told = "".join(process.communicate(timeout=120)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0], told
    trials = optuna.load_study(study_name="tiny-space", storage="sqlite:///shared.db").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert told.count("Trial 0 was interrupted") == 1
    assert told.count("trial 1:") == told.count("trial 2:") == 1
    assert len({trial.user_attrs["run"] for trial in trials}) == len(list(folder.glob("lightning_logs/tiny/*"))) == 3
    assert trials[0].user_attrs["run"] == "lightning_logs/tiny/version_0"


def test_what_a_sweep_needs_is_named_where_it_is_not_installed(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for module in ("space", "sweep"):
        monkeypatch.delitem(sys.modules, f"minigpt.training.{module}")
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
    assert [row["state"] for row in table()] == ["complete"] * 2
