"""The module, the data module and the callbacks, in short runs of the article's recipe."""

import ctypes
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import QUICK, TINY
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.nn import functional as F

import minigpt
from minigpt.data.order import BatchOrder
from minigpt.evaluation import evaluate
from minigpt.training.callbacks import Figures, Samples, wrapped
from minigpt.training.checkpointing import Checkpoints
from minigpt.training.cli import MiniGPTCLI
from minigpt.training.metrics import CHARTS, Throughput, TrainMetrics
from minigpt.training.module import LitLanguageModel
from minigpt.training.progress import Progress
from minigpt.training.typed import callback_of


def fit(*args: str) -> MiniGPTCLI:
    cli = MiniGPTCLI(["--config", TINY, *QUICK, *args])
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def curves(run_dir) -> dict[str, list[tuple[int, float | str]]]:
    """What TensorBoard shows of a run: tag to (step, value), in files' order, a step back hiding what it repeats."""
    shown: dict[str, list] = {}
    for file in sorted(run_dir.glob("events.*"), key=lambda file: (file.name.split(".")[3], int(file.suffix[1:]))):
        for event in EventFileLoader(str(file)).Load():
            purge = event.step if event.HasField("session_log") else None
            shows = ("scalars", "text")  # the layout of combined charts is no curve
            values = {v.tag: v.tensor for v in event.summary.value if v.metadata.plugin_data.plugin_name in shows}
            values.pop("train_step/tokens_per_second", None)  # no two runs are equally fast
            for tag in shown if purge is not None else values:
                shown[tag] = [record for record in shown.get(tag, []) if record[0] < event.step]
            for tag, tensor in values.items():
                value = tensor.float_val[0] if tensor.float_val else tensor.string_val[0].decode()
                shown.setdefault(tag, []).append((event.step, value))
    return shown


def steps(curve: list[tuple[int, float | str]]) -> list[int]:
    return [step for step, _ in curve]


def test_the_gradient_norm_is_that_before_clipping_and_speed_leaves_no_record(folder):
    cli = fit("--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1", "--trainer.gradient_clip_val", "0.1")
    data = cli.datamodule
    torch.manual_seed(1337)
    model = minigpt.TinyGPT(data.vocab_size, n_embd=64)
    x, y = minigpt.CharDataset(data.train_ids, 64)[
        next(iter(BatchOrder(len(data.train_ids) - 64, 4, seed=1337).batches(0, 1)))
    ]
    F.cross_entropy(model(x).view(-1, data.vocab_size), y.view(-1)).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    shown = dict(curves(cli.run_dir)["train_step/gradient_norm"])
    assert norm > 0.1
    assert shown[1] == pytest.approx(norm, rel=1e-5)
    assert list(shown) == [1, 2, 3]
    assert "train_step/tokens_per_second" not in callback_of(cli.trainer, TrainMetrics).last_record["metrics"]
    raw = (file.read_bytes() for file in cli.run_dir.glob("events.*"))
    assert any(b"train_step/tokens_per_second" in events for events in raw)


def test_tokens_per_second_leave_out_validations(folder, monkeypatch):
    now, speeds = [0.0], []
    monkeypatch.setattr("minigpt.training.metrics.time", SimpleNamespace(monotonic=lambda: now[0]))
    logger = SimpleNamespace(log_metrics=lambda metrics, step: speeds.append((step, metrics)))
    trainer = SimpleNamespace(loggers=[logger], log_every_n_steps=6, accumulate_grad_batches=1, world_size=1)
    throughput, batch = Throughput(), (torch.zeros(4, 64), torch.zeros(4, 64))
    for step in range(1, 7):
        throughput.on_train_batch_start()
        now[0] += 4
        trainer.global_step = step
        throughput.on_train_batch_end(trainer, None, None, batch, 0)
        if step == 3:
            throughput.on_validation_start(trainer, None)
            now[0] += 100
            assert throughput.seconds() == 12
        with throughput.excluded():
            now[0] += 50 * (step == 5)  # a sample
    assert speeds == [(6, {"train_step/tokens_per_second": 5 * 256 / 20})]


