"""minigpt: the shortest path from a text file to a mini GPT that you can watch, resume, sample and understand.

Every public name is imported when it is first asked for, so that `import minigpt` costs nothing and drawing a
sample never waits for Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see
    from minigpt.data.dataset import CharDataset as CharDataset
    from minigpt.data.tokenizers import BPETokenizer as BPETokenizer
    from minigpt.data.tokenizers import CharTokenizer as CharTokenizer
    from minigpt.data.tokenizers import WordTokenizer as WordTokenizer
    from minigpt.errors import MiniGPTError as MiniGPTError
    from minigpt.generation.text import LanguageModel as LanguageModel
    from minigpt.generation.text import generate as generate
    from minigpt.loading import load as load
    from minigpt.models.gpt import GPT as GPT
    from minigpt.models.tinygpt import TinyGPT as TinyGPT
    from minigpt.training.api import train as train
    from minigpt.training.datamodule import TextDataModule as TextDataModule
    from minigpt.training.module import LitLanguageModel as LitLanguageModel

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
    "load": "minigpt.loading",
    "train": "minigpt.training.api",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minigpt' has no attribute {name!r}")
    from minigpt.errors import required

    with required():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
