"""The interface's texts: which language they are in, and that both languages say the same."""

import re
from string import Formatter

import pytest
from conftest import ROOT

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
    named = set(re.findall(r'\b(?:message|_say|Problem)\((?:request, )?"(\w+)"', code))
    assert len(named) > 50
    assert named <= MESSAGES["en"].keys()


def test_numbers_are_written_as_the_language_does():
    assert message("training_text", 137075, 53) == "137,075 tokens to train on, 53 distinct"
    french = message("training_text", 137075, 53, language="fr")
    assert french == "137\u00a0075 jetons d'entraînement, dont 53 distincts"
    assert message("train_loss", 2.25, language="fr") == "perte 2,2500"
    assert message("run_folder", "a.b,c", language="fr") == "dossier a.b,c", "texts stay as they are"
