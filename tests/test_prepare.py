"""A text in memory and in a file gives the same ids, and the cache holds whole files or none."""

import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from conftest import read

from minigpt import CharDataset, MiniGPTError, files
from minigpt.data import prepare, reading
from minigpt.data.corpus import Corpus
from minigpt.data.memmap import MemmapIds
from minigpt.data.order import BatchOrder
from minigpt.data.prepare import TokenizedCorpus, tokenize
from minigpt.evaluation import eval_batches

FRENCH = read("exemple")


@pytest.fixture(autouse=True)
def small_blocks(folder, monkeypatch):
    """A text file and an empty cache in the working folder, and reading in many pieces."""
    monkeypatch.setattr(reading, "BLOCK", 5000)
    (folder / "a.txt").write_text(FRENCH[:60_000], encoding="utf-8")


def in_file(path: str = "a.txt", kind: str = "char", **options) -> TokenizedCorpus:
    return tokenize(Corpus(path, **options), kind, in_memory_mb=0.01, cache_dir="cache")


def kept(folder) -> list[str]:
    return sorted(str(file.relative_to(folder / "cache" / "tokens")) for file in folder.rglob("cache/tokens/*/*"))


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_memory_and_file_hold_the_same_ids(kind, monkeypatch):
    memory, file = tokenize(Corpus("a.txt"), kind), in_file(kind=kind)
    assert isinstance(file.train, MemmapIds)
    assert file.train.dtype == (torch.uint8 if kind == "char" else torch.uint16)
    assert file.tokenizer.to_dict() == memory.tokenizer.to_dict()
    assert torch.equal(file.train[:], memory.train)
    assert torch.equal(file.val[:], memory.val)
    assert file[3:] == memory[3:]
    text = FRENCH[:60_000]
    assert memory.tokenizer.decode(memory.train) == text[:54_000], "the same split, whatever the tokenizer"
    assert memory.tokenizer.decode(memory.val) == text[54_000:]


def test_batches_and_evaluations_come_out_of_a_file_as_out_of_memory():
    memory, file = tokenize(Corpus("a.txt")), in_file()
    datasets = [CharDataset(data, 32) for data in (memory.train, file.train)]
    for starts in BatchOrder(len(datasets[0]), 8, seed=1).batches(0, 40):
        (x, y), (x_file, y_file) = (dataset[starts] for dataset in datasets)
        assert torch.equal(x, x_file)
        assert torch.equal(y, y_file)
        assert y_file.dtype == torch.int64
    for limit in (None, 1000):
        (windows, batches), (windows_file, _) = (eval_batches(data, 32, 90, limit) for data in (memory.val, file.val))
        for batch in batches:
            assert all(map(torch.equal, windows[batch], windows_file[batch]))
    assert torch.equal(datasets[1][-1][1], memory.train[-32:])


def test_four_bytes_hold_a_vocabulary_beyond_two():
    with open("many.txt", "w", encoding="utf-8") as file:
        file.write(" ".join(chr(code) for code in range(0x20000, 0x20000 + 70_000)) * 2)
    made = in_file("many.txt")
    assert made.train.dtype == torch.uint32
    assert torch.equal(made.train[:], tokenize(Corpus("many.txt")).train)


def test_a_text_is_tokenised_once(folder, monkeypatch, capfd):
    first = in_file()
    assert "tokenised once" in capfd.readouterr().err
    monkeypatch.setattr(prepare, "_write", None)
    again = in_file()
    assert capfd.readouterr().err == ""
    assert again.sha256 == first.sha256
    assert torch.equal(again.val[:], first.val[:])


