"""Linear layers with 8-bit weights, for inference."""

import torch
from torch import nn
from torch.nn import functional as F

from minigpt.errors import note
from minigpt.generation.checks import (
    ROUNDED,
    block_size_of,
    differs,
    exact_copy,
    in_float32,
    one_line,
    random_ids,
)
from minigpt.models.stock import PARTS, TENSORS, hooked

COMPARED = 128  # the most tokens of a row on which weights are compared; a linear layer computes each token alone


class Int8Linear(nn.Module):
    """A linear layer for inference with 8-bit weights, which take a quarter of the memory of float32.

    The weights of an output are whole numbers from -127 to 127 times a scale, such that the largest weight becomes 127
    (weight-only absmax quantisation per output channel, as in Dettmers et al., "LLM.int8()", 2022). On a CPU PyTorch's
    kernel for such weights rounds inputs and outputs to bfloat16, which makes it faster than float32. It needs a
    multiple of 16 inputs. Otherwise, and on other devices, the weights are converted to the input's type for each
    product.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    exact = False  # whether to round the weights only

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight, scale = round_rows(linear.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(..., in_features)` activations to `(..., out_features)` ones of the same type."""
        whole_groups = self.in_features % 16 == 0  # else the kernel reads beyond the end of its input
        if x.is_cpu and whole_groups and not self.exact:
            rows = x.reshape(-1, self.in_features).bfloat16()
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale.bfloat16())
            y = y.view(*x.shape[:-1], self.out_features).to(x.dtype)
        else:
            y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


def round_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(N, C)` float32 weights as int8 numbers from -127 to 127, and the bfloat16 scale of each row, `(N,)`."""
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    return (weight / scale[:, None]).round().to(torch.int8), scale


def quantize(model: nn.Module) -> None:
    """Replace linear layers by ones with 8-bit weights, in place, except a layer that shares an embedding's weights.

    Only `nn.Linear` itself is replaced: a subclass may compute something else.
    """
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if type(layer) is nn.Linear and not any(layer.weight is table for table in tables):
                setattr(module, name, Int8Linear(layer))


# The compiled step accepts this class in place of the stock GPT's linear layers.
PARTS[Int8Linear] = TENSORS | {"scale"}


@torch.no_grad()
def quantize_checked(model: nn.Module) -> None:
    """Quantise the linear layers of a model to 8 bits, in place, if the result is correct.

    The quantised model is compared with a float32 copy that has the rounded weights, and PyTorch's 8-bit kernel with
    the same weights in float32. If either differs, the slower way is taken, and a note says so.
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
            ids = random_ids(widened, min(block_size_of(model, COMPARED), COMPARED))
            reason = differs(rounded(ids), widened(ids))
        except Exception as error:  # a model can raise anything
            reason = f"it fails ({one_line(error)})"
        if hook := hooked(model):
            reason = f"{hook} has a forward hook"
        if reason:
            note(f"The weights of this {name} stay in float32. With 8-bit weights {reason}.")
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
            note(f"PyTorch's 8-bit kernel is not used for this {name}, since it gives different logits.")
