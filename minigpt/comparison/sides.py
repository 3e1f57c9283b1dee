"""The sides of a comparison, scored on one text: which is better, by how much, and where.

A side of a comparison is one run or a group of runs that differ by their seeds. Every run is scored on the same text,
token by token, as `minigpt evaluate` scores it. The losses are added up in blocks of characters, so that models with
different tokenizers are compared block by block. `intervals.py` says how certain a difference is.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import Timeout
from torch.nn import functional as F

from minigpt import files, loading, runs
from minigpt.comparison.intervals import Difference, difference
from minigpt.data.corpus import Corpus
from minigpt.data.memmap import Ids
from minigpt.errors import MiniGPTError, note
from minigpt.evaluation import eval_batches
from minigpt.generation.text import LanguageModel
from minigpt.inspection.curves import read_curves
from minigpt.models import device_of
from minigpt.words import message

BLOCK = 256  # characters: some forty words, beyond which losses hardly depend on each other
MOST_TOKENS = 500_000  # of a long text the end is scored
PASSAGES = 10
# Settings that say where a run is and what it shows, not what it learns.
WITHOUT_EFFECT = ("seed_everything", "samples", "figures", "progress", "checkpoint", "trainer.default_root_dir")
KINDS = ("space", "first", "letter", "digit", "mark")  # of characters
WORD = re.compile(r"\w")


@dataclass(frozen=True)
class ScoredRun:
    """One run with its losses on the common text.

    Attributes:
        name: How messages call it.
        file: Its checkpoint.
        settings: The settings of its config.yaml by their full names; empty without one.
        figures: parameters, step, tokens (seen in training) and seconds (of training), each None if unknown; and loss,
            in nats per token.
        text: The text that was scored.
        targets: `(N,)` places in the text at which the scored tokens begin.
        bits: `(N,)` losses of these tokens in bits.
        positions: `(N,)` positions of these tokens in their windows.
    """

    name: str
    file: Path
    settings: Mapping[str, Any]
    figures: Mapping[str, float | None]
    text: str
    targets: np.ndarray
    bits: np.ndarray
    positions: np.ndarray


@dataclass
class Side:
    """One side of a comparison: a run, or several that differ by their seeds."""

    name: str
    runs: list[ScoredRun] = field(default_factory=list)

    @property
    def scores(self) -> list[float]:
        """The bits per character of each run."""
        return [each.bits.sum() / len(each.text) for each in self.runs]


def find_sides(names: Sequence[str]) -> list[tuple[str, list[Path]]]:
    """Return the checkpoints of each side.

    Args:
        names: Each a run folder, a file, `last` or `RUN@STEP` as in `runs.find_checkpoint`; or a group: the name of a
            recipe, a trial of a sweep as `STUDY/trial_N`, or a folder with `version_*`, for all its runs.

    Raises:
        MiniGPTError: There are fewer than two sides, or no checkpoint for one.
    """
    if len(names) < 2:
        raise MiniGPTError("A comparison needs two runs or more, such as two folders, two recipes, or RUN@100 RUN@500.")
    return [(name.removeprefix(f"{runs.ROOT}/"), _group(name) or [runs.find_checkpoint(name)]) for name in names]


def _group(name: str) -> list[Path]:
    """Return the best checkpoints of the runs of a recipe or of a folder with runs; an empty list without such runs."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        folder = Path(runs.ROOT) / name
    found = sorted(folder.glob("version_*"), key=lambda run: int(run.name[8:]) if run.name[8:].isdigit() else -1)
    return [runs.find_checkpoint(run) for run in found if any(run.glob("checkpoints/*.ckpt"))]


def score_all(
    sides: Sequence[tuple[str, Sequence[Path]]], text_path: str | None = None, encoding: str | None = None,
    device: str = "cpu", allow_code: Sequence[str] = (),
) -> list[Side]:  # fmt: skip
    """Score all runs on a common text, one after the other.

    Args:
        sides: The checkpoints of each side.
        text_path: The text; None for the validation text that the runs have in common.
        encoding: Its encoding, if it is not detected correctly.
        device: The device of the models.
        allow_code: Modules outside minigpt whose networks may be imported.

    Raises:
        MiniGPTError: A checkpoint cannot be read, or the runs have no common text.
    """
    scored = []
    for name, checkpoints in sides:
        side = Side(name)
        for file in checkpoints:
            label = os.path.relpath(runs.run_of(file.absolute()) or file)
            note(message("scoring", label))
            if is_training(file):
                note(message("still_training", label))
            checkpoint = loading.read_checkpoint(file)
            lm = loading.language_model(checkpoint, loading.pick_device(device), allow_code=allow_code)
            ids = _ids(file, checkpoint["minigpt"]["data"], lm, text_path, encoding)
            side.runs.append(_score(label, file, checkpoint, lm, ids[-MOST_TOKENS:]))
        side.runs = _different(side.runs)
        scored.append(side)
    return _aligned(scored)


