"""LoRA: fine-tuning with low-rank adapters (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from minigpt.errors import MiniGPTError, check_number
from minigpt.models import new_rows


class LoRALinear(nn.Linear):
    """A frozen linear layer with an adapter, a product of low rank: `y = W x + b + alpha / r * B A dropout(x)`."""

    lora_a: nn.Linear  # A, (r, in_features)
    lora_b: nn.Linear  # B, (out_features, r)
    lora_dropout: nn.Dropout
    settings: dict[str, Any]  # the arguments of `add`
    scale: float  # alpha / r

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * self.lora_b(self.lora_a(self.lora_dropout(x)))


def add(network: nn.Module, rank: int, alpha: float | None = None, dropout: float = 0.0, n_new: int = 0) -> None:
    """Freeze a network and give its linear layers adapters, in place; names in the state dict and logits stay the same.

    Every `nn.Linear` gets one, except the last (the output layer) and those that a TransformerEncoderLayer may bypass.

    Args:
        network: Any network.
        rank: `r`, the number of rows of A.
        alpha: The product is multiplied by alpha / r. None for r, as in peft's defaults.
        dropout: The share of a layer's inputs that are hidden from its adapter in training.
        n_new: The number of last tokens whose rows in the embedding and the output layer train, too.

    Raises:
        MiniGPTError: A number is out of range, or the network has no layer to adapt.
    """
    check_number("lora.rank", rank, at_least=1, whole=True)
    check_number("lora.alpha", alpha, above=0, optional=True)
    check_number("lora.dropout", dropout, at_least=0, below=1)
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    fused = [module for module in network.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    skipped = {id(layer) for module in fused for layer in module.modules()}
    linear = [module for module in network.modules() if type(module) is nn.Linear]
    layers = [layer for layer in linear[:-1] if not {id(layer), id(layer.weight)} & (tables | skipped)]
    if describe(network) or not layers:
        reason = "has adapters already" if describe(network) else "has no linear layer before its output layer"
        raise MiniGPTError(f"{type(network).__name__} {reason}, so that --lora.rank has nothing to adapt. Omit it.")
    network.requires_grad_(False)
    new_rows.split(network, n_new)
    settings = {"rank": rank, "alpha": alpha or rank, "dropout": dropout, "n_new": n_new}
    for layer in cast(list[LoRALinear], layers):
        layer.lora_a = nn.Linear(layer.in_features, rank, bias=False).to(layer.weight)  # Kaiming-uniform, as in peft
        layer.lora_b = nn.Linear(rank, layer.out_features, bias=False).to(layer.weight)
        nn.init.zeros_(layer.lora_b.weight)
        layer.lora_dropout, layer.scale, layer.settings = nn.Dropout(dropout), (alpha or rank) / rank, settings
        layer.__class__ = LoRALinear


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Add the products to the weights, in place: the layers are plain ones again, and all parameters can be trained."""
    for layer in [module for module in network.modules() if isinstance(module, LoRALinear)]:
        layer.weight += layer.scale * layer.lora_b.weight @ layer.lora_a.weight
        del layer.lora_a, layer.lora_b, layer.lora_dropout, layer.scale, layer.settings
        layer.__class__ = nn.Linear  # type: ignore[assignment]  # its base class
    new_rows.join(network)
    network.requires_grad_(True)


def adapters(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that train, by their names in the state dict: adapters and the rows of new tokens."""
    return {name: each for name, each in network.named_parameters(remove_duplicate=False) if each.requires_grad}


def describe(network: nn.Module) -> dict[str, Any] | None:
    """Return the arguments of `add`, in plain values; None for a network without adapters."""
    return next((module.settings for module in network.modules() if isinstance(module, LoRALinear)), None)
