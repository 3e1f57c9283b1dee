import itertools

import pytest
import torch
from torch.nn import functional as F

import minigpt
from minigpt import CharTokenizer, LanguageModel, MiniGPTError, TinyGPT
from minigpt.data.tokenizer_base import StreamDecoder
from minigpt.generation.text import StopFilter


@torch.no_grad()
def article(model, tokenizer, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None):
    """The article's sampling, step by step: the whole window each time, one row, masks by scatter and by index."""
    ids = torch.tensor([[tokenizer.stoi[c] for c in prompt]])
    for _ in range(max_new_tokens):
        logits = model(ids[:, -model.block_size :])[:, -1, :] / temperature
        if top_k is not None:
            best, where = torch.topk(logits, top_k)
            logits = torch.full_like(logits, float("-inf")).scatter_(1, where, best)
        if top_p is not None:
            ordered, order = torch.sort(logits, descending=True)
            cut = torch.cumsum(F.softmax(ordered, dim=-1), dim=-1) > top_p
            cut[..., 1:] = cut[..., :-1].clone()
            cut[..., 0] = False
            logits[0, order[0][cut[0]]] = float("-inf")
        ids = torch.cat([ids, torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)], dim=1)
    return tokenizer.decode(ids[0])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), list(itertools.product([0.5, 0.8, 1.0, 1.7], [None, 1, 5, 30], [None, 0.3, 0.9]))
)
def test_the_same_text_as_the_articles_function(distinct_model, temperature, top_k, top_p):
    for seed in range(3):
        torch.manual_seed(seed)
        expected = article(*distinct_model, "un matin,", 120, temperature, top_k, top_p)
        torch.manual_seed(seed)
        assert minigpt.generate(*distinct_model, "un matin,", 120, temperature, top_k, top_p) == expected


def test_a_seed_fixes_the_text_and_leaves_the_global_generator_alone(distinct_model):
    lm = LanguageModel(*distinct_model)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = lm.generate("un", 50, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert lm.generate("un", 50, seed=1) == first
    assert lm.generate("un", 50, seed=2) != first
    assert lm.generate("un", 50) != lm.generate("un", 50)


def test_the_stream_is_the_new_text_of_generate(distinct_model):
    lm = LanguageModel(*distinct_model)
    pieces = list(lm.stream("un matin,", 40, seed=5))
    assert len(pieces) == 40
    assert "un matin," + "".join(pieces) == lm.generate("un matin,", 40, seed=5)


def test_the_mode_of_the_model_is_given_back(distinct_model):
    model, tokenizer = distinct_model
    lm = LanguageModel(model.train(), tokenizer)
    lm.generate("a", 3)
    assert model.training
    stream = lm.stream("a", 10)
    next(stream)
    assert not model.training
    stream.close()
    assert model.training
    model.eval()
    lm.generate("a", 3)
    assert not model.training


def test_greedy_text_is_the_chain_of_likeliest_characters(distinct_model):
    model, tokenizer = distinct_model
    ids = tokenizer.encode("a")
    for _ in range(30):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    assert minigpt.generate(model, tokenizer, "a", 30, temperature=0) == tokenizer.decode(ids)


def test_a_prompt_is_cleaned_as_the_text_was():
    tokenizer = minigpt.CharTokenizer.from_text("un matin", lower=True)
    model = minigpt.TinyGPT(tokenizer.vocab_size)
    assert minigpt.generate(model, tokenizer, " UN Matin ", 0) == " un matin "


def test_a_prompt_is_encoded_once(distinct_model, monkeypatch):
    lm = LanguageModel(*distinct_model)
    encode, encoded = lm.tokenizer.encode, []
    monkeypatch.setattr(lm.tokenizer, "encode", lambda text, unknown: encoded.append(text) or encode(text, unknown))
    assert lm.generate("un matin,", 5).startswith("un matin,")
    assert encoded == ["un matin,"]
    lm.generate_batch(["un", "le"], 5)
    assert encoded == ["un matin,", "un", "le"]
    assert next(lm.stream(lm.encode_prompt("un"), 1))
    assert encoded == ["un matin,", "un", "le", "un"]


def test_an_empty_prompt_is_continued_as_a_new_line(distinct_model):
    lm = LanguageModel(*distinct_model)
    assert "\n" + lm.generate("", 30, seed=0) == lm.generate("\n", 30, seed=0)


def test_unknown_characters_are_refused_before_anything_is_drawn(distinct_model):
    lm = LanguageModel(*distinct_model)
    with pytest.raises(MiniGPTError, match="'@'"):
        lm.stream("a@b")
    assert lm.generate("a@b", 0, unknown="skip") == "ab"
    assert lm.generate("@", 5, seed=0, unknown="skip") == lm.generate("", 5, seed=0)


def test_what_is_left_of_a_prompt_is_not_composed_anew():
    lm = LanguageModel(TinyGPT(3, 4), CharTokenizer(["a", "e", "\u0301"]))  # which never saw the two composed
    assert lm.generate("e@\u0301", 5, unknown="skip").startswith("e\u0301")
    assert lm.generate_batch(["e@\u0301"], 0, unknown="skip") == ["e\u0301"]


def test_a_window_is_cropped_to_the_block(distinct_model):
    _, tokenizer = distinct_model

    class Spy(torch.nn.Module):
        block_size = 6
        longest = 0

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(tokenizer.vocab_size))

        def forward(self, idx):
            self.longest = max(self.longest, idx.shape[1])
            return self.weight.expand(*idx.shape, -1)

    spy = Spy()
    LanguageModel(spy, tokenizer).generate("un matin,", 20)
    assert spy.longest == 6


