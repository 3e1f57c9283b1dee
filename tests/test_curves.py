"""The curves and samples that are read back from a run's events."""

import pytest
from torch.utils.tensorboard import SummaryWriter

from minigpt.inspection.curves import Curves, read_curves


@pytest.fixture
def run(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (1, 2, 3, 4):
            writer.add_scalar("val/bits_per_char", 6 - step, step, new_style=True)
            writer.add_text("samples/top_k", f"    texte {step}\n      vers", step)
    return tmp_path


def test_curves_and_samples_are_read_back(run):
    curves = read_curves(run)
    assert curves.scalars == {"val/bits_per_char": [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0)]}
    assert curves.texts["samples/top_k"][0] == (1, "texte 1 vers")


def test_a_resumed_run_has_the_steps_of_its_last_life(run):
    with SummaryWriter(str(run), purge_step=3, filename_suffix=".1") as writer:
        writer.add_scalar("val/bits_per_char", 0.5, 5, new_style=True)
    curves = read_curves(run)
    assert curves.scalars["val/bits_per_char"] == [(1, 5.0), (2, 4.0), (5, 0.5)]
    assert [step for step, _ in curves.texts["samples/top_k"]] == [1, 2]


def test_the_first_records_of_a_cut_or_damaged_file_are_kept(run):
    (file,) = run.glob("events*")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    steps = [step for step, _ in read_curves(run).scalars["val/bits_per_char"]]
    assert steps in ([1], [1, 2], [1, 2, 3])
    middle = len(content) // 2
    file.write_bytes(content[:middle] + b"\xff" * 20 + content[middle + 20 :])
    assert read_curves(run).scalars["val/bits_per_char"][: len(steps)] == [(step, 6.0 - step) for step in steps]


@pytest.mark.parametrize("content", [b"", b"no events" * 9, b"\xff" * 200])
def test_a_file_that_holds_no_events_gives_none(tmp_path, content):
    (tmp_path / "events.out.tfevents.1").write_bytes(content)
    assert read_curves(tmp_path) == Curves({}, {})
