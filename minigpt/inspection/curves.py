"""Reading the curves and samples of a run from its TensorBoard events, also while it trains."""

import textwrap
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")


class Curves(NamedTuple):
    """The curves and samples of a run, by tag, in the order of the steps.

    Attributes:
        scalars: Points (step, value) of each curve, such as `val/bits_per_char`.
        texts: Samples (step, text) of each tag, such as `samples/top_k_top_p`, with long lines whole again.
    """

    scalars: dict[str, list[tuple[int, float]]]
    texts: dict[str, list[tuple[int, str]]]


def read_curves(run_dir: Path) -> Curves:
    """Return the curves and the samples of a run; both are empty without TensorBoard events.

    Args:
        run_dir: The run folder. Damaged files, and the last record of a file that is being written, are left out.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.compat.tensorflow_stub.errors import OpError

    scalars: dict[str, dict[int, float]] = {}
    texts: dict[str, dict[int, str]] = {}
    for file in sorted(run_dir.glob("events.out.tfevents.*")):  # the names begin with the time
        try:
            for event in EventFileLoader(str(file)).Load():
                if event.HasField("session_log"):  # a resume repeats the steps from here on
                    scalars = {tag: _before(event.step, points) for tag, points in scalars.items()}
                    texts = {tag: _before(event.step, points) for tag, points in texts.items()}
                for value in event.summary.value:
                    kind = value.metadata.plugin_data.plugin_name
                    if kind == "scalars" and value.tensor.float_val:
                        scalars.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
                    elif kind == "text" and value.tensor.string_val:
                        text = textwrap.dedent(value.tensor.string_val[0].decode("utf-8", "replace"))
                        whole = text.replace("\n  ", " ")  # how the samples' long lines are continued
                        texts.setdefault(value.tag.removesuffix("/text_summary"), {})[event.step] = whole
        except (OpError, ValueError, OSError):
            continue
    return Curves(
        {tag: sorted(points.items()) for tag, points in scalars.items()},
        {tag: sorted(points.items()) for tag, points in texts.items()},
    )


def _before(end: int, points: dict[int, Value]) -> dict[int, Value]:
    return {step: value for step, value in points.items() if step < end}


def cached_curves(run: Path) -> Curves:
    """Return the curves and the samples of a run, which are read again only if its records have changed."""
    try:
        state = tuple((file.name, file.stat().st_size) for file in sorted(run.glob("events.out.tfevents.*")))
    except OSError:  # deleted in the meantime
        state = ()
    return _curves(run, state)


@lru_cache(16)
def _curves(run: Path, state: tuple) -> Curves:
    return read_curves(run)
