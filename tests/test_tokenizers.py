import json

import pytest
import torch

from minigpt import CharTokenizer, MiniGPTError


def test_the_vocabulary_is_the_sorted_distinct_characters():
    tokenizer = CharTokenizer.from_text("banane été")
    assert tokenizer.characters == sorted(set("banane été"))
    assert tokenizer.vocab_size == 7
    assert tokenizer.encode("a b") == [tokenizer.stoi[c] for c in "a b"]


def test_text_survives_encode_and_decode():
    text = "« Où vas-tu ? » demanda-t-elle…\n— À Noël, l'œuf 🥚"
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(torch.tensor(tokenizer.encode(text))) == text


def test_a_tokenizer_survives_json():
    tokenizer = CharTokenizer.from_text("été\n🥚", lower=True)
    again = CharTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.characters == tokenizer.characters
    assert again.clean("ÉTÉ") == "été"


def test_unknown_characters_are_named_or_skipped():
    tokenizer = CharTokenizer.from_text("abc")
    with pytest.raises(MiniGPTError, match="'x', 'z'"):
        tokenizer.encode("axbz")
    assert tokenizer.decode(tokenizer.encode("axbz", unknown="skip")) == "ab"
