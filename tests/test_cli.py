import os
import threading
from pathlib import Path

import pytest
import yaml
from conftest import QUICK, TINY
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minigpt import loading, runs
from minigpt.command_line import CommandLine
from minigpt.training import recipes
from minigpt.training.cli import MiniGPTCLI
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
    assert "--model.network.help" in result.out
    network = call("train", "--model.network.help", "GPT")
    assert network.status == 0
    assert "rope" in network.out
    assert "--model.network.n_embd" in network.out
    assert "AdamW's step size." in " ".join(result.out.split())
    assert "--validation.every_n_steps" in result.out


def test_print_config_shows_what_a_run_would_use(call, folder):
    result = call("train", "--config", TINY, "--model.network.n_embd", "32", "--print_config")
    assert result.status == 0
    recipe = yaml.safe_load(result.out)
    assert recipe["model"]["network"]["init_args"]["n_embd"] == 32
    assert recipe["data"]["block_size"] == 64
    assert list(folder.iterdir()) == []


def test_print_config_of_a_resume_shows_the_runs_own(call, folder):
    call(
        "train",
        "--config",
        TINY,
        "--trainer.accelerator",
        "cpu",
        "--trainer.max_steps",
        "2",
        "--model.network.n_embd",
        "8",
    )
    recipe = yaml.safe_load(call("train", "--ckpt_path", "last", "--print_config").out)
    assert (recipe["model"]["network"]["init_args"]["n_embd"], recipe["trainer"]["max_steps"]) == (8, 2)


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


@pytest.mark.full
def test_lightnings_seconds_limit_a_run_and_it_can_go_on(call, folder):
    flags = ["--trainer.accelerator", "cpu", "--trainer.max_time", "00:00:00:01", "--samples.every_n_steps", "0"]
    result = call("train", "--config", TINY, "--trainer.max_steps", "1000000", *flags)
    assert result.status == 0, result.err
    assert "val loss" in result.err.splitlines()[-1]
    again = call("train", "--ckpt_path", "last")
    assert again.status == 0
    assert "trainer.max_time was reached" in again.err
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
    assert runs.config_name(path) == name


def test_settings_are_flattened_but_class_paths_stay_whole():
    tree = {"a": {"b": 1, "c": {"class_path": "x", "init_args": {}}}, "d": {}}
    assert flatten(tree) == {"a.b": 1, "a.c": {"class_path": "x", "init_args": {}}, "d": {}}


def printed(call, *args: str) -> dict:
    """The settings of a command line, flat."""
    result = call("train", *args, "--print_config")
    assert result.status == 0, result.err
    return flatten(recipes.load(result.out))


@pytest.mark.parametrize(
    "config", [["--config", TINY], [f"--config={TINY}"], ["-c", TINY], [f"-c={TINY}"], [f"-c{TINY}"]]
)
def test_a_flag_wins_over_a_file_that_stands_behind_it(call, config):
    flags = ["--model.network.n_embd", "16", "--data.batch_size=2", "--trainer.callbacks+=LearningRateMonitor"]
    before, behind = printed(call, *flags, *config), printed(call, *config, *flags)
    assert (before["model.network.n_embd"], before["data.batch_size"], before["data.lower"]) == (
        16,
        2,
        True,
    )
    assert [callback["class_path"].split(".")[-1] for callback in before["trainer.callbacks"]] == [
        "LearningRateMonitor"
    ]
    assert before == behind


def test_a_later_file_wins_and_what_a_flag_adds_is_added_to_the_files(call, folder):
    (folder / "one.yaml").write_text(
        "model: {network: {class_path: GPT, init_args: {n_embd: 8}}, learning_rate: 0.5}\n"
        "trainer: {callbacks: [LearningRateMonitor]}"
    )
    (folder / "two.yaml").write_text("model: {network: {init_args: {n_embd: 12}}}\ntrainer: {callbacks+: ModelSummary}")
    flags = ["--config", "one.yaml", "--trainer.callbacks+=Timer", "--model.beta2=0.5", "--config", "two.yaml"]
    settings = printed(call, *flags)
    assert settings["model.network.n_embd"] == 12
    assert [settings[f"model.{key}"] for key in ("learning_rate", "beta2")] == [0.5, 0.5]
    names = [callback["class_path"].split(".")[-1] for callback in settings["trainer.callbacks"]]
    assert names == ["LearningRateMonitor", "ModelSummary", "Timer"]


def test_a_flag_before_the_file_holds_in_a_run_and_in_its_resume(call, folder):
    file = ["--config", TINY, *QUICK]
    assert call("train", "--model.network.n_embd", "16", "--trainer.max_steps", "3", *file).status == 0
    resumed = call("train", "--ckpt_path", "last", "--model.network.n_embd=16", "--trainer.max_steps", "5", *file)
    assert "after 5 steps, the last 2" in resumed.out, resumed.err


