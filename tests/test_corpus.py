from collections import Counter

import pytest

from minigpt.data.corpus import clean, locate, read_text
from minigpt.errors import MiniGPTError


def test_the_embedded_corpus_is_long_varied_french():
    text = read_text("exemple")
    assert len(text) >= 80_000
    paragraphs = Counter(line for line in text.splitlines() if len(line) > 20)
    assert max(paragraphs.values()) == 1
    pieces = Counter(text[i : i + 60] for i in range(len(text) - 60))
    assert max(pieces.values()) == 1, "a passage stands twice"
    assert "Un matin, " in text
    assert set("éèêàâçùûîïôœ«»—…") <= set(text)
    assert not set("\u2019\u00a0\t\r") & set(text), "characters that a French keyboard does not type"


def test_cleaning_is_the_articles():
    assert clean("  Été\n", lower=True, strip=True) == "été"
    assert clean("  Été\n") == "  Été\n"


def test_a_byte_order_mark_is_no_character(folder):
    (folder / "a.txt").write_text("été", encoding="utf-8-sig")
    assert read_text("a.txt") == "été"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"caf\xe9", "byte 3 is 0xe9"), (b"a\0b", "not text")],
)
def test_what_is_no_text_is_refused(folder, content, words):
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(MiniGPTError, match=words):
        read_text("a.txt")


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(MiniGPTError, match="Did you mean 'exemple'"):
        locate("example")
