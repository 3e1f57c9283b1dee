"""`minigpt.train`, the command as a function."""

import pytest
import torch
from conftest import QUICK, TINY

import minigpt
from minigpt import LanguageModel, MiniGPTError
from minigpt.training.api import _full_name, _known_settings

CPU = {"accelerator": "cpu", "samples.every_n_steps": 0, "figures.every_n_steps": 0}


@pytest.fixture
def text(folder):
    (folder / "mon texte.txt").write_text("le chat dort sur le toit, et le chien le sait. " * 60, encoding="utf-8")
    return "mon texte.txt"


def test_it_trains_what_the_command_trains_and_gives_the_model_back(text, folder, call):
    lm = minigpt.train("tiny", data=text, max_steps=8, n_embd=16, learning_rate=1e-2, **CPU)
    assert isinstance(lm, LanguageModel)
    assert lm.run_dir == folder / "lightning_logs" / "tiny" / "version_0"
    flags = ["--trainer.max_steps", "8", "--model.network.n_embd", "16", "--model.learning_rate", "1e-2", *QUICK]
    assert call("train", "--config", TINY, "--data.path", text, *flags).status == 0
    other = minigpt.load("last")
    assert other.run_dir.name == "version_1"
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), other.model.parameters(), strict=True))
    assert lm.generate("le chat", 10, seed=0) == other.generate("le chat", 10, seed=0)


def test_it_continues_a_run(text):
    first = minigpt.train("tiny", data=text, max_steps=4, **CPU)
    again = minigpt.train("tiny", data=text, max_steps=6, ckpt_path="last", **CPU)
    assert again.run_dir == first.run_dir
    done = minigpt.train("tiny", data=text, max_steps=6, ckpt_path="last", **CPU)
    assert done.run_dir == first.run_dir


@pytest.mark.parametrize("off", [{"fast_dev_run": 2}, {"enable_checkpointing": False, "max_steps": 2}])
def test_without_checkpoints_it_gives_the_model_after_the_last_step(text, off):
    fresh = minigpt.train("tiny", data=text, max_steps=1, learning_rate=0.0, **CPU)
    lm = minigpt.train("tiny", data=text, learning_rate=1e-2, **off, **CPU)
    assert not lm.model.training
    assert not torch.equal(lm.model.embed.weight, fresh.model.embed.weight)
    assert (lm.run_dir is None) == ("fast_dev_run" in off)
    assert lm.generate("le chat", 10, seed=0).startswith("le chat")


def test_values_arrive_as_they_are(text):
    lm = minigpt.train(TINY, data=text, max_steps=2, seed=7, prompts=["1e5", "a: b"], nfc=False, network="GPT", **CPU)
    settings = minigpt.loading.read_checkpoint(minigpt.runs.find_checkpoint(lm.run_dir))["minigpt"]
    assert settings["model"]["class_path"] == "minigpt.GPT"
    assert settings["data"]["nfc"] is False
    recipe = (lm.run_dir / "config.yaml").read_text(encoding="utf-8")
    assert "seed_everything: 7" in recipe
    assert "'1e5'" in recipe


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_step": 3}, "Unknown setting 'max_step'. Did you mean 'trainer.max_steps'"),
        ({"every_n_steps": 3}, r"Several settings are called every_n_steps: .*validation\.every_n_steps"),
        ({"n_embd": 0}, "n_embd is 0"),
        ({"data": "nowhere.txt"}, "nowhere.txt"),
        ({"ckpt_path": "nowhere"}, "nowhere"),
    ],
)
def test_a_mistake_is_a_sentence_that_can_be_caught(folder, settings, words):
    with pytest.raises(MiniGPTError, match=words):
        minigpt.train("tiny", **settings)
    assert not (folder / "lightning_logs").exists()


def test_a_recipe_that_is_nowhere_is_named():
    with pytest.raises(MiniGPTError, match="tinny"):
        minigpt.train("tinny")


def test_every_setting_that_one_group_has_is_reached_by_its_last_name():
    known = _known_settings()
    assert _full_name("batch_size", known) == "data.batch_size"
    assert _full_name("dropout", known) == "model.network.dropout"
    assert _full_name("max_epochs", known) == "trainer.max_epochs"
    assert _full_name("checkpoint.every_n_steps", known) == "checkpoint.every_n_steps"
