"""A folder for transformers: config, weights and tokenizer under Hugging Face's names."""

from itertools import product
from typing import Any

import torch

from minigpt.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from minigpt.errors import MiniGPTError
from minigpt.export.safetensors import as_json, as_safetensors
from minigpt.generation.text import LanguageModel
from minigpt.models.gpt import GPT
from minigpt.models.settings import PRESETS, Settings
from minigpt.models.stock import unknown_part


def files(checkpoint: dict[str, Any], lm: LanguageModel) -> dict[str, bytes]:
    """Return the files that transformers loads; arguments and errors as in `export`."""
    config, weights = to_hugging_face(lm.model)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": lm.model.block_size,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "config.json": as_json(config),
        "model.safetensors": as_safetensors(weights),
        "tokenizer.json": tokenizer_json(lm.tokenizer).encode(),
        "tokenizer_config.json": as_json(tokenizer_config),
    }


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return a byte-pair or character tokenizer as JSON for the `tokenizers` library.

    Raises:
        MiniGPTError: The library does not have this kind of tokenizer.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Theirs

    if isinstance(tokenizer, BPETokenizer):
        theirs = Theirs.from_str(tokenizer.backend.to_str())
    elif isinstance(tokenizer, CharTokenizer):
        names = [*tokenizer.characters, *(f"<0x{byte:02X}>" for byte in range(256 * tokenizer.byte_fallback))]
        vocabulary = {name: i for i, name in enumerate(names)}
        # Byte pairs without any merge are single characters; the library spells other characters in bytes.
        theirs = Theirs(models.BPE(vocabulary, [], byte_fallback=tokenizer.byte_fallback))
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        theirs.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        raise MiniGPTError(
            "Hugging Face has no word tokenizer that spells rare words. Use --format safetensors or onnx, or "
            "train with --data.tokenizer bpe."
        )
    cleaning = [normalizers.NFC()] * tokenizer.nfc + [normalizers.Lowercase()] * tokenizer.lower
    theirs.normalizer = normalizers.Sequence(cleaning)
    return theirs.to_str()


def to_hugging_face(model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the weights of the Hugging Face model that gives the same logits.

    Args:
        model: A GPT with the switches of GPT-2 or of Llama.

    Returns:
        The config, with `model_type` and `architectures`; and the weights under Hugging Face's names.

    Raises:
        MiniGPTError: Hugging Face has no class for this model.
    """
    if isinstance(model, GPT):
        if part := unknown_part(model):
            raise MiniGPTError(
                f"Hugging Face's classes do not have {part} of this model. Use --format safetensors or onnx."
            )
        settings = model.settings
        usual = (settings.n_head, settings.n_embd // settings.n_head)
        # GPT-2 has as many heads of keys and values as of queries, and heads that are as wide as the model together.
        if _is_preset(settings, "gpt2") and (settings.n_kv_head, settings.head_size) == usual:
            return _gpt2(model)
        if _is_preset(settings, "llama"):
            return llama(model)
    name = type(model).__name__
    raise MiniGPTError(
        f"Hugging Face has no class for this {name}: it needs exactly the switches of preset gpt2 or llama. Use "
        "--format safetensors or onnx."
    )


def _is_preset(settings: Settings, preset: str) -> bool:
    """Return whether the switches are those of a preset, apart from those that Hugging Face's config has too.

    Zeros at the beginning of a training change nothing afterwards.
    """
    free = {"tie_weights", "zero_init"} | ({"bias"} if preset == "llama" else set())
    return all(value == PRESETS[preset][name] for name, value in settings.switches().items() if name not in free)


def _common(model: GPT) -> dict[str, Any]:
    """Return the settings of both classes; begin, end and padding ids are None, since the defaults are real tokens."""
    return {
        "vocab_size": model.embed.num_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": model.settings.tie_weights,
        "dtype": "float32",
    }


def _gpt2(model: GPT) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    settings = model.settings
    config = _common(model) | {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": settings.block_size,
        "n_embd": settings.n_embd, "n_layer": settings.n_layer, "n_head": settings.n_head,
        "n_inner": settings.mlp_width, "layer_norm_epsilon": settings.norm_eps, "activation_function": "gelu_new",
    }  # fmt: skip
    ours = model.state_dict()
    weights = {
        "transformer.wte.weight": ours["embed.weight"],
        "transformer.wpe.weight": ours["position.weight"],
        "transformer.ln_f.weight": ours["norm.weight"],
        "transformer.ln_f.bias": ours["norm.bias"],
        "lm_head.weight": ours["lm_head.weight"],
    }
    names = {"norm1": "ln_1", "attn.qkv": "attn.c_attn", "attn.proj": "attn.c_proj", "norm2": "ln_2",
             "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}  # fmt: skip
    for layer in range(settings.n_layer):
        for name, theirs in names.items():
            weight, bias = (ours[f"blocks.{layer}.{name}.{kind}"] for kind in ("weight", "bias"))
            # Hugging Face's GPT-2 stores the weights of linear layers as (in, out).
            weights[f"transformer.h.{layer}.{theirs}.weight"] = weight.T.contiguous() if weight.dim() == 2 else weight
            weights[f"transformer.h.{layer}.{theirs}.bias"] = bias
    return config, weights


def llama(model: GPT) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the weights, under Hugging Face's names, of a model with the switches of Llama."""
    settings = model.settings
    config = _common(model) | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": settings.block_size,
        "hidden_size": settings.n_embd, "intermediate_size": settings.mlp_width,
        "num_hidden_layers": settings.n_layer, "num_attention_heads": settings.n_head,
        "num_key_value_heads": settings.n_kv_head, "head_dim": settings.head_size,
        "rms_norm_eps": settings.norm_eps, "rope_theta": settings.rope_base,
        "attention_bias": settings.bias, "mlp_bias": settings.bias,
    }  # fmt: skip
    ours = model.state_dict()
    weights = {
        "model.embed_tokens.weight": ours["embed.weight"],
        "model.norm.weight": ours["norm.weight"],
        "lm_head.weight": ours["lm_head.weight"],
    }
    names = {"norm1": "input_layernorm", "attn.proj": "self_attn.o_proj", "norm2": "post_attention_layernorm",
             "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}  # fmt: skip
    rows = model.blocks[0].attn.widths
    for layer, kind in product(range(settings.n_layer), ("weight", "bias")):
        for name, theirs in names.items():
            if (weight := ours.get(f"blocks.{layer}.{name}.{kind}")) is not None:
                weights[f"model.layers.{layer}.{theirs}.{kind}"] = weight
        if (fused := ours.get(f"blocks.{layer}.attn.qkv.{kind}")) is not None:
            for part, weight in zip("qkv", fused.split(rows), strict=True):
                weights[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"] = weight.contiguous()
    return config, weights
