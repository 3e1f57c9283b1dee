"""minigpt: the shortest path from a text file to a mini GPT that you can watch, resume, sample and understand.

Every public name is imported when it is first asked for, so that `import minigpt` costs nothing and drawing a
sample never waits for Lightning.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "GPT": "minigpt.models.gpt",
    "CharDataset": "minigpt.data.dataset",
    "BPETokenizer": "minigpt.data.tokenizers",
    "CharTokenizer": "minigpt.data.tokenizers",
    "LanguageModel": "minigpt.generation.text",
    "LitLanguageModel": "minigpt.training.module",
    "MiniGPTError": "minigpt.errors",
    "TextDataModule": "minigpt.training.datamodule",
    "TinyGPT": "minigpt.models.tinygpt",
    "generate": "minigpt.generation.text",
    "WordTokenizer": "minigpt.data.tokenizers",
    "load": "minigpt.runs",
    "train": "minigpt.training.api",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