def test_the_key_of_the_cache_has_the_file_its_date_the_cleaning_and_the_tokenizer(folder):
    in_file()
    in_file(lower=True)
    in_file(kind="bpe")
    (folder / "b.txt").write_bytes((folder / "a.txt").read_bytes())
    in_file("b.txt")
    assert len(kept(folder)) == 8, "two files each"
    old = os.stat("a.txt")
    (folder / "a.txt").write_text(FRENCH[60_000:120_000].ljust(60_000), encoding="utf-8")
    os.utime("a.txt", ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    again = in_file()
    assert again.tokenizer.decode(again.train[:]) == FRENCH[60_000:120_000].ljust(60_000)[:54_000]


def test_a_cache_that_was_cut_off_is_written_anew(folder):
    ids = in_file().train[:].clone()
    (file,) = (folder / "cache" / "tokens").glob("*/ids.bin")
    good = file.read_bytes()
    metadata = file.with_name("metadata.json")
    for damage in (lambda: file.write_bytes(good[:-1]), file.unlink, metadata.unlink, lambda: metadata.write_text("")):
        damage()
        assert torch.equal(in_file().train[:], ids)
        assert file.read_bytes() == good


@pytest.mark.slow
def test_a_kill_half_way_leaves_nothing_half_made(folder):
    program = textwrap.dedent("""
        import os, signal
        from minigpt.data import prepare
        from minigpt.data.corpus import Corpus
        def killed(file):
            file.flush()
            assert os.path.getsize(file.name) == 60_000
            os.kill(os.getpid(), signal.SIGKILL)
        prepare.files.sync_file = killed
        prepare.tokenize(Corpus("a.txt"), in_memory_mb=0.01, cache_dir="cache")
    """)
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == -9
    assert all(".partial" in name for name in kept(folder))
    assert torch.equal(in_file().train[:], tokenize(Corpus("a.txt")).train)
    assert len(kept(folder)) == 2
    assert not any(".partial" in name for name in kept(folder))


@pytest.mark.slow
def test_a_full_disk_says_what_is_needed_and_keeps_nothing(folder):
    program = textwrap.dedent("""
        import resource
        from minigpt.data.corpus import Corpus
        from minigpt.data.prepare import tokenize
        from minigpt.errors import MiniGPTError
        (open("b.txt", "w", encoding="utf-8")).write("un matin, " * 300_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        try:
            tokenize(Corpus("b.txt"), in_memory_mb=0.01, cache_dir="cache")
        except MiniGPTError as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "could not be written (File too large)" in done.stdout, done.stderr
    assert "up to 3 MB" in done.stdout
    assert "--data.cache_dir" in done.stdout
    assert kept(folder) == []


def test_a_cache_folder_that_cannot_be_made_is_named():
    with pytest.raises(MiniGPTError, match=r"a.txt/tokens' cannot be written to.*--data.cache_dir"):
        tokenize(Corpus("a.txt"), in_memory_mb=0.01, cache_dir="a.txt")


def test_a_cache_that_can_only_be_read_will_do(folder, monkeypatch):
    first = in_file()
    monkeypatch.setattr(files, "lock", None)  # as for one who may not write there
    assert in_file().sha256 == first.sha256


def test_the_same_bytes_read_in_another_way_are_another_text(folder):
    for name in ("a.txt", "a.jsonl"):
        (folder / name).write_text('{"text": "un matin, il fit beau."}\n' * 99)
    assert "{" in in_file("a.txt").tokenizer.characters
    assert "{" not in in_file("a.jsonl").tokenizer.characters


@pytest.mark.parametrize("text", ["abcde", "a" * 500, "un matin, il fit beau, non ?"])
def test_a_text_too_short_for_its_tokenizer_is_refused_in_a_file_too(folder, text):
    (folder / "b.txt").write_text(text)
    with pytest.raises(MiniGPTError, match=f"too short .* {len(text)} characters"):
        tokenize(Corpus("b.txt"), "bpe", in_memory_mb=0, cache_dir="cache")
    assert kept(folder) == []


def test_ids_that_vanish_under_a_training_are_named(folder):
    dataset = CharDataset(in_file().train, 8)
    shutil.rmtree("cache")
    with pytest.raises(MiniGPTError, match="are gone"):
        dataset[torch.arange(3)]


def test_a_text_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    pieces = Corpus.pieces

    def changing(self):
        yield from pieces(self)
        with open("a.txt", "a") as file:
            file.write("\n")

    monkeypatch.setattr(Corpus, "pieces", changing)
    with pytest.raises(MiniGPTError, match="changed while it was read"):
        in_file()
    assert kept(folder) == []


def test_of_two_that_build_the_same_one_builds_and_the_other_waits(folder, monkeypatch, capfd):
    built, building, go_on, write = [], threading.Event(), threading.Event(), prepare._write

    def slow(*args):
        built.append(args)
        building.set()
        assert go_on.wait(20)
        return write(*args)

    monkeypatch.setattr(prepare, "_write", slow)
    found = []
    first, second = (threading.Thread(target=lambda: found.append(in_file().sha256)) for _ in range(2))
    first.start()
    assert building.wait(20)
    second.start()
    err = ""
    while "waiting for it" not in err:
        err += capfd.readouterr().err
    go_on.set()
    first.join()
    second.join()
    assert len(built) == 1
    assert found[0] == found[1]


def test_memory_stays_flat_however_many_batches_are_read(folder):
    size = 200_000_000
    with (folder / "ids.bin").open("wb") as file:
        file.truncate(size)
    dataset = CharDataset(MemmapIds(folder / "ids.bin", torch.uint8, 0, size), 64)
    order = iter(BatchOrder(len(dataset), 64, seed=0))

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("the system does not say how much memory is resident")
    for _ in range(8):
        dataset[next(order)]
    before, most = resident(), 0
    for _ in range(600):  # 38,400 windows: they touch nearly every page
        dataset[next(order)]
        most = max(most, resident() - before)
    assert most < 60_000_000


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
@pytest.mark.parametrize("val_fraction", [0.001, 0.1, 0.9])
def test_a_short_text_keeps_a_window_on_both_sides(folder, kind, val_fraction):
    (folder / "short.txt").write_text("Un matin, il fit beau; le soir, il plut. " * 3, encoding="utf-8")
    short = tokenize(Corpus("short.txt"), kind, val_fraction=val_fraction)
    assert min(len(short.train), len(short.val)) >= 9
    parts = short.tokenizer.decode(short.train) + short.tokenizer.decode(short.val)
    assert parts == "Un matin, il fit beau; le soir, il plut. " * 3


def test_eighteen_tokens_are_the_least(folder):
    (folder / "18.txt").write_text("abcdefghijklmnopqr")
    (folder / "17.txt").write_text("abcdefghijklmnopq")
    assert [len(part) for part in tokenize(Corpus("18.txt"))[1:3]] == [9, 9]
    for kind in ("char", "word", "bpe"):
        with pytest.raises(MiniGPTError, match=r"'17.txt' is too short.*17 characters, and 18 tokens"):
            tokenize(Corpus("17.txt"), kind)


def test_control_characters_are_reported(folder, capfd):
    (folder / "bell.txt").write_text("un matin\a, il fit\x0b beau. " * 9)
    tokenize(Corpus("bell.txt"))
    assert "U+0007, U+000B" in capfd.readouterr().err


def test_of_a_long_text_every_so_many_th_part_is_learned_from(folder, monkeypatch, capfd):
    monkeypatch.setattr(prepare, "LEARNING_CHARACTERS", 20_000)
    made = in_file(kind="word")
    assert "one piece in 3" in capfd.readouterr().err
    assert made.tokenizer.to_dict() == tokenize(Corpus("a.txt"), "word").tokenizer.to_dict()
    assert made.tokenizer.decode(made.train[:]) == FRENCH[:54_000]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "words"}, "Did you mean 'word'"),
        ({"kind": "bpe", "byte_fallback": True}, "data.byte_fallback is for data.tokenizer char"),
        ({"kind": "char", "max_vocab_size": 99}, "means nothing to characters"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, words):
    with pytest.raises(MiniGPTError, match=words):
        tokenize(Corpus("a.txt"), **options)
