"""What a model's parts are said to be: every parameter once, in lines that fit."""

from itertools import product

import pytest
import torch
import yaml
from conftest import RECIPES, STARTS

from minigpt import GPT, TinyGPT
from minigpt.models import build_network
from minigpt.models.summary import as_text, parts

SIZES = {"vocab_size": 79, "block_size": 32, "n_embd": 32}
GRID = (
    ("gpt2", "llama", "modern"), ("gelu", "swiglu", "relu2"), ("learned", "rope"), (True, False), (1, 2, 4),
    ((True, 1), (False, 3)),
)  # fmt: skip


def built(kind: type = GPT, **settings) -> torch.nn.Module:
    with torch.device("meta"):
        return kind(**SIZES | settings)


def total(rows) -> int:
    return sum(row.copies * (row.n or 0) for row in rows)


@pytest.mark.slow
def test_the_parts_have_all_parameters_each_once():
    for preset, mlp, position, tie_weights, n_kv_head, (bias, n_layer) in product(*GRID):
        model = built(
            preset=preset, mlp=mlp, position=position, tie_weights=tie_weights, n_kv_head=n_kv_head, bias=bias,
            n_layer=n_layer,
        )  # fmt: skip
        rows = parts(model)
        assert total(rows) == sum(parameter.numel() for parameter in model.parameters()), model.config
        assert [row.n for row in rows if row.name == "output layer"] == [0 if tie_weights else 79 * 32]


def test_ngrams_are_a_part():
    model = built(preset="modern", ngrams=64)
    assert total(parts(model)) == sum(parameter.numel() for parameter in model.parameters())
    assert [row.n for row in parts(model) if row.name == "n-grams"] == [2 * 64 * 32]


def test_the_parts_of_tinygpt():
    rows = parts(built(TinyGPT), "characters")
    assert [row.n for row in rows] == [79 * 32, 79 * 32 + 79]
    assert as_text(rows).splitlines() == [
        "  embedding     a vector of 32 numbers for each of 79 characters  2,528",
        "  output layer  a score for each of 79 characters, with biases    2,607",
    ]


def test_the_words_say_what_the_switches_are():
    llama = as_text(parts(built(preset="llama", n_kv_head=2)))
    assert all(words in llama for words in ("RoPE", "4 heads of 8 (2 of keys and values)", "gated by 88", "RMSNorm"))
    assert "biases" not in llama
    gpt2 = as_text(parts(built(n_layer=1, n_head=1, bias=True)))
    assert all(words in gpt2 for words in ("32 positions", "1 block:", "1 head of 32 looks", "GELU", "biases", "again"))


@pytest.mark.parametrize("locale", ["C", "fr_FR.UTF-8"])
@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - set(STARTS)), ids=lambda path: path.stem)
def test_the_parts_of_every_recipe_fit_into_80_columns(monkeypatch, recipe, locale):
    monkeypatch.setenv("LC_MESSAGES", locale)
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    network = settings["model"]["network"]
    size, tokens = (150, "characters") if settings["data"].get("tokenizer", "char") == "char" else (4096, "tokens")
    sizes = {"vocab_size": size, "block_size": settings["data"]["block_size"]}
    with torch.device("meta"):
        rows = parts(build_network(network | {"init_args": network["init_args"] | sizes}), tokens)
    text = as_text(rows)
    assert max(map(len, text.splitlines())) <= 80, text
    assert all(row.role in text for row in rows), "nothing is cut"
    assert ("embedding" in text) == (locale == "C")


def test_the_lines_of_a_large_model_fit():
    large = {"vocab_size": 100_000, "block_size": 8192, "n_embd": 8192, "n_layer": 80, "n_head": 64, "n_kv_head": 8}
    lines = as_text(parts(built(preset="llama", **large), "characters")).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("…" in line for line in lines), "a role was cut"
    assert all(line.endswith(("0", "2", "4", "6", "8", ":")) for line in lines), "the numbers are kept"
