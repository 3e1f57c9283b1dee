"""A trained model as one HTML file that writes, explains itself and replays its training, without a network.

The page is made from the files of `web/`: `page.html` is its frame, the other files go into it as they are. The weights
are deflated and written in base64, one block for the exported model and one for each snapshot of its run.
"""

import json
import math
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import yaml

import minigpt
from minigpt import loading, runs
from minigpt.command_line import PROMPTS, SAMPLING
from minigpt.errors import MiniGPTError, check_number, note
from minigpt.evaluation import measure
from minigpt.export.packing import description, pack, unpacked
from minigpt.export.web_tokenizer import definition_of
from minigpt.generation.text import LanguageModel
from minigpt.inspection.curves import Curves, read_curves
from minigpt.words import message

WEB = Path(__file__).parent / "web"
ENGINE = ("network", "sampling", "tokenizers")  # what computes
WORKER = "worker"  # answers the page; the text of its script and of the engine is what the browser's worker runs
PAGE = ("words", "draw", "text", "why", "inside", "time", "start")
SETTINGS = SAMPLING | {"min_p": 0, "repetition_penalty": 1, "seed": 1, "count": 300}  # with which the page begins
BASELINES = ("uniform", "unigram", "bigram", "xz")
POINTS = 200  # the largest number of points of a curve
SAMPLES = 40  # the largest number of samples, each of at most SAMPLE_LENGTH characters
SAMPLE_LENGTH = 600
MEASURED = 20_000  # the tokens on which the cost of int8 is measured,
MULTIPLICATIONS = 4e10  # or fewer for a large network, so that it takes seconds


Item = TypeVar("Item")


class Weights(NamedTuple):
    """The weights of one step, ready for the page."""

    step: int
    block: str  # deflated, in base64


def files(checkpoint: dict[str, Any], lm: LanguageModel, precision: str, max_mb: float = 8.0) -> dict[str, bytes]:
    """Return the page as `index.html`; arguments and errors as in `export`.

    Args:
        checkpoint: The checkpoint.
        lm: Its model and tokenizer. Curves, samples and snapshots are those of `lm.run_dir`, if it has one.
        precision: `int8` for 8-bit matrices, or `32`.
        max_mb: The largest size of the file, in megabytes; snapshots that do not fit are left out.

    Raises:
        MiniGPTError: The page has no engine for the network or the tokenizer, or even the model alone is too large.
    """
    check_number("max_mb", max_mb, above=0)
    network = description(lm.model)
    weights = lm.model.state_dict()
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise MiniGPTError("The model's weights are NaN or infinite: its training diverged. Export an earlier step.")
    specs, data = pack(weights, precision)
    step = int(checkpoint.get("global_step", 0))  # 0 for an export, which does not have it
    curves = read_curves(lm.run_dir) if lm.run_dir else Curves({}, {})
    bits = {at: value for at, value in curves.scalars.get("val/bits_per_char", ()) if math.isfinite(value)}
    cost = None if precision == "32" else rounding_cost(checkpoint, lm, unpacked(specs, data))
    facts = {
        "version": minigpt.__version__, "description": network, "tokenizer": definition_of(lm.tokenizer),
        "bigram": network["class"] == "TinyGPT", "nHead": network["settings"].get("n_head", 0), "specs": specs,
        "size": len(data), "precision": precision, "cost": cost, "curves": of_run(curves), "samples": samples(curves),
        "parameters": sum(weight.numel() for weight in lm.model.parameters()), "prompt": prompt_of(lm),
        "sampling": SETTINGS, "licence": (checkpoint["minigpt"].get("origin") or {}).get("licence"),
    }  # fmt: skip
    own = packed(step, data)
    room = max_mb * 1e6 - len(render(lm, facts, [own], bits, own, 0))
    if room < 0:
        size = max_mb - room / 1e6
        raise MiniGPTError(
            f"The page takes {size:.1f} MB without any snapshot, and --max_mb is {max_mb:g}. Pass --max_mb "
            f"{math.ceil(size)}."
        )
    snapshots = [file for at, file in runs.snapshots(lm.run_dir).items() if at != step] if lm.run_dir else []
    sets, left_out = fitting(snapshots, list(weights), specs, precision, room)
    page = render(lm, facts, sorted([*sets, own]), bits, own, left_out)
    note(message("html_size", len(page) / 1e6, len(sets) + 1))
    if left_out:
        note(message("html_left_out", left_out, max_mb))
    if cost is not None:
        note(message("html_cost", cost))
    return {"index.html": page}


def packed(step: int, data: bytes) -> Weights:
    """Return the bytes of `pack` for the page."""
    return Weights(step, b64encode(zlib.compress(data, 9)).decode())