def is_training(file: Path) -> bool:
    """Return whether a process is training the run of a checkpoint now."""
    run = runs.run_of(file.absolute())
    if run is None or not (run / ".lock").exists():
        return False
    try:
        files.lock(run / ".lock", blocking=False).close()
    except Timeout:
        return True
    return False


def _different(group: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Return a group with one run of each seed: a training that was repeated with the same seed says nothing new."""
    newest: dict[Any, ScoredRun] = {}
    for run in group:
        key = run.settings.get("seed_everything", run.name)
        if key in newest:
            note(message("same_seed", newest[key].name, run.name))
        newest[key] = run
    return list(newest.values())


def _ids(file: Path, metadata: Mapping[str, Any], lm: LanguageModel, path: str | None, encoding: str | None) -> Ids:
    """Return the `(N,)` ids of a text, or of a run's own validation text."""
    if path is None:
        return loading.tokens_of(file, dict(metadata)).val
    cleaning = {key: metadata[key] for key in ("lower", "strip", "nfc")}
    pieces = Corpus(path, encoding, **cleaning).pieces()
    return torch.cat([torch.from_numpy(lm.tokenizer.encode_array(piece, "error")) for piece in pieces])


@torch.no_grad()
def _score(name: str, file: Path, checkpoint: Mapping[str, Any], lm: LanguageModel, ids: Ids) -> ScoredRun:
    """Return the loss of each token of a text but the first."""
    longest: Any = lm.model.block_size  # every loaded model has one
    block_size = min(longest, checkpoint["minigpt"]["data"]["block_size"])
    windows, batches = eval_batches(ids, block_size, lm.tokenizer.vocab_size)
    lm.model.eval()
    losses = []
    for batch in batches:
        x, y = (part.to(device_of(lm.model)) for part in windows[batch])
        losses.append(F.cross_entropy(lm.model(x).flatten(0, 1).float(), y.flatten(), reduction="none").cpu())
    bits = torch.cat(losses).double().numpy() / math.log(2)
    lengths = lm.tokenizer.lengths[torch.as_tensor(ids[:]).long()].numpy()
    starts = np.concatenate(([0], lengths.cumsum()))
    text = lm.tokenizer.decode(torch.as_tensor(ids[:]))
    n = np.arange(len(bits))
    settings = _settings(file)
    figures = _figures(file, checkpoint, lm, settings) | {"loss": float(bits.mean() * math.log(2))}
    # The first token is not scored, so the scored text begins after it.
    scored_text = text[int(starts[1]) :]
    return ScoredRun(name, file, settings, figures, scored_text, starts[1:-1] - starts[1], bits, n % block_size)


def _settings(file: Path) -> dict[str, Any]:
    """Return the settings of a run by their full names, such as `model.network.init_args.n_layer`."""
    run = runs.run_of(file.absolute())
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if run else None
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    return dict(_flat(config or {}))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return pairs


def _figures(
    file: Path, checkpoint: Mapping[str, Any], lm: LanguageModel, settings: Mapping[str, Any]
) -> dict[str, float | None]:
    """Return what a run cost, as far as it is known."""
    step = checkpoint.get("global_step")
    sizes = [settings.get(name) for name in ("data.batch_size", "data.block_size", "trainer.accumulate_grad_batches")]
    known = [size for size in sizes if isinstance(size, int)]
    tokens = step * math.prod(known) if step and len(known) == len(sizes) else None
    run = runs.run_of(file.absolute())
    speeds = read_curves(run).scalars.get("train_step/tokens_per_second", []) if run else []
    usual = [speed for at, speed in speeds if step and at <= step and speed > 0]
    return {
        "parameters": sum(weight.numel() for weight in lm.model.parameters()), "step": step, "tokens": tokens,
        "seconds": tokens / float(np.median(usual)) if tokens and usual else None,
    }  # fmt: skip


def _aligned(sides: Sequence[Side]) -> list[Side]:
    """Return the runs on the text that all of them scored.

    Tokens have different lengths, and the first is not scored, so the scored texts differ at their beginning.
    """
    every = [run for side in sides for run in side.runs]
    shortest = min((run.text for run in every), key=len)
    for run in every:
        if not run.text.endswith(shortest):
            raise MiniGPTError(
                f"{every[0].name} and {run.name} were validated on different texts, or cleaned theirs differently, so "
                "their scores do not compare. Pass a text with --data.path that both read alike."
            )
    return [Side(side.name, [_cut(run, len(shortest)) for run in side.runs]) for side in sides]


def _cut(run: ScoredRun, length: int) -> ScoredRun:
    """Return a run with the tokens that begin in the last characters of its text."""
    first = len(run.text) - length
    kept = run.targets >= first
    return ScoredRun(
        run.name, run.file, run.settings, run.figures, run.text[first:], run.targets[kept] - first, run.bits[kept],
        run.positions[kept],
    )  # fmt: skip


def in_blocks(run: ScoredRun, size: int = BLOCK) -> np.ndarray:
    """Return the `(N,)` bits of a run in each block of characters; a short rest belongs to the last block."""
    n = max(1, len(run.text) // size)
    return np.bincount(np.minimum(run.targets // size, n - 1), run.bits, n)


def block_sizes(length: int, size: int = BLOCK) -> np.ndarray:
    """Return the characters in each of the blocks of `in_blocks`."""
    n = max(1, length // size)
    return np.array([size] * (n - 1) + [length - size * (n - 1)], float)


def compare_sides(first: Side, second: Side) -> Difference:
    """Return the difference of two sides in bits per character."""
    before, after = (np.stack([in_blocks(run) for run in side.runs]) for side in (first, second))
    return difference(before, after, block_sizes(len(first.runs[0].text)))


def differing_settings(sides: Sequence[Side]) -> dict[str, list[Any]]:
    """Return the settings that differ between the sides: for each side its value, or a list if its runs differ."""
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for side in sides for run in side.runs for name in run.settings):
        if name.startswith(WITHOUT_EFFECT):
            continue
        values = []
        for side in sides:
            own = [run.settings.get(name) for run in side.runs]
            values.append(own[0] if all(value == own[0] for value in own) else own)
        if any(value != values[0] or isinstance(value, list) for value in values):
            found[name] = values
    return found


def kind_of(text: str, place: int) -> str:
    """Return the kind of a character: white space, the first letter of a word, another letter, a digit, or a mark."""
    character = text[place]
    if character.isspace():
        return "space"
    if character.isdigit():
        return "digit"
    if character.isalpha():
        return "letter" if place and WORD.match(text[place - 1]) else "first"
    return "mark"


def by_kind(first: Side, second: Side) -> dict[str, float]:
    """Return how many bits per character each kind of character adds to the difference of two sides.

    A token belongs to the kind of its first character.
    """
    text = first.runs[0].text
    kinds = np.array([KINDS.index(kind_of(text, place)) for place in range(len(text))])
    before, after = (
        np.mean([np.bincount(kinds[run.targets], run.bits, len(KINDS)) for run in side.runs], 0) / len(text)
        for side in (first, second)
    )
    return {kind: float(after[n] - before[n]) for n, kind in enumerate(KINDS) if n in kinds}


def by_position(side: Side) -> np.ndarray:
    """Return the `(T,)` mean bits of a side's tokens at each position of a window."""
    length = min(int(run.positions.max()) + 1 for run in side.runs)
    means = []
    for run in side.runs:
        counts = np.bincount(run.positions, minlength=length)
        means.append((np.bincount(run.positions, run.bits, length) / np.maximum(counts, 1))[:length])
    return np.mean(means, 0)


def passages(first: Side, second: Side, n: int = PASSAGES) -> list[tuple[float, str]]:
    """Return the passages in which the second side gains and loses most, with its difference in bits per character.

    The gains come first, each half in the order of its size.
    """
    text = first.runs[0].text
    size = BLOCK // 4
    means = [np.mean([in_blocks(run, size) for run in side.runs], 0) for side in (first, second)]
    differences = (means[1] - means[0]) / block_sizes(len(text), size)
    order = np.argsort(differences, kind="stable")
    chosen = [*order[:n], *order[::-1][:n]] if len(order) >= 2 * n else list(order)
    return [(float(differences[k]), text[k * size : (k + 1) * size]) for k in chosen]
