"""Lightning's Trainer options on the command line, each as Lightning documents it, or refused with the reason."""

import pytest
import torch
from conftest import QUICK, ROOT, STARTS, TINY, read
from lightning.pytorch import Trainer
from test_resume import same
from test_training import curves

from minigpt import LitLanguageModel, TextDataModule, TinyGPT
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.metrics import TrainMetrics
from minigpt.training.typed import callback_of

RUN = "lightning_logs/tiny/version_0"
SHORT = ["--figures.every_n_steps", "0", "--trainer.log_every_n_steps", "1", "--validation.every_n_steps", "0"]


@pytest.fixture
def start(call):
    def start(*flags: str, status: int | str = 0):
        result = call("train", "--config", TINY, *QUICK, *SHORT, *flags)
        assert result.status == status, result.err
        assert "Traceback" not in result.err
        return result

    return start


def state(folder, name: str = "last") -> dict:
    return torch.load(folder / RUN / "checkpoints" / f"{name}.ckpt", weights_only=True)


def steps_of(folder, tag: str) -> list[int]:
    return [step for step, _ in curves(folder / RUN)[tag]]


def test_fast_dev_run_goes_through_once_and_leaves_nothing(start, folder):
    result = start("--trainer.fast_dev_run", "true")
    assert "fast_dev_run: trained to step 1 and validated; nothing was written" in result.err
    assert "fast_dev_run: trained to step 3" in start("--trainer.fast_dev_run", "3").err
    assert list(folder.iterdir()) == []


def test_a_callback_may_leave_with_a_text_as_python_does(start, monkeypatch):
    def leave(self):
        raise SystemExit("enough")

    monkeypatch.setattr(MiniGPTCLI, "fit", leave)
    start(status="enough")


