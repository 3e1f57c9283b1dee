"""GPT: a decoder-only transformer in one file. Each enrichment over GPT-2 is one switch, with one reason.

Shapes: `B` batch, `T` tokens, `C` width (n_embd), `H` heads, `D` head size (C / H), `V` vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minigpt.cpu.layers import Embedding, dropped, gelu
from minigpt.errors import MiniGPTError, check_choice, check_number
from minigpt.models.kv_cache import KVCache

# Three named settings of the switches. A switch that is given explicitly wins over its preset.
PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    "gpt2": {
        "position": "learned", "norm": "layernorm", "mlp": "gelu", "qk_norm": False, "bias": True,
        "tie_weights": True, "softcap": 0.0, "zero_init": False, "ngrams": 0,
    },
    # Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023.
    "llama": {
        "position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False, "bias": False,
        "tie_weights": False, "softcap": 0.0, "zero_init": False, "ngrams": 0,
    },
    # What trains fastest to the lowest loss, after the modded-nanogpt speedruns (Jordan et al., 2024).
    "modern": {
        "position": "rope", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True, "bias": False,
        "tie_weights": False, "softcap": 15.0, "zero_init": True, "ngrams": 0,
    },
}  # fmt: skip
CHOICES = {"position": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"), "mlp": ("gelu", "swiglu", "relu2")}
ROPE_BASE = 10_000.0
HASH = 1_000_003  # a prime that is not a size of tables
LONGEST_PLAIN = 512  # tokens for which attention may hold all T * T weights; beyond, that gains less and takes more
ACTIVATIONS = {"gelu": gelu, "relu2": lambda x: F.relu(x).square()}  # of the MLPs with two layers
NORM_EPS = {"layernorm": 1e-5, "rmsnorm": 1e-6}


def resolve(preset: str, **switches: Any) -> dict[str, Any]:
    """The switches of a preset, with those that are given and not None in their place.

    Raises:
        MiniGPTError: There is no such preset, or a switch has a value that it does not know.
    """
    check_choice("preset", preset, PRESETS)
    settings = PRESETS[preset] | {name: value for name, value in switches.items() if value is not None}
    for name, known in CHOICES.items():
        check_choice(name, settings[name], known)
    check_number("softcap", settings["softcap"], at_least=0, hint="where 0 means no cap")
    check_number("ngrams", settings["ngrams"], at_least=0, whole=True, hint="where 0 means no table")
    return settings


class GPT(nn.Module):
    """A stack of pre-norm transformer blocks between an embedding and a linear layer.

    Args:
        vocab_size: `V`, the number of distinct ids.
        block_size: The longest window it takes.
        n_layer: How many blocks.
        n_head: How many attention heads; divides n_embd.
        n_embd: `C`, the width.
        preset: Which of `gpt2`, `llama` and `modern` sets the switches below that are None.
        position: `learned` adds a vector per position; `rope` turns queries and keys by an angle that grows with it,
            so that attention sees distances (Su et al., "RoFormer", 2021).
        norm: `layernorm`, or `rmsnorm`, which does without the mean (Zhang and Sennrich, 2019).
        mlp: `gelu`; `swiglu`, in which one half gates the other (Shazeer, "GLU Variants Improve Transformer", 2020);
            `relu2`, the square of ReLU, as good and cheaper (So et al., "Primer", 2021).
        n_kv_head: Heads of keys and values, each shared by a group of query heads, for a smaller cache (Ainslie et
            al., "GQA", 2023); None for as many as n_head.
        qk_norm: Norm queries and keys, so that attention cannot saturate (Dehghani et al., "ViT-22B", 2023).
        bias: Add biases to linear layers and layer norms.
        dropout: The share of activations dropped in training.
        tie_weights: Let the output layer be the embedding, for fewer parameters (Press and Wolf, 2017).
        softcap: Keep logits within ± this by a tanh (Gemma 2, 2024); 0 for none.
        zero_init: Start the layers that write to the residual stream and the output layer at zero, so that each block
            begins as the identity.
        ngrams: Add to each token's embedding one of the pair and one of the triple of tokens that it ends, each hashed
            into a table of so many rows, so that no layer has to learn to look at the last two tokens (Pagnoni et al.,
            "Byte Latent Transformer", 2024); 0 for none.

    Raises:
        MiniGPTError: A size does not divide another, or a switch has a value that it does not know.
    """

    # `nn.ModuleList` does not say of which class its modules are.
    blocks: Sequence["Block"]
    ngrams: Sequence[Embedding]
    cos: torch.Tensor | None  # RoPE's tables
    sin: torch.Tensor | None
    compiled: "CompiledStep | None" = None  # see `compile_decoding`
    # Keep between blocks only what goes from one to the next, and compute the rest again on the way back: less memory
    # for a third more work (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
    activation_checkpointing = False

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 256,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 128,
        preset: str = "gpt2",
        position: str | None = None,
        norm: str | None = None,
        mlp: str | None = None,
        n_kv_head: int | None = None,
        qk_norm: bool | None = None,
        bias: bool | None = None,
        dropout: float = 0.0,
        tie_weights: bool | None = None,
        softcap: float | None = None,
        zero_init: bool | None = None,
        ngrams: int | None = None,
    ):
        super().__init__()
        settings = resolve(
            preset, position=position, norm=norm, mlp=mlp, qk_norm=qk_norm, bias=bias, tie_weights=tie_weights,
            softcap=softcap, zero_init=zero_init, ngrams=ngrams,
        )  # fmt: skip
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        sizes = {
            "vocab_size": vocab_size, "block_size": block_size, "n_layer": n_layer, "n_head": n_head,
            "n_kv_head": n_kv_head, "n_embd": n_embd,
        }  # fmt: skip
        for name, size in sizes.items():
            check_number(name, size, at_least=1, whole=True)
        check_number("dropout", dropout, at_least=0, below=1)
        if n_embd % n_head:
            raise MiniGPTError(f"n_embd is {n_embd}, which n_head {n_head} does not divide. Change one.")
        if n_head % n_kv_head:
            raise MiniGPTError(f"n_kv_head is {n_kv_head}, which does not divide n_head {n_head}.")
        if settings["position"] == "rope" and (n_embd // n_head) % 2:
            raise MiniGPTError(f"position rope needs an even head size, but n_embd / n_head is {n_embd // n_head}.")
        self.block_size = block_size
        self.n_layer, self.n_head, self.n_kv_head, self.n_embd = n_layer, n_head, n_kv_head, n_embd
        self.settings = settings
        self.config = sizes | {"dropout": dropout} | settings  # to build this model again, whatever the presets become
        self.softcap = settings["softcap"]

        self.embed = Embedding(vocab_size, n_embd)
        n_tables = 2 if settings["ngrams"] else 0  # for pairs and for triples
        self.ngrams = nn.ModuleList(  # type: ignore[assignment]  # a list, as annotated above
            Embedding(settings["ngrams"], n_embd) for _ in range(n_tables)
        )
        position = settings["position"]
        self.position = nn.Embedding(block_size, n_embd) if position == "learned" else None
        self.cos, self.sin = rope_tables(block_size, n_embd // n_head) if position == "rope" else (None, None)
        self.dropout = dropout
        self.blocks = nn.ModuleList(  # type: ignore[assignment]  # a list, as annotated above
            Block(n, n_embd, n_head, n_kv_head, dropout, settings) for n in range(n_layer)
        )
        self.norm = make_norm(n_embd, settings)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self._initialise()
        if settings["tie_weights"]:
            self.lm_head.weight = self.embed.weight

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "GPT":
        # The tables go where the weights go, but are no buffers: weight averaging would average those, and round.
        if self.cos is not None and self.sin is not None:
            self.cos, self.sin = fn(self.cos), fn(self.sin)
        self.compiled = None  # it is for the weights as they were
        return super()._apply(fn, recurse)

    def _initialise(self) -> None:
        """GPT-2's: normal of 0.02, the layers that write to the residual stream divided by the root of their number."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # norms are ones, biases zeros
            to_residual = name.endswith(("attn.proj.weight", "mlp.down.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.n_layer) if to_residual else 0.02)
            if (self.settings["zero_init"] and (to_residual or name == "lm_head.weight")) or "ngrams." in name:
                nn.init.zeros_(parameter)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        """`(B, T)` ids, T up to block_size, to `(B, T, V)` logits.

        With a cache the ids come after those that it holds, together up to block_size, and join them.

        Raises:
            MiniGPTError: There are more ids than block_size.
        """
        if idx.shape[1] > self.block_size:
            raise MiniGPTError(f"A window has {idx.shape[1]} ids, and this model's block_size is {self.block_size}.")
        if cache is not None:
            cache.extend(idx)
            if self.compiled is not None and idx.shape[1] == 1:
                return self.compiled(idx, cache)
            cache.prepare()
        positions = slice(idx.shape[1]) if cache is None else cache.positions
        x = self.embed(idx)  # (B, T, C)
        if self.ngrams:
            x = x + self._ngrams(idx, cache)
        rope = None
        if self.cos is not None and self.sin is not None:
            rope = self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)  # (1, T, D) or (B, 1, T, D)
        if self.position is not None:
            x = x + self.position.weight[positions]
        x = dropped(x, self.dropout) if self.training else x
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, cache, use_reentrant=False)
            else:
                x = block(x, rope, cache)
        logits = self.lm_head(self.norm(x))  # (B, T, V)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def new_cache(self, batch_size: int) -> KVCache:
        """Return an empty cache for `forward(idx, cache)`, by which generation computes each id once.

        Any network may have such a method. Generation needs three things of what it returns:

        - `forward(idx, cache)` gives the logits of `(B, n)` ids that come after those in the cache, and adds these ids.
        - `cache.columns` is 0 while the cache is empty.
        - `cache.length`, `(B,)`, is the number of ids that each row holds. Setting it lower makes a row forget what
          came after; so rows of unequal length are read at once, padded on the right, and then cut to their lengths.
        """
        return KVCache(self, batch_size)

    def _ngrams(self, idx: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        """The embeddings `(B, T, C)` of the pair and the triple that end at each id; before the first stands id 0."""
        before = idx.new_zeros(idx.shape[0], 2) if cache is None else cache.before
        ids = torch.cat((before, idx), dim=1)
        pair, triple = self.ngrams
        hash_of_two = idx * HASH + ids[:, 1:-1]
        hash_of_three = hash_of_two * HASH + ids[:, :-2]
        return pair(hash_of_two % pair.num_embeddings) + triple(hash_of_three % triple.num_embeddings)


class CompiledStep(Protocol):
    """`GPT.forward` for one id a row behind a cache, in compiled code."""

    state: tuple | None  # what `checks.state_of` gave for the model when it was compiled

    def __call__(self, idx: torch.Tensor, cache: KVCache) -> torch.Tensor: ...


class Block(nn.Module):
    """Attention, then an MLP, each reading a normed copy of the residual stream and adding to it."""

    def __init__(self, layer: int, n_embd: int, n_head: int, n_kv_head: int, dropout: float, settings: dict[str, Any]):
        super().__init__()
        self.norm1 = make_norm(n_embd, settings)
        self.attn = Attention(layer, n_embd, n_head, n_kv_head, dropout, settings)
        self.norm2 = make_norm(n_embd, settings)
        self.mlp = MLP(n_embd, dropout, settings)

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None, cache: KVCache | None
    ) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rope, cache)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Causal self-attention: each token gathers from itself and those before it."""

    def __init__(self, layer: int, n_embd: int, n_head: int, n_kv_head: int, dropout: float, settings: dict[str, Any]):
        super().__init__()
        self.layer = layer
        self.heads = [n_head, n_kv_head, n_kv_head]
        self.head_size = n_embd // n_head
        self.groups = n_head // n_kv_head
        self.qk_norm = settings["qk_norm"]
        self.qkv = nn.Linear(n_embd, sum(self.heads) * self.head_size, bias=settings["bias"])
        self.proj = nn.Linear(n_embd, n_embd, bias=settings["bias"])
        self.dropout = dropout

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None, cache: KVCache | None = None
    ) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.project(x, rope)
        if cache is not None:
            k, v = cache.store(self.layer, k, v)
        if self.groups > 1:
            k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        dropout = self.dropout if self.training else 0.0
        mask = None if cache is None else cache.mask
        y = _attend(q, k, v, mask, dropout)  # (B, H, T, D)
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return dropped(y, dropout)

    def project(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The queries, keys and values `(B, H, T, D)` of `(B, T, C)` activations, normed and turned as asked."""
        heads = self.qkv(x).view(*x.shape[:2], -1, self.head_size).transpose(1, 2)  # (B, heads of q, k and v, T, D)
        q, k, v = heads.split(self.heads, dim=1)
        if self.qk_norm:
            q, k = F.rms_norm(q, (self.head_size,)), F.rms_norm(k, (self.head_size,))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    T = q.shape[-2]
    plain = torch.is_autocast_enabled("cpu") or dropout  # the kernel draws what is dropped in its slow way
    if mask is None and T <= LONGEST_PLAIN and q.device.type == "cpu" and plain:
        # Forward and back, these operations take about half of the kernel's time, in bf16 or float32 (docs/LOG.md).
        scores = (q / math.sqrt(q.shape[-1])) @ k.mT  # (B, H, T, T)
        hidden = torch.full((T, T), -math.inf, dtype=scores.dtype).triu(1)
        return dropped((scores + hidden).softmax(-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)


class MLP(nn.Module):
    """Two linear layers around a non-linearity, each token on its own."""

    def __init__(self, n_embd: int, dropout: float, settings: dict[str, Any]):
        super().__init__()
        self.kind = settings["mlp"]
        hidden = mlp_width(n_embd, self.kind)
        self.up = nn.Linear(n_embd, hidden, bias=settings["bias"])
        self.gate = nn.Linear(n_embd, hidden, bias=settings["bias"]) if self.kind == "swiglu" else None
        self.down = nn.Linear(hidden, n_embd, bias=settings["bias"])
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up(x)
        x = ACTIVATIONS[self.kind](up) if self.gate is None else F.silu(self.gate(x)) * up
        x = self.down(x)
        return dropped(x, self.dropout) if self.training else x


def mlp_width(n_embd: int, kind: str) -> int:
    """4 C; for the three matrices of SwiGLU 8/3 C, rounded up to a multiple of 8, so that parameters stay equal."""
    return math.ceil(n_embd / 3) * 8 if kind == "swiglu" else 4 * n_embd


def make_norm(size: int, settings: dict[str, Any]) -> nn.LayerNorm | nn.RMSNorm:
    eps = NORM_EPS[settings["norm"]]
    return nn.RMSNorm(size, eps) if settings["norm"] == "rmsnorm" else nn.LayerNorm(size, eps, bias=settings["bias"])


def rope_tables(n_positions: int, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `(n_positions, D)` of the angles by which RoPE turns, in Llama's layout of halves.

    The sines of the first half are negative, as in the first row of a rotation matrix.
    """
    frequencies = ROPE_BASE ** -(torch.arange(0, head_size, 2).float() / head_size)
    angles = torch.outer(torch.arange(n_positions).float(), frequencies)  # (n_positions, D / 2)
    return angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), dim=1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn `(B, H, T, D)` queries or keys: element i and i + D / 2 are the two coordinates of a plane."""
    # `roll` swaps the halves. Written with `torch.cat`, the step that torch.compile makes of it in bfloat16 gives NaN
    # gradients on some processors (torch 2.13, Intel's with AVX512-FP16).
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin
