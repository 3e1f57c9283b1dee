import json
import re

import pytest
import torch
from conftest import read
from hypothesis import given
from hypothesis import strategies as st

from minigpt import BPETokenizer, CharTokenizer, MiniGPTError, WordTokenizer
from minigpt.data.tokenizer_base import StreamDecoder
from minigpt.data.tokenizers import difference, from_dict

FRENCH = read("exemple")[:20_000]
CHAR, FALLBACK = CharTokenizer.from_text(FRENCH), CharTokenizer.from_text(FRENCH, byte_fallback=True)
WORD, BPE = WordTokenizer.from_text(FRENCH, 600), BPETokenizer.from_text(FRENCH, 600)
ANYTHING = [FALLBACK, WORD, BPE]  # what has ids for any text
KINDS = pytest.mark.parametrize("tokenizer", [CHAR, *ANYTHING], ids=lambda t: t.kind)
COMBINED = "e\u0301 👩‍👩‍👧 🇫🇷 \u202e\u0000 \r\n\t  नमस्ते a\u0323\u0307 ﬁ"
UNICODE = st.text() | st.text(alphabet="ab é'’.,!\n\t 0_œ👩\u200d\u0301") | st.just(COMBINED)


@pytest.mark.parametrize("tokenizer", ANYTHING, ids=lambda t: t.kind)
@given(text=UNICODE)
def test_any_text_survives_encode_and_decode(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == tokenizer.decode(torch.tensor(ids, dtype=torch.long)) == text
    assert int(tokenizer.lengths[ids].sum()) == len(text)
    decoder = StreamDecoder(tokenizer.tokens)
    pieces = [decoder.add(i) for i in ids] + [decoder.rest()]
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(text=UNICODE)
def test_a_text_of_known_characters_survives_a_character_tokenizer(text):
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.characters == sorted(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tokenizer", [WORD, BPE], ids=lambda t: t.kind)
@given(text=st.text(alphabet="ab é'!_\n\t \u00a0\x1c\u2028"), at=st.integers(0, 30))
def test_a_text_in_pieces_has_the_ids_of_the_whole(tokenizer, text, at):
    places = [m.start() for m in re.finditer(r"(?<=\S)[ \n]", text)]
    if places:
        place = places[at % len(places)]
        assert tokenizer.encode(text[:place]) + tokenizer.encode(text[place:]) == tokenizer.encode(text)


@given(text=st.text(alphabet="ab é'’!_09\n\t \u00a0\x1c\u2028") | st.text())
def test_byte_pairs_are_those_of_the_tokenizers_library(text):
    assert BPE.encode(text) == BPE.backend.encode(text).ids


def test_words_spaces_and_signs_are_tokens():
    tokenizer = WordTokenizer.from_text("le chat, le chat et l'œuf.  l'œuf\n\n  \n\n", lower=True)
    pieces = [tokenizer.tokens[i].decode("latin-1") for i in tokenizer.encode("le chat, le chien.  \n\nx")]
    assert pieces == ["le", " ", "chat", ",", " ", "le", " ", *"chien", ".", "  ", "\n\n", "x"]
    assert tokenizer.words == ["œ", "\n\n", "  ", "chat", "le", "œuf"]  # the alphabet, then by how often they came
    assert tokenizer.decode(tokenizer.encode("ŒUF")) == "ŒUF"  # spelled in bytes


def test_frequent_words_come_first_and_the_size_is_kept():
    assert WORD.vocab_size == BPE.vocab_size == 600
    assert WORD.encode("la") == [WORD.words.index("la") + 256]
    assert len(BPE.encode(FRENCH)) < len(WORD.encode(FRENCH)) < len(CHAR.encode(FRENCH))
    small = BPETokenizer.from_text("ab ab ab")
    assert small.vocab_size < 4096, "no more pairs than the text has"


def test_a_genome_is_not_one_word():
    genome = "".join("ACGT"[ord(c) % 4] for c in FRENCH) * 3
    tokenizer = BPETokenizer.from_text(genome, 300)
    ids = tokenizer.encode(genome)
    assert tokenizer.decode(ids) == genome
    assert ids[: len(tokenizer.encode(genome[:512]))] == tokenizer.encode(genome[:512]), "cut there"


def test_byte_pairs_come_out_the_same_every_time():
    assert BPETokenizer.from_text(FRENCH, 600).merges == BPE.merges


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WordTokenizer.from_text("été", 200), "256 bytes and 1 characters .* Give it 257 or more"),
        (lambda: BPETokenizer.from_text("été", 255), "256 bytes .* Give it 256 or more"),
        (lambda: CharTokenizer.from_text("été", 300), "means nothing to characters"),
    ],
)
def test_a_vocabulary_too_small_for_the_alphabet_is_refused(make, words):
    with pytest.raises(MiniGPTError, match=f"data.max_vocab_size .*{words}"):
        make()


@KINDS
def test_a_tokenizer_survives_json(tokenizer):
    again = from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert type(again) is type(tokenizer)
    assert again.tokens == tokenizer.tokens
    assert again.encode("Un matin, l'œuf.") == tokenizer.encode("Un matin, l'œuf.")
    assert difference(tokenizer, again) is None


def test_the_first_difference_is_named():
    assert difference(CHAR, WORD) == "its kind is char here and word there"
    assert difference(CharTokenizer("ab"), CharTokenizer("abc")) == "its vocab_size is 2 here and 3 there"
    assert difference(CharTokenizer("abc"), CharTokenizer("abd")) == "token 2 is 'c' here and 'd' there"
    assert difference(CharTokenizer("a"), CharTokenizer("a", lower=True)) == "its lower is False here and True there"


def test_cleaning_goes_with_the_tokenizer():
    assert CharTokenizer("a", lower=True).clean("E\u0301TE") == "éte"
    assert CharTokenizer("a", nfc=False).clean("E\u0301") == "E\u0301"
    assert BPE.clean("half a character: \ud83d") == "half a character: \ufffd"


def test_unknown_characters_are_named_or_skipped():
    tokenizer = CharTokenizer.from_text("abc")
    with pytest.raises(MiniGPTError, match="'x', 'z'"):
        tokenizer.encode("axbz")
    assert tokenizer.decode(tokenizer.encode("axbz", unknown="skip")) == "ab"
    for other in (tokenizer, BPE):
        with pytest.raises(MiniGPTError, match="unknown is 'drop'"):
            other.encode("ab", unknown="drop")


def test_an_id_that_is_half_a_character_is_no_text_until_its_end():
    decoder = StreamDecoder(BPE.tokens)
    assert [decoder.add(i) for i in "é".encode()] == ["", "é"]
    assert decoder.add(0xC3) + decoder.rest() == "\ufffd"


def test_more_units_than_are_remembered_are_encoded_all_the_same(monkeypatch):
    monkeypatch.setattr(BPETokenizer, "_CACHE_SIZE", 50)
    again = from_dict(BPE.to_dict())
    assert again.encode(FRENCH) == again.encode(FRENCH) == BPE.encode(FRENCH)
