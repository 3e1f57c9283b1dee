"""GPT: a decoder-only transformer in one file. Each change since GPT-2 is a switch, with its source.

Shapes: `B` batch, `T` tokens, `C` width (n_embd), `H` heads, `D` head size, `V` vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute  # elsewhere here, a checkpoint is a saved model

from minigpt.errors import MiniGPTError
from minigpt.models.kv_cache import KVCache
from minigpt.models.ngrams import NGrams
from minigpt.models.rope import Rope, rotate
from minigpt.models.settings import Settings


class Attention(nn.Module):
    """Causal self-attention: each token gathers information from itself and from the tokens before it.

    A linear layer computes three vectors of D numbers for each token. Its query says what the token looks for, its key
    what it offers, and its value is what others gather from it. The products of a query with the keys up to its own
    token, divided by sqrt(D), become weights that sum to 1 by a softmax. The token receives the mean of the values with
    these weights: `softmax(q @ k.T / sqrt(D)) @ v`. This is one head. H heads, each with its own queries, keys and
    values, run side by side, so that a token can look for H things at once.

    At first reading take `rope` and `cache` to be None. `rope` is for rotary positions (see `position` in GPT): the
    cosines and sines of the angles by which `rotate` turns the query and the key at each position. `cache` is for
    generation: it stores the keys and values of earlier tokens, and x then has the new tokens only. Its mask says which
    tokens, old and new, each new query may see: those up to its own.
    """

    def __init__(self, layer: int, settings: Settings):
        super().__init__()
        n_head, n_kv_head, self.head_size = settings.n_head, settings.n_kv_head, settings.head_size
        self.layer = layer
        self.groups = n_head // n_kv_head  # this many heads share their keys and values; usually 1
        self.qk_norm = settings.qk_norm
        # One matrix computes queries, keys and values.
        self.widths = [n * self.head_size for n in (n_head, n_kv_head, n_kv_head)]
        self.qkv = nn.Linear(settings.n_embd, sum(self.widths), bias=settings.bias)
        self.proj = nn.Linear(n_head * self.head_size, settings.n_embd, bias=settings.bias)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: torch.Tensor, rope: tuple | None, cache: KVCache | None = None) -> torch.Tensor:
        q, k, v = self.project(x, rope)
        if cache is not None:
            k, v = cache.store(self.layer, k, v)  # those of all tokens so far
        if self.groups > 1:  # repeat each head of keys and values for its group of queries: (B, H, T, D)
            k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        y = self.attend(q, k, v, None if cache is None else cache.mask)  # (B, H, T, D)
        return self.dropout(self.proj(y.transpose(1, 2).flatten(2)))  # (B, T, C)

    def project(self, x: torch.Tensor, rope: tuple | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the queries `(B, H, T, D)`, and the keys and values `(B, n_kv_head, T, D)`, of `(B, T, C)`."""
        q, k, v = self.qkv(x).split(self.widths, dim=2)
        # Separate the heads: (B, T, heads * D) -> (B, T, heads, D) -> (B, heads, T, D).
        q, k, v = (t.unflatten(2, (-1, self.head_size)).transpose(1, 2) for t in (q, k, v))
        if self.qk_norm:
            q, k = F.rms_norm(q, (self.head_size,)), F.rms_norm(k, (self.head_size,))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return what each query gathers, `(B, H, T, D)`; without a mask it sees the tokens up to its own."""
        dropout = self.dropout.p if self.training else 0.0
        # The formula of the class docstring; the products with keys that a query may not see are replaced by -inf.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)


class SquaredReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x).square()


# The activation in each kind of MLP.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": lambda: nn.GELU(approximate="tanh"),  # GPT-2 computes GELU by this formula with a tanh
    "swiglu": nn.SiLU,  # x * sigmoid(x)
    "relu2": SquaredReLU,
}


class MLP(nn.Module):
    """Two linear layers around an activation, for each token alone.

    SwiGLU has a third layer, the gate, and computes `down(silu(gate(x)) * up(x))`.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        C, hidden, bias = settings.n_embd, settings.mlp_width, settings.bias
        self.kind = settings.mlp
        self.up = nn.Linear(C, hidden, bias)
        self.gate = nn.Linear(C, hidden, bias) if self.kind == "swiglu" else None
        self.activation = ACTIVATIONS[self.kind]()
        self.down = nn.Linear(hidden, C, bias)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x)  # (B, T, hidden units)
        hidden = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        return self.dropout(self.down(hidden))  # (B, T, C)


