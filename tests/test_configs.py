"""Every recipe runs, and says in its header what to type and what to expect."""

import re

import pytest
import torch
import yaml
from conftest import RECIPES, ROOT, STARTS

COMPILED = [recipe for recipe in RECIPES if "compile: true" in recipe.read_text(encoding="utf-8")]
LONG = [recipe for recipe in RECIPES if recipe.stem in ("shakespeare", "speedrun_cpu")]
FULL = sorted({*COMPILED, *LONG})  # in one order: each process of pytest-xdist must collect the same list
CASES = [(recipe, []) for recipe in RECIPES if recipe not in [*FULL, *STARTS]]
CASES += [pytest.param(recipe, [], marks=pytest.mark.full) for recipe in FULL]
CASES += [pytest.param(recipe, ["--model.compile", "false"], marks=pytest.mark.full) for recipe in COMPILED]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "flags"), CASES, ids=lambda value: getattr(value, "stem", ""))
def test_a_recipe_trains_and_its_loss_falls(call, folder, recipe, flags):
    flags = [*flags, "--trainer.max_steps", "8", "--trainer.accelerator", "cpu", "--samples.max_new_tokens", "5"]
    flags += ["--data.path", "exemple", "--data.max_val_tokens", "1000"]  # no network
    if recipe.stem == "shakespeare":
        flags += ["--data.batch_size", "4", "--model.network.n_layer", "1"]
    result = call(
        "train", "--config", str(recipe), *flags, "--progress.every_n_steps", "1", "--trainer.log_every_n_steps", "1"
    )
    assert result.status == 0, result.err
    losses = [float(loss) for loss in re.findall(r"train loss ([\d.]+)", result.err)]
    assert sum(losses[-2:]) < sum(losses[:2])
    assert torch.load(
        next(folder.glob("lightning_logs/*/version_0/checkpoints/last.ckpt")), weights_only=True
    )["global_step"] == 8  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recipe", STARTS, ids=lambda path: path.stem)
def test_a_recipe_for_a_start_trains_and_its_loss_falls(call, recipe):
    """From a small run, with steps of one batch."""
    flags = ["--trainer.accelerator", "cpu", "--samples.max_new_tokens", "5", "--data.max_val_tokens", "1000"]
    sizes = ["--model.network.n_layer", "1", "--model.network.n_embd", "32", "--trainer.max_steps", "20"]
    assert call("train", "--config", str(ROOT / "configs" / "modern_nano.yaml"), *flags, *sizes).status == 0
    source = ["--init_from", "lightning_logs/modern_nano/version_0", "--trainer.accumulate_grad_batches", "1"]
    steps = ["--trainer.max_steps", "8", "--progress.every_n_steps", "1", "--trainer.log_every_n_steps", "1"]
    block = ["--data.block_size", "64"]
    result = call("train", "--config", str(recipe), *flags, *source, *steps, *block)
    assert result.status == 0, result.err
    losses = [float(loss) for loss in re.findall(r"train loss ([\d.]+)", result.err)]
    assert sum(losses[-2:]) < sum(losses[:2])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_complete_and_says_what_to_expect(recipe):
    text = recipe.read_text(encoding="utf-8")
    header = text.split("\n\n")[0]
    assert len(text.splitlines()) < 60
    name = recipe.relative_to(ROOT / "configs").with_suffix("").as_posix()
    assert re.search(rf"minigpt train --config {name}( --init_from \S+)?$", header, re.MULTILINE)
    for word in ("Machine, minutes:", "Expected val loss:"):
        assert re.search(rf"{word} [^\n]*\d", header), word
    settings = yaml.safe_load(text)
    assert "seed_everything" in settings
    assert "path" in settings["data"]
