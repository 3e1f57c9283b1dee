"""ONNX: one file with the computation, which onnxruntime and other runtimes run without PyTorch."""

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
    """Return the files for onnxruntime; arguments and errors as in `export`.

    `model.onnx` maps `ids`, (batch, length) int64 with up to block_size ids per row, to float32 `logits`. The other
    file is the tokenizer: JSON for the `tokenizers` library, or the `to_dict` of a word tokenizer.
    """
    with needs("--format onnx needs", "onnx", "onnx", "onnxscript"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401  (torch's exporter needs both)

    model = lm.model
    block_size: int = getattr(model, "block_size")  # noqa: B009  (loaded networks have one)
    size = {0: torch.export.Dim("batch")}
    if block_size > 1:
        size[1] = torch.export.Dim("length", max=block_size)
    # The exporter would take a size of one as a constant.
    ids = torch.zeros(2, min(2, block_size), dtype=torch.int64)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it would report that torchvision is missing
    with warnings.catch_warnings(action="ignore"):  # torch's deprecation warnings about its own code
        program = torch.onnx.export(
            model, (ids,), input_names=["ids"], output_names=["logits"], dynamic_shapes=(size,), dynamo=True,
            verbose=False,
        )  # fmt: skip
    assert program is not None  # torch returns a program unless it writes a file
    proto = program.model_proto
    proto.metadata_props.add(key="block_size", value=str(block_size))
    for node in proto.graph.node:
        node.ClearField("metadata_props")  # source lines with paths of this machine
    if isinstance(lm.tokenizer, WordTokenizer):
        tokenizer = {"words.json": as_json(lm.tokenizer.to_dict())}
    else:
        tokenizer = {"tokenizer.json": tokenizer_json(lm.tokenizer).encode()}
    return {"model.onnx": proto.SerializeToString(), **tokenizer}
