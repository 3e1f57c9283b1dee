"""GPT-2 and Llama of Hugging Face: their names for GPT's settings and tensors, and which configs GPT can represent."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minigpt.errors import MiniGPTError, check_number
from minigpt.models.settings import NORM_EPS, Settings

LARGEST_SIZE = 1 << 24  # a larger size in a config is a mistake, and would take long to refute
LARGEST_BLOCK = 1 << 20  # tokens


@dataclass(frozen=True)
class Family:
    """A class of models in transformers, with its names.

    Args:
        architecture: The class.
        model_type: The name of the family in a config.
        preset: The preset of GPT with the switches of the family.
        sizes: From a setting of GPT to its key in a config.
        outside: From a module of GPT, outside the blocks, to theirs.
        block: The list of blocks.
        inside: From a module in a block to theirs. Several of theirs are the rows of one of ours, one below the other.
        transposed: Whether the linear layers in a block have weights of (inputs, outputs).
    """

    architecture: str
    model_type: str
    preset: str
    sizes: dict[str, str]
    outside: dict[str, str]
    block: str
    inside: dict[str, tuple[str, ...]]
    transposed: bool

    def names(self, name: str) -> list[str]:
        """Return the names of their tensors that make one of GPT's, such as `blocks.0.attn.qkv.weight`."""
        module, kind = name.rsplit(".", 1)
        if not module.startswith("blocks."):
            return [f"{self.outside[module]}.{kind}"]
        _, layer, module = module.split(".", 2)
        return [f"{self.block}.{layer}.{theirs}.{kind}" for theirs in self.inside[module]]

    def is_transposed(self, name: str, tensor: torch.Tensor) -> bool:
        """Return whether one of GPT's tensors is stored with its columns as rows."""
        return self.transposed and name.startswith("blocks.") and tensor.dim() == 2


GPT2 = Family(
    "GPT2LMHeadModel", "gpt2", "gpt2",
    sizes={"vocab_size": "vocab_size", "block_size": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer",
           "n_head": "n_head", "mlp_width": "n_inner", "norm_eps": "layer_norm_epsilon"},
    outside={"embed": "transformer.wte", "position": "transformer.wpe", "norm": "transformer.ln_f",
             "lm_head": "lm_head"},
    block="transformer.h",
    inside={"norm1": ("ln_1",), "attn.qkv": ("attn.c_attn",), "attn.proj": ("attn.c_proj",), "norm2": ("ln_2",),
            "mlp.up": ("mlp.c_fc",), "mlp.down": ("mlp.c_proj",)},
    transposed=True,
)  # fmt: skip
LLAMA = Family(
    "LlamaForCausalLM", "llama", "llama",
    sizes={"vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_embd": "hidden_size",
           "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads",
           "head_size": "head_dim", "mlp_width": "intermediate_size", "norm_eps": "rms_norm_eps",
           "rope_base": "rope_theta"},
    outside={"embed": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"},
    block="model.layers",
    inside={"norm1": ("input_layernorm",), "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attn.proj": ("self_attn.o_proj",), "norm2": ("post_attention_layernorm",), "mlp.gate": ("mlp.gate_proj",),
            "mlp.up": ("mlp.up_proj",), "mlp.down": ("mlp.down_proj",)},
    transposed=False,
)  # fmt: skip
BIASES = {"attn": "attention_bias", "mlp": "mlp_bias"}  # Llama's switches in a config
FAMILIES = {family.model_type: family for family in (GPT2, LLAMA)}


def settings_of(config: dict[str, Any], file: Path) -> tuple[Family, Settings]:
    """Return the family of a config and the settings of the GPT that computes the same.

    Raises:
        MiniGPTError: GPT has no such settings, or a value is not of the right type or size.
    """
    family = _family(config, file)
    values = {ours: config.get(theirs) for ours, theirs in family.sizes.items()}
    if family is LLAMA:
        values["rope_base"] = _rope(config, file)
    optional = {"n_kv_head": None, "head_size": None, "norm_eps": NORM_EPS["layernorm"], "mlp_width": None}
    optional |= {"norm_eps": NORM_EPS["rmsnorm"], "rope_base": 10_000.0} if family is LLAMA else {}
    for ours, value in values.items():
        name = f"{family.sizes[ours]} in '{file}'"
        if value is None and ours in optional:
            values[ours] = optional[ours]
        elif ours in ("norm_eps", "rope_base"):
            check_number(name, value, above=0, below=math.inf)
        else:
            largest = LARGEST_BLOCK if ours == "block_size" else LARGEST_SIZE
            check_number(name, value, at_least=1, at_most=largest, whole=True)
    switches: dict[str, bool] = {"tie_weights": _switch(config, "tie_word_embeddings", family is GPT2, file)}
    if family is LLAMA:
        switches["bias"] = any([_switch(config, key, False, file) for key in BIASES.values()])  # checks both
    try:
        return family, Settings.resolve(family.preset, **{"rope_base": 10_000.0} | values, dropout=0.0, **switches)
    except MiniGPTError as error:
        raise MiniGPTError(f"The sizes in '{file}' do not fit together: {error}") from error


def _family(config: dict[str, Any], file: Path) -> Family:
    """Return the family of a config without anything that GPT does not have.

    Raises:
        MiniGPTError: The architecture is another, or a part of it is; the message names it.
    """
    kind, architectures = config.get("model_type"), config.get("architectures")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None or (architectures is not None and architectures != [family.architecture]):
        named = ", ".join(map(str, architectures)) if isinstance(architectures, list) and architectures else kind
        supported = " and ".join(family.architecture for family in FAMILIES.values())
        raise MiniGPTError(f"'{file}' describes the architecture {named}. minigpt reads {supported}.")
    for key, allowed in UNSUPPORTED[family.model_type].items():
        value = config.get(key)
        if value is not None and not any(value == one and type(value) is type(one) for one in allowed):
            raise _unsupported(f"{key} {json.dumps(value)[:100]}", file)
    return family


# The keys of a config that change the computation, and the values for which GPT computes the same.
_ANY_FAMILY: dict[str, tuple] = {
    "quantization_config": (), "num_local_experts": (0, 1), "num_experts": (0, 1), "add_cross_attention": (False,),
    "is_encoder_decoder": (False,), "sliding_window": (),
}  # fmt: skip
UNSUPPORTED: dict[str, dict[str, tuple]] = {
    "gpt2": _ANY_FAMILY | {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    "llama": _ANY_FAMILY | {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (1, 1.0)},
}  # fmt: skip


def _unsupported(what: str, file: Path) -> MiniGPTError:
    return MiniGPTError(f"'{file}' has {what}, which minigpt's GPT does not compute. Pass a different model.")


def _rope(config: dict[str, Any], file: Path) -> object:
    """Return the base of RoPE's angles, which transformers 4 and 5 write in different places.

    Raises:
        MiniGPTError: The positions are scaled, or only a part of a head is rotated.
    """
    base = config.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise MiniGPTError(f"{key} in '{file}' is {json.dumps(rope)[:100]}, which is not a JSON object.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise _unsupported(f"rope scaling of the kind {json.dumps(kind)[:100]}", file)
        if rope.get("partial_rotary_factor", 1) not in (1, None):
            raise _unsupported(f"partial_rotary_factor {rope['partial_rotary_factor']}", file)
        base = rope.get("rope_theta", base)
    return base


def _switch(config: dict[str, Any], key: str, default: bool, file: Path) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise MiniGPTError(f"{key} in '{file}' is {json.dumps(value)[:100]}. It takes true or false.")
    return value
