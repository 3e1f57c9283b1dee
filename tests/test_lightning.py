"""The module and the datamodule in a plain `lightning.Trainer`, as Lightning's documentation uses them."""

import contextlib
import math
import warnings

import pytest
import torch
from conftest import read
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.tuner import Tuner
from test_resume import same
from torch.utils.data import DataLoader

from minigpt import GPT, CharDataset, CharTokenizer, LitLanguageModel, MiniGPTError, TextDataModule, TinyGPT, generate
from minigpt.evaluation import evaluate
from minigpt.loading import corpus_of, read_checkpoint
from minigpt.runs import find_checkpoint
from minigpt.training.callbacks import Figures, Samples
from minigpt.training.progress import Progress
from minigpt.training.resume import ScheduleOnResume

PLAIN = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
# What Lightning says of trainings that these tests have on purpose.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
        "Checkpoint directory .* exists and is not empty",
        "Total length of `DataLoader` across ranks is zero",
        "`training_step` returned `None`",
        "You defined a `validation_step` but have no `val_dataloader`",
    )
]
NOTHING = PLAIN | {"logger": False, "enable_checkpointing": False}
SECONDS = 60  # after which a training that never ends is stopped


def schedule_length(trainer: Trainer) -> int:
    """The steps of the learning-rate schedule that a training had."""
    return next(callback.steps for callback in trainer.callbacks if isinstance(callback, ScheduleOnResume))


@pytest.fixture
def text(folder):
    """A text of its own, of 3,600 characters."""
    file = folder / "texte.txt"
    file.write_text(read("exemple")[:3600], encoding="utf-8")
    return str(file)


class Validations(Callback):
    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)