class Block(nn.Module):
    """One layer of the transformer: attention, then an MLP.

    The residual stream x runs through all blocks, and attention and MLP add their outputs to it. Pre-norm means that
    they read a normalised copy, so that the stream itself, and its gradients, pass through all blocks unscaled.
    """

    def __init__(self, layer: int, settings: Settings):
        super().__init__()
        self.norm1 = make_norm(settings)
        self.attn = Attention(layer, settings)
        self.norm2 = make_norm(settings)
        self.mlp = MLP(settings)

    def forward(self, x: torch.Tensor, rope: tuple | None, cache: KVCache | None) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rope, cache)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A stack of pre-norm transformer blocks between an embedding and a linear layer.

    The first five arguments are enough at first. The others are switches between GPT-2 and later models.

    Args:
        vocab_size: `V`, the number of distinct ids.
        block_size: The longest window that the model takes.
        n_layer: The number of blocks.
        n_head: The number of attention heads; divides n_embd unless head_size is set.
        n_embd: `C`, the width.
        preset: Sets the switches below that are None (see settings.py). `gpt2`: position learned, norm layernorm, mlp
            gelu, bias and tie_weights. `llama`: rope, rmsnorm and swiglu. `modern`: rope, rmsnorm and relu2, with
            qk_norm, softcap and zero_init.
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
        zero_init: Initialise the last layers of attention and MLP with zeros, so that a block passes the stream on
            unchanged until it has learned something. So is the output layer, unless it is the embedding: at first all
            tokens are equally likely (Jordan et al., "modded-nanogpt", 2024).
        ngrams: Add two more embeddings to that of each token, for the last two and the last three tokens; 0 for none.
            Each is a table of this many rows, and a hash, a number computed from the tokens, picks the row (Pagnoni et
            al., "Byte Latent Transformer", 2024).
        head_size: `D`, the size of a head's queries, keys and values; None for n_embd / n_head.
        mlp_width: The hidden units of an MLP; None for 4 n_embd, and for 8/3 n_embd with swiglu.
        norm_eps: The number that norms add to the mean square before they divide; None for 1e-5, with rmsnorm 1e-6.
        rope_base: RoPE takes components i and i + D/2 of a query or a key as a point in the plane, and rotates it by
            the angle `position / rope_base ** (2 i / D)`. A larger base rotates more slowly, for longer windows.

    Raises:
        MiniGPTError: A size does not divide another, or a switch has an unknown value.
    """

    # If True, training stores the activations between blocks only, and the backward pass computes the others again.
    # LitLanguageModel has a setting of this name.
    activation_checkpointing = False

    def __init__(
        self, vocab_size: int, block_size: int = 256, n_layer: int = 4, n_head: int = 4, n_embd: int = 128,
        preset: str = "gpt2", position: str | None = None, norm: str | None = None, mlp: str | None = None,
        n_kv_head: int | None = None, qk_norm: bool | None = None, bias: bool | None = None, dropout: float = 0.0,
        tie_weights: bool | None = None, softcap: float | None = None, zero_init: bool | None = None,
        ngrams: int | None = None, head_size: int | None = None, mlp_width: int | None = None,
        norm_eps: float | None = None, rope_base: float = 10_000.0,
    ):  # fmt: skip
        super().__init__()
        # Fill in the settings that are None, from the preset or from other settings: now `settings` has them all.
        self.settings = settings = Settings.resolve(
            preset, vocab_size=vocab_size, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
            position=position, norm=norm, mlp=mlp, n_kv_head=n_kv_head, qk_norm=qk_norm, bias=bias, dropout=dropout,
            tie_weights=tie_weights, softcap=softcap, zero_init=zero_init, ngrams=ngrams, head_size=head_size,
            mlp_width=mlp_width, norm_eps=norm_eps, rope_base=rope_base,
        )  # fmt: skip
        self.config = asdict(settings)  # a checkpoint stores these arguments, with which the model is built again
        self.block_size, self.softcap = block_size, settings.softcap
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.ngrams = NGrams(settings.ngrams, n_embd) if settings.ngrams else None
        self.position = nn.Embedding(block_size, n_embd) if settings.position == "learned" else None
        self.rope = Rope(block_size, settings.head_size, rope_base) if settings.position == "rope" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks: Any = nn.ModuleList(Block(layer, settings) for layer in range(n_layer))
        self.norm = make_norm(settings)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self._initialise()
        if settings.tie_weights:
            self.lm_head.weight = self.embed.weight

    def _initialise(self) -> None:
        """Draw weights as GPT-2 does, with standard deviation 0.02, or less where layers add to the residual stream."""
        # Each block adds to the stream twice, and the variances of 2 n_layer additions add up.
        std_to_stream = 0.02 / math.sqrt(2 * self.settings.n_layer)
        for name, parameter in self.named_parameters():
            to_stream = name.endswith(("attn.proj.weight", "mlp.down.weight"))
            if parameter.dim() > 1:  # embeddings and matrices; the weights of norms, which are vectors, stay at 1
                nn.init.normal_(parameter, std=std_to_stream if to_stream else 0.02)
            if name.endswith("bias") or "ngrams." in name:  # these add nothing until they are learned
                nn.init.zeros_(parameter)
            if self.settings.zero_init and (to_stream or name == "lm_head.weight"):
                nn.init.zeros_(parameter)

    def forward(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """Return the `(B, T, V)` logits of `(B, T)` ids, T up to block_size.

        With a cache, `idx` continues the ids in the cache and is added to it; together they are at most block_size.

        Raises:
            MiniGPTError: There are more ids than block_size.
        """
        if idx.shape[1] > self.block_size:
            raise MiniGPTError(f"A window has {idx.shape[1]} ids, and this model's block_size is {self.block_size}.")
        # (T,) positions; with a cache (B, T), since its rows may have different lengths. `extend` prepares the cache
        # for the new ids and returns their positions; each layer then stores its keys and values.
        positions = torch.arange(idx.shape[1], device=idx.device) if cache is None else cache.extend(idx)
        x = self.embed(idx)  # (B, T, C)
        if self.ngrams is not None:  # these embeddings need the two ids before idx as well, which the cache has
            x = x + self.ngrams(idx, None if cache is None else cache.before)
        if self.position is not None:
            x = x + self.position(positions)
        rope = None if self.rope is None else self.rope(positions)
        x = self.dropout(x)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = recompute(block, x, rope, cache, use_reentrant=False)
            else:
                x = block(x, rope, cache)
        logits = self.lm_head(self.norm(x))  # (B, T, V)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def new_cache(self, batch_size: int) -> KVCache:
        """Return an empty cache for `forward(idx, cache)`, with which generation computes each id once.

        Any network may have such a method; `minigpt.models.HasCache` says what its cache has to do.
        """
        return KVCache(self, batch_size)


def make_norm(settings: Settings) -> nn.LayerNorm | nn.RMSNorm:
    """Return a layer that scales each vector to mean square 1, and then by learned weights.

    LayerNorm first subtracts the vector's mean, and may have a bias.
    """
    C, eps = settings.n_embd, settings.norm_eps
    return nn.RMSNorm(C, eps) if settings.norm == "rmsnorm" else nn.LayerNorm(C, eps, bias=settings.bias)
