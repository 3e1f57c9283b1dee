import hashlib
import os
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import read

from minigpt.data import corpus, reading
from minigpt.data.corpus import Corpus, clean, locate
from minigpt.errors import MiniGPTError


def test_the_embedded_corpus_is_long_varied_french():
    text = read("exemple")
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
    caron = clean("J\u030c", lower=True)  # a small letter that composes where the capital does not
    assert clean(caron, lower=True) == caron


def test_a_byte_order_mark_is_no_character(folder):
    (folder / "a.txt").write_text("été", encoding="utf-8-sig")
    assert read("a.txt") == "été"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"a\0b", "not text: byte 1 is NUL"), (b"ab\xff\0", "byte 3 is NUL")],
)
def test_what_is_no_text_is_refused(folder, content, words):
    (folder / "a.txt").write_bytes(content)
    with pytest.raises(MiniGPTError, match=words):
        read("a.txt")


def test_a_folder_is_read_in_the_order_of_its_names_with_an_empty_line_between(folder):
    for name, text in {"b.txt": "deux", "a/z.md": "un", "c.csv": "non", ".git/d.txt": "non", "é.TXT": "trois"}.items():
        (folder / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "notes" / name).write_text(text, encoding="utf-8")
    assert read("notes") == "un\n\ndeux\n\ntrois"
    assert read("notes/*.txt") == "deux"
    assert read("notes/**/*.md") == "un"
    (folder / "notes" / "c.txt").write_text("")  # an empty text gets no empty line
    assert read("notes/*.txt") == "deux"
    (folder / "notes[1].txt").write_text("un nom de fichier", encoding="utf-8")
    assert read("notes[1].txt") == "un nom de fichier"


@pytest.mark.parametrize("name", ["textes [v2]", "t*", "[t]extes"])
def test_in_a_pattern_a_folder_that_exists_is_no_pattern(folder, name):
    for place, text in {name: "un", "textes v": "deux", "textes": "trois"}.items():
        (folder / place / "a").mkdir(parents=True)
        (folder / place / "a" / "b.txt").write_text(text)
    for path in (f"{name}/*/b.txt", f"{name}/a/*.txt", f"{folder}/{name}/**/*.txt", f"./{name}/a/[b].txt"):
        assert read(path) == "un"
    assert read("texte[s]/a/*.txt") == "trois"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("empty", "holds no .txt or .md"), ("empty/*.txt", "No file matches"), ("", "The corpus '' does not exist"),
        ("a" * 5000, "does not exist"), ("a\0", "does not exist"), ("a\udcff.txt", "does not exist"),
    ],
)  # fmt: skip
def test_a_folder_without_texts_is_named(folder, path, words):
    (folder / "empty").mkdir()
    with pytest.raises(MiniGPTError, match=words):
        locate(path)


@pytest.mark.parametrize("path", ["-", "pipe", "/dev/stdin"])
def test_standard_input_and_pipes_are_refused_with_what_to_do(folder, path):
    os.mkfifo("pipe")
    reader, writer = os.pipe()
    before = os.dup(0)
    os.dup2(reader, 0)
    try:
        with pytest.raises(MiniGPTError, match=f"'{path}' is not a regular file. Save the text to a file"):
            Corpus(path)
    finally:
        os.dup2(before, 0)
        for handle in (reader, writer, before):
            os.close(handle)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"lower": True, "strip": True}, {"nfc": False}])
def test_a_text_read_in_blocks_is_cleaned_as_a_whole(folder, monkeypatch, block, options):
    text = " \n ΟΔΟΣ ΟΔΟΣ' E\u0301te\u0301\r\n\n  o\r\u0301 ! \t fin\u0323\u0301 \n\n"
    (folder / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(reading, "BLOCK", block)
    whole = text.replace("\r\n", "\n").replace("\r", "\n")
    assert read("a.txt", **options) == clean(whole, **options)


def test_a_misspelt_name_is_answered_with_the_right_one():
    with pytest.raises(MiniGPTError, match="Did you mean 'exemple'"):
        locate("example")


TEXT = b"to be, or not to be. " * 500


@pytest.fixture
def served(folder, monkeypatch):
    """A named corpus on a server of this machine; the body that it sends and the length that it claims can be set."""

    class Handler(BaseHTTPRequestHandler):
        body, length, asked = TEXT, len(TEXT), 0

        def do_GET(self):
            Handler.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(Handler.length))
            self.end_headers()
            self.wfile.write(Handler.body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = corpus.Download(f"http://127.0.0.1:{server.server_port}/a.txt", hashlib.sha256(TEXT).hexdigest(), 0.1)
    monkeypatch.setitem(corpus.DOWNLOADS, "tinyshakespeare", entry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    Handler.stop = server.shutdown
    yield Handler
    server.shutdown()
    server.server_close()


def kept(folder) -> list[str]:
    return [path.name for path in (folder / "cache").rglob("*") if path.is_file()]


def test_a_named_corpus_is_fetched_once(served, folder):
    assert read("tinyshakespeare") == TEXT.decode()
    assert read("tinyshakespeare") == TEXT.decode()
    assert served.asked == 1
    assert kept(folder) == ["tinyshakespeare.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o027], ids=oct)
def test_what_is_fetched_obeys_the_umask(served, folder, mask):
    before = os.umask(mask)
    try:
        (file,) = locate("tinyshakespeare")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("proxy", ["nonsense://", "http://127.0.0.1:9"])
def test_a_proxy_that_does_not_work_is_no_damaged_text(served, folder, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(MiniGPTError, match="could not be downloaded"):
        locate("tinyshakespeare")


def test_a_user_without_a_home_folder_is_asked_for_a_cache(folder, monkeypatch):
    def unknown(*_):
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(MiniGPTError, match=r"has no home folder .* XDG_CACHE_HOME"):
        corpus.cache_folder()
    monkeypatch.setattr("pooch.os_cache", lambda name: Path("~/.cache") / name)  # as older versions of platformdirs
    with pytest.raises(MiniGPTError, match="has no home folder"):
        locate("tinyshakespeare")
    assert corpus.cache_folder("cache") == Path("cache")


def test_another_text_under_the_name_is_refused(served, folder):
    served.body = served.body[::-1]
    with pytest.raises(MiniGPTError, match="SHA-256 differs, and nothing was kept"):
        read("tinyshakespeare")
    assert kept(folder) == []


def test_half_a_download_is_not_kept(served, folder):
    served.body = served.body[: len(TEXT) // 2]
    with pytest.raises(MiniGPTError, match="could not be downloaded"):
        read("tinyshakespeare")
    assert kept(folder) == []


def test_without_a_network_it_says_what_to_bring_and_where(served, folder):
    entry = corpus.DOWNLOADS["tinyshakespeare"]
    corpus.DOWNLOADS["tinyshakespeare"] = entry._replace(url="http://127.0.0.1:9/a.txt")
    place = folder / "cache" / "minigpt" / "tinyshakespeare.txt"
    with pytest.raises(MiniGPTError) as error:
        read("tinyshakespeare")
    assert "http://127.0.0.1:9/a.txt" in str(error.value)
    assert str(place) in str(error.value)
    place.write_bytes(TEXT)  # what the message says
    assert read("tinyshakespeare") == TEXT.decode()


def test_the_name_is_what_a_run_keeps(served, folder):
    from minigpt import TextDataModule

    data = TextDataModule(path="tinyshakespeare")
    data.setup()
    assert data.describe(".")["path"] == "tinyshakespeare"
