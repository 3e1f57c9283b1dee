import pytest
import yaml
from conftest import TINY

from minigpt.training.cli import MiniGPTCLI, config_name
from minigpt.training.parser import flatten


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    place = str(tmp_path_factory.mktemp("parser"))
    return MiniGPTCLI(["--config", TINY, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", place]).parser


def test_every_option_is_described(parser):
    silent = [a.dest for a in parser._actions if not (a.help or "").strip() and not a.dest.endswith(".help")]
    assert silent == []


def test_help_goes_to_stdout(call):
    result = call("train", "--help")
    assert result.status == 0
    assert "--model.n_embd" in result.out
    assert "The width." in " ".join(result.out.split())
    assert "--validation.every_n_steps" in result.out


def test_print_config_shows_what_a_run_would_use(call, folder):
    result = call("train", "--config", TINY, "--model.n_embd", "32", "--print_config")
    assert result.status == 0
    recipe = yaml.safe_load(result.out)
    assert recipe["model"]["n_embd"] == 32
    assert recipe["data"]["block_size"] == 64
    assert list(folder.iterdir()) == []


def test_print_config_of_a_resume_shows_the_runs_own(call, folder):
    call("train", "--config", TINY, "--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--model.n_embd", "8")
    recipe = yaml.safe_load(call("train", "--ckpt_path", "last", "--print_config").out)
    assert (recipe["model"]["n_embd"], recipe["trainer"]["max_steps"]) == (8, 2)


def test_a_printed_config_trains(call, folder):
    printed = call("train", "--config", TINY, "--trainer.accelerator", "cpu", "--print_config").out
    (folder / "mine.yaml").write_text(printed, encoding="utf-8")
    result = call("train", "--config", "mine.yaml", "--trainer.max_steps", "2")
    assert result.status == 0, result.err
    assert (folder / "lightning_logs" / "mine" / "version_0" / "checkpoints" / "last.ckpt").exists()


def test_a_later_flag_wins_over_the_recipe_and_is_kept(call, folder):
    call("train", "--config", TINY, "--trainer.accelerator", "cpu", "--trainer.max_steps", "3", "--data.batch_size=2")
    kept = yaml.safe_load((folder / "lightning_logs/tiny/version_0/config.yaml").read_text(encoding="utf-8"))
    assert (kept["trainer"]["max_steps"], kept["data"]["batch_size"]) == (3, 2)


def test_a_callback_of_lightnings_can_be_added(call, folder):
    callback = "lightning.pytorch.callbacks.LearningRateMonitor"
    flags = ["--trainer.max_steps", "2", "--trainer.callbacks+", callback, "--trainer.accelerator", "cpu"]
    assert call("train", "--config", TINY, *flags).status == 0


def test_lightnings_seconds_limit_a_run_and_it_can_go_on(call, folder):
    flags = ["--trainer.accelerator", "cpu", "--trainer.max_time", "00:00:00:01", "--samples.every_n_steps", "0"]
    result = call("train", "--config", TINY, "--trainer.max_steps", "1000000", *flags)
    assert result.status == 0, result.err
    assert "val loss" in result.err.splitlines()[-1]
    again = call("train", "--ckpt_path", "last")
    assert again.status == 0
    assert "trainer.max_time is used up" in again.err
    result = call("train", "--ckpt_path", "last", "--trainer.max_steps", "3000", "--trainer.max_time", "null")
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("configs/tiny.yaml", "tiny"),
        ("my.recipe.yaml", "my.recipe"),
        ("lightning_logs/tiny/version_3/config.yaml", "tiny"),
        ("config.yaml", "config"),
    ],
)
def test_a_run_is_named_after_its_recipe(path, name):
    assert config_name(path) == name


def test_settings_are_flattened_but_class_paths_stay_whole():
    tree = {"a": {"b": 1, "c": {"class_path": "x", "init_args": {}}}, "d": {}}
    assert flatten(tree) == {"a.b": 1, "a.c": {"class_path": "x", "init_args": {}}, "d": {}}
