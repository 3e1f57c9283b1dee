"""What each part of a model does, in a learner's words, and how many parameters it has."""

from typing import NamedTuple

from torch import nn

from minigpt.models.gpt import GPT, MLP
from minigpt.models.tinygpt import TinyGPT

NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
ACTIVATIONS = {"gelu": "GELU", "relu2": "ReLU squared"}


class Part(NamedTuple):
    """A part of a model: its name, what it does, the parameters of one copy of it (None in a heading), its copies."""

    name: str
    role: str
    n: int | None
    copies: int = 1


def parts(model: nn.Module, tokens: str = "tokens") -> list[Part]:
    """The parts of a model in the order in which a token meets them; together they have all of its parameters.

    Args:
        model: The model; of a class of one's own, its modules are named by their classes.
        tokens: What to call its tokens, such as `characters`.
    """
    if type(model) not in (GPT, TinyGPT):
        return _modules(model)
    vocab_size, n_embd = model.embed.weight.shape
    each = f"each of {vocab_size:,} {tokens}"
    tied = model.lm_head.weight is model.embed.weight
    output = f"the embedding again: a score for {each}" if tied else f"a score for {each}"
    if model.lm_head.bias is not None:
        output += ", with biases"
    return [
        Part("embedding", f"a vector of {n_embd:,} numbers for {each}", _n(model.embed)),
        *(_inside(model) if isinstance(model, GPT) else []),
        Part("output layer", output, 0 if tied else _n(model.lm_head)),
    ]


def _modules(model: nn.Module) -> list[Part]:
    """The modules that a network is made of, and the parameters that belong to none of them."""
    named = list(model.named_children())
    rows = [Part(name, type(module).__name__, _n(module)) for name, module in named]
    own = [Part(name, "parameter", p.numel()) for name, p in model.named_parameters(recurse=False)]
    total, shared = sum(p.numel() for p in model.parameters()), sum(row.n for row in (*rows, *own))
    return [
        *own,
        *rows,
        *([Part("shared", "weights of two modules, counted once", total - shared)] if total < shared else []),
    ]


def as_text(rows: list[Part]) -> str:
    """The parts as lines, with the numbers in a column."""
    numbers = ["" if n is None else f"{copies} × {n:,}" if copies > 1 else f"{n:,}" for _, _, n, copies in rows]
    columns = [[row.name for row in rows], [row.role for row in rows], numbers]
    names, roles, width = (max(map(len, column)) for column in columns)
    lines = (f"  {name:<{names}}  {role:<{roles}}  {n:>{width}}" for name, role, n in zip(*columns, strict=True))
    return "\n".join(map(str.rstrip, lines))


def _inside(model: GPT) -> list[Part]:
    """What a GPT has between its embedding and its output layer."""
    block, norm, copies = model.blocks[0], model.settings["norm"], model.n_layer
    norm = NORMS.get(norm, norm)
    biases = "(with biases)" if model.settings["bias"] else ""
    positions = Part("positions", model.settings["position"], 0)
    if model.settings["position"] == "rope":
        positions = Part("positions", "RoPE turns queries and keys by an angle: nothing to learn", 0)
    if model.position is not None:
        role = f"a vector more for each of {model.block_size:,} places in a window"
        positions = Part("positions", role, _n(model.position))
    shared = f" ({model.n_kv_head} of keys and values)" if model.n_kv_head < model.n_head else ""
    heads = f"{model.n_head} heads of {block.attn.head_size}{shared} look back and gather"
    if model.n_head == 1:
        heads = f"1 head of {block.attn.head_size} looks back and gathers"
    ngrams = []
    if model.ngrams:
        rows = model.settings["ngrams"]
        ngrams = [
            Part("n-grams", f"a vector for the last two, and the last three, in {rows:,} rows each", _n(model.ngrams))
        ]
    return [
        *ngrams,
        positions,
        Part(f"{copies} blocks, each:" if copies > 1 else "1 block:", biases, None),
        Part("  attention", heads, _n(block.attn), copies),
        Part("  MLP", _mlp(block.mlp), _n(block.mlp), copies),
        Part("  norms", f"2 × {norm}, to keep numbers in scale", _n(block.norm1) + _n(block.norm2), copies),
        Part("last norm", f"{norm}, before the scores", _n(model.norm)),
    ]


def _mlp(mlp: MLP) -> str:
    narrow, wide = mlp.up.in_features, mlp.up.out_features
    if mlp.kind == "swiglu":
        return f"{narrow:,} numbers to {wide:,}, gated by {wide:,} more, and back"
    return f"{narrow:,} numbers to {wide:,}, {ACTIVATIONS.get(mlp.kind, mlp.kind)}, and back"


def _n(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
