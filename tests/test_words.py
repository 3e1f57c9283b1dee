"""The interface's texts: which language they are in, and that both languages say the same."""

import re
from string import Formatter

import pytest
from conftest import QUICK, ROOT

from minigpt.evaluation import as_table
from minigpt.words import LABELS, MESSAGES, locale_language, message


@pytest.mark.parametrize(
    ("settings", "language"),
    [
        ({}, "en"),
        ({"LANG": "fr_FR.UTF-8"}, "fr"),
        ({"LANG": "fr"}, "fr"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LC_MESSAGES": "fr_CA.UTF-8", "LANG": "en_US.UTF-8"}, "fr"),
        ({"LC_ALL": "en_US.UTF-8", "LC_MESSAGES": "fr_FR.UTF-8", "LANG": "fr_FR.UTF-8"}, "en"),
        ({"LC_ALL": "", "LANG": "fr_FR.UTF-8"}, "fr"),
        ({"LANGUAGE": "fr:en", "LANG": "en_US.UTF-8"}, "fr"),
        ({"LANGUAGE": "en:fr", "LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANGUAGE": "fr", "LC_ALL": "C"}, "en"),
        ({"LANGUAGE": "fr", "LC_ALL": "C.UTF-8"}, "en"),
    ],
)
def test_the_language_is_that_of_the_locale(monkeypatch, settings, language):
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert locale_language() == language


@pytest.mark.parametrize("table", [LABELS, MESSAGES])
def test_both_languages_have_the_same_texts_with_the_same_values(table):
    def fields(text: str) -> list[str]:
        return sorted(spec for _, field, spec, _ in Formatter().parse(text) if field is not None)

    assert table["en"].keys() == table["fr"].keys()
    for name in table["en"]:
        assert fields(table["en"][name]) == fields(table["fr"][name]), name


def test_every_message_that_the_code_names_is_there():
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "minigpt").rglob("*.py"))
    named = set(re.findall(r'\b(?:message|say|Problem)\((?:request, )?"(\w+)"', code))
    assert len(named) > 50
    assert named <= MESSAGES["en"].keys()


def test_numbers_are_written_as_the_language_does():
    assert message("training_text", 137075, 53) == "137,075 tokens to train on, 53 distinct"
    french = message("training_text", 137075, 53, language="fr")
    assert french == "137\u00a0075 jetons d'entraînement, dont 53 distincts"
    assert message("train_loss", 2.25, language="fr") == "perte 2,2500"
    assert message("run_folder", "a.b,c", language="fr") == "dossier a.b,c", "texts stay as they are"


@pytest.mark.slow
def test_what_a_training_says_in_a_french_locale_is_french(call, folder, monkeypatch):
    """Its notes too: of the encoding of a text, of a schedule, and of settings that a resume changes."""
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")
    monkeypatch.delenv("LANGUAGE", raising=False)
    (folder / "court.txt").write_bytes("Un été, la forêt s'étendait jusqu'à la mer. ".encode("latin-1") * 20)
    small = ["--model.network.n_layer", "1", "--model.network.n_embd", "64", "--data.path", "court.txt"]
    train = ["train", "--config", f"{ROOT}/configs/gpt_nano.yaml", *small, *QUICK]
    first = call(*train, "--trainer.max_steps", "4", "--model.decay_steps", "3", "--model.min_lr", "0")
    assert first.status == 0, first.err
    resumed = call(*train, "--trainer.max_steps", "8", "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    for words in ("n'est pas en UTF-8", "il récitera", "model.warmup_steps vaut 0 au lieu de", "rien n'est appris"):
        assert words in first.err
    for words in (
        "valait 4 au début de l'entraînement et vaut maintenant 8",
        "couvre maintenant 8 étapes au lieu de 3",
    ):
        assert words in resumed.err
    assert not re.search(r"\b(the|is|and|with|of|from)\b", first.err + resumed.err)


def test_the_table_of_evaluate_is_french_in_a_french_locale(monkeypatch):
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")
    monkeypatch.delenv("LANGUAGE", raising=False)
    memorisation = {"samples": {"longest_overlap": 7, "share": 0.25, "overlap": "un mot "}}
    scores = {"loss": 2.25, "tokens": 13708, "baselines": {"xz": 3.5}, "memorisation": memorisation}
    lines = as_table(scores)
    assert [re.split(r"  +", line.strip()) for line in lines] == [
        ["perte", "2,2500", "nats par jeton"],
        ["jetons", "13\u00a0708"],
        ["valeurs de référence (bits par caractère)"],
        ["xz", "3,5000"],
        ["mémorisation"],
        ["textes générés"],
        ["plus long emprunt", "7"],
        ["part", "0,2500"],
        ["emprunt", "'un mot '"],
    ]
    assert len({line.index(",") for line in lines if "," in line}) == 1, "decimal commas are aligned"
