"""The settings of GPT: their presets, their choices, and the checks of their values."""

from dataclasses import dataclass, fields
from typing import Any

from minigpt.errors import MiniGPTError, check_choice, check_number, check_sizes

# Three named settings of the switches. A switch that is set explicitly overrides its preset.
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
    # The switches that train fastest to the lowest loss, after the modded-nanogpt speedruns (Jordan et al., 2024).
    "modern": {
        "position": "rope", "norm": "rmsnorm", "mlp": "relu2", "qk_norm": True, "bias": False,
        "tie_weights": False, "softcap": 15.0, "zero_init": True, "ngrams": 0,
    },
}  # fmt: skip
CHOICES = {"position": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"), "mlp": ("gelu", "swiglu", "relu2")}
# The values of each switch that the compiled step and the exports support, None for any; see `models.stock`.
STOCK_VALUES: dict[str, tuple | None] = {
    "position": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"), "mlp": ("gelu", "relu2", "swiglu"),
    "qk_norm": (False, True), "bias": None, "tie_weights": None, "softcap": None, "zero_init": None, "ngrams": None,
}  # fmt: skip
NORM_EPS = {"layernorm": 1e-5, "rmsnorm": 1e-6}


@dataclass(frozen=True)
class Settings:
    """The values of all settings of a GPT; `GPT` says what they mean."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    head_size: int
    n_embd: int
    mlp_width: int
    position: str
    norm: str
    mlp: str
    qk_norm: bool
    bias: bool
    dropout: float
    tie_weights: bool
    softcap: float
    zero_init: bool
    ngrams: int
    norm_eps: float
    rope_base: float

    @classmethod
    def resolve(cls, preset: str, **given: Any) -> "Settings":
        """Return the settings, and replace None by the value of the preset or by one derived from other settings.

        Raises:
            MiniGPTError: A setting has an unknown value, or two do not fit together.
        """
        check_choice("preset", preset, PRESETS)
        values = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
        for name, known in CHOICES.items():
            check_choice(name, values[name], known)
        check_number("softcap", values["softcap"], at_least=0, hint="where 0 means no cap")
        check_number("ngrams", values["ngrams"], at_least=0, whole=True, hint="where 0 means no table")
        check_number("dropout", given["dropout"], at_least=0, below=1)
        check_sizes({name: given[name] for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")})
        check_number("rope_base", given["rope_base"], above=0)
        n_embd, n_head = values["n_embd"], values["n_head"]
        if n_embd % n_head and "head_size" not in values:
            raise MiniGPTError(f"n_embd is {n_embd}, which is not divisible by n_head {n_head}. Change one of them.")
        followed = {
            "n_kv_head": n_head, "head_size": n_embd // n_head, "mlp_width": _mlp_width(n_embd, values["mlp"]),
            "norm_eps": NORM_EPS[values["norm"]],
        }  # fmt: skip
        settings = cls(**followed | values)
        check_sizes({name: getattr(settings, name) for name in ("n_kv_head", "head_size", "mlp_width")})
        check_number("norm_eps", settings.norm_eps, above=0)
        if n_head % settings.n_kv_head:
            raise MiniGPTError(
                f"n_head is {n_head}, which is not divisible by n_kv_head {settings.n_kv_head}. Change one of them."
            )
        if settings.position == "rope" and settings.head_size % 2:
            raise MiniGPTError(f"position rope needs an even head size, but it is {settings.head_size}.")
        return settings

    def switches(self) -> dict[str, Any]:
        """Return the settings that a preset determines."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in PRESETS["gpt2"]}


def _mlp_width(n_embd: int, mlp: str) -> int:
    """Return the usual number of hidden units: 4 C, or 8/3 C for SwiGLU, which has three matrices instead of two."""
    return -(-n_embd // 3) * 8 if mlp == "swiglu" else 4 * n_embd  # for SwiGLU a multiple of 8
