"""Whatever a text is packed in and however it is encoded, the same characters come out, or one plain sentence."""

import gzip
import json
import zipfile
from itertools import pairwise

import pytest
from backports import zstd
from conftest import read
from hypothesis import given
from hypothesis import strategies as st

from minigpt import MiniGPTError
from minigpt.data import reading

EXAMPLE = read("exemple")
LATIN = EXAMPLE.translate(str.maketrans({"œ": "oe", "—": "-", "…": "..."}))  # what Latin-1 has


@pytest.mark.parametrize(
    ("encoding", "newline"),
    [
        ("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\r"), ("utf-16", "\r\n"), ("utf-16-le", "\n"),
        ("utf-16-be", "\n"), ("utf-32", "\n"), ("latin-1", "\n"), ("cp1252", "\r\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [200, 2000, None])
def test_the_same_text_in_any_encoding_gives_the_same_characters(folder, capfd, encoding, newline, length):
    text = LATIN[:length]
    (folder / "a.txt").write_bytes(text.replace("\n", newline).encode(encoding))
    assert read("a.txt") == text
    unmarked = ("latin-1", "cp1252", "mac_roman", "cp850", "utf-16-le", "utf-16-be")
    assert ("--data.encoding" in capfd.readouterr().err) == (encoding in unmarked)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Однажды утром он вышел из дома и пошёл по дороге к реке. " * 8),
        ("koi8_r", "Однажды утром он вышел из дома и пошёл по дороге к реке. " * 8),
        ("cp1253", "Ένα πρωί βγήκε από το σπίτι και πήρε τον δρόμο για το ποτάμι. " * 8),
        ("cp932", "ある朝、彼は家を出て、川へ向かう道を歩き始めた。" * 12),
        ("gb18030", "一天早晨，他走出家门，沿着通向河边的路走去。" * 12),
    ],
)
def test_other_alphabets_are_recognised(folder, encoding, text):
    (folder / "a.txt").write_bytes(text.encode(encoding))
    assert read("a.txt") == text


@pytest.mark.parametrize("encoding", ["mac_roman", "cp850"])
def test_old_macs_and_dos_are_recognised_where_there_is_enough_text(folder, encoding):
    (folder / "a.txt").write_bytes(LATIN[:2000].encode(encoding))
    assert read("a.txt") == LATIN[:2000]


def test_a_short_text_that_ends_in_half_a_character_is_damaged_utf8(folder):
    (folder / "a.txt").write_bytes("L'été, où ça ? Là.".encode()[:11])
    with pytest.raises(MiniGPTError, match="not whole UTF-8: byte 10 is 0xc3"):
        read("a.txt")


def test_few_accents_are_taken_for_western(folder):
    (folder / "a.txt").write_bytes("L'été, à la forêt, où ça ?".encode("latin-1"))
    assert read("a.txt") == "L'été, à la forêt, où ça ?"


def test_an_encoding_that_is_named_is_taken(folder, capfd):
    (folder / "a.txt").write_bytes("été".encode("cp437"))
    assert read("a.txt", encoding="CP437") == "été"
    assert capfd.readouterr().err == ""


def test_an_encoding_is_found_far_into_a_text_too(folder, monkeypatch, capfd):
    monkeypatch.setattr(reading, "BLOCK", 1000)
    text = "plain words only. " * 400 + LATIN[:3000]
    (folder / "a.txt").write_bytes(text.encode("cp1252"))
    assert read("a.txt") == text
    assert "read as cp1252" in capfd.readouterr().err


@pytest.mark.parametrize("block", [1000, 1 << 20])
@pytest.mark.parametrize(
    ("content", "encoding", "words"),
    [
        ("été ".encode() * 900 + b"\xe9t", None, "not whole UTF-8: byte 5400 is 0xe9"),
        (b"caf\xe9", "utf-8", "not whole utf-8: byte 3 is 0xe9"),
        ("été ".encode() * 900 + b"\xc3", None, "byte 5400 is 0xc3"),
        ("été".encode("cp1252") * 900 + b"\x81", "cp1252", "not whole cp1252: byte 2700 is 0x81"),
        ("été".encode("utf-16") + b"\x00", None, "not whole utf-16: byte 8"),
        (bytes(range(1, 256)) * 9, None, "not text: byte 127 is 0x80"),
    ],
)
def test_what_is_not_text_is_named_with_the_place_of_the_first_bad_byte(
    folder, monkeypatch, block, content, encoding, words
):
    monkeypatch.setattr(reading, "BLOCK", block)
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(MiniGPTError, match=words) as error:
        read("a.txt", encoding=encoding)
    assert "a.txt" in str(error.value)
    assert "--data.encoding" in str(error.value)


@pytest.mark.parametrize("encoding", [None, "utf-8", "cp1252"])
@pytest.mark.parametrize("block", [1000, 1 << 20])
@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)) * 9, 8),
        (b"text, then " * 200 + b"\0", 2200),
        (b"ab\0cd\0ef\0gh\0", 2),
    ],
)
def test_a_nul_byte_is_called_so_and_no_encoding_is_asked_for(folder, monkeypatch, content, place, block, encoding):
    monkeypatch.setattr(reading, "BLOCK", block)
    (folder / "a.txt").write_bytes(content)
    if encoding == "utf-8" and not content.isascii():
        encoding = "latin-1"  # as UTF-8 it is damaged before the NUL byte
    with pytest.raises(MiniGPTError, match=f"'a.txt' is not text: byte {place} is NUL, as in a binary file") as error:
        read("a.txt", encoding=encoding)
    assert "encoding" not in str(error.value)
    assert "--data.path" in str(error.value)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16-le", "Однажды утром он вышел из дома.\n"), ("utf-16-be", "Однажды утром он вышел из дома.\n"),
        ("utf-16-le", "一天早晨，他走出家门 1, 2, 3\n" * 40), ("utf-16-be", "été, là"), ("utf-32-le", "un été\n"),
        ("utf-32-be", "Однажды утром, 一天早晨\n" * 400),
    ],
)  # fmt: skip
def test_utf_16_and_32_without_a_mark_are_recognised(folder, capfd, encoding, text):
    (folder / "a.txt").write_bytes(text.encode(encoding))
    assert read("a.txt") == text
    assert f"read as {encoding}" in capfd.readouterr().err
    with pytest.raises(MiniGPTError, match=f"looks like UTF-.* Pass --data.encoding {encoding}"):
        read("a.txt", encoding="utf-8")


