"""The adapters of a fine-tuned GPT-2 or Llama as files for Hugging Face's library peft."""

from typing import Any

import torch

from minigpt.errors import MiniGPTError
from minigpt.export.safetensors import as_json, as_safetensors
from minigpt.generation.text import LanguageModel
from minigpt.models.families import FAMILIES, Family
from minigpt.models.gpt import GPT
from minigpt.models.pretrained import CONFIG, read_json

MERGED = "Use --format hf or safetensors, which add the adapters to the weights."


def files(checkpoint: dict[str, Any], lm: LanguageModel) -> dict[str, bytes]:
    """Return the files that `PeftModel.from_pretrained` loads; arguments as in `export`.

    Raises:
        MiniGPTError: The run has no adapters, its base is not a folder of Hugging Face, or it has added tokens.
    """
    adapters, origin = checkpoint.get("adapters"), checkpoint["minigpt"].get("origin")
    if adapters is None:
        raise MiniGPTError("This model has no adapters: it was trained without --lora.rank. Use --format hf.")
    if adapters["file"] is None or adapters["file"].name != CONFIG or not isinstance(lm.model, GPT):
        base = f"this base is {origin['source']}" if origin else "this one is a network of Python"
        raise MiniGPTError(f"--format peft is for adapters of a folder of Hugging Face, and {base}. {MERGED}")
    if adapters["n_new"]:
        raise MiniGPTError(
            f"--format peft has no rows for the {adapters['n_new']} tokens that this run added. {MERGED}"
        )
    family = FAMILIES[read_json(adapters["file"])["model_type"]]
    weights = to_peft(adapters["state_dict"], family, lm.model)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": origin["source"],
        "r": adapters["rank"], "lora_alpha": adapters["alpha"], "lora_dropout": adapters["dropout"], "bias": "none",
        "target_modules": sorted({name.split(".")[-3] for name in weights}),
        "fan_in_fan_out": family.transposed, "inference_mode": True,
    }  # fmt: skip
    return {"adapter_config.json": as_json(config), "adapter_model.safetensors": as_safetensors(weights)}


def to_peft(adapters: dict[str, torch.Tensor], family: Family, model: GPT) -> dict[str, torch.Tensor]:
    """Return adapters under peft's names.

    If one of our layers is several of theirs, such as queries, keys and values of Llama, each gets a copy of A and its
    rows of B.

    Args:
        adapters: The adapters by the names in a checkpoint.
        family: The names of the base.
        model: The model without adapters.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, a in adapters.items():
        layer, _, rest = name.removeprefix("network.").partition(".lora_a.")
        if not rest:
            continue
        b, theirs = adapters[f"network.{layer}.lora_b.weight"], family.names(f"{layer}.weight")
        parts = b.split(model.blocks[0].attn.widths) if len(theirs) > 1 else [b]
        for module, part in zip(theirs, parts, strict=True):
            prefix = f"base_model.model.{module.removesuffix('.weight')}"
            weights |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": part}
    return weights
