"""A summary of a model: the parts, what each of them does, and the number of parameters."""

from typing import Any, NamedTuple

import torch
from torch import nn

from minigpt.models import NETWORKS, build_network, n_parameters
from minigpt.models.gpt import GPT, MLP
from minigpt.models.tinygpt import TinyGPT
from minigpt.words import COLUMNS, message

NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
# With more parameters a model recites its text. A quarter as many, with dropout, learn (configs/shakespeare.yaml).
PARAMS_PER_CHARACTER_LIMIT = 20


class Part(NamedTuple):
    """A part of a model: its name, its role, the parameters of one copy (None for a heading), and its copies."""

    name: str
    role: str
    n: int | None
    copies: int = 1


def parts(model: nn.Module, tokens: str = "tokens") -> list[Part]:
    """Return the parts of a model in the order of its computation, with all of its parameters.

    Args:
        model: The model; the parts of a class other than GPT and TinyGPT are its modules.
        tokens: `characters` or `tokens`, the name of the model's tokens.
    """
    if not isinstance(model, GPT | TinyGPT) or type(model) not in (GPT, TinyGPT):
        return _modules(model)
    vocab_size, n_embd = model.config["vocab_size"], model.embed.embedding_dim
    tokens = message(tokens)
    tied = model.lm_head.weight is model.embed.weight
    output = message("tied_role" if tied else "output_role", vocab_size, tokens)
    if model.lm_head.bias is not None:
        output = message("with_biases", output)
    return [
        Part(message("embedding"), message("embedding_role", n_embd, vocab_size, tokens), _n(model.embed)),
        *(_inside(model) if isinstance(model, GPT) else []),
        Part(message("output"), output, 0 if tied else _n(model.lm_head)),
    ]


def oversized_note(network: nn.Module, description: dict[str, Any], n_characters: int) -> str | None:
    """Return a note with better settings for a model that is so large that it would recite its text; else None.

    Args:
        network: The model.
        description: Its `class_path` and `init_args`.
        n_characters: The length of the training text in characters.
    """
    most, size, settings = PARAMS_PER_CHARACTER_LIMIT * n_characters, n_parameters(network), description["init_args"]
    if size <= most:
        return None

    def size_of(width: int) -> int:
        kept = {name: value for name, value in settings.items() if name not in ("head_size", "mlp_width")}
        return n_parameters(build_network(description | {"init_args": kept | {"n_embd": width}}))

    advice = []
    if description["class_path"] in NETWORKS:
        width, heads = settings["n_embd"], settings.get("n_head", 1)
        with torch.device("meta"):
            while width % (4 * heads) == 0 and width > 8 and size_of(width) > most / 4:
                width //= 2
        advice += [f"--model.network.n_embd {width}"] if width < settings["n_embd"] else []
    if (settings or {}).get("dropout", 1) < 0.2:  # TinyGPT has no dropout
        advice.append("--model.network.dropout 0.2")
    return message("oversized", size, n_characters, message("both_settings").join(advice) or message("longer_text"))


def _modules(model: nn.Module) -> list[Part]:
    """Return the modules of a network, and the parameters outside of them."""
    named = list(model.named_children())
    rows = [Part(name, type(module).__name__, _n(module)) for name, module in named]
    own = [Part(name, "parameter", p.numel()) for name, p in model.named_parameters(recurse=False)]
    total, shared = sum(p.numel() for p in model.parameters()), sum(row.n or 0 for row in (*rows, *own))
    return [
        *own,
        *rows,
        *([Part("shared", "weights of two modules, counted once", total - shared)] if total < shared else []),
    ]


def as_text(rows: list[Part]) -> str:
    """Return the parts as lines of at most `COLUMNS` columns, with aligned numbers; long roles are truncated."""
    numbers = [
        "" if n is None else message("copies", copies, n) if copies > 1 else message("number", n)
        for _, _, n, copies in rows
    ]
    names, width = max(len(row.name) for row in rows), max(map(len, numbers))
    room = COLUMNS - names - width - 6
    roles = [role if len(role) <= room else role[: room - 1] + "…" for _, role, _, _ in rows]
    longest = max(map(len, roles))
    lines = (
        f"  {row.name:<{names}}  {role:<{longest}}  {number:>{width}}"
        for row, role, number in zip(rows, roles, numbers, strict=True)
    )
    return "\n".join(map(str.rstrip, lines))


def _inside(model: GPT) -> list[Part]:
    """Return the parts of a GPT between its embedding and its output layer."""
    settings, block, copies = model.settings, model.blocks[0], len(model.blocks)
    norm = NORMS.get(settings.norm, settings.norm)
    positions = Part(message("positions"), settings.position, 0)
    if settings.position == "rope":
        positions = Part(message("positions"), message("rope_role"), 0)
    if model.position is not None:
        positions = Part(message("positions"), message("learned_role", model.block_size), _n(model.position))
    size = block.attn.head_size
    heads = message("heads_role", settings.n_head, size)
    if settings.n_kv_head < settings.n_head:
        heads = message("grouped_role", settings.n_head, size, settings.n_kv_head)
    elif settings.n_head == 1:
        heads = message("head_role", size)
    ngrams = []
    if model.ngrams:
        ngrams = [Part(message("n_grams"), message("n_grams_role", settings.ngrams), _n(*model.ngrams))]
    return [
        *ngrams,
        positions,
        Part(
            message("blocks", copies) if copies > 1 else message("block"),
            message("biases_role") if settings.bias else "",
            None,
        ),
        Part("  " + message("attention_part"), heads, _n(block.attn), copies),
        Part("  MLP", _mlp(block.mlp), _n(block.mlp), copies),
        Part("  " + message("norms"), message("norms_role", norm), _n(block.norm1, block.norm2), copies),
        Part(message("last_norm"), message("last_norm_role", norm), _n(model.norm)),
    ]


def _mlp(mlp: MLP) -> str:
    narrow, wide = mlp.up.in_features, mlp.up.out_features
    if mlp.kind == "swiglu":
        return message("gated_role", narrow, wide, wide)
    activations = {"gelu": "GELU", "relu2": message("relu2")}
    return message("mlp_role", narrow, wide, activations.get(mlp.kind, mlp.kind))


def _n(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
