"""ONNX: one file with the whole computation, which onnxruntime and many others run without torch."""

import logging
import warnings
from typing import Any

import torch

from minigpt.data.tokenizers import WordTokenizer
from minigpt.errors import needs
from minigpt.export.hugging_face import tokenizer_json
from minigpt.export.safetensors import as_json
from minigpt.generation.text import LanguageModel


def files(checkpoint: dict[str, Any], lm: LanguageModel) -> dict[str, bytes]:
    """The files of a folder for onnxruntime; arguments and errors as in `export`.

    `model.onnx` takes `ids`, (batch, length) int64 of up to block_size ids a row, and gives the `logits` of all, in
    float32. Beside it lies the tokenizer: for the `tokenizers` library, or what `to_dict` says of one of words.
    """
    with needs("--format onnx needs", "onnx", "onnx", "onnxscript"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  (torch's exporter is built on both)

    model = lm.model
    block_size: int = getattr(model, "block_size")  # noqa: B009  (a network that was loaded has one)
    size = {0: torch.export.Dim("batch")}
    if block_size > 1:
        size[1] = torch.export.Dim("length", max=block_size)
    # Two rows of two ids: a size of one would be taken for a constant.
    ids = torch.zeros(2, min(2, block_size), dtype=torch.int64)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, and says so
    with warnings.catch_warnings(action="ignore"):  # what torch deprecates of its own
        program = torch.onnx.export(
            model, (ids,), input_names=["ids"], output_names=["logits"], dynamic_shapes=(size,), dynamo=True,
            verbose=False,
        )  # fmt: skip
    assert program is not None  # it is where no file to write to is named
    proto = program.model_proto
    proto.metadata_props.add(key="block_size", value=str(block_size))
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # the lines of code that it comes of, with their place on this machine
    if isinstance(lm.tokenizer, WordTokenizer):
        tokenizer = {"words.json": as_json(lm.tokenizer.to_dict())}
    else:
        tokenizer = {"tokenizer.json": tokenizer_json(lm.tokenizer).encode()}
    return {"model.onnx": proto.SerializeToString(), **tokenizer}
