"""The checks of ranges and choices: their sentences, and whatever a value from Python may be."""

import math
from fractions import Fraction

import numpy as np
import pytest

from minigpt import GPT, MiniGPTError, TextDataModule, TinyGPT
from minigpt.errors import check_choice, check_number
from minigpt.generation.sampling import SamplingParams
from minigpt.training.optim import Schedule, parameter_groups

WRONG = [math.nan, math.inf, -math.inf, True, "8", None, [8], 8j, np.array([1, 2]), object()]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{type(value).__name__} {value}".partition(" at 0x")[0])
def test_what_is_not_a_finite_number_is_refused_whatever_its_type(value):
    for limits in ({}, {"at_least": 0}, {"above": 0, "at_most": 1}, {"below": 9, "whole": True}):
        with pytest.raises(MiniGPTError, match=r"^n_embd is "):
            check_number("n_embd", value, **limits)


@pytest.mark.parametrize(
    ("value", "limits", "sentence"),
    [
        (0, {"at_least": 1, "whole": True}, "x is 0. Give it a whole number of 1 or more."),
        (2.0, {"at_least": 1, "whole": True}, "x is 2.0. Give it a whole number of 1 or more."),
        ("a", {}, "x is 'a'. Give it a number."),
        (0, {"above": 0}, "x is 0. Give it a number above 0."),
        (2, {"at_least": 0, "at_most": 1}, "x is 2. Give it a number from 0 to 1."),
        (0, {"above": 0, "at_most": 1}, "x is 0. Give it a number above 0 and up to 1."),
        (1, {"at_least": 0, "below": 1}, "x is 1. Give it a number of 0 or more and below 1."),
        (1, {"above": 0, "below": 1, "hint": "or 2"}, "x is 1. Give it a number above 0 and below 1, or 2."),
        (-1, {"at_least": 0, "at_most": math.inf}, "x is -1. Give it a number of 0 or more."),
    ],
)  # fmt: skip
def test_the_sentence_names_the_value_and_the_range(value, limits, sentence):
    with pytest.raises(MiniGPTError) as caught:
        check_number("x", value, **limits)
    assert str(caught.value) == sentence


def test_numbers_in_the_range_pass():
    for value in (1, 1.0, np.int64(1), np.float32(1), Fraction(1)):
        check_number("x", value, at_least=1, at_most=1)
    check_number("x", np.int32(7), whole=True)
    check_number("x", 10**400, at_least=0, whole=True)
    check_number("x", math.inf, at_least=0, at_most=math.inf)
    check_number("x", None, at_least=0, optional=True)


@pytest.mark.parametrize("value", ["c", "", None, 1, ["a"], {}, np.array(["a", "b"])], ids=repr)
def test_what_is_none_of_the_choices_is_refused_whatever_its_type(value):
    with pytest.raises(MiniGPTError, match=r"^x is .*\. It takes a, b or abc\."):
        check_choice("x", value, ("a", "b", "abc"))
    check_choice("x", "b", {"a": 1, "b": 2})


def test_the_nearest_choice_is_named():
    with pytest.raises(MiniGPTError) as caught:
        check_choice("norm", "rmsnrm", ("layernorm", "rmsnorm"))
    assert str(caught.value) == "norm is 'rmsnrm'. It takes layernorm or rmsnorm. Did you mean 'rmsnorm'?"


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: TinyGPT("65"), "vocab_size"), (lambda: TinyGPT(65, n_embd=64.0), "n_embd"),
        (lambda: GPT(65, n_layer=None), "n_layer"), (lambda: GPT(65, dropout="0.1"), "dropout"),
        (lambda: GPT(65, dropout=math.nan), "dropout"), (lambda: GPT(65, softcap="much"), "softcap"),
        (lambda: GPT(65, ngrams=0.5), "ngrams"), (lambda: GPT(65, preset=["gpt2"]), "preset"),
        (lambda: GPT(65, mlp=1), "mlp"), (lambda: TextDataModule(block_size="64"), r"data\.block_size"),
        (lambda: TextDataModule(batch_size=True), r"data\.batch_size"),
        (lambda: TextDataModule(val_fraction=None), r"data\.val_fraction"),
        (lambda: TextDataModule(max_val_tokens=0.5), r"data\.max_val_tokens"),
        (lambda: TextDataModule(in_memory_mb=math.nan), r"data\.in_memory_mb"),
        (lambda: TextDataModule(tokenizer=["char"]).tokens, r"data\.tokenizer"),
        (lambda: SamplingParams(temperature="hot"), "temperature"), (lambda: SamplingParams(top_k=2.5), "top_k"),
        (lambda: SamplingParams(top_p="0.9"), "top_p"), (lambda: SamplingParams(min_p=True), "min_p"),
        (lambda: parameter_groups(TinyGPT(9), None, 1e-3, 1e-3, 0.0), r"model\.optimizer"),
        (lambda: Schedule("cosine", "3", 10, 0.1, 0.4), r"model\.warmup_steps"),
        (lambda: Schedule("wsd", 3, 10, 0.1, None), r"model\.cooldown"),
    ],
)  # fmt: skip
def test_a_mistake_from_python_is_a_sentence_that_names_the_setting(make, setting):
    with pytest.raises(MiniGPTError, match=rf"^{setting} is .*\. (Give it|It takes) "):
        make()
