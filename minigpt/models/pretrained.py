"""GPT-2 and Llama of Hugging Face: their names for the settings and the tensors of GPT."""

from dataclasses import dataclass

import torch


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