@pytest.mark.slow
def test_loggers_write_beside_tensorboard_or_none_does(start, folder):
    start("--trainer.max_steps", "4", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv")
    (rows,) = folder.glob("csv/*/version_0/metrics.csv")
    assert "val/bits_per_char" in rows.read_text(encoding="utf-8").splitlines()[0]
    assert steps_of(folder, "val/loss") == [4]
    start("--trainer.max_steps", "4", "--trainer.logger", "false")
    silent = folder / "lightning_logs" / "tiny" / "version_1"
    assert not list(silent.glob("events.*"))
    assert (silent / "checkpoints" / "last.ckpt").exists()
    assert start("--trainer.max_steps", "6", "--trainer.logger", "false", "--ckpt_path", str(silent)).status == 0


@pytest.mark.slow
def test_passes_are_counted_in_steps(start, folder):
    (folder / "short.txt").write_text(read("exemple")[:2000], encoding="utf-8")
    flags = ["--data.path", "short.txt", "--data.batch_size", "50", "--trainer.max_steps", "-1"]
    start(*flags, "--trainer.max_epochs", "1", "--trainer.accumulate_grad_batches", "5")
    assert state(folder)["global_step"] == 6  # 34 batches of 50 of some 1,730 windows, 30 in whole steps
    start(*flags, "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "4", "--data.block_size", "32")
    last = folder / "lightning_logs" / "tiny" / "version_1" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 12


@pytest.mark.slow
def test_limited_passes_go_on_through_the_order_and_are_resumed_to_the_bit(start, folder):
    limited = ["--trainer.limit_train_batches", "7", "--trainer.max_steps", "20"]
    start(*limited, "--trainer.default_root_dir", "limited")
    start("--trainer.max_steps", "20", "--trainer.default_root_dir", "whole")
    start(*limited[:3], "10", "--trainer.default_root_dir", "part")
    start(*limited, "--trainer.default_root_dir", "part", "--ckpt_path", "last")
    weights = [
        torch.load(folder / name / RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("limited", "whole", "part")
    ]
    for other in weights[1:]:
        assert all(torch.equal(weight, other[name]) for name, weight in weights[0].items())


@pytest.mark.slow
def test_validations_can_be_limited_counted_in_batches_shares_and_passes_or_left_out(start, folder):
    start("--trainer.max_steps", "6", "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2")
    assert steps_of(folder, "val/loss") == [2, 4, 6]
    start("--trainer.max_steps", "5", "--trainer.limit_val_batches", "0", "--trainer.default_root_dir", "none")
    run = folder / "none" / RUN
    assert "val/loss" not in curves(run)
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    few = ["--trainer.max_steps", "16", "--trainer.limit_val_batches", "1", "--trainer.limit_train_batches", "8"]
    for name, flag, expected in (
        ("share", ["--trainer.val_check_interval", "0.5"], [4, 8, 12, 16]),
        ("passes", ["--trainer.check_val_every_n_epoch", "1"], [8, 16]),
    ):
        start(*few, *flag, "--trainer.default_root_dir", name)
        assert [step for step, _ in curves(folder / name / RUN)["val/loss"]] == expected


@pytest.mark.slow
@pytest.mark.parametrize("n", ["1", "2"])
def test_overfit_batches_draws_the_same_batches_over_and_over(start, folder, n):
    start("--trainer.max_steps", "8", "--trainer.overfit_batches", n, "--model.learning_rate", "0.05")
    losses = [loss for _, loss in curves(folder / RUN)["train/loss"]]
    assert losses[-1] < 0.6 * losses[0]
    data = TextDataModule(block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), learning_rate=0.05)
    trainer = Trainer(max_steps=20, overfit_batches=int(n), accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, data)
    assert callback_of(trainer, TrainMetrics).last_record["step"] == 1


def test_a_sanity_check_and_a_model_summary_come_where_they_are_asked_for(start, folder):
    result = start(
        "--trainer.max_steps", "3", "--trainer.num_sanity_val_steps", "2", "--trainer.enable_model_summary", "true"
    )
    assert steps_of(folder, "val/loss") == [3]
    assert "Total params" in result.err


def test_without_checkpointing_none_is_written(start, folder):
    start("--trainer.max_steps", "3", "--trainer.enable_checkpointing", "false")
    assert not list((folder / RUN).rglob("*.ckpt"))
    assert steps_of(folder, "val/loss") == [3]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        (["--trainer.barebones", "true"], "Use lightning.Trainer in Python"),
        (["--trainer.use_distributed_sampler", "true"], "each process draws its own rows"),
        (["--trainer.reload_dataloaders_every_n_epochs", "1"], "has no effect"),
    ],
)
def test_what_a_run_cannot_have_is_refused_with_the_reason(start, folder, flag, words):
    result = start("--trainer.max_steps", "3", *flag, status=2)
    assert flag[0].removeprefix("--") in result.err
    assert words in result.err
    assert not (folder / "lightning_logs").exists()


