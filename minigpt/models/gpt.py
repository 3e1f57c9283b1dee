"""GPT: a decoder-only transformer in one file. Each change since GPT-2 is a switch, with its reason.

Shapes: `B` batch, `T` tokens, `C` width (n_embd), `H` heads, `D` head size (C / H), `V` vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minigpt.errors import MiniGPTError
from minigpt.models.kv_cache import KVCache
from minigpt.models.ngrams import NGrams
from minigpt.models.settings import NORM_EPS, check_sizes, resolve
from minigpt.models.rope import Rope, rotate


class Attention(nn.Module):
    """Causal self-attention: each token gathers information from itself and from the tokens before it.

    A token's query says what it looks for. Its key says what it offers to the tokens after it. Its value is what they
    gather: a token receives the mean of the values, weighted by the softmax of its query's products with the keys.

    `rope` is the cosine and sine of each position's angles. With a `cache`, x has new tokens alone: the cache adds the
    keys and values of those before, and its mask says which of them each query may see.
    """

    def __init__(self, layer: int, n_embd: int, n_head: int, n_kv_head: int, dropout: float, settings: dict[str, Any]):
        super().__init__()
        self.layer = layer
        self.heads = [n_head, n_kv_head, n_kv_head]  # of queries, keys and values
        self.head_size = n_embd // n_head
        self.groups = n_head // n_kv_head  # how many query heads share a head of keys and values (see n_kv_head)
        self.qk_norm = settings["qk_norm"]
        self.qkv = nn.Linear(n_embd, sum(self.heads) * self.head_size, bias=settings["bias"])
        self.proj = nn.Linear(n_embd, n_embd, bias=settings["bias"])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, rope: tuple | None, cache: KVCache | None = None) -> torch.Tensor:
        q, k, v = self.project(x, rope)
        if cache is not None:
            k, v = cache.store(self.layer, k, v)
        if self.groups > 1:
            k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        y = self.attend(q, k, v, None if cache is None else cache.mask)  # (B, H, T, D)
        return self.dropout(self.proj(y.transpose(1, 2).flatten(2)))  # (B, T, C)

    def project(self, x: torch.Tensor, rope: tuple | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the queries, keys and values `(B, H, T, D)` of `(B, T, C)` activations."""
        qkv = self.qkv(x).unflatten(2, (-1, self.head_size)).transpose(1, 2)  # (B, heads of q, k and v, T, D)
        q, k, v = qkv.split(self.heads, dim=1)
        if self.qk_norm:
            q, k = F.rms_norm(q, (self.head_size,)), F.rms_norm(k, (self.head_size,))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return what each query gathers, `(B, H, T, D)`; without a mask it sees the tokens up to its own."""
        dropout = self.dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)


class SquaredReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x).square()


# The activations of the MLPs; SwiGLU is Swish, which PyTorch calls SiLU, on a gated linear unit.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.GELU(approximate="tanh"), "swiglu": nn.SiLU, "relu2": SquaredReLU,
}  # fmt: skip


class MLP(nn.Module):
    """Two linear layers around an activation, for each token alone; in SwiGLU a third layer scales the hidden units."""

    def __init__(self, n_embd: int, dropout: float, settings: dict[str, Any]):
        super().__init__()
        self.kind = settings["mlp"]
        hidden = mlp_width(n_embd, self.kind)
        self.up = nn.Linear(n_embd, hidden, bias=settings["bias"])
        self.gate = nn.Linear(n_embd, hidden, bias=settings["bias"]) if self.kind == "swiglu" else None
        self.activation = ACTIVATIONS[self.kind]()
        self.down = nn.Linear(hidden, n_embd, bias=settings["bias"])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x)  # (B, T, hidden units)
        hidden = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        return self.dropout(self.down(hidden))  # (B, T, C)


class Block(nn.Module):
    """One layer of the transformer: attention, then an MLP.

    The residual stream x runs through all blocks, and attention and MLP add their outputs to it. Pre-norm means that
    they read a normalised copy, so that the stream itself, and its gradients, pass through all blocks unscaled.
    """

    def __init__(self, layer: int, n_embd: int, n_head: int, n_kv_head: int, dropout: float, settings: dict[str, Any]):
        super().__init__()
        self.norm1 = make_norm(n_embd, settings)
        self.attn = Attention(layer, n_embd, n_head, n_kv_head, dropout, settings)
        self.norm2 = make_norm(n_embd, settings)
        self.mlp = MLP(n_embd, dropout, settings)

    def forward(self, x: torch.Tensor, rope: tuple | None, cache: KVCache | None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rope, cache)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A stack of pre-norm transformer blocks between an embedding and a linear layer.

    Args:
        vocab_size: `V`, the number of distinct ids.
        block_size: The longest window that the model takes.
        n_layer: The number of blocks.
        n_head: The number of attention heads; divides n_embd.
        n_embd: `C`, the width.
        preset: Sets the switches below that are None (see settings.py). `gpt2`: learned, layernorm, gelu, bias and
            tie_weights. `llama`: rope, rmsnorm and swiglu. `modern`: rope, rmsnorm, relu2, qk_norm, softcap, zero_init.
        position: `learned` adds a vector per position; `rope` rotates queries and keys by an angle that grows with the
            position, so that their match depends on the distance between them (Su et al., "RoFormer", 2021).
        norm: `layernorm`, or `rmsnorm`, which does not subtract the mean (Zhang and Sennrich, 2019).
        mlp: `gelu`; `swiglu`, in which a third layer scales the hidden units (Shazeer, "GLU Variants Improve
            Transformer", 2020); `relu2`, the square of ReLU, as good and cheaper (So et al., "Primer", 2021).
        n_kv_head: The number of heads of keys and values, each shared by a group of query heads, which saves memory in
            generation (Ainslie et al., "GQA", 2023); None for n_head.
        qk_norm: Normalise queries and keys, so that their products stay small (Dehghani et al., "ViT-22B", 2023).
        bias: Add biases to linear layers and layer norms; later models do as well without.
        dropout: The share of activations that are set to zero in training.
        tie_weights: Use the embedding as the output layer, for fewer parameters (Press and Wolf, 2017).
        softcap: Limit logits to ± this value by a tanh (Gemma 2, 2024); 0 for no limit.
        zero_init: Initialise the output layer, and the last layers of attention and MLP, with zeros, so that a block
            passes the stream on unchanged until it has learned something (Jordan et al., "modded-nanogpt", 2024).
        ngrams: The number of rows in each of two more embeddings, one for pairs and one for triples of tokens, whose
            rows a hash chooses (Pagnoni et al., "Byte Latent Transformer", 2024); 0 for none.

    Raises:
        MiniGPTError: A size does not divide another, or a switch has an unknown value.
    """

    blocks: Sequence[Block]
    activation_checkpointing = False  # store activations between blocks only; the backward pass recomputes the others

    def __init__(
        self, vocab_size: int, block_size: int = 256, n_layer: int = 4, n_head: int = 4, n_embd: int = 128,
        preset: str = "gpt2", position: str | None = None, norm: str | None = None, mlp: str | None = None,
        n_kv_head: int | None = None, qk_norm: bool | None = None, bias: bool | None = None, dropout: float = 0.0,
        tie_weights: bool | None = None, softcap: float | None = None, zero_init: bool | None = None,
        ngrams: int | None = None,
    ):  # fmt: skip
        super().__init__()
        self.settings = settings = resolve(
            preset, position=position, norm=norm, mlp=mlp, qk_norm=qk_norm, bias=bias, tie_weights=tie_weights,
            softcap=softcap, zero_init=zero_init, ngrams=ngrams,
        )  # fmt: skip
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        sizes = {
            "vocab_size": vocab_size, "block_size": block_size, "n_layer": n_layer, "n_head": n_head,
            "n_kv_head": n_kv_head, "n_embd": n_embd,
        }  # fmt: skip
        check_sizes(sizes, dropout, settings)
        self.config = sizes | {"dropout": dropout} | settings  # all arguments, for checkpoints
        self.block_size, self.softcap = block_size, settings["softcap"]
        self.n_layer, self.n_head, self.n_kv_head, self.n_embd = n_layer, n_head, n_kv_head, n_embd

        self.embed = nn.Embedding(vocab_size, n_embd)
        self.ngrams = NGrams(settings["ngrams"], n_embd) if settings["ngrams"] else None
        self.position = nn.Embedding(block_size, n_embd) if settings["position"] == "learned" else None
        self.rope = Rope(block_size, n_embd // n_head) if settings["position"] == "rope" else None
        self.dropout = nn.Dropout(dropout)
        blocks = (Block(n, n_embd, n_head, n_kv_head, dropout, settings) for n in range(n_layer))
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # it holds blocks, as annotated above
        self.norm = make_norm(n_embd, settings)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self._initialise()
        if settings["tie_weights"]:
            self.lm_head.weight = self.embed.weight

    def _initialise(self) -> None:
        """Draw weights as GPT-2 does, with standard deviation 0.02, or less where layers add to the residual stream."""
        for name, parameter in self.named_parameters():
            to_stream = name.endswith(("attn.proj.weight", "mlp.down.weight"))
            if parameter.dim() > 1:
                # Each block adds to the stream twice, and the variances of 2 n_layer additions add up.
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.n_layer) if to_stream else 0.02)
            zero_init = self.settings["zero_init"] and (to_stream or name == "lm_head.weight")
            if zero_init or "ngrams." in name or name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids, T up to block_size.

        With a cache, `idx` continues the ids in the cache and is added to it; together they are at most block_size.

        Raises:
            MiniGPTError: There are more ids than block_size.
        """
        if idx.shape[1] > self.block_size:
            raise MiniGPTError(f"A window has {idx.shape[1]} ids, and this model's block_size is {self.block_size}.")
        positions = torch.arange(idx.shape[1], device=idx.device) if cache is None else cache.extend(idx)
        x = self.embed(idx)  # (B, T, C)
        if self.ngrams is not None:
            x = x + self.ngrams(idx, None if cache is None else cache.before)  # the two ids before the new ones
        if self.position is not None:
            x = x + self.position(positions)
        rope = None if self.rope is None else self.rope(positions)
        x = self.dropout(x)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, rope, cache, use_reentrant=False) if recompute else block(x, rope, cache)
        logits = self.lm_head(self.norm(x))  # (B, T, V)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def new_cache(self, batch_size: int) -> KVCache:
        """Return an empty cache for `forward(idx, cache)`, with which generation computes each id once.

        Any network may have such a method; `minigpt.models.HasCache` says what its cache has to do.
        """
        return KVCache(self, batch_size)


def mlp_width(n_embd: int, kind: str) -> int:
    """Return the hidden units of an MLP: 4 C, or 8/3 C for SwiGLU, which has three matrices in place of two."""
    return math.ceil(n_embd / 3) * 8 if kind == "swiglu" else 4 * n_embd  # a multiple of 8


def make_norm(size: int, settings: dict[str, Any]) -> nn.LayerNorm | nn.RMSNorm:
    """Return a layer that scales each vector to mean square 1; LayerNorm first subtracts the vector's mean."""
    eps = NORM_EPS[settings["norm"]]
    return nn.RMSNorm(size, eps) if settings["norm"] == "rmsnorm" else nn.LayerNorm(size, eps, bias=settings["bias"])