class Recorder(Logger):
    """A logger that keeps what it is given, in no folder."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.metrics = []

    def log_metrics(self, metrics, step=None):
        self.metrics += [(name, step) for name in metrics]

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_validate_after_a_fit_of_byte_pairs_gives_the_figures_of_evaluate(text):
    data = TextDataModule(text, tokenizer="bpe", max_vocab_size=300, block_size=16, batch_size=8)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), learning_rate=0.01)
    Trainer(max_steps=50, **NOTHING).fit(model, data)
    expected = evaluate(model.network, data.val_ids, data.tokenizer.lengths)
    fresh = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16))
    fresh.load_state_dict(model.state_dict())
    for module in (model, fresh):
        for found in (Trainer(**NOTHING).validate(module, data), Trainer(**NOTHING).test(module, data)):
            ((name, value),) = [(n, v) for n, v in found[0].items() if n.endswith("/bits_per_char")]
            assert name in ("val/bits_per_char", "test/bits_per_char")
            assert value == pytest.approx(expected["bits_per_char"], abs=1e-6)


def test_a_module_generates_and_is_evaluated_as_its_network_beyond_the_block():
    tokenizer = CharTokenizer.from_text("un matin,")
    network = GPT(tokenizer.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=8).eval()
    module, ids = LitLanguageModel(network), torch.tensor(tokenizer.encode("un matin, un matin,"))
    texts = [generate(each, tokenizer, "un matin,", 20, temperature=0.8, seed=0) for each in (module, network)]
    assert texts[0] == texts[1]
    assert evaluate(module, ids, tokenizer.lengths) == evaluate(network, ids, tokenizer.lengths)


def test_a_module_around_a_network_without_a_block_has_none():
    module = LitLanguageModel(torch.nn.Sequential(torch.nn.Embedding(5, 5)))
    assert not hasattr(module, "block_size")


def test_the_sanity_check_is_not_written_as_a_validation(text):
    data = TextDataModule(text, block_size=16)
    logger = Recorder()
    trainer = Trainer(max_steps=3, num_sanity_val_steps=2, **PLAIN | {"logger": logger, "enable_checkpointing": False})
    trainer.fit(LitLanguageModel(TinyGPT(data.vocab_size, 64, 16)), data)
    steps = [step for name, step in logger.metrics if name == "val/loss"]
    assert steps == [3]


@pytest.mark.parametrize("schedule", [{"lr_schedule": "cosine"}, {"warmup_steps": 5}])
def test_lr_find_sweeps_the_rate_also_under_a_schedule(text, schedule):
    data = TextDataModule(text, block_size=16, batch_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), **schedule)
    trainer = Trainer(max_steps=200, limit_val_batches=0, **NOTHING)
    found = Tuner(trainer).lr_find(model, datamodule=data, min_lr=1e-5, max_lr=1.0, num_training=60)
    losses = found.results["loss"]
    assert losses[45] < losses[10] - 0.2  # at rates around 1e-2 it learns, around 1e-5 it does not
    assert 1e-3 < found.suggestion() < 0.5


def test_lr_find_is_refused_with_muon_which_has_two_rates(text):
    data = TextDataModule(text, block_size=16, batch_size=16)
    model = LitLanguageModel(GPT(data.vocab_size, 16, 1, 4, 16), optimizer="muon")
    trainer = Trainer(max_steps=200, limit_val_batches=0, **NOTHING)
    with pytest.raises(MiniGPTError, match="muon"):
        Tuner(trainer).lr_find(model, datamodule=data, num_training=20)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_epoch_is_one_pass_over_the_windows(text, accumulate):
    data = TextDataModule(text, block_size=16, batch_size=64)
    seen = Validations()
    trainer = Trainer(
        max_epochs=1, max_time={"seconds": SECONDS}, accumulate_grad_batches=accumulate, callbacks=[seen], **NOTHING
    )
    assert len(data.train_dataloader()) > 0
    trainer.fit(LitLanguageModel(TinyGPT(data.vocab_size, 64, 16)), data)
    batches = (len(data.train_ids) - 16) // 64 // accumulate * accumulate
    assert trainer.global_step == batches // accumulate
    assert seen.steps == [trainer.global_step]


def test_a_resume_and_the_validation_after_a_training_give_no_reason_to_doubt_them(text, folder, caplog):
    """Lightning says nothing of callbacks that it replaces, and nothing of a loader that could not be resumed."""
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16))
    with caplog.at_level("INFO", "lightning.pytorch"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = Trainer(max_steps=20, **NOTHING)
        trainer.fit(model, data)
        (scores,) = trainer.validate(model, data, verbose=False)
        trainer.save_checkpoint(folder / "twenty.ckpt")
        resumed = Trainer(max_steps=25, **NOTHING)
        resumed.fit(model, data, ckpt_path="twenty.ckpt", weights_only=True)
    assert scores.keys() == {"val/loss", "val/bits_per_char", "val/perplexity", "val/accuracy"}
    assert resumed.global_step == 25
    assert "override existing callbacks" not in caplog.text
    assert "max_steps=25" in caplog.text, "what Lightning says is caught"
    assert not [w for w in caught if "not resumable" in str(w.message)]


def test_a_model_is_trained_on_after_a_validation_and_a_test(text):
    """They run in inference mode, and one may be left half way or have had more loaders."""
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16))
    trainer = Trainer(max_steps=20, **NOTHING)
    trainer.fit(model, data)
    (expected,) = trainer.validate(model, data, verbose=False)
    assert len(trainer.validate(model, [data.val_dataloader(), data.val_dataloader()], verbose=False)) == 2
    trainer.test(model, data, verbose=False)
    with torch.inference_mode():
        model.metrics.first.update(torch.zeros(1, 16, data.vocab_size), torch.zeros(1, 16, dtype=torch.int64))
    assert trainer.validate(model, data, verbose=False) == [expected]
    Trainer(max_steps=20, **NOTHING).fit(model, data)
    (trained,) = trainer.validate(model, data, verbose=False)
    assert trained["val/loss"] < expected["val/loss"]


def test_a_training_by_steps_ends_with_a_validation(text):
    data = TextDataModule(text, block_size=16)
    seen = Validations()
    Trainer(max_steps=20, callbacks=[seen], **NOTHING).fit(LitLanguageModel(TinyGPT(data.vocab_size, 64, 16)), data)
    assert seen.steps == [20]


@pytest.mark.parametrize(("last", "steps"), [({"max_steps": 15}, 15), ({"max_epochs": 2}, 24)])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_schedule_is_laid_over_the_steps_that_the_trainer_will_do(text, last, steps, schedule):
    data = TextDataModule(text, block_size=16, batch_size=256)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), lr_schedule=schedule)
    trainer = Trainer(limit_val_batches=0, **last, **NOTHING)
    trainer.fit(model, data)
    assert schedule_length(trainer) == trainer.global_step == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_a_new_training_after_a_resumed_one_has_a_schedule_of_its_own(text, folder):
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), lr_schedule="cosine")
    trainer = Trainer(max_steps=20, limit_val_batches=0, **NOTHING)
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / "twenty.ckpt")
    for steps, checkpoint in ((25, "twenty.ckpt"), (5, None)):
        trainer = Trainer(max_steps=steps, limit_val_batches=0, **NOTHING)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        assert schedule_length(trainer) == steps


def test_a_warm_up_longer_than_the_training_is_shortened_and_said_so(text, capsys):
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), lr_schedule="wsd", warmup_steps=100)
    trainer = Trainer(max_steps=30, limit_val_batches=0, **NOTHING)
    trainer.fit(model, data)
    assert "has 30 steps, so model.warmup_steps is 3 instead of 100" in capsys.readouterr().err


@pytest.mark.parametrize("scheduled", [True, False])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_ones_own_optimizer_and_scheduler_are_left_alone(text, scheduled, schedule):
    class Own(LitLanguageModel):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
            if not scheduled:
                return optimizer
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer, 0.1), "interval": "step"}]

    data = TextDataModule(text, block_size=16)
    model = Own(TinyGPT(data.vocab_size, 64, 16), lr_schedule=schedule)
    trainer = Trainer(max_steps=3, limit_val_batches=0, **NOTHING)
    trainer.fit(model, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005 if scheduled else 0.05)


def test_predict_gives_logits_and_further_loaders_have_figures_of_their_own(text):
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16))
    loader = DataLoader([torch.zeros(2, 5, dtype=torch.int64)], batch_size=None)
    (logits,) = Trainer(**NOTHING).predict(model, loader)
    assert torch.equal(logits, model(torch.zeros(2, 5, dtype=torch.int64)))
    data.setup()
    loader = data.val_dataloader()
    other = DataLoader([next(iter(loader))], batch_size=None)
    first, second = Trainer(**NOTHING).validate(model, [loader, other])
    (alone,) = Trainer(**NOTHING).validate(model, other)
    assert first["val/loss"] != alone["val/loss"]
    assert (first | second)["val_1/loss"] == alone["val/loss"]


def test_each_validation_has_the_figures_of_its_own_loaders_that_have_batches(text):
    data = TextDataModule(text, block_size=16)
    data.setup()
    model, loader = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16)), data.val_dataloader()
    (alone,) = Trainer(**NOTHING).validate(model, loader)
    first, *_, last = Trainer(**NOTHING).validate(model, [loader, DataLoader([], batch_size=None), loader])
    assert last["val_2/loss"] == first["val/loss"] == alone["val/loss"]
    assert "val_1/loss" not in first | last
    assert Trainer(**NOTHING).validate(model, loader) == [alone]


class OfDicts(LitLanguageModel):
    """A subclass whose batches have a form of their own."""

    def training_step(self, batch, batch_idx):
        return {"loss": self.loss(batch["x"], batch["y"])}

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step((batch["x"], batch["y"]), batch_idx, dataloader_idx)


def test_a_subclass_may_have_batches_of_another_form(text):
    data = TextDataModule(text, block_size=16)
    data.setup()
    loader = DataLoader([{"x": x, "y": y} for x, y in data.val_dataloader()], batch_size=None)
    logger = Recorder()
    trainer = Trainer(max_steps=3, log_every_n_steps=1, **NOTHING | {"logger": logger})
    trainer.fit(OfDicts(TinyGPT(data.vocab_size, 64, 16)), loader, loader)
    assert {("train/loss", 1), ("train/loss", 3), ("val/loss", 3)} <= set(logger.metrics)


class Skipping(LitLanguageModel):
    """A subclass that skips every other step, as Lightning allows."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class SeveralEvaluations(LitLanguageModel):
    """A subclass with an optimizer that evaluates the loss several times in a step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


@pytest.mark.parametrize(("kind", "steps"), [(Skipping, [1, 3]), (SeveralEvaluations, [1, 2, 3, 4])])
def test_a_step_is_written_once_and_only_if_it_has_a_loss(text, kind, steps):
    data, logger = TextDataModule(text, block_size=16), Recorder()
    trainer = Trainer(max_steps=4, log_every_n_steps=1, limit_val_batches=0, **NOTHING | {"logger": logger})
    trainer.fit(kind(TinyGPT(data.vocab_size, 64, 16)), data)
    assert [step for name, step in logger.metrics if name == "train/loss"] == steps


def test_a_validation_leaves_the_length_of_the_schedule(text, folder):
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), lr_schedule="cosine")
    trainer = Trainer(max_steps=3, **NOTHING)
    trainer.fit(model, data)
    trainer.validate(model, data)
    trainer.save_checkpoint(folder / "model.ckpt")
    assert read_checkpoint(folder / "model.ckpt")["minigpt"]["schedule_steps"] == 3


def test_without_the_lengths_of_tokens_there_are_no_bits_per_character(text):
    data = TextDataModule(text, block_size=16)
    data.setup()
    logger = Recorder()
    trainer = Trainer(max_steps=3, **PLAIN | {"logger": logger, "enable_checkpointing": False})
    trainer.fit(LitLanguageModel(TinyGPT(data.vocab_size, 64, 16)), data.train_dataloader(), data.val_dataloader())
    names = {name for name, _ in logger.metrics}
    assert {"train/loss", "val/loss", "val/perplexity", "val/accuracy"} <= names
    assert not any("bits_per_char" in name for name in names)


def test_a_logger_without_a_folder_keeps_no_checkpoint_from_being_written_and_read(text, folder):
    data = TextDataModule(text, block_size=16)
    trainer = Trainer(
        max_steps=3, limit_val_batches=0, default_root_dir=folder / "elsewhere", **PLAIN | {"logger": Recorder()}
    )
    trainer.fit(LitLanguageModel(TinyGPT(data.vocab_size, 64, 16)), data)
    assert trainer.log_dir is None
    trainer.save_checkpoint(folder / "there" / "model.ckpt")
    file = find_checkpoint(folder / "there" / "model.ckpt")
    assert corpus_of(file, read_checkpoint(file)["minigpt"]["data"]) == text


@pytest.mark.parametrize(("size", "of_the_model"), [("block_size", (None, 8)), ("vocab_size", (5, 16))])
@pytest.mark.parametrize("kind", [TinyGPT, GPT])
def test_data_that_are_larger_than_the_network_are_named_before_training(text, size, of_the_model, kind):
    data = TextDataModule(text, block_size=16)
    vocab_size, block_size = of_the_model
    model = LitLanguageModel(kind(vocab_size or data.vocab_size, block_size=block_size))
    with pytest.raises(MiniGPTError, match=f"The data have a {size} of .* Give the network the data's"):
        Trainer(max_steps=3, **NOTHING).fit(model, data)


def test_the_first_loss_of_a_plain_training_is_that_of_a_guess(text):
    data = TextDataModule(text, block_size=16, batch_size=32)
    logger = Recorder()
    model = LitLanguageModel(GPT(data.vocab_size, 16, 1, 4, 16))
    trainer = Trainer(max_steps=1, limit_val_batches=0, **PLAIN | {"logger": logger, "enable_checkpointing": False})
    trainer.fit(model, data)
    assert ("train/loss", 1) in logger.metrics
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(math.log(data.vocab_size), rel=0.05)
    assert torch.isfinite(next(model.parameters())).all()


class Stop(Callback):
    """Leaves after a step and before its validation, with what ModelCheckpoint has written by then."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt

    on_validation_start = on_train_batch_start


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 10, 12, 24])
@pytest.mark.parametrize("validations", [{"val_check_interval": 10, "check_val_every_n_epoch": None}, {}])
def test_a_plain_trainer_resumes_to_the_bit(text, folder, stop, validations):
    data_settings = {"block_size": 16, "batch_size": 128}

    def fit(steps, *callbacks, **options):
        data, seen, logger = TextDataModule(text, **data_settings), Validations(), Recorder()
        torch.manual_seed(0)
        network = GPT(data.vocab_size, 16, 1, 4, 16, dropout=0.3)
        torch.manual_seed(torch.seed())  # what was drawn before does not matter
        model = LitLanguageModel(network, learning_rate=0.01, lr_schedule="cosine", warmup_steps=3)
        keep = ModelCheckpoint("kept", filename="last", every_n_train_steps=1, enable_version_counter=False)
        trainer = Trainer(
            max_steps=steps, accumulate_grad_batches=2, callbacks=[seen, keep, *callbacks], log_every_n_steps=1,
            **PLAIN | {"logger": logger} | validations,
        )  # fmt: skip
        with contextlib.suppress(SystemExit):  # how Lightning leaves on Ctrl-C
            trainer.fit(model, data, **options)
        return trainer, model, seen.steps, dict.fromkeys(logger.metrics)

    whole, model, steps, metrics = fit(26)
    assert len(whole.train_dataloader) // 2 == 12, "steps in a pass"
    assert steps == ([5, 10, 15, 20, 25, 26] if validations else [12, 24, 26])
    _, _, before, first = fit(26, Stop(stop))
    resumed, again, after, rest = fit(26, ckpt_path="kept/last.ckpt", weights_only=True)
    assert same(again.state_dict(), model.state_dict())
    assert same(resumed.optimizers[0].state_dict(), whole.optimizers[0].state_dict())
    assert sorted({*before, *after}) == steps
    assert {*first, *rest} == {*metrics}