def test_a_stop_string_ends_the_text_before_it(distinct_model):
    lm = LanguageModel(*distinct_model)
    whole = lm.generate("un", 200, seed=3)[2:]
    for stop in (whole[50], whole[50:52], whole[50:55]):
        assert lm.generate("un", 200, seed=3, stop=stop) == "un" + whole[: whole.index(stop)]
    assert lm.generate("un", 200, seed=3, stop="never here") == "un" + whole
    with pytest.raises(MiniGPTError, match="stop string is empty"):
        lm.stream("un", stop="")


@pytest.mark.parametrize(
    ("pieces", "stop", "out"),
    [("aab", "ab", "a"), ("ababac", "abac", "ab"), ("aaa", "aab", "aaa"), ("abc", "abc", ""), ("xyz", "zz", "xyz")],
)
def test_what_may_be_the_beginning_of_a_stop_string_is_held_back(pieces, stop, out):
    text = StopFilter(stop, StreamDecoder([piece.encode() for piece in pieces]))
    assert "".join([text.add(n) for n in range(len(pieces))] + [text.rest()]) == out


def test_each_sample_of_a_seed_is_a_stream_of_its_own(distinct_model):
    lm = LanguageModel(*distinct_model)
    texts = [lm.generate("un", 40, seed=1, sample=i) for i in range(4)]
    assert len(set(texts)) == 4
    assert lm.generate("un", 40, seed=1, sample=2) == texts[2]


def test_a_repetition_penalty_makes_texts_less_repetitive(distinct_model):
    lm = LanguageModel(*distinct_model)
    plain, penalised = (lm.generate("a", 60, temperature=0, repetition_penalty=p) for p in (None, 5.0))
    assert len(set(penalised)) > len(set(plain))


def test_a_batch_holds_the_texts_that_its_prompts_get_alone(distinct_model):
    lm = LanguageModel(*distinct_model)
    prompts = ["un matin,", "a", "", "le chat"]
    alone = [lm.generate(prompt, 50, top_k=9, seed=4, sample=n, stop="e") for n, prompt in enumerate(prompts)]
    assert lm.generate_batch(prompts, 50, top_k=9, seed=4, stop="e") == alone
    steps = list(lm.stream_batch(prompts, 50, top_k=9, seed=4, stop="e"))
    assert len(steps) <= 51
    assert ["".join(pieces) for pieces in zip(*steps, strict=True)] == [
        text[len(prompt) :] for prompt, text in zip(prompts, alone, strict=True)
    ]


def test_a_batch_ends_with_the_last_of_its_texts(distinct_model):
    lm = LanguageModel(*distinct_model)
    whole = [lm.generate("un", 300, seed=3, sample=n)[2:] for n in range(3)]
    ends = [text.index("e") for text in whole]
    steps = list(lm.stream_batch(["un"] * 3, 300, seed=3, stop="e"))
    assert len(steps) == max(ends) + 1


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_text_of_bytes_comes_in_whole_characters(kind):
    kinds = {"word": minigpt.WordTokenizer, "bpe": minigpt.BPETokenizer}
    tokenizer = kinds[kind].from_text("l'œuf — été, où ça ?\n" * 20, 300)
    torch.manual_seed(0)
    model = minigpt.TinyGPT(tokenizer.vocab_size, n_embd=16)
    with torch.no_grad():  # the bytes of « é » follow each other
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[list("é".encode())] = 20.0
    lm = LanguageModel(model, tokenizer)
    pieces = list(lm.stream("œ", 200, seed=3))
    whole = tokenizer.decode(tokenizer.encode("œ")) + "".join(pieces)
    assert whole == lm.generate("œ", 200, seed=3)
    assert set(whole[1:]) == {"é", "\ufffd"}, "half characters that the model draws are shown as such, and only those"
    stopped = lm.generate("œ", 200, seed=3, stop="éé")
    assert stopped == whole[: whole.index("éé")]