CALLBACKS = {
    "EarlyStopping": ["--trainer.callbacks.monitor", "val/loss"],
    "LearningRateMonitor": [],
    "ModelCheckpoint": ["--trainer.callbacks.monitor", "val/loss"],
    "Timer": ["--trainer.callbacks.duration", "00:00:05:00"],
    "ModelSummary": [],
    "RichModelSummary": [],
    "EMAWeightAveraging": [],
    "DeviceStatsMonitor": [],
    "LearningRateFinder": ["--trainer.callbacks.num_training_steps", "5"],
    "TQDMProgressBar": [],
    "RichProgressBar": [],
    "GradientAccumulationScheduler": ["--trainer.callbacks.scheduling", "{0: 2}"],
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_lightnings_callbacks_do_their_work(start, folder, name):
    if name == "DeviceStatsMonitor":
        pytest.importorskip("psutil")
    start("--trainer.max_steps", "4", "--trainer.callbacks+", name, *CALLBACKS[name])
    assert state(folder)["global_step"] == 4
    if name == "LearningRateMonitor":
        assert any(tag.startswith("lr-AdamW") for tag in curves(folder / RUN))
    if name == "ModelCheckpoint":
        assert list((folder / RUN).rglob("epoch=0-step=4.ckpt"))


@pytest.mark.slow
def test_an_accumulation_of_each_pass_gives_the_steps_of_its_passes_and_is_resumed_to_the_bit(start, folder):
    flags = ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling={1: 2}"]
    flags += ["--trainer.max_epochs=2", "--trainer.max_steps=-1", "--trainer.limit_train_batches=5"]
    whole = start(*flags, "--trainer.default_root_dir=whole")
    assert "step 8/8" in whole.err  # 5 + 3
    for steps in ("6", "-1"):
        start(*flags, f"--trainer.max_steps={steps}", "--ckpt_path=last")
    one, other = state(folder), state(folder / "whole")
    for key in ("global_step", "state_dict", "optimizer_states"):
        assert same(one[key], other[key])


@pytest.mark.slow
def test_a_rate_that_falls_on_a_plateau_goes_on_after_a_resume(start, folder):
    flags = ["--optimizer=Adam", "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss"]
    flags += ["--trainer.limit_train_batches=5", "--validation.every_n_steps=4", "--checkpoint.every_n_steps=1"]
    start(*flags, "--trainer.max_steps=11", "--trainer.limit_val_batches=1")
    start(*flags, "--trainer.max_steps=18", "--ckpt_path=last")
    assert state(folder)["global_step"] == 18


def test_the_least_number_of_steps_keeps_no_run_from_its_last_validation_and_checkpoint(start, folder):
    start("--trainer.max_steps=3", "--trainer.min_steps=2")
    assert state(folder)["global_step"] == 3
    assert steps_of(folder, "val/loss") == [3]


@pytest.mark.slow
def test_another_optimizer_replaces_the_models_and_its_unused_settings_are_named(start, folder):
    sgd = ["--optimizer", "SGD", "--optimizer.lr", "0.5"]
    result = start(*sgd, "--trainer.max_steps", "4", "--model.beta2", "0.9", "--model.warmup_steps", "2")
    assert "model.beta2, model.warmup_steps" in result.err.replace("model.decay_vectors, ", "")
    (group,) = state(folder)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], "betas" in group) == (0.5, False)
    resumed = start(*sgd, "--trainer.max_steps", "6", "--ckpt_path", "last")
    assert "step 6/6" in resumed.err
    refused = start("--trainer.max_steps", "8", "--ckpt_path", "last", status=2)
    assert "optimizer is None here and torch.optim.SGD in" in refused.err.replace(".sgd.SGD", ".SGD")
    stepped = ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "2", "--lr_scheduler.gamma", "0.1"]
    start(*sgd, *stepped, "--trainer.max_steps", "4", "--trainer.default_root_dir", "stepped")
    last = torch.load(folder / "stepped" / RUN / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", sorted({*(ROOT / "configs").glob("*.yaml")} - {*STARTS}), ids=lambda path: path.stem)
def test_any_recipe_can_be_tried_for_thirty_steps(call, recipe):
    """The steps that the schedule is laid over, without the time that thirty steps would take."""
    result = call(
        "train", "--config", str(recipe), *QUICK, "--data.path", "exemple", "--trainer.max_steps", "30",
        "--trainer.fast_dev_run", "true", "--model.compile", "false", "--data.batch_size", "2",
        "--data.max_val_tokens", "300",
    )  # fmt: skip
    assert result.status == 0, result.err


def test_a_count_and_a_share_are_told_apart(folder):
    for text, value in (("1", 1), ("1.0", 1.0), ("7", 7), ("0.25", 0.25)):
        flags = [f"--trainer.{key}={text}" for key in ("limit_train_batches", "limit_val_batches", "overfit_batches")]
        config = MiniGPTCLI(["--config", TINY, "--trainer.fast_dev_run=true", *flags]).config.trainer
        for key in ("limit_train_batches", "limit_val_batches", "overfit_batches"):
            assert (type(config[key]), config[key]) == (type(value), value)
