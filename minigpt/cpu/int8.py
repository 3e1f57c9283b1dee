"""Linear layers with their weights in 8 bits, for a model that generates."""

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.errors import note
from minigpt.generation.checks import (
    LONGEST,
    ROUNDED,
    block_size_of,
    differs,
    exact_copy,
    in_float32,
    one_line,
    random_ids,
)
from minigpt.models.stock import PARTS, TENSORS, hooked


class Int8Linear(nn.Module):
    """A linear layer that learns no more, with its weights in 8 bits: a quarter of the memory that float32 takes.

    The weights of an output are whole numbers from -127 to 127, times a scale that makes the largest of them its own
    (weight-only absmax quantisation per output channel, as in Dettmers et al., "LLM.int8()", 2022). On a CPU PyTorch's
    kernel for such weights rounds what goes in and what comes out to bfloat16, and is faster than float32 for it. It
    takes whole groups of 16 inputs; for others, and on other devices, the weights are widened for each product.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    exact = False  # round nothing but the weights

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in_features)` activations to `(..., out_features)`, of the same type."""
        whole_groups = self.in_features % 16 == 0  # with other numbers the kernel reads beyond the end
        if x.is_cpu and whole_groups and not self.exact:
            rows = x.reshape(-1, self.in_features).bfloat16()
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale.bfloat16())
            y = y.view(*x.shape[:-1], self.out_features).to(x.dtype)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantize(model: nn.Module) -> None:
    """Put the weights of linear layers into 8 bits, in place; an embedding's stay as they are, also in a layer.

    Only `nn.Linear` itself is replaced: a subclass may compute something else.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.Linear and not any(layer.weight is table for table in tables):
                setattr(module, name, Int8Linear(layer))


# The compiled step takes this class for the stock GPT's linear layers; the exports read their weights in float32.
PARTS[Int8Linear] = TENSORS | {"scale"}


@torch.no_grad()
def quantize_checked(model: nn.Module) -> None:
    """Put the weights of linear layers into 8 bits, in place, if the model then computes with them what it says.

    The model is held to a copy in float32 whose weights are the rounded ones, and PyTorch's kernel for 8 bits to the
    same weights widened. Where either differs, the slower way is taken, with a note.
    """
    name = type(model).__name__
    with in_float32(model):
        try:
            rounded, widened = exact_copy(model), exact_copy(model)
            quantize(rounded)
            for path, layer in rounded.named_modules():
                if isinstance(layer, Int8Linear):
                    layer.exact = True
                    weight = layer.weight.float() * layer.scale.float()[:, None]
                    widened.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)
            ids = random_ids(widened, block_size_of(model, LONGEST))
            reason = differs(rounded(ids), widened(ids))
        except Exception as error:  # of any model
            reason = f"it fails ({one_line(error)})"
        if hook := hooked(model):
            reason = f"{hook} has a forward hook"
        if reason:
            note(f"The weights of this {name} stay in float32: in 8 bits {reason}.")
            return
        quantize(model)
        layers = [layer for layer in model.modules() if isinstance(layer, Int8Linear)]
        plain = model.train(False)(ids)
        for layer in layers:
            layer.exact = True
        if not differs(plain, model(ids), ROUNDED):
            for layer in layers:
                layer.exact = False
        else:
            note(f"PyTorch's kernel for 8 bits is not used for this {name}: its logits are not those of the weights.")
