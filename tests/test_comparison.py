"""Comparison of runs: what is compared, with what, and what is said about it."""

import json
import math
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, TINY, made_once

from minigpt import files, runs
from minigpt.comparison import report, samples, sides
from minigpt.comparison.sides import (
    ScoredRun,
    Side,
    block_sizes,
    by_kind,
    by_position,
    compare_sides,
    in_blocks,
    passages,
)


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """Runs of the article's recipe: two seeds of 40 steps, and one of byte pairs. Not to be written to."""

    def make(place: Path) -> None:
        from minigpt.training.cli import MiniGPTCLI

        common = ["--config", TINY, *QUICK, "--trainer.max_steps", "40", "--validation.every_n_steps", "20"]
        for args in (
            ["--seed_everything", "1"], ["--seed_everything", "2"],
            ["--data.tokenizer", "bpe", "--data.max_vocab_size", "300", "--seed_everything", "3"],
        ):  # fmt: skip
            name = "bpe" if "bpe" in args else "char"
            cli = MiniGPTCLI([*common, *args, "--trainer.default_root_dir", str(place / name)])
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)

    return made_once(tmp_path_factory, "compared", make)


def group_of(place: Path, name: str) -> str:
    """The folder of the runs of a name."""
    (found,) = {str(run.parent) for run in (place / name).glob("**/version_*")}
    return found


def result(call, *args: str) -> dict:
    answered = call("compare", *args)
    assert answered.status == 0, answered.err
    return json.loads(answered.out)


@pytest.mark.slow
def test_scores_are_those_of_evaluate(call, compared):
    run = group_of(compared, "char") + "/version_0"
    found = result(call, run, run + "@20")
    for side, path in zip(found["sides"], (run, run + "@20"), strict=True):
        scored = json.loads(call("evaluate", "--ckpt_path", path).out)
        assert side["bits_per_char"] == pytest.approx(scored["bits_per_char"], abs=1e-4)
        assert side["runs"][0]["loss"] == pytest.approx(scored["loss"], abs=1e-5)
    (difference,) = found["differences"]
    assert difference["mean"] > difference["half_width"] > 0  # step 20 is worse
    assert difference["clear"]
    assert sum(difference["by_kind"].values()) == pytest.approx(difference["mean"], abs=1e-6)
    assert found["sides"][0]["runs"][0]["tokens"] == 40 * 4 * 64
    assert found["settings"] == {}


@pytest.mark.slow
def test_a_folder_of_runs_is_a_group_of_seeds(call, compared):
    group = group_of(compared, "char")
    found = result(call, group, group + "/version_0", "--plot", "plots")
    drawn = {file.name: file.read_bytes()[:4] for file in Path("plots").iterdir()}
    assert drawn == dict.fromkeys(("curves.png", "intervals.png", "positions.png"), b"\x89PNG")
    first, second = found["sides"]
    assert len(first["runs"]) == 2
    assert first["bits_per_char"] == pytest.approx(np.mean([run["bits_per_char"] for run in first["runs"]]))
    assert first["deviation"] > 0
    assert second["deviation"] is None
    assert found["differences"][0]["seeds"] > 0
    assert not found["differences"][0]["clear"]


@pytest.mark.slow
def test_models_with_different_tokenizers_are_compared_on_the_same_characters(call, compared):
    found = result(call, group_of(compared, "char") + "/version_0", group_of(compared, "bpe"))
    assert found["settings"]["data.tokenizer"] == ["char", "bpe"]
    for side, path in zip(
        found["sides"], (group_of(compared, "char") + "/version_0", group_of(compared, "bpe")), strict=True
    ):
        run = path if path.endswith("0") else path + "/version_0"
        scored = json.loads(call("evaluate", "--ckpt_path", run).out)
        assert side["bits_per_char"] == pytest.approx(scored["bits_per_char"], abs=0.01)


@pytest.mark.slow
def test_a_run_that_is_still_training_is_noted(call, compared):
    shutil.copytree(Path(group_of(compared, "char")) / "version_0", "copy/version_0")
    others = group_of(compared, "char") + "/version_1"
    with files.lock(Path("copy/version_0/.lock"), blocking=False):
        answered = call("compare", "copy/version_0", others)
        assert "copy/version_0 is still training" in answered.err
    assert "still training" not in call("compare", "copy/version_0", others).err


@pytest.mark.slow
def test_a_repeated_seed_counts_once(call, compared, folder):
    (source,) = {run.parent for run in (compared / "char").glob("**/version_*")}
    shutil.copytree(source / "version_0", "copies/version_0")
    shutil.copytree(source / "version_0", "copies/version_1")
    answered = call("compare", "copies", str(source / "version_1"))
    assert "copies/version_0 has the same seed as copies/version_1 and is left out." in answered.err
    assert len(json.loads(answered.out)["sides"][0]["runs"]) == 1


@pytest.mark.slow
def test_a_common_text_makes_other_runs_comparable(call, compared):
    Path("text.txt").write_text("un matin, la petite fille descend le chemin. " * 60, encoding="utf-8")
    run, other = group_of(compared, "char") + "/version_0", group_of(compared, "char") + "/version_1"
    found = result(call, run, other, "--data.path", "text.txt")
    assert found["characters"] == 60 * 45 - 2  # stripped, and the first is not scored
    Path("other.txt").write_text("un autre texte, bien plus court. " * 40, encoding="utf-8")
    trained = call(
        "train", "--config", TINY, *QUICK, "--trainer.max_steps", "5", "--data.path", "other.txt",
        "--validation.every_n_steps", "5",
    )  # fmt: skip
    assert trained.status == 0
    answered = call("compare", run, "lightning_logs/tiny")
    assert answered.status == 2
    assert "were validated on different texts" in answered.err
    assert "--data.path" in answered.err


