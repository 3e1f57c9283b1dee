"""The generation step in C++ for a CPU: one new id per row of a batch, at the speed at which memory gives the weights.

`decoding.cpp` computes `GPT.forward` for one id after a cache. In PyTorch that step consists of matrix products with a
few rows and some fifty other operations of a few microseconds each, during which memory is idle.
"""

import ctypes
from itertools import chain

import torch
from torch import nn

from minigpt.cpu.compiler import address, last_caches, library
from minigpt.cpu.int8 import Int8Linear
from minigpt.cpu.sampling import fastest_params
from minigpt.errors import MiniGPTError
from minigpt.generation.checks import ROUNDED, cache_differs, exact_copy, in_float32, random_ids, use_compiled_step
from minigpt.models.gpt import GPT, Block
from minigpt.models.kv_cache import KVCache
from minigpt.models.stock import unknown_part

ONE_THREAD_BELOW = 200_000  # parameters; for fewer, one thread is faster than several that wait for each other
# The share of the last caches up to which it is faster to leave weights there from token to token. Products with int8
# weights take so long that it matters less where these come from.
CACHED = {torch.float32: 0.7, torch.bfloat16: 0.7, torch.int8: 0.4}
FUNCTIONS = {  # by the types of embeddings and cache, and of the weights of linear layers
    (torch.float32, torch.float32): "decode_float",
    (torch.bfloat16, torch.bfloat16): "decode_bfloat16",
    (torch.float32, torch.int8): "decode_int8",
}


def compile_decoding(model: nn.Module, length: int | None = None) -> None:
    """Compile the step that `generate_ids` runs for each new id, for a model that is not trained any more.

    The C++ code computes the stock `GPT`. It is refused for a model with other parts, and for one whose logits it does
    not reproduce.

    Args:
        model: A GPT in eval mode.
        length: The number of ids of the longest text to come, over which the logits are compared; None for block_size.

    Raises:
        MiniGPTError: The model cannot be compiled, or there is no compiler. Text is then generated without the step.
    """
    if type(model) is not GPT:
        raise MiniGPTError(
            f"Compiled generation is for the class GPT, but this model is a {type(model).__name__}. "
            "Text is generated without it."
        )
    if part := unknown_part(model):
        raise MiniGPTError(f"Compiled generation does not know {part} of this model. Text is generated without it.")
    compiled = CompiledDecoder(model)
    if reason := _differs(model, compiled, min(length or model.block_size, model.block_size)):
        raise MiniGPTError(f"Text is generated without the compiled step of this model: {reason}.")
    use_compiled_step(model, compiled)


@torch.no_grad()
def _differs(model: GPT, compiled: "CompiledDecoder", length: int) -> str | None:
    """Describe how compiled code differs from the model, first without rounding and then with it; None if it agrees."""
    was_training = model.training
    model.eval()
    try:
        with in_float32(model):
            exact = exact_copy(model)
            ids = random_ids(exact, length)
            plain = exact(ids)
            if plain.isnan().any():  # the draw of the next id will raise an error
                return None
            if reason := cache_differs(exact, ids, plain, step=CompiledDecoder(exact)):
                return reason
            if model.embed.weight.dtype == torch.float32:  # at most the weights are rounded, on both sides
                return None
            return cache_differs(model, ids, model(ids), ROUNDED, compiled)
    finally:
        model.train(was_training)


# The numbers of the activations in decoding.cpp, and its structures.
ACTIVATIONS = {"gelu": 0, "relu2": 1, "swiglu": 2}


class _Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")] + [
        (name, ctypes.c_int64) for name in ("inputs", "outputs")
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [("norm1", _Norm), ("norm2", _Norm)] + [
        (name, _Linear) for name in ("qkv", "proj", "gate", "up", "down")
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n_layer", "n_head", "n_kv_head", "head_size", "n_embd")),
        *((name, ctypes.c_int64) for name in ("vocab_size", "ngrams", "threads")),
        *((name, ctypes.c_int64) for name in ("rmsnorm", "activation", "qk_norm", "stream")),
        *((name, ctypes.c_float) for name in ("norm_eps", "softcap")),
        *((name, ctypes.c_void_p) for name in ("embed", "pair", "triple", "position", "cos", "sin")),
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", _Norm),
        ("head", _Linear),
    ]


