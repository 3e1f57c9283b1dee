"""Files from a stranger: a config or a checkpoint runs no code, takes no memory, and leads nowhere."""

import pickle
import shutil
import zipfile

import pytest
import torch
from conftest import QUICK, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minigpt
from minigpt import MiniGPTError, loading

RUN = "lightning_logs/tiny/version_0"
EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"


@pytest.fixture
def stranger(folder, monkeypatch):
    """A module that leaves a trace when it is imported, and its callback one when it is made."""
    (folder / "stranger.py").write_text(
        "import lightning.pytorch.callbacks\n"
        "open('imported', 'w').close()\n"
        "class Callback(lightning.pytorch.callbacks.Callback): pass\n"
        "def act(*args): open('acted', 'w').close()\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield folder
    import sys

    sys.modules.pop("stranger", None)


EVIL = [
    "callbacks: stranger.Callback",
    "callbacks+: stranger.Callback",
    "callbacks: [stranger.Callback]",
    "callbacks: {class_path: stranger.Callback}",
    "callbacks: [{class_path: Callback}]",
    "callbacks: [{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_fit_start: stranger.act}}]",
    "callbacks: [{class_path: LambdaCallback, init_args: {on_fit_start: stranger.act}}]",
    f"callbacks: [{{class_path: {EMA}, init_args: {{decay: stranger.act}}}}]",
    "callbacks: [{class_path: WeightAveraging, init_args: {avg_fn: ' stranger.act'}}]",
    "plugins: [{class_path: stranger.Callback}]",
    "strategy: {class_path: stranger.Callback}",
    "profiler: stranger.Callback",
    "callbacks: other.yaml",
    "callbacks: '[{class_path: stranger.Callback}]'",
    "callbacks: ['{class_path: stranger.Callback}']",
    'callbacks: "stranger.Callback\\n# a comment"',
]


@pytest.mark.parametrize("line", EVIL)
def test_a_config_that_names_code_is_refused_before_anything_is_imported(call, stranger, line):
    (stranger / "other.yaml").write_text("class_path: stranger.Callback\n")
    (stranger / "evil.yaml").write_text(f"trainer:\n  {line}\n")
    result = call("train", "--config", TINY, "--config", "evil.yaml", *QUICK, "--trainer.max_steps", "1")
    assert result.status == 2
    assert "evil.yaml" in result.err
    assert "--allow_code" in result.err
    assert not (stranger / "imported").exists()
    assert not (stranger / "acted").exists()
    assert not (stranger / "lightning_logs").exists()


@pytest.mark.parametrize("text", ["trainer.callbacks: stranger.Callback", "model: {class_path: stranger.Callback}"])
def test_a_class_path_anywhere_is_refused(call, stranger, text):
    (stranger / "evil.yaml").write_text(text)
    assert call("train", "--config", TINY, "--config", "evil.yaml", *QUICK).status == 2
    assert not (stranger / "imported").exists()


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("config: whole.yaml", []),
        ("trainer: ./part.yaml", []),
        ("trainer:\n  callbacks: ./other.yaml", []),
        (f"trainer:\n  callbacks: [{{class_path: {EMA}, dict_kwargs: {{avg_fn: stranger}}}}]", []),
        ("seed_everything: 1", ["--trainer", "./part.yaml"]),
        ("trainer: &a {callbacks: *a}", []),
    ],
)
def test_no_way_round_the_list(call, stranger, text, flags):
    (stranger / "other.yaml").write_text("class_path: stranger.Callback\n")
    (stranger / "part.yaml").write_text("callbacks: stranger.Callback\n")
    (stranger / "whole.yaml").write_text("trainer:\n  callbacks: stranger.Callback\n")
    (stranger / "evil.yaml").write_text(f"{text}\n")
    result = call("train", "--config", TINY, "--config", "evil.yaml", *QUICK, "--trainer.max_steps", "1", *flags)
    assert result.status == 2
    assert "Traceback" not in result.err
    assert not (stranger / "imported").exists()
    assert not (stranger / "lightning_logs").exists()


@pytest.mark.slow
def test_what_is_on_the_list_or_allowed_or_typed_runs(call, stranger):
    (stranger / "mine.yaml").write_text(f"trainer:\n  callbacks: [{EMA}, {{class_path: stranger.Callback}}]\n")
    base = ["train", "--config", TINY, *QUICK, "--trainer.max_steps", "2"]
    result = call(*base, "--config", "mine.yaml", "--allow_code", "stranger")
    assert result.status == 0, result.err
    assert call(*base, "--config", "mine.yaml", "--allow_code=strange").status == 2
    (stranger / "list.yaml").write_text(f"trainer:\n  callbacks: {EMA}\n")
    assert call(*base, "--config", "list.yaml").status == 0
    assert call(*base, "--trainer.callbacks+", "stranger.Callback").status == 0


def test_only_the_command_line_allows_code(call, stranger):
    (stranger / "evil.yaml").write_text("allow_code: stranger\ntrainer:\n  callbacks: stranger.Callback\n")
    result = call("train", "--config", TINY, "--config", "evil.yaml", *QUICK)
    assert result.status == 2
    assert "allow_code, which only the command line can" in result.err
    assert not (stranger / "imported").exists()


def test_a_run_of_a_strangers_is_held_to_the_list_and_stays_where_it_is(call, stranger, trained_run):
    shutil.copytree(trained_run, stranger / RUN)
    config = stranger / RUN / "config.yaml"
    good = config.read_text(encoding="utf-8")
    config.write_text(good.replace("callbacks: null", "callbacks: stranger.Callback"), encoding="utf-8")
    assert "stranger" in config.read_text(encoding="utf-8")
    result = call("train", "--ckpt_path", RUN)
    assert result.status == 2
    assert "'stranger.Callback'" in result.err
    assert not (stranger / "imported").exists()
    outside = good.replace(f"default_root_dir: {trained_run.parents[2]}", "default_root_dir: outside")
    config.write_text(outside, encoding="utf-8")
    assert "default_root_dir: outside" in outside
    best = str(stranger / RUN / "checkpoints" / "best.ckpt")  # a new run, since it is not the last
    shutil.copy(best, stranger / "alone.ckpt")
    assert call("train", "--ckpt_path", RUN, "--trainer.max_steps", "62").status == 0
    assert not (stranger / "outside").exists()


def test_checkpoints_that_a_link_would_lead_elsewhere_are_not_written(call, folder, trained_run):
    shutil.copytree(trained_run, folder / RUN)
    shutil.move(folder / RUN / "checkpoints", folder / "outside")
    (folder / RUN / "checkpoints").symlink_to(folder / "outside")
    before = {file.name: file.read_bytes() for file in (folder / "outside").iterdir()}
    result = call("train", "--ckpt_path", RUN, "--trainer.max_steps", "62")
    assert result.status == 2
    assert "is a link out of its run folder" in result.err
    assert {file.name: file.read_bytes() for file in (folder / "outside").iterdir()} == before


class Evil:
    def __reduce__(self):
        return (open, ("acted", "w"))


def test_a_crafted_pickle_is_refused_and_nothing_runs(call, folder):
    torch.save({"minigpt": {"version": "0.1.0"}, "state_dict": Evil()}, "evil.ckpt")
    (folder / "plain.ckpt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.ckpt", "plain.ckpt"):
        for command in (["generate"], ["evaluate"], ["export", "--format", "hf", "--out", "out"]):
            result = call(*command, "--ckpt_path", name)
            assert result.status == 2
            assert name in result.err
        result = call("train", "--config", TINY, *QUICK, "--ckpt_path", name)
        assert result.status == 2
        assert not (folder / "acted").exists()


