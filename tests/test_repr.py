"""What the objects of the library say about themselves."""

import inspect

import pytest
import torch
from torch import nn

import minigpt
from minigpt import CharDataset, CharTokenizer, LanguageModel, TextDataModule, TinyGPT
from minigpt.data import tokenizers

TEXT = "un matin, il fit beau. " * 40


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_tokenizer_tells_its_kind_and_its_size(kind):
    tokenizer = tokenizers.KINDS[kind].from_text(TEXT)
    unit = "characters" if kind == "char" else "tokens"
    assert repr(tokenizer) == f"{type(tokenizer).__name__}({tokenizer.vocab_size} {unit})"


def test_large_sizes_have_commas_and_bytes_are_named():
    assert repr(tokenizers.WordTokenizer([f"w{n}" for n in range(1000)])) == "WordTokenizer(1,256 tokens)"
    assert repr(CharTokenizer.from_text("abc", byte_fallback=True)) == "CharTokenizer(3 characters and 256 bytes)"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 3)

    def forward(self, idx):
        return self.table(idx)


def test_a_language_model_tells_its_network_size_alphabet_and_block(trained_run):
    abc = CharTokenizer.from_text("abc")
    model = TinyGPT(3, block_size=1024)
    n = 3 * 64 + 64 * 3 + 3
    assert repr(LanguageModel(model, abc)) == f"LanguageModel(TinyGPT, {n} parameters, 3 characters, block 1,024)"
    assert repr(LanguageModel(Net(), abc)) == "LanguageModel(Net, 9 parameters, 3 characters)"
    whole, rounded = (repr(minigpt.load(trained_run, precision=precision)) for precision in ("32", "int8"))
    assert whole == rounded
    assert "(TinyGPT, 6,837 parameters, 53 characters, block 64)" in whole


def test_a_datamodule_and_a_dataset_tell_what_they_cut_without_reading(folder):
    data = TextDataModule()
    assert repr(data) == str(data) == "TextDataModule('exemple', char, block 64, batch 4)"
    assert "tokens" not in data.__dict__
    (folder / "a.txt").write_text(TEXT[:60], encoding="utf-8")
    data = TextDataModule(folder / "a.txt", tokenizer="word", block_size=512, batch_size=2)
    assert repr(data) == f"TextDataModule('{folder}/a.txt', word, block 512, batch 2)"
    size = data.block_size
    assert size < 512
    assert repr(data) == f"TextDataModule('{folder}/a.txt', word, block {size}, batch 2)"
    assert repr(CharDataset(torch.arange(2000), 64)) == "CharDataset(2,000 tokens, block 64)"


def test_no_public_class_is_told_by_its_address():
    for name in minigpt.__all__:
        if inspect.isclass(kind := getattr(minigpt, name)):
            assert kind.__repr__ is not object.__repr__, name