def fitting(
    snapshots: Sequence[Path], names: Sequence[str], specs: Sequence[Mapping[str, Any]], precision: str, room: float
) -> tuple[list[Weights], int]:
    """Return as many snapshots as fit, spread evenly, with the first; and how many do not fit.

    Snapshots that cannot be shown are not counted: a note names each.

    Args:
        snapshots: Their files.
        names: The names of the exported model's weights.
        specs: The descriptions of the exported model's weights, which hold for the snapshots too.
        precision: As in `files`.
        room: How many characters they may take.
    """
    sets: list[Weights] = []
    for file in snapshots:
        each = of_snapshot(file, names, specs, precision)
        if each is None:
            note(message("html_unusable", file))
        elif len(each.block) > room:  # the others are about as large
            return [], len(snapshots)
        else:
            sets.append(each)
    for n in range(len(sets), 0, -1):
        chosen = [sets[k * len(sets) // n] for k in range(n)]
        if sum(len(each.block) + 100 for each in chosen) <= room:
            return chosen, len(sets) - n
    return [], len(sets)


def of_snapshot(file: Path, names: Sequence[str], specs: Sequence[Mapping[str, Any]], precision: str) -> Weights | None:
    """Return the weights of a snapshot; None if it is damaged, has diverged or belongs to another network."""
    try:
        checkpoint = loading.read_checkpoint(file)
        weights = {name: checkpoint["state_dict"][f"network.{name}"] for name in names}
    except (MiniGPTError, KeyError):
        return None
    if not all(weight.isfinite().all() for weight in weights.values()):
        return None
    found, data = pack(weights, precision)
    return packed(int(checkpoint["global_step"]), data) if found == specs else None


def render(
    lm: LanguageModel, facts: Mapping[str, Any], sets: Sequence[Weights], bits: Mapping[int, float], own: Weights,
    left_out: int,
) -> bytes:  # fmt: skip
    """Return the page with its sets of weights.

    Args:
        lm: The model, for its name.
        facts: What the page knows of the model.
        sets: The weights of each step.
        bits: The bits per character at the steps that were validated.
        own: The weights of the exported model, with which the page begins.
        left_out: How many snapshots there was no room for.
    """
    name = (lm.run_dir and lm.run_dir.parent.name) or type(lm.model).__name__
    facts = {
        **facts, "name": name, "left_out": left_out, "start": sets.index(own),
        "sets": [{"step": each.step, "bits": bits.get(each.step)} for each in sets],
    }  # fmt: skip
    blocks = [
        f'<script type="text/plain" data-set="{number}">{each.block}</script>' for number, each in enumerate(sets)
    ]
    parts = {
        "title": escape(f"{name} · minigpt"), "name": escape(name), "style": read("style.css"),
        "model": in_script(facts), "weights": "\n".join(blocks),
        "engine": "\n".join(read(f"{each}.js") for each in (*ENGINE, WORKER)),
        "scripts": '"use strict";\n' + "\n".join(read(f"{each}.js") for each in PAGE),
    }  # fmt: skip
    before, *after = read("page.html").split("{{")
    page = "".join([before, *(fill(parts, piece) for piece in after)])
    return page.encode(errors="replace")  # the name of a folder may hold bytes that are not a character


def fill(parts: Mapping[str, str], piece: str) -> str:
    """Return a piece of the frame that begins with `NAME}}`, with the part of this name."""
    name, _, rest = piece.partition("}}")
    return parts[name] + rest


def read(name: str) -> str:
    """Return the text of a file of `web/`."""
    return (WEB / name).read_text(encoding="utf-8").strip()


def in_script(values: Mapping[str, Any]) -> str:
    """Return values as JSON that cannot end the script element around it, whatever a token or a sample says."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def of_run(curves: Curves) -> dict[str, Any]:
    """Return the curves in bits per character, and the baselines."""
    train, val = (thinned(curves.scalars.get(f"{part}/bits_per_char", ()), POINTS) for part in ("train", "val"))
    known = {name: thinned(curves.scalars.get(f"val_baselines/{name}", ()), POINTS) for name in BASELINES}
    return {"train": train, "val": val, "baselines": {name: points[-1][1] for name, points in known.items() if points}}


def thinned(points: Sequence[tuple[int, float]], n: int) -> list[tuple[int, float]]:
    """Return at most `n` of the finite points, evenly, with the first and the last."""
    return evenly([(step, round(value, 4)) for step, value in points if math.isfinite(value)], n)


def evenly(items: Sequence[Item], n: int) -> list[Item]:
    """Return at most `n` items, evenly, with the first and the last."""
    if len(items) <= n:
        return list(items)
    return [items[round(k * (len(items) - 1) / (n - 1))] for k in range(n)]


def samples(curves: Curves) -> list[tuple[int, str]]:
    """Return the samples with top-k and top-p, or those of another kind."""
    texts = curves.texts.get("samples/top_k_top_p") or next(iter(curves.texts.values()), [])
    return [(step, text[:SAMPLE_LENGTH]) for step, text in evenly(texts, SAMPLES)]


def prompt_of(lm: LanguageModel) -> str:
    """Return the prompt of the run's samples, or the project's, or none if the model cannot read it."""
    prompt: Any = None
    if lm.run_dir and (config := lm.run_dir / "config.yaml").is_file():
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError):  # it may be damaged
            prompt = yaml.safe_load(config.read_text(encoding="utf-8"))["samples"]["prompts"][0]
    if not isinstance(prompt, str):
        prompt = PROMPTS[0]
    try:
        lm.encode_prompt(prompt)
    except MiniGPTError:
        return ""
    return prompt


def rounding_cost(checkpoint: dict[str, Any], lm: LanguageModel, weights: Mapping[str, torch.Tensor]) -> float | None:
    """Return by how many bits per character rounded weights score worse; None if the run's text is not there.

    Args:
        checkpoint: The checkpoint.
        lm: The model with its own weights.
        weights: The rounded weights.
    """
    if lm.run_dir is None:
        return None
    metadata = checkpoint["minigpt"]["data"]
    try:
        val = loading.tokens_of(lm.run_dir / "checkpoints" / "last.ckpt", metadata).val
    except MiniGPTError:
        return None
    rounded = deepcopy(lm.model)
    rounded.load_state_dict(dict(weights))
    n = int(min(MEASURED, MULTIPLICATIONS / sum(weight.numel() for weight in weights.values())))
    longest: Any = lm.model.block_size  # both networks of the engine have one
    block_size = min(metadata["block_size"], longest)
    if n <= block_size:
        return None
    before, after = (
        measure(model, val[:n], lm.tokenizer.lengths, block_size).scores()["bits_per_char"]
        for model in (lm.model, rounded)
    )
    return round(after - before, 6) if math.isfinite(after - before) else None