@pytest.mark.parametrize(
    "claim",
    [
        {"n_embd": 10**12}, {"vocab_size": 10**12}, {"block_size": 10**12, "kind": "minigpt.GPT"},
        {"kind": "minigpt.GPT", "n_layer": 10**12}, {"kind": "minigpt.GPT", "position": "rope", "block_size": 10**10},
        {"n_embd": 65}, {"n_embd": "64"}, {"n_embd": -1}, {"kind": "os.system"}, {"kind": "minigpt.load"}, {"evil": 1},
    ],
)  # fmt: skip
def test_a_claim_that_the_weights_do_not_bear_out_is_refused_at_once(folder, trained_run, claim):
    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    network = checkpoint["minigpt"]["model"]
    network["class_path"] = claim.get("kind", network["class_path"])
    network["init_args"] |= {key: value for key, value in claim.items() if key != "kind"}
    torch.save(checkpoint, "claims.ckpt")
    with pytest.raises(MiniGPTError):
        minigpt.load("claims.ckpt")


@pytest.fixture(scope="module")
def files(trained_run, tmp_path_factory):
    """A folder, and a whole checkpoint in it."""
    place = tmp_path_factory.mktemp("fuzz")
    shutil.copy(trained_run / "checkpoints" / "last.ckpt", place / "whole.ckpt")
    return place


DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7)),
    st.tuples(st.just("zero"), st.floats(0, 1, exclude_max=True), st.integers(1, 4000)),
    st.tuples(st.just("swap"), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)


def damaged(whole: bytes, damage: tuple) -> bytes:
    kind, where, how = damage
    at = int(where * len(whole))
    if kind == "cut":
        return whole[:at]
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ (1 << how)]) + whole[at + 1 :]
    if kind == "zero":
        return whole[:at] + bytes(len(whole[at : at + how])) + whole[at + how :]
    other = int(how * len(whole))
    first, second = sorted((at, other))
    return whole[:first] + whole[second:] + whole[first:second]


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE)
def test_a_damaged_checkpoint_is_an_error_of_ours_or_loads_right(files, damage):
    file, whole = files / "a.ckpt", files / "whole.ckpt"
    file.write_bytes(damaged(whole.read_bytes(), damage))
    good = torch.load(whole, weights_only=True)
    try:
        checkpoint = loading.read_checkpoint(file)
        lm = loading.language_model(checkpoint)
    except MiniGPTError:
        return
    assert {k: v.tolist() for k, v in lm.model.state_dict().items()} == {
        k.removeprefix("network."): v.tolist() for k, v in good["state_dict"].items()
    }
    assert checkpoint["minigpt"] == good["minigpt"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["minigpt", "state_dict", "version", "model", "data", "tokenizer"]), value=st.one_of(
    st.none(), st.integers(), st.text(), st.lists(st.integers(), max_size=3), st.dictionaries(st.text(), st.integers())
))  # fmt: skip
def test_a_checkpoint_that_holds_other_things_is_an_error_of_ours(files, key, value):
    checkpoint = torch.load(files / "whole.ckpt", weights_only=True)
    inside = checkpoint if key in checkpoint else checkpoint["minigpt"]
    inside = inside["data"] if key == "tokenizer" else inside
    inside[key] = value
    torch.save(checkpoint, files / "b.ckpt")
    with pytest.raises(MiniGPTError):
        loading.language_model(loading.read_checkpoint(files / "b.ckpt"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=DAMAGE)
def test_a_damaged_config_is_an_error_of_ours_or_a_recipe(folder, damage):
    from minigpt.training import recipes
    from minigpt.training.trust import check_names

    with open(TINY, "rb") as file:
        whole = file.read()
    (folder / "a.yaml").write_bytes(damaged(whole, damage))
    try:
        recipe = recipes.read("a.yaml").settings
        check_names(recipe, "a.yaml")
    except MiniGPTError:
        return
    assert isinstance(recipe, dict)


def test_an_archive_bomb_in_a_checkpoints_place_is_refused(folder):
    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(MiniGPTError, match=r"bomb.ckpt"):
        loading.read_checkpoint(folder / "bomb.ckpt")
