"""A folder for transformers: config, weights and tokenizer under Hugging Face's names."""

from typing import Any

import torch

from minigpt.data.pretrained_tokenizer import PretrainedTokenizer
from minigpt.data.tokenizer_base import Tokenizer
from minigpt.data.tokenizers import BPETokenizer, CharTokenizer
from minigpt.errors import MiniGPTError
from minigpt.export.safetensors import as_json, as_safetensors
from minigpt.generation.text import LanguageModel
from minigpt.models.families import GPT2, LLAMA, Family
from minigpt.models.gpt import GPT
from minigpt.models.settings import PRESETS, Settings
from minigpt.models.stock import unknown_part


def files(checkpoint: dict[str, Any], lm: LanguageModel) -> dict[str, bytes]:
    """Return the files that transformers loads; arguments and errors as in `export`."""
    config, weights = to_hugging_face(lm.model)
    if config["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": lm.model.block_size,
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(lm.tokenizer, PretrainedTokenizer):
        for end, ids in (("bos", lm.tokenizer.bos), ("eos", lm.tokenizer.eos)):
            config[f"{end}_token_id"] = ids
            if ids is not None:
                first = ids if isinstance(ids, int) else ids[0]
                tokenizer_config[f"{end}_token"] = lm.tokenizer.tokens[first].decode("utf-8", "replace")
    return {
        "config.json": as_json(config),
        "model.safetensors": as_safetensors(weights),
        "tokenizer.json": tokenizer_json(lm.tokenizer).encode(),
        "tokenizer_config.json": as_json(tokenizer_config),
    }


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return a byte-pair, character or pretrained tokenizer as JSON for the `tokenizers` library.

    Raises:
        MiniGPTError: The library does not have this kind of tokenizer.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Theirs

    if isinstance(tokenizer, PretrainedTokenizer):
        return tokenizer.definition
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
            return _renamed(model, GPT2)
        if _is_preset(settings, "llama"):
            return llama(model)
    name = type(model).__name__
    raise MiniGPTError(
        f"Hugging Face has no class for this {name}: it needs exactly the switches of preset gpt2 or llama. Use "
        "--format safetensors or onnx."
    )


def _is_preset(settings: Settings, preset: str) -> bool:
    """Return whether a model has the switches of a preset, apart from switches that Hugging Face's config can express.

    Zeros at the beginning of a training change nothing afterwards.
    """
    free = {"tie_weights", "zero_init"} | ({"bias"} if preset == "llama" else set())
    return all(value == PRESETS[preset][name] for name, value in settings.switches().items() if name not in free)


def _renamed(model: GPT, family: Family) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the weights of a model under the names of its family.

    Begin, end and padding ids are None, since the defaults are real tokens.
    """
    settings = model.settings
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": settings.tie_weights,
        "dtype": "float32",
    } | {theirs: getattr(settings, ours) for ours, theirs in family.sizes.items()}
    if family is LLAMA:
        config |= {"attention_bias": settings.bias, "mlp_bias": settings.bias}
    else:
        config["activation_function"] = "gelu_new"
    weights, widths = {}, model.blocks[0].attn.widths
    for name, weight in model.state_dict().items():
        names = family.names(name)
        parts = weight.split(widths) if len(names) > 1 else [weight]
        for theirs, part in zip(names, parts, strict=True):
            weights[theirs] = (part.T if family.is_transposed(name, part) else part).contiguous()
    return config, weights


def llama(model: GPT) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the weights, under Hugging Face's names, of a model with the switches of Llama."""
    return _renamed(model, LLAMA)