class Plateau(LitLanguageModel):
    """A subclass whose rate falls where a pass ends without a better validation loss than before."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.3, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "callback", "options", "stops"),
    [
        (LitLanguageModel, lambda: GradientAccumulationScheduler({1: 2}), {"max_epochs": 2}, [3, 20, 27]),
        # The validation that the rate at the end of the pass depends on comes before the stop.
        (Plateau, Callback, {"max_steps": 55, "val_check_interval": 20, "check_val_every_n_epoch": None}, [22, 42]),
        # Early stopping waits for min_steps, and the stop comes while it does.
        (
            Plateau,
            lambda: EarlyStopping("val/loss", patience=1),
            {"max_steps": 60, "min_steps": 35, "val_check_interval": 4, "check_val_every_n_epoch": None},
            [30, 33],
        ),
    ],
    ids=["accumulation", "plateau", "min_steps"],
)
def test_what_lightnings_callbacks_and_schedulers_have_seen_survives_a_resume(
    text, folder, kind, callback, options, stops
):
    def fit(stop=None, ckpt_path=None):
        data = TextDataModule(text, block_size=16, batch_size=128)
        torch.manual_seed(0)
        model = kind(GPT(data.vocab_size, 16, 1, 4, 16, dropout=0.3), learning_rate=0.01, lr_schedule="cosine")
        keep = ModelCheckpoint(f"kept{stop}", filename="last", every_n_train_steps=1, enable_version_counter=False)
        callbacks = [callback(), keep, *([Stop(stop)] if stop and not ckpt_path else [])]
        trainer = Trainer(callbacks=callbacks, **PLAIN | {"logger": False} | options)
        with contextlib.suppress(SystemExit):
            trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        return trainer, model

    whole, model = fit()
    if callback is Callback:
        assert whole.optimizers[0].param_groups[0]["lr"] < 0.3
    if "max_epochs" in options:
        assert schedule_length(whole) == whole.global_step == 25 + 13
    for stop in stops:
        assert fit(stop)[0].global_step == stop
        resumed, again = fit(stop, ckpt_path=f"kept{stop}/last.ckpt")
        assert resumed.global_step == whole.global_step
        assert same(again.state_dict(), model.state_dict())
        assert same(resumed.optimizers[0].state_dict(), whole.optimizers[0].state_dict())


def test_a_training_with_fewer_steps_than_it_must_have_ends_with_a_validation_all_the_same(text):
    validations = Validations()
    trainer = Trainer(max_steps=3, min_steps=5, min_epochs=2, callbacks=[validations], **NOTHING)
    trainer.fit(LitLanguageModel(TinyGPT(64, 64, 16)), TextDataModule(text, block_size=16))
    assert validations.steps == [3]


def test_early_stopping_counts_a_validation_once_also_in_a_plain_trainer(text, folder):
    def fit(*callbacks, **options):
        data = TextDataModule(text, block_size=16)
        torch.manual_seed(0)
        model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), learning_rate=0.0)  # never better
        trainer = Trainer(
            max_steps=100, val_check_interval=5, callbacks=[EarlyStopping("val/loss", patience=3), *callbacks],
            check_val_every_n_epoch=None, **NOTHING | {"enable_checkpointing": True},
        )  # fmt: skip
        with contextlib.suppress(SystemExit):
            trainer.fit(model, data, **options)
        return trainer.global_step

    assert fit() == 20
    fit(ModelCheckpoint("kept", filename="last", every_n_train_steps=1, enable_version_counter=False), Stop(10))
    assert fit(ckpt_path="kept/last.ckpt", weights_only=True) == 20


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_training_loss_is_the_mean_over_accumulated_batches(text, accumulate):
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), learning_rate=0.0)
    trainer = Trainer(
        max_steps=2, accumulate_grad_batches=accumulate, log_every_n_steps=2, limit_val_batches=0, **NOTHING
    )
    trainer.fit(model, data)
    batches = list(data.train_dataloader().sampler.batches(accumulate, accumulate))  # of step 2
    dataset = CharDataset(data.train_ids, 16)
    losses = [model.loss(*dataset[starts]).item() for starts in batches]
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(sum(losses) / accumulate, abs=1e-5)


def test_the_progress_of_a_run_lets_the_other_entry_points_pass(text):
    data = TextDataModule(text, block_size=16)
    model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16))
    trainer = Trainer(callbacks=[Progress()], **NOTHING | {"enable_progress_bar": True})
    (figures,) = trainer.validate(model, data, verbose=False)
    assert figures["val/loss"] == pytest.approx(
        evaluate(model.network, data.val_ids, data.tokenizer.lengths)["loss"], rel=1e-5
    )


@pytest.mark.parametrize("kind", [Samples, Figures, Progress])
def test_a_callback_that_needs_a_data_module_of_text_says_so(text, kind):
    data = TextDataModule(text, block_size=16)
    loader = data.train_dataloader()
    trainer = Trainer(max_steps=1, callbacks=[kind()], **NOTHING | {"enable_progress_bar": kind is Progress})
    with pytest.raises(MiniGPTError, match=f"The callback {kind.__name__} needs a TextDataModule. Pass one"):
        trainer.fit(LitLanguageModel(TinyGPT(data.vocab_size, 64, 16)), loader)