def test_the_table_of_runs_has_settings_and_leaves_its_order_to_tensorboard(folder):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams import plugin_data_pb2

    cli = fit("--trainer.max_steps", "2")
    (file,) = cli.run_dir.glob("events.*")
    kept = {}
    for event in EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                kept[value.tag] = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
    settings = kept["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["model.network"].string_value == "minigpt.TinyGPT"
    assert settings["data.batch_size"].number_value == 4
    assert "_hparams_/experiment" not in kept, "with it, the settings that differ would not come first"
    assert not {"hp_metric", "epoch"} & curves(cli.run_dir).keys()


def test_training_is_the_articles_loop_to_the_bit(folder):
    cli = fit("--trainer.max_steps", "30")
    data = cli.datamodule
    torch.manual_seed(1337)
    model = minigpt.TinyGPT(data.vocab_size, n_embd=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    dataset = minigpt.CharDataset(data.train_ids, 64)
    for starts in BatchOrder(len(dataset), 4, seed=1337).batches(0, 30):
        x, y = dataset[starts]
        loss = F.cross_entropy(model(x).view(-1, data.vocab_size), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, cli.model.network.state_dict()[name]), name


def test_the_recipe_has_the_articles_values():
    recipe = yaml.safe_load(Path(TINY).read_text(encoding="utf-8"))
    assert recipe["model"] == {
        "network": {"class_path": "minigpt.TinyGPT", "init_args": {"n_embd": 64}},
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "decay_vectors": True,
    }
    data = {key: recipe["data"][key] for key in ("lower", "strip", "block_size", "batch_size")}
    assert data == {"lower": True, "strip": True, "block_size": 64, "batch_size": 4}
    assert recipe["trainer"]["max_steps"] == 500


def test_a_run_folder_holds_what_is_promised(folder):
    cli = fit("--trainer.max_steps", "20", "--validation.every_n_steps", "10")
    assert cli.run_dir == folder / "lightning_logs" / "tiny" / "version_0"
    assert yaml.safe_load((cli.run_dir / "config.yaml").read_text(encoding="utf-8"))["data"]["block_size"] == 64
    assert sorted(p.name for p in (cli.run_dir / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert fit("--trainer.max_steps", "1").run_dir.name == "version_1"


def test_the_curves_are_in_optimizer_steps_and_validation_is_whole(folder):
    cli = fit("--trainer.max_steps", "25", "--trainer.log_every_n_steps", "5", "--validation.every_n_steps", "10")
    series = curves(cli.run_dir)
    for name in ("loss", "perplexity", "bits_per_char"):
        assert steps(series[f"train/{name}"]) == [1, 5, 10, 15, 20, 25]
    for name in ("loss", "perplexity", "bits_per_char", "accuracy"):
        assert steps(series[f"val/{name}"]) == [10, 20, 25]
    logits = cli.model.network(cli.datamodule.val_ids[None, :-1])[0]
    loss = F.cross_entropy(logits, cli.datamodule.val_ids[1:]).item()
    assert abs(series["val/loss"][-1][1] - loss) < 1e-5


@pytest.mark.slow
def test_accumulated_batches_are_one_step_and_one_loss(folder):
    accumulated = fit(
        "--trainer.max_steps", "12", "--trainer.accumulate_grad_batches", "2", "--data.batch_size", "4",
        "--trainer.log_every_n_steps", "4", "--validation.every_n_steps", "6", "--checkpoint.every_n_steps", "1",
    )  # fmt: skip
    at_once = fit(
        "--trainer.max_steps", "12", "--data.batch_size", "8", "--trainer.log_every_n_steps", "4",
        "--validation.every_n_steps", "6",
    )  # fmt: skip
    first, second = curves(accumulated.run_dir), curves(at_once.run_dir)
    for tag in ("train/loss", "val/loss"):
        assert steps(first[tag]) == steps(second[tag])
        for one, other in zip(first[tag], second[tag], strict=True):
            assert abs(one[1] - other[1]) < 1e-5


def test_samples_show_the_same_prompt_improve(folder):
    cli = fit("--trainer.max_steps", "25", "--samples.every_n_steps", "10", "--samples.prompts", '["un matin,", "é@"]')
    series = curves(cli.run_dir)
    for tag in ("top_k", "top_p", "top_k_top_p"):
        logged = series[f"samples/{tag}/text_summary"]
        assert steps(logged) == [0, 10, 20, 25]
        texts = [text for _, text in logged]
        assert len(set(texts)) == 4
        for text in texts:
            assert all(line.startswith("    ") for line in text.split("\n")), "a code block keeps the line breaks"
            assert text.startswith("    un matin,")
            assert "\n    ---\n    \n    é" in text


@pytest.mark.slow
def test_samples_do_not_disturb_training(folder):
    with_samples = fit("--trainer.max_steps", "30", "--samples.every_n_steps", "7")
    without = fit("--trainer.max_steps", "30")
    for name, weight in with_samples.model.state_dict().items():
        assert torch.equal(weight, without.model.state_dict()[name]), name


def test_the_best_checkpoint_is_the_lowest_validation_loss(folder):
    cli = fit(
        "--trainer.max_steps", "40", "--validation.every_n_steps", "5", "--model.learning_rate", "0.3",
        "--trainer.log_every_n_steps", "0", "--data.batch_size", "1",
    )  # fmt: skip
    losses = dict(curves(cli.run_dir)["val/loss"])
    best = torch.load(cli.run_dir / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    assert losses[best] == min(losses.values())
    assert best < 40, "with this learning rate the loss is expected to rise again; the test needs that"


def test_a_checkpoint_holds_plain_values_and_the_tokenizer(trained_run):
    checkpoint = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)
    about = checkpoint["minigpt"]
    assert about["data"]["path"] == "exemple"
    assert (
        minigpt.CharTokenizer.from_dict(about["data"]["tokenizer"]).vocab_size
        == about["model"]["init_args"]["vocab_size"]
    )


def test_validation_can_be_capped_while_training(folder):
    data = minigpt.TextDataModule(max_val_tokens=1000)
    assert sum(y.numel() for _, y in data.val_dataloader()) == 1000


def test_progress_is_plain_lines_where_there_is_no_terminal(train, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = train("--trainer.max_steps", "30", "--progress.every_n_steps", "10", "--validation.every_n_steps", "20")
    lines = [line for line in result.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/30", "10/30", "20/30", "30/30"]
    form = r"step \d+/30  train loss \d\.\d{4}( \(step \d+\))?(  val loss .*)?(  [\d.]+[kM]? tok/s)?"
    assert all(re.fullmatch(form, line) for line in lines), lines
    assert ["val loss" in line for line in lines] == [False, False, True, True]
    assert all(line.endswith(" tok/s") for line in lines[:3])
    assert "(step 20)" in lines[3]
    assert max(map(len, lines)) <= 80, "a line that is full goes without the speed"
    assert not re.search(r"[^\n -~×]", result.err), "control characters"


def test_the_speed_counts_the_tokens_of_accumulated_batches(folder, capfd, monkeypatch):
    losses = []  # a batch takes a second
    monkeypatch.setattr("minigpt.training.metrics.time", SimpleNamespace(monotonic=lambda: len(losses)))
    loss = LitLanguageModel.loss
    monkeypatch.setattr(LitLanguageModel, "loss", lambda *args: (losses.append(1), loss(*args))[1])
    fit(
        "--trainer.max_steps", "6", "--trainer.accumulate_grad_batches", "3", "--data.batch_size", "8",
        "--progress.every_n_steps", "2", "--validation.every_n_steps", "0", "--trainer.log_every_n_steps", "1",
    )  # fmt: skip
    speeds = re.findall(r"^step .*  (\S+) tok/s$", capfd.readouterr().err, flags=re.M)
    assert speeds == ["512"] * 4  # 8 * 64 tokens a batch


def test_the_speed_leaves_out_validations_and_samples(train, monkeypatch):
    seconds = 0.0

    def lasting(method, duration: float):
        def called(*args, **kwargs):
            nonlocal seconds
            seconds += duration
            return method(*args, **kwargs)

        return called

    monkeypatch.setattr("minigpt.training.metrics.time", SimpleNamespace(monotonic=lambda: seconds))
    for kind, name, duration in ((LitLanguageModel, "training_step", 1), (LitLanguageModel, "validation_step", 50),
                                 (Samples, "beginning", 1000), (minigpt.LanguageModel, "generate", 1000)):  # fmt: skip
        monkeypatch.setattr(kind, name, lasting(getattr(kind, name), duration))
    result = train(
        "--trainer.max_steps", "12", "--samples.every_n_steps", "5", "--validation.every_n_steps", "4",
        "--progress.every_n_steps", "2", "--trainer.log_every_n_steps", "1",
    )  # fmt: skip
    assert re.findall(r"^step (\d+)/.*  (\S+ tok/s)$", result.err, flags=re.M) == [
        (str(step), "256 tok/s") for step in (1, 2, 4, 6, 8, 10, 12)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TinyGPT", "GPT"])
def test_a_validation_shows_what_the_model_writes_and_the_training_stays_the_same(train, folder, name):
    flags = ["--trainer.max_steps", "8", "--validation.every_n_steps", "4", "--model.network", name]
    sizes = ["--model.network.n_layer", "1", "--model.network.n_embd", "16", "--model.network.dropout", "0.2"]
    flags += sizes if name == "GPT" else []
    plain = train(*flags)
    shown = train(*flags, "--samples.every_n_steps", "3", "--samples.prompts", "[le soir, un matin]")
    assert shown.status == 0, shown.err
    lines = shown.err.splitlines()
    after = [lines[n + 1] for n, line in enumerate(lines) if "val loss" in line]
    assert len(after) == 2
    assert after[0] != after[1]
    assert all(line.startswith("    le soir") and 70 < len(line) <= 80 for line in after)
    assert "    le soir" not in plain.err
    first, second = (
        torch.load(folder / f"lightning_logs/tiny/version_{n}/checkpoints/last.ckpt", weights_only=True) for n in (0, 1)
    )
    assert all(torch.equal(first["state_dict"][key], weight) for key, weight in second["state_dict"].items())


@pytest.mark.slow
def test_the_sample_under_a_validation_is_that_of_tensorboard(train):
    """Whether it was drawn for the one or for the other; the model learns nothing, so all steps write the same."""
    flags = ["--trainer.max_steps", "4", "--validation.every_n_steps", "2", "--model.learning_rate", "0"]
    result = train(*flags, "--samples.every_n_steps", "4")
    after = [line for line in result.err.splitlines() if line.startswith("    un matin,")]
    assert len(after) == 2
    assert after[0] == after[1]
    assert train(*flags, "--samples.every_n_steps", "4", "--samples.prompts", "[]").status == 0


@pytest.mark.slow
def test_a_training_begins_with_the_parts_of_its_model(train):
    result = train("--trainer.max_steps", "1", "--data.tokenizer", "word", "--data.max_vocab_size", "500")
    assert "  embedding     a vector of 64 numbers for each of 500 tokens  32,000\n" in result.err
    result = train("--trainer.max_steps", "1")
    assert "  output layer  a score for each of 53 characters, with biases    3,445\n" in result.err


def test_the_summary_names_the_loss_a_sample_and_the_next_commands(train):
    result = train("--trainer.max_steps", "20")
    assert result.status == 0
    assert "nats per token" in result.out
    assert "bits per character" in result.out
    assert "un matin," in result.out
    assert "tensorboard --logdir lightning_logs/tiny/version_0" in result.out
    assert "scripts/generate.py --ckpt_path lightning_logs/tiny/version_0" in result.out
    assert not [line for line in result.err.splitlines() if "Warning" in line or "Tip" in line], result.err


def test_mixed_precision_validates_in_float32(folder):
    cli = fit("--trainer.max_steps", "3", "--trainer.precision", "bf16-mixed")
    logits = cli.model.network(cli.datamodule.val_ids[None, :-1])[0]
    loss = F.cross_entropy(logits, cli.datamodule.val_ids[1:]).item()
    assert abs(cli.trainer.callback_metrics["val/loss"].item() - loss) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_are_clipped_in_mixed_precision(folder, precision, optimizer):
    flags = [
        "--model.network",
        "GPT",
        "--model.network.n_layer",
        "1",
        "--model.network.n_embd",
        "16",
        "--model.optimizer",
        optimizer,
    ]
    flags += ["--trainer.max_steps", "3", "--trainer.gradient_clip_val", "0.001"]
    before, exact, mixed = (
        torch.cat([p.detach().flatten() for p in fit(*flags, *more).model.network.parameters()])
        for more in (
            ["--model.learning_rate", "0", "--model.muon_learning_rate", "0"],
            [],
            ["--trainer.precision", precision],
        )
    )
    assert (exact - before).norm() > 0.01
    assert (mixed - exact).norm() < 0.3 * (exact - before).norm()


@pytest.mark.slow
def test_a_compiled_step_learns_the_same(folder, capsys):
    flags = ["--trainer.max_steps", "5", "--trainer.log_every_n_steps", "1"]
    plain = fit(*flags).model.network.state_dict()
    compiled = fit(*flags, "--model.compile", "true")
    assert "(compiled in" in capsys.readouterr().err
    weights = compiled.model.network.state_dict()
    assert weights.keys() == plain.keys(), "compiled in place: no key has another name"
    assert all(torch.allclose(weights[name], plain[name], atol=1e-5) for name in plain)
    assert minigpt.load(compiled.run_dir).generate("un ", 5).startswith("un ")


def test_where_nothing_can_be_compiled_training_goes_on_without(folder, capsys, monkeypatch):
    def broken(*args, **kwargs):
        def call(*args):
            raise RuntimeError("no compiler")

        return call

    flags = ["--trainer.max_steps", "5"]
    plain = fit(*flags).model.network.state_dict()
    monkeypatch.setattr(torch, "compile", broken)
    weights = fit(*flags, "--model.compile", "true").model.network.state_dict()
    assert "cannot be compiled here" in capsys.readouterr().err
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [lambda loss: loss * float("nan"), lambda loss: loss * 1.5])
@pytest.mark.parametrize("dropout", ["0", "0.3"])
def test_a_compiled_step_with_other_gradients_is_not_used(folder, capsys, monkeypatch, wrong, dropout):
    flags = ["--trainer.max_steps", "3", "--model.network", "GPT", "--model.network.n_layer", "1"]
    flags += ["--model.network.n_embd", "16", "--model.network.dropout", dropout, "--data.block_size", "16"]
    plain = fit(*flags).model.network.state_dict()
    compiling = [*flags, "--model.compile", "true"]
    monkeypatch.setattr(torch, "compile", lambda loss: loss)
    fit(*compiling)
    assert "gives different gradients" not in capsys.readouterr().err
    monkeypatch.setattr(torch, "compile", lambda loss: lambda x, y: wrong(loss(x, y)))
    weights = fit(*compiling).model.network.state_dict()
    assert "The compiled step gives different gradients" in capsys.readouterr().err
    assert all(torch.equal(weights[name], plain[name]) for name in plain)


@pytest.mark.full
@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="only newer glibc tells what it holds",
)
def test_a_training_process_keeps_what_a_step_frees(folder):
    program = """
import ctypes, sys, torch
from minigpt.training.cli import MiniGPTCLI
class Heap(ctypes.Structure):  # glibc's mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in "arena b c d mapped f g used free top".split()]
report = ctypes.CDLL(None).mallinfo2
report.restype = Heap
def given_back():
    activation = torch.zeros(1 << 24)
    then = report()
    del activation
    now = report()
    return then.arena + then.mapped - now.arena - now.mapped
print(given_back())
MiniGPTCLI(sys.argv[1:])
print(given_back())
"""
    run = [sys.executable, "-c", program, "--config", TINY, "--trainer.accelerator", "cpu"]
    before, after = map(int, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    assert after < 2**20 < 2**26 <= before  # glibc never takes a block of 64 MB from its heap unless told so


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_the_parts_serve_a_trainer_of_ones_own(folder):
    from lightning.pytorch import Trainer

    data = minigpt.TextDataModule(block_size=32, batch_size=8)
    model = minigpt.LitLanguageModel(minigpt.TinyGPT(data.vocab_size, 16, 32))
    trainer = Trainer(max_steps=10, max_epochs=-1, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint("mine.ckpt")
    assert minigpt.load("mine.ckpt").generate("Un ", 10).startswith("Un ")
    trainer = Trainer(max_steps=2, max_epochs=-1, accelerator="cpu", enable_progress_bar=False, logger=False)
    trainer.fit(minigpt.LitLanguageModel(minigpt.TinyGPT(data.vocab_size, 64, 32)), data.train_dataloader())


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
@pytest.mark.parametrize("in_memory_mb", ["16", "0"])
def test_bits_per_character_compare_whatever_the_tokens(folder, tokenizer, in_memory_mb):
    cli = fit("--trainer.max_steps", "20", "--data.tokenizer", tokenizer, "--data.in_memory_mb", in_memory_mb)
    data, metrics = cli.datamodule, cli.trainer.callback_metrics
    targets = data.val_ids[1:]
    text = data.tokenizer.decode(data.val_ids[:])
    nats = F.cross_entropy(cli.model.network(data.val_ids[:-1]), targets, reduction="sum").item()
    characters = len(text) - len(data.tokenizer.decode(data.val_ids[:1]))
    assert metrics["val/bits_per_char"].item() == pytest.approx(nats / math.log(2) / characters, rel=1e-4)
    scores = evaluate(cli.model.network, data.val_ids, data.tokenizer.lengths)
    assert scores["bits_per_char"] == pytest.approx(metrics["val/bits_per_char"].item(), rel=1e-5)
    assert scores["characters"] == characters
    step, bits = curves(cli.run_dir)["train/bits_per_char"][-1]
    loss = dict(curves(cli.run_dir)["train/loss"])[step]
    assert bits / loss == pytest.approx(len(data.train_ids) / math.log(2) / (data.tokens.n_characters * 0.9), rel=0.25)
    assert data.baselines["bigram"] < data.baselines["uniform"]


@pytest.mark.slow
def test_a_text_too_short_for_the_recipe_is_trained_with_less(train, folder):
    (folder / "poem.txt").write_text("un matin, il fit beau.\nle soir, il plut.", encoding="utf-8")
    result = train("--data.path", "poem.txt", "--trainer.max_steps", "3")
    assert result.status == 0, result.err
    assert "data.block_size is 15 instead of 64" in result.err
    assert "data.val_fraction is 0.22 instead of 0.1" in result.err
    assert minigpt.load().model.block_size == 15
    again = train("--data.path", "poem.txt", "--trainer.max_steps", "5", "--ckpt_path", "last")
    assert again.status == 0, again.err


@pytest.mark.slow
def test_a_model_far_too_large_for_its_text_is_told_what_would_suit(call, folder):
    (folder / "poem.txt").write_text("un matin, il fit beau.\nle soir, il plut.\n" * 50, encoding="utf-8")
    nano = [TINY.replace("tiny", "gpt_nano"), *QUICK, "--trainer.max_steps", "2", "--model.warmup_steps", "0"]
    result = call("train", "--config", *nano, "--data.path", "poem.txt")
    assert "1,845 characters" in result.err
    assert "it will recite" in result.err
    advice = re.search(r"Better: --model.network.n_embd (\d+) and --model.network.dropout 0.2\.", result.err)
    flags = ["--model.network.n_embd", advice[1], "--model.network.dropout", "0.2"]
    result = call("train", "--config", *nano, "--data.path", "poem.txt", *flags)
    assert result.status == 0
    assert "it will recite" not in result.err
    assert "it will recite" not in call("train", "--config", *nano).err


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Samples(every_n_steps=0.5), r"samples\.every_n_steps is 0\.5\. Give it a whole number of 0 or more, "),
        (lambda: Samples(max_new_tokens=None), r"samples\.max_new_tokens is None\. Give it a whole number of 0 or"),
        (lambda: Figures(every_n_steps="often"), r"figures\.every_n_steps is 'often'\."),
        (lambda: Progress(every_n_steps=2.5), r"progress\.every_n_steps is 2\.5\. Give it a whole number of 1 or more"),
        (lambda: Checkpoints(every_n_steps=float("nan")), r"checkpoint\.every_n_steps is nan\."),
        (lambda: LitLanguageModel(minigpt.TinyGPT(5), learning_rate="fast"), r"model\.learning_rate is 'fast'\."),
        (lambda: LitLanguageModel(minigpt.TinyGPT(5), beta2=None), r"model\.beta2 is None\. .* and below 1\."),
    ],
)
def test_a_setting_given_in_python_is_held_to_its_type_and_range(make, sentence):
    with pytest.raises(minigpt.MiniGPTError, match=sentence):
        make()


def test_the_lines_of_a_sample_are_wrapped_and_lose_nothing_but_spaces():
    text = "un matin, " * 30 + "\n\n  deux\n" + "x" * 250
    shown = wrapped(text)
    assert max(map(len, shown.split("\n"))) <= 100
    assert shown.replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")
    assert "\n\n  deux\nx" in shown
    assert wrapped("") == ""


def test_combined_charts_have_at_most_a_line_and_a_band_or_two_lines(folder):
    cli = fit("--trainer.max_steps", "2")
    shown = curves(cli.run_dir)
    charts = [chart for category in CHARTS.values() for chart in category.values()]
    assert all(tag in shown for _, tags in charts for tag in tags)
    assert all(len(tags) == (3 if kind == "Margin" else 2) for kind, tags in charts)
    assert sorted(shown)[0].startswith("train/"), "the loss is what is seen first"
