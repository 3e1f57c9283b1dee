"""Short texts that are not UTF-8 come back equal, whatever their language, and a note says where two encodings tie.

The texts are the benchmark's (`benchmarks/texts`), of the half on which no threshold was set; docs/encodings.md has the
whole table.
"""

import random
import sys

import pytest
from conftest import ROOT, read

from minigpt.data import reading

sys.path.insert(0, str(ROOT / "benchmarks"))
import encoding as benchmark


def misread(texts: list[str], encoding: str) -> list[str]:
    return [text for text in texts if benchmark.read(text.encode(encoding))[0] != text]


def some_slices(language: str, kinds: tuple[str, ...], lengths: tuple[int, ...] = (200, 1000, 2500)) -> list[str]:
    return [
        text
        for kind in kinds
        for length in lengths
        for text in benchmark.slices(language, "table", kind, length, count=4)
    ]


@pytest.mark.parametrize("language", benchmark.WESTERN)
def test_a_short_western_text_is_read_right_whatever_its_kind(language):
    assert misread(some_slices(language, benchmark.KINDS), "cp1252") == []


@pytest.mark.parametrize("length", [200, 500, 1000, 2000, 2500])
def test_slices_of_the_embedded_corpus_are_read_right(length):
    corpus, draw = read("exemple"), random.Random(length)
    starts = [draw.randrange(len(corpus) - length) for _ in range(40)]
    assert misread([corpus[start : start + length] for start in starts], "cp1252") == []


@pytest.mark.parametrize(
    ("language", "encoding"),
    [("Polish", "cp1250"), ("Czech", "cp1250"), ("Turkish", "cp1254"), ("Polish", "iso8859_2"), ("Czech", "iso8859_2"),
     ("French", "mac_roman"), ("Spanish", "cp850"), ("Russian", "cp1251"), ("Greek", "cp1253")],
)  # fmt: skip
def test_a_short_text_in_another_encoding_is_read_right(language, encoding):
    texts = some_slices(language, ("prose", "lower case"), lengths=(500, 2500))
    assert misread([text.translate(benchmark.PLAIN) for text in texts], encoding) == []


@pytest.mark.parametrize("encoding", ["cp1251", "mac_cyrillic"])
def test_two_russian_words_again_and_again_are_not_taken_for_western_ones(encoding):
    assert misread(["— А зимой?\n" * 40], encoding) == []


@pytest.mark.parametrize("half", benchmark.HALVES)
def test_a_paragraph_in_any_of_the_other_languages_is_read_right(half):
    wrong = [(name, code) for name, code, text in benchmark.others(half) if misread([text * 2], code)]
    assert wrong == []


def test_several_western_languages_in_one_text_are_read_right():
    draw = random.Random(0)
    paragraphs = {name: some_slices(name, ("prose",), (500,)) for name in benchmark.WESTERN}
    texts = ["\n".join(draw.choice(paragraphs[name]) for name in draw.sample(benchmark.WESTERN, 3)) for _ in range(20)]
    assert misread(texts, "cp1252") == []


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1250", "Zażółć gęślą jaźń"), ("iso8859_2", "Příliš žluťoučký kůň"), ("cp850", "été"),
        ("cp1254", "Çalışkan öğrenci şarkı söyledi"), ("mac_roman", "Ça y est, l'été à la forêt"),
        ("cp1252", "“It’s late,” he said — and left…"),
    ],
)  # fmt: skip
def test_a_few_letters_are_enough_where_no_other_encoding_makes_words_of_them(folder, capfd, encoding, text):
    (folder / "a.txt").write_bytes(text.encode(encoding))
    assert read("a.txt") == text
    assert f"read as {encoding}. If that is wrong, pass a different encoding" in capfd.readouterr().err


@pytest.mark.parametrize("times", [1, 300])
def test_where_other_encodings_are_as_likely_the_note_names_them(folder, capfd, times):
    text = "Où est la clé ? " * times  # in cp1250 « ů », in cp1257 « ł », as frequent in Czech and Polish as « ù » here
    (folder / "a.txt").write_bytes(text.encode("cp1252"))
    assert read("a.txt") == text
    note = capfd.readouterr().err
    assert "'a.txt' is not UTF-8; it is read as cp1252, but cp1250 or cp1257 is about as likely." in note
    assert "pass --data.encoding cp1250" in note
    assert len({text, read("a.txt", encoding="cp1250"), read("a.txt", encoding="cp1257")}) == 3


def test_an_encoding_that_gives_the_same_text_is_not_named(folder, capfd):
    (folder / "a.txt").write_bytes(("café, éléphant. " * 30).encode("cp1250"))
    assert read("a.txt") == "café, éléphant. " * 30
    assert "likely" not in capfd.readouterr().err


def test_the_benchmark_counts_what_is_read_and_what_was_read_before(monkeypatch):
    count = benchmark.Count()
    count.add("Il a bien mangé, puis il est allé à la forêt, où il a rêvé. " * 20, "cp1252")
    count.add("Ένα πρωί", "cp1252")  # cannot be encoded
    assert (count.texts, count.right) == (1, 1)
    monkeypatch.setattr(reading, "guess", lambda sample: None)
    count.add("été", "cp1252")
    assert (count.texts, count.right) == (2, 1)