def test_an_unknown_encoding_is_answered_with_the_nearest():
    with pytest.raises(MiniGPTError, match=r"data.encoding is 'latin1-1', .* Did you mean 'latin-1'"):
        read("exemple", encoding="latin1-1")
    for other in ("base64", "idna", "utf-7", "undefined", "unicode_escape", "a\0"):
        with pytest.raises(MiniGPTError, match="not an encoding of text"):
            read("exemple", encoding=other)


PACKERS = {".gz": gzip.compress, ".zst": zstd.compress, "": lambda raw: raw}


@pytest.mark.parametrize("suffix", PACKERS)
def test_packed_texts_are_unpacked(folder, suffix):
    (folder / f"a.txt{suffix}").write_bytes(PACKERS[suffix](LATIN.encode("utf-16")))
    assert read(f"a.txt{suffix}") == LATIN


@pytest.mark.parametrize("suffix", PACKERS)
def test_the_texts_of_json_lines_are_joined_by_an_empty_line(folder, suffix):
    records = [{"text": "un\r\nmatin"}, {"id": 3, "text": "été \u2028\ud83d"}, {"text": ""}]
    lines = "\n".join([json.dumps(records[0]), "", json.dumps(records[1]), json.dumps(records[2], indent=None)])
    (folder / f"a.jsonl{suffix}").write_bytes(PACKERS[suffix](lines.encode()))
    assert read(f"a.jsonl{suffix}") == "un\nmatin\n\nété \u2028\ufffd"


@pytest.mark.parametrize("name", ["a.ndjson", "A.NDJSON", "a.JSONL", "a.ndjson.gz", "a.NDJSON.ZST", "a.zip"])
def test_ndjson_is_json_lines(folder, name):
    lines = b'{"text": "un"}\n{"text": "deux"}\n'
    if name.endswith("zip"):
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("b/A.NDJSON", lines)
    else:
        (folder / name).write_bytes(PACKERS.get(name[-3:].lower(), PACKERS.get(name[-4:].lower(), bytes))(lines))
    assert read(name) == "un\n\ndeux"


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "un"}, {"text": "deux", "id": 3}]', '["un", "deux"]', '{"text": "un\\r\\n\\r\\ndeux"}',
        '{"text": "un"}\n{"text": "deux"}\n', '\ufeff[\n  {"text": "un"},\n  "deux"\n]\n',
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.json", "A.JSON", "a.json.gz", "a.json.zst"])
def test_the_texts_in_json_are_read(folder, name, content):
    (folder / name).write_bytes(PACKERS[name[6:]](content.encode()))
    assert read(name) == read(f"{name[:-1]}*") == "un\n\ndeux"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"n_embd": 64}', "Record 1 of 'a.json' is not a JSON object with a text"), ('{"text": ["a"]}', "Record 1"),
        ('[{"text": "a"}, 3]', "Record 2"), ("[[]]", "Record 1"), ("3", "Record 1"),
        ('[{"text": "a",}]', "'a.json' is not valid JSON: "), ("un matin", "not valid JSON"), ("[" * 100_000, "JSON"),
        ('{"text": "a"}\n{"txt": "b"}', "Line 2 of 'a.json'"), ("[]", "empty"), ("", "empty"),
    ],
)  # fmt: skip
def test_json_without_texts_is_refused(folder, content, words):
    (folder / "a.json").write_text(content)
    with pytest.raises(MiniGPTError, match=words):
        read("a.json")


