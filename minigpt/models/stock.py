"""The parts of the stock `GPT`, for code that implements it a second time: the compiled step and the exports.

Such code would silently ignore anything that a user has added to a model, so it first checks the model here.
"""

from torch import nn
from torch.nn.modules import module as torch_module

from minigpt.models.gpt import ACTIVATIONS, GPT, MLP, Attention, Block, SquaredReLU
from minigpt.models.ngrams import NGrams
from minigpt.models.rope import Rope
from minigpt.models.settings import STOCK_VALUES

# The children, parameters and buffers of each class. `minigpt.cpu` adds its replacements.
TENSORS = {"weight", "bias"}
PARTS: dict[type[nn.Module], set[str]] = {
    GPT: {"embed", "ngrams", "position", "rope", "dropout", "blocks", "norm", "lm_head"},
    Block: {"norm1", "attn", "norm2", "mlp"}, Attention: {"qkv", "proj", "dropout"},
    MLP: {"up", "gate", "activation", "down", "dropout"}, NGrams: {"0", "1"}, Rope: set(),
    nn.Linear: TENSORS, nn.Embedding: TENSORS, nn.LayerNorm: TENSORS, nn.RMSNorm: TENSORS,
    nn.Dropout: set(), nn.GELU: set(), nn.SiLU: set(), SquaredReLU: set(),
}  # fmt: skip


def unknown_part(model: nn.Module) -> str | None:
    """Return the first class, switch, module, hook or shape that differs from the stock GPT; None if there is none."""
    if type(model) is not GPT:
        return f"the class {type(model).__name__}"
    for switch, value in model.settings.switches().items():
        known_values = STOCK_VALUES.get(switch, ())
        if known_values is not None and value not in known_values:
            return f"{switch} {value}"
    if name := hooked(model):
        return f"the forward hook of {name}"
    for name, module in model.named_modules():
        known = set(map(str, range(len(module)))) if type(module) is nn.ModuleList else PARTS.get(type(module))
        if known is None:
            return f"the module {name} ({type(module).__name__})"
        children = (key for key, child in module.named_children())
        for key in (
            *children,
            *dict(module.named_parameters(recurse=False)),
            *dict(module.named_buffers(recurse=False)),
        ):
            if key not in known:
                return f"{key} in {name or 'the model'}"
        if "forward" in vars(module):
            return f"the replaced forward of {name or 'the model'}"
    return _unknown_shape(model)


def _unknown_shape(model: GPT) -> str | None:
    settings = model.settings
    C, size, V, hidden = settings.n_embd, settings.head_size, settings.vocab_size, settings.mlp_width
    if len(model.blocks) != settings.n_layer or len(model.ngrams or ()) != 2 * (settings.ngrams > 0):
        return "the number of layers or of n-gram tables"
    shapes = {"embed": (V, C), "lm_head": (V, C), "position": (settings.block_size, C), "norm": (C,)}
    shapes |= {f"ngrams.{n}": (settings.ngrams, C) for n in range(2)}
    n_heads, n_all = settings.n_head * size, (settings.n_head + 2 * settings.n_kv_head) * size
    in_block = {"attn.qkv": (n_all, C), "attn.proj": (C, n_heads), "norm1": (C,), "norm2": (C,)}
    in_block |= {"mlp.up": (hidden, C), "mlp.gate": (hidden, C), "mlp.down": (C, hidden)}
    shapes |= {f"blocks.{n}.{name}": shape for n in range(settings.n_layer) for name, shape in in_block.items()}
    for name, module in model.named_modules():
        if hasattr(module, "weight") and (module.weight is None or tuple(module.weight.shape) != shapes[name]):
            return f"the shape of {name}"
        if hasattr(module, "eps") and module.eps != settings.norm_eps:
            return f"eps {module.eps} of {name}"
    activation = repr(ACTIVATIONS[settings.mlp]())  # with its options
    if any(repr(block.mlp.activation) != activation for block in model.blocks):
        return "the activation of an MLP"
    if any(block.attn.layer != n for n, block in enumerate(model.blocks)):
        return "the order of the blocks"
    return None


def hooked(model: nn.Module) -> str | None:
    """Return the name of a module that has a forward hook; None if there is none."""
    if torch_module._has_any_global_hook():
        return "every module"
    named = model.named_modules()
    return next((name or type(m).__name__ for name, m in named if m._forward_hooks or m._forward_pre_hooks), None)
