"""The web page: generate text, inspect a model's predictions, compare two models, and train."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it on import

import gradio  # noqa: F401  (first, so that its absence is reported as such)

from minigpt.app.page import MAX_CONCURRENT, UPDATE_SECONDS, build, write
from minigpt.app.pictures import BARS, bars, ids_of, picture, surprise
from minigpt.app.server import serve
from minigpt.app.store import MAX_LOADED, ModelStore
from minigpt.app.training import Trainings
from minigpt.app.visitors import Problem

__all__ = [
    "BARS", "MAX_CONCURRENT", "MAX_LOADED", "UPDATE_SECONDS", "ModelStore", "Problem", "Trainings", "bars", "build",
    "ids_of", "picture", "serve", "surprise", "write",
]  # fmt: skip
