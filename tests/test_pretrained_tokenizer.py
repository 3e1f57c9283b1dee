"""The tokenizers of pretrained models give the library's ids, and every text back."""

import json
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minigpt import BPETokenizer, CharTokenizer, MiniGPTError
from minigpt.data import tokenizers
from minigpt.data.pretrained_tokenizer import PretrainedTokenizer
from minigpt.data.tokenizer_base import StreamDecoder
from minigpt.data.tokenizers import from_definition
from minigpt.export import gguf
from minigpt.export.hugging_face import tokenizer_json

TEXT = "Le chat dort, le chien mange et l'œuf roule.\n\nIt's 1999 o'clock!  Ça va ? Été : « dès » demain…\t\n" * 3
SPECIAL = ["<s>", "</s>", "<|im_start|>"]
LLAMA_3 = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def bytes_level(*steps, **model):
    """GPT-2's kind, with other pre-tokenizers before the letters for bytes."""
    theirs = Tokenizer(models.BPE(**model))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL,
        show_progress=False,
    )  # fmt: skip
    theirs.train_from_iterator([TEXT], trainer)
    return theirs


def sentencepiece(alphabet=TEXT, byte_fallback=True, metaspace=None):
    """Llama's kind, with a space before each text."""
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    trained.train_from_iterator([alphabet], trainer)
    state = json.loads(trained.to_str())["model"]
    names = [*SPECIAL, *byte_names, *sorted(state["vocab"], key=state["vocab"].get)]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [tuple(pair) for pair in state["merges"]]
    theirs = Tokenizer(models.BPE(vocabulary, merges, unk_token="<s>", fuse_unk=True, byte_fallback=byte_fallback))
    theirs.add_special_tokens(SPECIAL)
    if metaspace:
        theirs.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace)
    else:
        theirs.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    theirs.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    theirs.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return theirs


def gpt2():
    return bytes_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def smollm():
    return bytes_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama_3():
    cut = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    return bytes_level(cut, pre_tokenizers.ByteLevel(False, use_regex=False), ignore_merges=True)


def with_a_dummy_space():
    return bytes_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def lower_case():
    theirs = gpt2()
    theirs.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return theirs


def greedy_special_tokens():
    theirs = gpt2()
    theirs.add_special_tokens([AddedToken("<pad>", lstrip=True, rstrip=True, normalized=True, single_word=False)])
    theirs.enable_truncation(5)
    theirs.enable_padding(length=5)
    return theirs


MAKERS = {
    "gpt2": gpt2, "smollm": smollm, "llama 3": llama_3, "dummy space": with_a_dummy_space, "lower case": lower_case,
    "greedy": greedy_special_tokens, "llama 2": sentencepiece,
    "metaspace": lambda: sentencepiece(metaspace="always"), "first": lambda: sentencepiece(metaspace="first"),
}  # fmt: skip


@cache
def ours(name, vocab_size=700):
    return from_definition(MAKERS[name]().to_str(), vocab_size, bos=0, eos=[1, 2])


PIECES = st.sampled_from(
    [*SPECIAL, "<pad>", " ", "  ", "\n", "▁", "<0x0A>", "œ", "e\u0301", "É", "ẞ", "👩‍👩‍👧", "chat", " dort", "1999"]
)
TEXTS = st.one_of(st.text(), st.text(st.sampled_from("aeé \n▁<0xA>œ")), st.lists(PIECES).map("".join))


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_any_text_is_given_back(name, text):
    tokenizer = ours(name)
    text = tokenizer.clean(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = StreamDecoder(tokenizer.tokens)
    assert "".join(map(stream.add, ids)) + stream.rest() == text
    assert int(tokenizer.lengths[ids].sum()) == len(text)


@pytest.mark.parametrize("name", ["gpt2", "smollm", "llama 3", "lower case"])
@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_the_ids_are_those_of_the_library(name, text):
    text = ours(name).clean(text)
    assert ours(name).encode(text) == MADE[name].encode(text, add_special_tokens=False).ids


MADE = {name: MAKERS[name]() for name in ("gpt2", "smollm", "llama 3", "lower case", "llama 2")}


def test_the_space_that_the_library_puts_before_a_text_is_left_out():
    assert ours("llama 2").encode(" chat dort") == MADE["llama 2"].encode("chat dort", add_special_tokens=False).ids
    assert ours("llama 2").tokens[ours("llama 2").encode("chat")[0]] != b" "


def test_white_space_beside_a_special_token_stays_and_the_token_is_one_id():
    tokenizer = ours("greedy")
    ids = tokenizer.encode("chat  <pad> \n dort")
    assert ids.count(tokenizer.tokens.index(b"<pad>")) == 1
    assert tokenizer.decode(ids) == "chat  <pad> \n dort"


def test_the_tokens_are_bytes_and_the_rest_of_the_vocabulary_is_empty():
    tokenizer = ours("llama 2")
    assert tokenizer.vocab_size == 700
    assert tokenizer.tokens[:5] == [b"<s>", b"</s>", b"<|im_start|>", b"\x00", b"\x01"]
    assert b" chat" in tokenizer.tokens
    assert tokenizer.tokens[-1] == b""
    assert (ours("gpt2").tokens[0], b" chat" in ours("gpt2").tokens) == (b"<s>", True)
    assert (tokenizer.prefix, ours("gpt2").prefix) == ([0], [])


@pytest.mark.parametrize("name", MAKERS)
def test_the_dict_gives_the_tokenizer_back(name):
    state = json.loads(json.dumps(ours(name).to_dict()))
    again = tokenizers.from_dict(state)
    assert tokenizers.difference(again, ours(name)) is None
    assert (again.tokens, again.prefix, again.bos, again.eos) == (
        ours(name).tokens, ours(name).prefix, ours(name).bos, ours(name).eos,
    )  # fmt: skip
    assert again.encode(again.clean(TEXT)) == ours(name).encode(again.clean(TEXT))
    assert (again.lower, again.nfc) == ((True, True) if name == "lower case" else (False, False))


def test_a_character_that_no_token_spells_is_named_or_left_out():
    tokenizer = from_definition(sentencepiece(byte_fallback=False).to_str(), 200)
    assert tokenizer.decode(tokenizer.encode("Le chat<s> dort")) == "Le chat<s> dort"
    with pytest.raises(MiniGPTError, match=r"never seen 'ß', '▁', '中'\."):
        tokenizer.encode("Le ▁chat中 ß")
    assert tokenizer.decode(tokenizer.encode("Le ▁chat中 ß", unknown="skip")) == "Le chat "
    with pytest.raises(MiniGPTError, match="unknown"):
        tokenizer.encode("a", unknown="drop")


def other(model=None, normalizer=None, pre_tokenizer=None):
    theirs = Tokenizer(model or models.BPE({"a": 0}, []))
    if normalizer:
        theirs.normalizer = normalizer
    if pre_tokenizer:
        theirs.pre_tokenizer = pre_tokenizer
    return theirs.to_str()


@pytest.mark.parametrize(
    ("definition", "named"),
    [
        (other(models.WordPiece({"a": 0}, unk_token="a")), "WordPiece"),
        (other(models.WordLevel({"a": 0}, unk_token="a")), "WordLevel"),
        (other(models.Unigram([("a", 0.0)], 0, False)), "Unigram"),
        (other(models.BPE({"a": 0}, [], continuing_subword_prefix="##")), "continuing_subword_prefix '##'"),
        (other(models.BPE({"a": 0}, [], end_of_word_suffix="</w>")), "end_of_word_suffix"),
        (other(normalizer=normalizers.NFKC()), "normalizer NFKC"),
        (other(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()])), "StripAccents"),
        (other(normalizer=normalizers.Replace("a", "b")), "normalizer Replace"),
        (other(pre_tokenizer=pre_tokenizers.Whitespace()), "Whitespace"),
        (other(pre_tokenizer=pre_tokenizers.Split(" ", "removed")), "pre-tokenizer Split"),
    ],
)
def test_a_tokenizer_that_cannot_give_a_text_back_is_refused_by_name(definition, named):
    with pytest.raises(MiniGPTError, match=named):
        from_definition(definition, 300)