def test_the_order_of_everything_else_is_kept():
    args = ["--a", "-c", "x", "--samples.prompts", "-chat", "--b=-cy", "--config=z", "w"]
    assert CommandLine(args).args == ["--config=x", "--config=z", "--a", "--samples.prompts", "-chat", "--b=-cy", "w"]
    for args in (["--a", "1", "--config"], ["--config", "--a", "1"]):
        assert CommandLine(args).args == args


DUPLICATES = [
    ("seed_everything: 1\nmodel:\n  beta2: 0.8\ndata: {}\nmodel:\n  min_lr: 0\n", "'model'", "lines 2 and 5"),
    ("model:\n  beta2: 0.8\n  beta2: 0.9\n", "'model.beta2'", "lines 2 and 3"),
    ("model.beta2: 0.8\nmodel:\n  beta2: 0.9\n", "'model.beta2'", "lines 1 and 3"),
    ("trainer: {callbacks: [{class_path: Timer,\n class_path: EarlyStopping}]}", "'class_path'", "lines 1 and 2"),
    ("model: {beta2: 0.8, beta2: 0.9}", "'model.beta2'", "line 1"),
]


@pytest.mark.parametrize(("text", "key", "lines"), DUPLICATES)
def test_a_setting_that_a_file_gives_twice_is_refused(call, folder, text, key, lines):
    (folder / "twice.yaml").write_text(text)
    result = call("train", "--config", TINY, "--config", "twice.yaml")
    assert result.status == 2
    for word in ("'twice.yaml'", key, lines):
        assert word in result.err


def test_merge_keys_and_equal_keys_of_different_items_are_no_duplicates(call, folder):
    text = "a: &a {x: 1, y: 1}\nb: &b\n  <<: *a\n  x: 2\nc: {<<: [{y: 5}, *a], z: 3}\nd: [{x: 1}, {x: 2}, *a]\n"
    text += "e: {<<: *a, <<: {z: 1}}\n"
    assert recipes.load(text) == {
        "a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 1, "y": 5, "z": 3},
        "d": [{"x": 1}, {"x": 2}, {"x": 1, "y": 1}], "e": {"x": 1, "y": 1, "z": 1},
    }  # fmt: skip
    (folder / "merged.yaml").write_text("model: &m {beta2: 0.8, network: GPT}\ndata: {lower: true}\nmodel.min_lr: 0\n")
    assert printed(call, "--config", "merged.yaml")["model.beta2"] == 0.8


def test_a_run_whose_settings_are_given_twice_is_not_resumed(call, folder):
    assert call("train", "--config", TINY, *QUICK, "--trainer.max_steps", "2").status == 0
    config = folder / "lightning_logs/tiny/version_0/config.yaml"
    config.write_text(config.read_text(encoding="utf-8") + "seed_everything: 5\n", encoding="utf-8")
    for more in ([], ["--config", TINY, *QUICK]):
        result = call("train", "--ckpt_path", "last", "--trainer.max_steps", "4", *more)
        assert result.status == 2
        assert "'seed_everything' twice" in result.err
        assert "config.yaml" in result.err


def test_a_flag_whose_value_gives_a_setting_twice_is_refused(call):
    value = "{class_path: EarlyStopping, init_args: {monitor: val/loss, monitor: train/loss}}"
    result = call("train", "--config", TINY, f"--trainer.callbacks={value}")
    assert result.status == 2
    assert "trainer.callbacks gives 'init_args.monitor' twice" in result.err


def test_a_text_may_look_like_settings_given_twice(call):
    text = "Roméo: oui\nRoméo: non"
    assert printed(call, "--config", TINY, f"--samples.prompts+={text}")["samples.prompts"][-1] == text


ODD = [
    "1e5", "1_000", "0x10", "on", "null", "~", "2024-01-01", "1:30", "=", "- a", "é", "a: b", " a ", "a\n\n b\n", "😀",
    "@x", "!tag", "'", '"', "-x", "#", "a #b", "\x85", "\u2028", "\ufeff", "<<", "{a", "a:", "[a, b]", "{a: 1}", "true",
    ".5", "%",
]  # fmt: skip
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.text(
    "01e_+-.:xo#'\" \n\\anyN~{}[],&*!|>@%`?=\t"
)


@settings(max_examples=500, deadline=None)
@given(value=TEXT | st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_what_is_written_reads_back_equal(value):
    for tree in (value, [value], {"a": {str(value): value}}):
        assert recipes.load(recipes.dump(tree)) == tree


@pytest.mark.parametrize("text", ODD)
def test_an_odd_text_reads_back_equal_also_for_other_readers(text):
    assert recipes.load(recipes.dump({text: [text]})) == yaml.safe_load(recipes.dump({text: [text]})) == {text: [text]}


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT)
@example(text="1e5")
@example(text=" a: b ")
@example(text="a:")
def test_a_config_takes_a_text_as_its_flag_does(parser, folder, text):
    """Through the parser: flag, config.yaml, and the settings that a resume takes from it."""
    texts = recipes.dump([text, "b"])
    keys = ("data.path", "data.encoding", "model.lr_schedule")
    flags = ["--model.network=TinyGPT", *(f"--{key}={text}" for key in keys), f"--samples.prompts={texts}"]
    config = parser.parse_args(flags)
    (folder / "written.yaml").write_text(parser.dump(config, skip_link_targets=True), encoding="utf-8")
    again = parser.parse_line(CommandLine(["--config", "written.yaml"]))
    assert again["data.path"] == text
    assert again["samples.prompts"] == [text, "b"]
    assert [again[key] for key in keys] == [config[key] for key in keys]