@pytest.mark.slow
def test_texts_stand_side_by_side(call, compared):
    group = group_of(compared, "char")
    found = result(call, group + "/version_0", group + "/version_1", "--samples", "2", "--plot", "plots")
    rows = found["samples"]
    assert [row["seed"] for row in rows] == [0, 1]
    for n in (0, 1):
        alone = call(
            "generate", "--ckpt_path", f"{group}/version_{n}", "--prompt", rows[1]["prompt"], "--seed", "1"
        ).out  # fmt: skip
        assert rows[1]["texts"][n] == alone.rstrip("\n")
    page = Path("plots/samples.html").read_text(encoding="utf-8")
    assert escape(rows[0]["texts"][1]) in page
    two = [Side("a"), Side("b")]
    lines = samples.as_lines(two, [{"prompt": "x", "seed": 3, "texts": ["un deux " * 30, "trois\n\nquatre"]}])
    assert all(line.count(" | ") == 1 for line in lines if line and not line.startswith("Seed"))
    assert "<b>" not in samples.as_html(two, [{"texts": ["<b>", "x"]}])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["one"], "A comparison needs two runs or more"),
        (["nowhere", "last"], "There is no run or checkpoint at 'nowhere'"),
        (["a", "b", "--data.encoding", "utf-8"], "--data.encoding is for a text given with --data.path"),
    ],
)
def test_mistakes(call, args, sentence):
    answered = call("compare", *args)
    assert answered.status == 2
    assert sentence in answered.err


@pytest.mark.slow
def test_the_report_says_what_can_be_said(call, compared, monkeypatch):
    group = group_of(compared, "char")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    scored_sides = sides.score_all(sides.find_sides([group + "/version_0", group + "/version_1"]))
    said = "\n".join(report.as_lines(scored_sides))
    assert "How much another seed changes is unknown" in said
    scored_sides = sides.score_all(sides.find_sides([group, group + "/version_1@20"]))
    said = "\n".join(report.as_lines(scored_sides))
    assert "the other is taken to vary as much" in said


def scored(text: str, bits: list[float], targets: list[int] | None = None, **settings) -> ScoredRun:
    places = np.arange(len(bits)) if targets is None else np.array(targets)
    figures = dict.fromkeys(("parameters", "step", "tokens", "seconds", "loss"))
    return ScoredRun("run", Path("x"), settings, figures, text, places, np.array(bits), np.arange(len(bits)) % 4)


def test_blocks_hold_every_bit_once():
    run = scored("a" * 10, [1.0] * 10)
    assert in_blocks(run, 4).tolist() == [4, 6]
    assert block_sizes(10, 4).tolist() == [4, 6]
    assert in_blocks(scored("abcdefgh", [3.0, 5.0], [0, 5]), 4).tolist() == [3, 5]
    assert in_blocks(scored("ab", [1.0, 2.0]), 4).tolist() == [3]


def test_each_kind_adds_its_part():
    text = "Le 12 mai, non."
    kinds = by_kind(Side("a", [scored(text, [0.0] * 15)]), Side("b", [scored(text, [1.0] * 15)]))
    assert {kind: round(15 * part) for kind, part in kinds.items()} == {
        "space": 3, "first": 3, "letter": 5, "digit": 2, "mark": 2,
    }  # fmt: skip


def test_passages_are_those_with_the_largest_changes():
    rng = np.random.default_rng(0)
    text = "".join(chr(97 + k % 26) for k in range(64 * 30))
    before = rng.random(len(text))
    after = before.copy()
    after[64 * 7 : 64 * 8] -= 1
    after[64 * 3 : 64 * 4] += 2
    found = passages(Side("a", [scored(text, before.tolist())]), Side("b", [scored(text, after.tolist())]), 1)
    assert found == [(pytest.approx(-1), text[448:512]), (pytest.approx(2), text[192:256])]


def test_the_mean_over_positions_is_that_of_each_position():
    side = Side("a", [scored("abcdefgh", [1.0, 2, 3, 4, 3, 2, 1, 0])])
    assert by_position(side).tolist() == [2, 2, 2, 2]


def test_a_difference_of_models_is_that_of_their_scores():
    rng = np.random.default_rng(1)
    text = "x" * 4096
    first = Side("a", [scored(text, (2 + rng.random(4096)).tolist())])
    second = Side("b", [scored(text, (2.2 + rng.random(4096)).tolist())])
    found = compare_sides(first, second)
    assert found.mean == pytest.approx(second.scores[0] - first.scores[0])
    assert found.clear
    assert math.isfinite(found.text)


def test_names_of_recipes_are_groups(folder):
    for version in (0, 2, 10):
        file = Path(runs.ROOT) / "tiny" / f"version_{version}" / "checkpoints" / "best.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
    (Path(runs.ROOT) / "tiny" / "version_11").mkdir()  # without a checkpoint
    (_, files), (_, others) = sides.find_sides(["tiny", "lightning_logs/tiny"])
    assert [file.parent.parent.name for file in files] == ["version_0", "version_2", "version_10"]
    assert [file.resolve() for file in files] == [file.resolve() for file in others]
