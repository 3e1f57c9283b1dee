"""GGUF: one file with the weights and the tokenizer, for llama.cpp and the programs that are built on it."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from minigpt.data.pretrained_tokenizer import PretrainedTokenizer, steps_of
from minigpt.data.tokenizer_base import Tokenizer, byte_letters
from minigpt.data.tokenizers import BPETokenizer, CharTokenizer
from minigpt.errors import MiniGPTError, needs
from minigpt.export.hugging_face import llama
from minigpt.generation.text import LanguageModel
from minigpt.models.gpt import GPT
from minigpt.models.settings import PRESETS
from minigpt.models.stock import unknown_part

# Llama's switches, except those that change only how a model is trained or stored.
SWITCHES = {name: value for name, value in PRESETS["llama"].items() if name not in ("tie_weights", "zero_init")}
END = "<|endoftext|>"
NEVER = "ÿ ÿ"  # a pair of bytes that does not occur in UTF-8


def files(checkpoint: dict[str, Any], lm: LanguageModel, precision: str = "32") -> dict[str, bytes]:
    """Return the file for llama.cpp; arguments and errors as in `export`.

    llama.cpp takes token 11 as the end of a text unless the file names another. So the file of a tokenizer without such
    a token has an additional one. Its logit is the mean of all others, so it is never the likeliest token.
    """
    model, tokenizer = _checked(lm.model, lm.tokenizer)
    has_end = isinstance(tokenizer, PretrainedTokenizer) and tokenizer.eos is not None
    with needs("--format gguf needs", "gguf", "gguf"):
        import gguf

    config, weights = llama(model)
    if not has_end:
        for name, end in (("model.embed_tokens", torch.zeros_like), ("lm_head", lambda row: row)):
            rows = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = torch.cat((rows, end(rows.mean(0, keepdim=True))))
    elif model.settings.tie_weights:
        del weights["lm_head.weight"]  # llama.cpp takes the embedding
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.settings.n_layer)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.gguf")
        writer = gguf.GGUFWriter(file, "llama")
        kind = {
            "32": gguf.LlamaFileType.ALL_F32,
            "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[precision]
        writer.add_file_type(kind)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_vocab_size(config["vocab_size"] + (not has_end))
        if isinstance(tokenizer, PretrainedTokenizer):
            _add_pretrained_tokenizer(writer, tokenizer)
        else:
            _add_tokenizer(writer, tokenizer)
        for name, weight in weights.items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight = _in_pairs(weight, config["head_dim"])
            theirs = names.get_name(name, (".weight",))
            assert theirs is not None, name  # the library has all of Llama's names
            _add_tensor(writer, theirs, weight.contiguous(), precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {"model.gguf": file.read_bytes()}


def _checked(
    model: torch.nn.Module, tokenizer: Tokenizer
) -> tuple[GPT, CharTokenizer | BPETokenizer | PretrainedTokenizer]:
    """Return a model and a tokenizer if llama.cpp supports both.

    Raises:
        MiniGPTError: A switch is not Llama's, or llama.cpp does not have this kind of tokenizer.
    """
    if not isinstance(model, GPT):
        raise MiniGPTError(
            f"llama.cpp does not run a {type(model).__name__}, only a GPT with the switches of preset llama. Use "
            "--format onnx."
        )
    if part := unknown_part(model):
        raise MiniGPTError(f"llama.cpp does not have {part} of this model. Use --format onnx.")
    switches = model.settings.switches()
    others = [f"{name} {switches[name]}" for name, value in SWITCHES.items() if switches[name] != value]
    if others:
        raise MiniGPTError(
            f"llama.cpp runs only the switches of preset llama, and this model has {', '.join(others)}. Use "
            "--format onnx, or train with --model.network.preset llama."
        )
    if isinstance(tokenizer, CharTokenizer) and tokenizer.byte_fallback:
        raise MiniGPTError(
            "llama.cpp has no character tokenizer that spells unknown characters in bytes (data.byte_fallback). Use "
            "--format onnx, or train with --data.tokenizer bpe."
        )
    if isinstance(tokenizer, PretrainedTokenizer):
        _splitting(tokenizer)
    elif not isinstance(tokenizer, CharTokenizer | BPETokenizer):
        raise MiniGPTError(
            "llama.cpp has no word tokenizer that spells rare words. Use --format onnx, or train with "
            "--data.tokenizer bpe."
        )
    return model, tokenizer


def _add_tokenizer(writer: Any, tokenizer: CharTokenizer | BPETokenizer) -> None:
    """Write the tokenizer as GPT-2's byte pairs; a character of several bytes is merged from left to right."""
    import gguf

    letters = byte_letters()
    names = ["".join(letters[byte] for byte in token) for token in tokenizer.tokens]
    if isinstance(tokenizer, BPETokenizer):
        merges = [f"{names[left]} {names[right]}" for left, right in tokenizer.merges]
    else:
        merges = list(dict.fromkeys(f"{name[:n]} {name[n]}" for name in names for n in range(1, len(name))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*names, END])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(names) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(merges or [NEVER])  # the file needs the list, and the library does not write an empty one
    writer.add_bos_token_id(len(names))
    writer.add_eos_token_id(len(names))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_array("tokenizer.ggml.suppress_tokens", [len(names)])  # llama.cpp's own programs never draw it