class CompiledDecoder:
    """Computes a GPT's `forward` for one new id per row after a cache, from a copy of the weights in reading order.

    Args:
        model: A model on a CPU in float32, bfloat16 or int8, whose weights do not change any more. With bfloat16,
            weights, cache and the inputs of products are bfloat16, as in PyTorch. With int8 only the weights are int8.
            Everything else is float32.

    Raises:
        MiniGPTError: The model is on another device, or cannot be compiled, for example without a C++ compiler.
    """

    def __init__(self, model: GPT):
        types = model.embed.weight.dtype, model.blocks[0].attn.qkv.weight.dtype
        if model.embed.weight.device.type != "cpu" or types not in FUNCTIONS:
            raise MiniGPTError(
                "Compiled generation is for a CPU, in float32, bfloat16 or int8. The model stays as it is."
            )
        compiled = library()
        self.run = compiled[FUNCTIONS[types]]
        self.columns = compiled.columns()  # the number of outputs whose weights are adjacent in memory
        self.vocab_size = model.lm_head.out_features
        self.params = fastest_params(self.vocab_size)  # the sampling parameters to use with this step
        self._kept: list[torch.Tensor] = []  # tensors that the structures point to
        self._read = 0  # the bytes of the weights that every token reads; of embeddings it reads a few rows
        self._layers = (_Layer * len(model.blocks))(*(self._layer(block) for block in model.blocks))
        head = self._linear(model.lm_head)
        settings = model.settings
        numbers = sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))
        threads = 1 if numbers < ONE_THREAD_BELOW else torch.get_num_threads()
        tables = {"embed": model.embed.weight}
        tables |= {} if model.rope is None else {"cos": model.rope.cos, "sin": model.rope.sin}
        tables |= {} if model.ngrams is None else dict(zip(("pair", "triple"), model.ngrams.parameters(), strict=True))
        tables |= {} if model.position is None else {"position": model.position.weight}
        self._model = _Model(
            settings.n_layer, settings.n_head, settings.n_kv_head, settings.head_size, settings.n_embd,
            self.vocab_size, settings.ngrams, threads, settings.norm == "rmsnorm",
            ACTIVATIONS[settings.mlp], settings.qk_norm, self._read > CACHED[types[1]] * last_caches(threads),
            settings.norm_eps, settings.softcap,
            **{name: self._floats(table) for name, table in tables.items()},
            layers=self._layers, norm=self._norm(model.norm), head=head,
        )  # fmt: skip

    def __call__(self, idx: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Return the `(B, 1, V)` float32 logits of `(B, 1)` ids that continue the cache, and add the ids to it."""
        cache.advance(idx)
        rows = len(idx)
        logits = torch.empty(rows, 1, self.vocab_size, dtype=torch.float32)
        idx, positions = idx.to(torch.int64).contiguous(), cache.positions.contiguous()
        before = None if cache.before is None else cache.before.contiguous()
        outside = self.run(
            ctypes.byref(self._model), ctypes.c_int64(rows), ctypes.c_int64(cache.room),
            address(idx), address(before), address(positions),
            address(cache.keys[0]), address(cache.values[0]), address(logits),
        )  # fmt: skip
        if outside:
            raise IndexError("an id is outside the vocabulary, or there are more ids than block_size")
        return logits

    def _layer(self, block: Block) -> _Layer:
        linears: dict[str, nn.Linear | None] = {"qkv": block.attn.qkv, "proj": block.attn.proj}
        linears |= {"gate": block.mlp.gate, "up": block.mlp.up, "down": block.mlp.down}
        return _Layer(
            self._norm(block.norm1), self._norm(block.norm2),
            **{name: self._linear(layer) for name, layer in linears.items() if layer is not None},
        )  # fmt: skip

    def _norm(self, norm: nn.LayerNorm | nn.RMSNorm) -> _Norm:
        return _Norm(self._floats(norm.weight), self._floats(getattr(norm, "bias", None)))

    def _linear(self, layer: nn.Linear | Int8Linear) -> _Linear:
        weight = layer.weight.detach().contiguous()
        outputs, inputs = weight.shape
        together = 4 // weight.element_size()  # the number of inputs whose weights are adjacent in memory
        packed = nn.functional.pad(weight, (0, -inputs % together, 0, -outputs % self.columns))
        packed = packed.view(-1, self.columns, packed.shape[1] // together, together).transpose(1, 2).contiguous()
        self._kept.append(packed)
        self._read += packed.nbytes
        scale = layer.scale * 2**-24 if isinstance(layer, Int8Linear) else None  # see `weights` in decoding.cpp
        of_outputs = (self._floats(tensor, -outputs % self.columns) for tensor in (scale, layer.bias))
        return _Linear(packed.data_ptr(), *of_outputs, inputs, outputs)

    def _floats(self, tensor: torch.Tensor | None, more: int = 0) -> int | None:
        """Return the address of a float32 copy of a tensor with `more` zeros appended; None for None."""
        if tensor is None:
            return None
        numbers = tensor.detach().float()
        self._kept.append((nn.functional.pad(numbers, (0, more)) if more else numbers).contiguous())
        return self._kept[-1].data_ptr()