def test_a_run_on_a_text_whose_name_is_a_number_goes_on(call, folder):
    (folder / "1e5").write_text("le chat dort. " * 400, encoding="utf-8")
    first = call("train", "--config", TINY, *QUICK, "--data.path", "1e5", "--trainer.max_steps", "2")
    assert first.status == 0, first.err
    (folder / "1e5").rename(folder / "elsewhere")
    assert "'1e5'" in call("train", "--ckpt_path", "last", "--trainer.max_steps", "4").err
    (folder / "elsewhere").rename(folder / "1e5")
    resumed = call("train", "--ckpt_path", "last", "--trainer.max_steps", "4")
    assert resumed.status == 0, resumed.err


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were opened for reading, as often as they were."""
    names, real = [], open

    def counted(file, mode="r", *args, **kwargs):
        if mode in ("r", "rb"):
            names.append(os.path.basename(str(file)))
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", counted)
    monkeypatch.setattr("io.open", counted)  # pathlib's
    return names


@pytest.mark.slow
def test_each_config_file_is_opened_once(call, folder, opened):
    (folder / "more.yaml").write_text("trainer: {max_steps: 2}", encoding="utf-8")
    first = call("train", "--config", TINY, *QUICK, "--config", "more.yaml")
    assert first.status == 0, first.err
    assert (opened.count("tiny.yaml"), opened.count("more.yaml")) == (1, 1)
    for flags in ([], ["--config", TINY, *QUICK]):
        opened.clear()
        resumed = call("train", "--ckpt_path", "last", "--trainer.max_steps", "4", *flags)
        assert resumed.status == 0, resumed.err
        assert (opened.count("config.yaml"), opened.count("tiny.yaml")) == (1, len(flags) > 0)


@pytest.mark.slow
def test_a_recipe_may_be_a_pipe_and_its_mistakes_are_answered(call, folder):
    def through_a_pipe(text: str):
        read_end, write_end = os.pipe()  # as `<(...)` of a shell
        os.write(write_end, text.encode())
        os.close(write_end)
        try:
            return call("train", "--config", f"/dev/fd/{read_end}", *QUICK, "--trainer.max_steps", "2")
        finally:
            os.close(read_end)

    text = Path(TINY).read_text(encoding="utf-8").replace("n_embd: 64", "n_embd: 16")
    result = through_a_pipe(text)
    assert result.status == 0, result.err
    (kept,) = folder.glob("lightning_logs/*/version_0/config.yaml")
    assert recipes.load(kept.read_text(encoding="utf-8"))["model"]["network"]["init_args"]["n_embd"] == 16
    assert call("train", "--ckpt_path", str(kept.parent), "--trainer.max_steps", "3").status == 0
    assert "Did you mean 'model.network.n_embd'?" in through_a_pipe("model: {n_emb: 3}").err
    assert "'os.system', which is code" in through_a_pipe("trainer: {callbacks: os.system}").err

    os.mkfifo(folder / "named.yaml")
    writer = threading.Thread(target=(folder / "named.yaml").write_text, args=(text,), daemon=True)
    writer.start()
    result = call("train", "--config", "named.yaml", *QUICK, "--trainer.max_steps", "2")
    assert result.status == 0, result.err
    assert (folder / "lightning_logs" / "named" / "version_0" / "checkpoints" / "last.ckpt").exists()


def test_what_the_parser_does_to_settings_leaves_the_recipe_as_it_was_read(folder):
    text = "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/loss}}]}\n"
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    flags = ["--config", TINY, *QUICK, "--config", "a.yaml", "--trainer.callbacks.patience=7"]
    parser = MiniGPTCLI(flags).parser
    assert parser.recipe("a.yaml").settings == recipes.load(text)
    assert parser.recipe(TINY).settings == yaml.safe_load(Path(TINY).read_text(encoding="utf-8"))


def test_a_checkpoint_is_looked_at_once(call, train, monkeypatch):
    read, files = loading.read_checkpoint, []

    def counted(file, *args, **kwargs):
        files.append(Path(file).name)
        return read(file, *args, **kwargs)

    assert train("--trainer.max_steps", "2").status == 0
    monkeypatch.setattr(loading, "read_checkpoint", counted)
    assert call("train", "--ckpt_path", "last", "--trainer.max_steps", "3").status == 0
    assert files == ["last.ckpt"]