# llama.cpp's names for ways of cutting a text into words before pairs are merged, by the steps of a tokenizer.json.
_GPT2 = ("ByteLevel", None)
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPLITTING = {
    (_GPT2,): "gpt-2", (_GPT2, ("Split", ".{1,512}")): "gpt-2", (("Digits", None), _GPT2): "smollm",
    (("Split", _LLAMA_3), ("letters", None)): "llama-bpe",
}  # fmt: skip


def _splitting(tokenizer: PretrainedTokenizer) -> str:
    """Return llama.cpp's name for the way in which a pretrained tokenizer cuts a text into words.

    Raises:
        MiniGPTError: llama.cpp has no such way, or not for minigpt's export.
    """
    content = json.loads(tokenizer.definition)
    described = []
    for step in steps_of(content["pre_tokenizer"]):
        kind, pattern = step["type"], step.get("pattern", {}).get("Regex")
        if kind == "ByteLevel" and not step.get("use_regex", True):
            kind = "letters"  # only spells bytes in letters
        elif kind == "Digits" and not step["individual_digits"]:
            kind = "Numbers"
        elif kind == "Split" and (step["behavior"], step["invert"]) != ("Isolated", False):
            kind = step["behavior"]
        described.append((kind, pattern))
    if tuple(described) not in SPLITTING:
        raise MiniGPTError(
            "llama.cpp's tokenizers of byte pairs cut texts as GPT-2, SmolLM or Llama 3 do, and the tokenizer of this "
            "model does something else. Use --format onnx or hf."
        )
    return SPLITTING[tuple(described)]


def _add_pretrained_tokenizer(writer: Any, tokenizer: PretrainedTokenizer) -> None:
    """Write a pretrained tokenizer: its names and merges, its special tokens, and its tokens of begin and end."""
    import gguf

    content = json.loads(tokenizer.definition)
    names = {i: name for name, i in content["model"]["vocab"].items()}
    added = {i: token for i, token in tokenizer.backend.get_added_tokens_decoder().items()}
    tokens, types = [], []
    for i in range(tokenizer.vocab_size):
        token = added.get(i)
        if token is not None:
            tokens.append(token.content)
            types.append(gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(names.get(i, f"<unused {i}>"))
            types.append(gguf.TokenType.NORMAL if i in names else gguf.TokenType.UNUSED)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(tokenizer))
    eos = tokenizer.eos if tokenizer.eos is None or isinstance(tokenizer.eos, int) else tokenizer.eos[0]
    if eos is None:
        tokens.append(END)
        types.append(gguf.TokenType.CONTROL)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges or [NEVER])
    if tokenizer.bos is not None:
        writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(len(tokens) - 1 if eos is None else eos)
    writer.add_add_bos_token(bool(tokenizer.prefix))
    writer.add_add_eos_token(False)


def _add_tensor(writer: Any, name: str, weight: torch.Tensor, precision: str) -> None:
    """Add a weight in float32, or a matrix in bf16 or 8 bits.

    llama.cpp's Q8_0 has a scale for each 32 numbers of a row; a matrix whose rows are no multiple of 32 stays float32.
    """
    import gguf

    kinds = {"bf16": gguf.GGMLQuantizationType.BF16, "int8": gguf.GGMLQuantizationType.Q8_0}
    kind = kinds.get(precision) if weight.dim() == 2 else None
    if kind is None or weight.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
        writer.add_tensor(name, weight.numpy())
    else:
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)


def _in_pairs(weight: torch.Tensor, head_size: int) -> torch.Tensor:
    """Reorder the rows of queries or keys so that the two elements of a RoPE pair are adjacent, as in llama.cpp."""
    return weight.view(-1, 2, head_size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