def test_a_vocabulary_that_is_larger_than_the_models():
    theirs = gpt2()
    size = theirs.get_vocab_size()
    theirs.add_special_tokens(["<pad>"])  # the model has no row for it
    tokenizer = from_definition(theirs.to_str(), size)
    assert max(tokenizer.encode("<pad> a<s>")) < size
    assert tokenizer.decode(tokenizer.encode("<pad> a<s>")) == "<pad> a<s>"
    with pytest.raises(MiniGPTError, match=rf"the model has {size - 1} tokens"):
        from_definition(theirs.to_str(), size - 1)


def test_definitions_of_older_versions_are_read():
    content = json.loads(sentencepiece(metaspace="always").to_str())
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    for key in ("type", "ignore_merges"):
        del content["model"][key]
    assert from_definition(json.dumps(content), 700).encode(TEXT) == ours("metaspace").encode(TEXT)


@pytest.mark.parametrize(("name", "splitting"), [("gpt2", "gpt-2"), ("smollm", "smollm"), ("llama 3", "llama-bpe")])
def test_llama_cpps_name_for_the_cutting_of_words(name, splitting):
    tokenizer = ours(name)
    if name == "llama 3":  # with all of its pattern
        definition = json.loads(tokenizer.definition)
        definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = gguf._LLAMA_3
        tokenizer = PretrainedTokenizer(json.dumps(definition), 700)
        assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert gguf._splitting(tokenizer) == splitting


def test_a_pretrained_tokenizer_is_not_made_from_a_text():
    with pytest.raises(MiniGPTError, match="--init_from"):
        PretrainedTokenizer.from_text("abc")


@pytest.mark.parametrize("options", [{}, {"byte_fallback": True}, {"lower": True, "nfc": False}])
def test_an_exported_char_tokenizer_becomes_one_again(options):
    characters = CharTokenizer.from_text("\n abcdé'œ", **options)
    again = from_definition(tokenizer_json(characters), characters.vocab_size)
    assert again.to_dict() == characters.to_dict()


def test_an_exported_bpe_tokenizer_gives_the_same_ids():
    pairs = BPETokenizer.from_text(TEXT, max_vocab_size=300)
    again = from_definition(tokenizer_json(pairs), pairs.vocab_size)
    assert again.tokens == pairs.tokens
    for text in (TEXT, "x" * 2000, "a\n\n  b", "👩‍👩‍👧 e\u0301"):
        assert again.encode(text) == pairs.encode(text)


def test_an_empty_prompt_begins_with_the_begin_token():
    import minigpt

    torch.manual_seed(0)
    model = minigpt.GPT(700, 16, n_layer=1, n_head=1, n_embd=8, preset="llama")
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    for name, prompt, begin in (("gpt2", "", [0]), ("llama 2", "", [0]), ("llama 2", "chat", None)):
        seen.clear()
        lm = minigpt.LanguageModel(model, ours(name))
        lm.generate(prompt, 1)
        assert seen[0] == [begin or [0, *lm.encode_prompt("chat")]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama 2"])
@pytest.mark.parametrize("text", [TEXT, "acgt"], ids=["prose", "one word"])
def test_a_text_of_some_megabytes_is_encoded(name, text):
    text = text * (2_000_000 // len(text))
    assert ours(name).decode(ours(name).encode_array(text).tolist()) == text
