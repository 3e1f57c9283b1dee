"""Training with several seeds: which seeds, which runs, and how a group goes on."""

import json
import os
import threading
from pathlib import Path

import pytest
from conftest import QUICK, TINY

from minigpt.command_line import split_seeds
from minigpt.errors import MiniGPTError
from minigpt.training import repeated
from minigpt.training.repeated import SeedGroup

ARGS = ["--config", TINY, *QUICK, "--trainer.max_steps", "8", "--validation.every_n_steps", "4"]


@pytest.mark.parametrize(
    ("value", "seeds"), [("3", [1, 2, 3]), ("1", [1]), ("1,2,7", [1, 2, 7]), ("5,", None), ("0,4", [0, 4])]
)
def test_seeds_are_a_number_or_a_list(value, seeds):
    for args in (["--seeds", value, "--x", "1"], ["--x", "1", f"--seeds={value}"]):
        if seeds is None:
            with pytest.raises(MiniGPTError, match="Pass how many seeds"):
                split_seeds(args)
        else:
            assert split_seeds(args) == (seeds, ["--x", "1"])


def test_without_seeds_the_arguments_stay():
    assert split_seeds(["--config", "tiny"]) == ([], ["--config", "tiny"])


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "1,1", "1000", "4294967296,1", "1.5"])
def test_other_values_are_refused(value):
    with pytest.raises(MiniGPTError, match="--seeds is"):
        split_seeds(["--seeds", value])


@pytest.mark.slow
def test_the_recipe_of_several_seeds_may_be_a_pipe(call, folder):
    os.mkfifo(folder / "recipe.yaml")
    recipe = Path(TINY).read_text(encoding="utf-8")
    threading.Thread(target=(folder / "recipe.yaml").write_text, args=(recipe,), daemon=True).start()
    answered = call("train", "--config", "recipe.yaml", *ARGS[2:], "--seeds", "2")
    assert answered.status == 0, answered.err
    assert {run.name for run in (folder / "lightning_logs/recipe").iterdir()} == {"version_0", "version_1"}


@pytest.mark.parametrize("other", ["--seed_everything", "--ckpt_path"])
def test_one_seed_or_run_and_several_exclude_each_other(call, other):
    answered = call("train", *ARGS, "--seeds", "2", other, "1")
    assert answered.status == 2
    assert f"{other} is for one" in answered.err


def test_a_config_file_cannot_set_seeds(call):
    Path("mine.yaml").write_text(Path(TINY).read_text(encoding="utf-8") + "\nseeds: 3\n", encoding="utf-8")
    answered = call("train", "--config", "mine.yaml")
    assert answered.status == 2
    assert "sets seeds, which only the command line can set" in answered.err


@pytest.mark.slow
def test_each_seed_is_an_ordinary_run_and_the_group_has_a_summary(call):
    answered = call("train", *ARGS, "--seeds", "1,7")
    assert answered.status == 0, answered.err
    rows = answered.out.splitlines()[-3:]
    assert rows[0].startswith("seed 1 ")
    assert rows[1].startswith("seed 7 ")
    scores = [float(row.split()[2]) for row in rows[:2]]
    assert float(rows[2].split()[3]) == pytest.approx(sum(scores) / 2, abs=1e-4)
    for version, seed in ((0, 1), (1, 7)):
        config = Path(f"lightning_logs/tiny/version_{version}/config.yaml").read_text(encoding="utf-8")
        assert f"seed_everything: {seed}\n" in config
        assert "seeds:" not in config
    single = call("train", *ARGS, "--seed_everything", "7")
    assert rows[1].split()[2] in single.out  # the same loss


@pytest.mark.slow
def test_the_same_command_goes_on_where_a_group_was_interrupted(call, monkeypatch):
    from minigpt.training.checkpointing import Checkpoints

    end = Checkpoints.on_train_batch_end

    def stop_at_six(self, trainer, *args):
        if trainer.global_step == 6 and (Path("lightning_logs") / "tiny" / "version_1").exists():
            self.signal = 15
        end(self, trainer, *args)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", stop_at_six)
    answered = call("train", *ARGS, "--seeds", "3")
    assert answered.status == 143
    assert "The same command goes on with this seed and the others." in answered.err
    monkeypatch.setattr(Checkpoints, "on_train_batch_end", end)
    resumed = call("train", *ARGS, "--seeds", "3")
    assert resumed.status == 0, resumed.err
    assert sorted(run.name for run in Path("lightning_logs/tiny").iterdir()) == ["version_0", "version_1", "version_2"]
    interrupted = [row for row in resumed.out.splitlines() if row.startswith("seed 2 ")]
    whole = call("train", *ARGS, "--seed_everything", "2")
    assert interrupted[0].split()[2] in whole.out
    other = call("train", *ARGS, "--trainer.log_every_n_steps", "3", "--seeds", "1")  # another command, another group
    assert other.status == 0
    assert Path("lightning_logs/tiny/version_4").exists()


def test_a_damaged_list_of_runs_is_named(folder):
    group = SeedGroup(["--config", "tiny"])
    group.add(3, Path("lightning_logs/tiny/version_0").absolute())
    assert json.loads(group.file.read_text(encoding="utf-8")) == {"3": "tiny/version_0"}
    assert SeedGroup(["--config", "tiny"]).runs == {3: Path("lightning_logs/tiny/version_0")}
    group.file.write_text("[", encoding="utf-8")
    with pytest.raises(MiniGPTError, match=r"is damaged\. Delete it"):
        SeedGroup(["--config", "tiny"])


def test_a_run_that_was_deleted_is_trained_again(folder):
    group = SeedGroup(["x"])
    group.add(3, Path("lightning_logs/tiny/version_0").absolute())
    assert group.arguments(3) == ["--seed_everything", "3"]
    assert repeated.SeedGroup(["y"]).runs == {}
