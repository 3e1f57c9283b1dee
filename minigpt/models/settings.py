"""The switches of GPT: their presets, their choices, and the checks of its arguments."""

from typing import Any

from minigpt.errors import MiniGPTError, check_choice, check_number

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


def resolve(preset: str, **switches: Any) -> dict[str, Any]:
    """Return the switches of a preset, overridden by the given ones that are not None.

    Raises:
        MiniGPTError: The preset is unknown, or a switch has an unknown value.
    """
    check_choice("preset", preset, PRESETS)
    settings = PRESETS[preset] | {name: value for name, value in switches.items() if value is not None}
    for name, known in CHOICES.items():
        check_choice(name, settings[name], known)
    check_number("softcap", settings["softcap"], at_least=0, hint="where 0 means no cap")
    check_number("ngrams", settings["ngrams"], at_least=0, whole=True, hint="where 0 means no table")
    return settings


def check_sizes(sizes: dict[str, int], dropout: float, settings: dict[str, Any]) -> None:
    """Check that sizes are positive whole numbers and divide each other as heads require.

    Raises:
        MiniGPTError: A size is wrong.
    """
    for name, size in sizes.items():
        check_number(name, size, at_least=1, whole=True)
    check_number("dropout", dropout, at_least=0, below=1)
    n_embd, n_head, n_kv_head = sizes["n_embd"], sizes["n_head"], sizes["n_kv_head"]
    if n_embd % n_head:
        raise MiniGPTError(f"n_embd is {n_embd}, which is not divisible by n_head {n_head}. Change one of them.")
    if n_head % n_kv_head:
        raise MiniGPTError(f"n_head is {n_head}, which is not divisible by n_kv_head {n_kv_head}. Change one of them.")
    if settings["position"] == "rope" and (n_embd // n_head) % 2:
        raise MiniGPTError(f"position rope needs an even head size, but n_embd / n_head is {n_embd // n_head}.")