def test_json_beside_texts_in_a_folder_or_archive_is_not_read(folder):
    (folder / "notes").mkdir()
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name, text in {"a.txt": "un", "b.json": '{"n": 3}', "c.jsonl.txt": "deux"}.items():
            (folder / "notes" / name).write_text(text)
            archive.writestr(name, text)
    assert read("notes") == read("a.zip") == "un\n\ndeux"
    with zipfile.ZipFile("b.zip", "w") as archive:
        archive.writestr("b.json", '{"text": "un"}')
    with pytest.raises(MiniGPTError, match=r"'b.zip' holds no .txt, .md, .jsonl or .ndjson file"):
        read("b.zip")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.pdf", b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>", "a PDF"), ("a.txt", b"%PDF-1.4\n\xe2\xe3", "a PDF"),
        ("a.rtf", b"{\\rtf1\\ansi un matin}", "an RTF document"), ("a.docx", b"PK\x03\x04\x14\0un", "a ZIP archive"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Microsoft Office document"),
    ],
)  # fmt: skip
def test_a_document_that_is_not_plain_text_is_named(folder, name, content, kind):
    (folder / name).write_bytes(content)
    with pytest.raises(MiniGPTError, match=f"'{name}' is {kind}.* Save it as a .txt file"):
        read(name)


@pytest.mark.parametrize("line", ['{"txt": "a"}', '["a"]', '{"text": 3}', '{"text": "a"', "a", "null"])
def test_a_line_that_is_no_record_is_named(folder, line):
    (folder / "a.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(MiniGPTError, match=r"Line 2 of 'a.jsonl'"):
        read("a.jsonl")


def test_the_texts_of_an_archive_are_read_in_the_order_of_their_names(folder):
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/deux.md", "deux".encode("utf-16"))
        archive.writestr("a/un.txt", "un")
        archive.writestr("c.jsonl", '{"text": "trois"}')
        archive.writestr("d.png", b"\x89PNG")
        archive.writestr("__MACOSX/a/._un.txt", b"\0\1")
        archive.writestr(".caché/e.txt", "non")
    assert read("a.zip") == "un\n\ndeux\n\ntrois"


def test_two_of_one_name_in_an_archive_are_both_read(folder):
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.txt", "un")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.txt", "deux")
    assert read("a.zip") == "un\n\ndeux"


def test_a_packed_text_and_its_neighbour_have_encodings_of_their_own(folder):
    (folder / "a.txt").write_bytes(LATIN[:2000].encode("cp1252"))
    (folder / "a.txt.gz").write_bytes(gzip.compress(LATIN[:2000].encode()))
    assert read("a.*") == LATIN[:2000] + "\n\n" + LATIN[:2000]


def test_what_cannot_be_unpacked_is_named(folder):
    for name, content in {
        "a.txt.gz": gzip.compress(EXAMPLE.encode())[:1000], "b.gz": b"no gzip", "c.zst": b"no zstandard",
        "d.txt.zst": zstd.compress(EXAMPLE.encode())[:1000] + b"broken" * 9, "e.zip": b"no archive",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
        with pytest.raises(MiniGPTError, match=f"'{name.removesuffix('.gz').removesuffix('.zst')}.*cannot be read"):
            read(name)
    with zipfile.ZipFile("f.zip", "w") as archive:
        archive.writestr("a.png", b"")
    with pytest.raises(MiniGPTError, match=r"'f.zip' holds no .txt"):
        read("f.zip")


@given(st.lists(st.text(alphabet="ab' \n\t\u00a0\x1c\u0301é!"), max_size=8))
def test_a_cut_comes_between_a_sign_and_a_space(texts):
    pieces = list(reading.cut(texts))
    assert "".join(pieces) == "".join(texts)
    for before, after in pairwise(pieces):
        assert not before[-1].isspace()
        assert after[0] in " \n"
