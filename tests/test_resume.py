"""A run that was stopped and resumed ends with the same bits, and the same curves, as one that never stopped."""

import contextlib
import gzip
import math
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, TINY
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from test_training import curves

from minigpt import LitLanguageModel, TextDataModule, TinyGPT
from minigpt.training.cli import MiniGPTCLI

SHORT = [
    "--trainer.max_steps", "60", "--validation.every_n_steps", "20", "--checkpoint.every_n_steps", "10",
    "--samples.every_n_steps", "15", "--samples.max_new_tokens", "5", "--trainer.log_every_n_steps", "5",
    "--trainer.accelerator", "cpu",
]  # fmt: skip


MODERN = [
    "--model.network", "GPT", "--model.network.preset", "modern", "--model.network.n_layer", "1",
    "--model.network.n_head", "2",
    "--model.network.n_embd", "16", "--model.network.dropout", "0.2", "--model.optimizer", "muon",
    "--model.lr_schedule", "wsd",
    "--model.warmup_steps", "5", "--trainer.gradient_clip_val", "1.0", "--data.block_size", "16",
    "--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging",
]  # fmt: skip


MAPPED = [
    "--data.in_memory_mb", "0", "--data.tokenizer", "bpe", "--data.max_vocab_size", "400",
    "--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging",
]  # fmt: skip


class Interrupt(Callback):
    """Sends this process a signal at a step, as a person at the keyboard would."""

    def __init__(self, step: int, during: str = "train", number: int = signal.SIGINT):
        self.step, self.during, self.number = step, during, number
        self.sent = False

    def on_train_batch_start(self, trainer, *_):
        if self.during == "train" and trainer.global_step == self.step - 1:
            self._send()

    def on_validation_start(self, trainer, *_):
        if self.during == "validation" and trainer.global_step == self.step:
            self._send()

    def _send(self):
        if not self.sent:
            os.kill(os.getpid(), self.number)
        self.sent = True


def fit(*args: str, stop: Interrupt | None = None) -> MiniGPTCLI:
    cli = MiniGPTCLI(["--config", TINY, *args])
    if stop:
        cli.trainer.callbacks.insert(0, stop)
    leaves = pytest.raises(SystemExit, match=f"^{128 + stop.number}$") if stop else contextlib.nullcontext()
    with leaves:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.checkpoint, weights_only=True)
    return cli


def state(run_dir: Path) -> dict:
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states")}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """For each set of flags, the run that never stopped."""
    made = {}

    def get(*args: str) -> Path:
        if args not in made:
            made[args] = fit(*args, "--trainer.default_root_dir", str(tmp_path_factory.mktemp("whole"))).run_dir
        return made[args]

    return get


STOPS = [
    [(1,)],
    [(13,)],
    [(20,)],  # a checkpoint, a validation and a logged step at once
    [(30, "train", signal.SIGTERM)],  # a checkpoint and a sample
    [(20, "validation")],
    [(60,)],
    [(60, "validation")],  # the last one: training is done, its validation is not
    [(step,) for step in (3, 4, 15, 20, 21, 33, 40, 47, 55, 59)],
]
KINDS = {"": [], "accum": ["--trainer.accumulate_grad_batches", "3"], "modern": MODERN, "mapped": MAPPED}


def interruptions() -> Iterator:
    """Every kind of stop for the article's run, and many stops of one run for the others; the rest is `full`."""
    for name, extra in KINDS.items():
        for stops in STOPS:
            steps = "-".join(str(stop[0]) + "v" * ("validation" in stop) for stop in stops)
            marks = [pytest.mark.full] if (name and len(stops) == 1) or name == "mapped" else []
            yield pytest.param(stops, extra, marks=marks, id=f"{name}-{steps}")


@pytest.mark.slow
@pytest.mark.parametrize(("stops", "extra"), list(interruptions()))
def test_interruptions_leave_no_trace(folder, undisturbed, stops, extra):
    for stop in stops:
        cli = fit(*SHORT, *extra, "--ckpt_path", "last", stop=Interrupt(*stop))
        assert state(cli.run_dir)["global_step"] == min(stop[0], 59)  # the final step is kept with its validation
    cli = fit(*SHORT, *extra, "--ckpt_path", "last")
    assert cli.run_dir.name == "version_0"
    whole = undisturbed(*SHORT, *extra)
    assert same(state(cli.run_dir), state(whole))
    assert curves(cli.run_dir) == curves(whole)
    best = [torch.load(run / "checkpoints" / "best.ckpt", weights_only=True) for run in (cli.run_dir, whole)]
    assert best[0]["global_step"] == best[1]["global_step"]
    assert same(best[0]["state_dict"], best[1]["state_dict"])


@pytest.mark.full
def test_a_compiled_run_leaves_no_trace_of_an_interruption(folder, undisturbed):
    torch.set_num_threads(2)  # one alone could not add in another order
    flags = [
        *SHORT,
        *MODERN,
        "--model.compile",
        "true",
        "--trainer.precision",
        "bf16-mixed",
        "--model.network.ngrams",
        "64",
    ]
    fit(*flags, "--ckpt_path", "last", stop=Interrupt(13))
    cli = fit(*flags, "--ckpt_path", "last")
    assert same(state(cli.run_dir), state(undisturbed(*flags)))
    assert not same(state(cli.run_dir), state(undisturbed(*SHORT, *MODERN)))


@pytest.mark.slow
def test_the_articles_run_stopped_at_250_ends_as_one_that_never_stopped(call, folder):
    tiny = ["train", "--config", TINY, *QUICK]
    assert call(*tiny).status == 0
    assert call(*tiny, "--trainer.max_steps", "250").status == 0
    resumed = call(*tiny, "--ckpt_path", "lightning_logs/tiny/version_1")
    assert resumed.status == 0
    assert "trainer.max_steps was 250 when the run began and is now 500." in resumed.err
    runs = [folder / "lightning_logs" / "tiny" / f"version_{n}" for n in (0, 1)]
    assert same(state(runs[0]), state(runs[1]))
    train = [curves(run)["train/loss"] for run in runs]
    assert train[0] == train[1]


@pytest.mark.slow
def test_a_resume_from_the_best_checkpoint_is_a_new_run_and_exact(folder, undisturbed):
    whole = undisturbed(*SHORT)
    shutil.copytree(whole, folder / "lightning_logs" / "tiny" / "version_0")
    best = folder / "lightning_logs" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"
    early = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    first = fit(*SHORT, "--trainer.max_steps", "20")  # its best.ckpt was written after its validation, at step 20
    best.write_bytes((first.run_dir / "checkpoints" / "best.ckpt").read_bytes())
    assert early["global_step"] > 20
    cli = fit(*SHORT, "--ckpt_path", str(best))
    assert cli.run_dir.name == "version_2"
    assert same(state(cli.run_dir), state(whole))
    assert (cli.run_dir / "checkpoints" / "best.ckpt").exists()


@pytest.mark.slow
def test_a_run_folder_alone_resumes_and_samples_elsewhere(call, folder):
    (folder / "texte.txt").write_text("le chat dort. " * 400, encoding="utf-8")
    args = [*SHORT, "--data.path", "texte.txt"]
    cli = fit(*args, stop=Interrupt(33))
    (folder / "elsewhere").mkdir()
    shutil.move(cli.run_dir, folder / "elsewhere" / "moved")
    result = call("train", "--ckpt_path", "elsewhere/moved")
    assert result.status == 0, result.err
    whole = fit(*args)
    assert same(state(folder / "elsewhere" / "moved"), state(whole.run_dir))
    generated = call("generate", "--ckpt_path", "elsewhere/moved", "--prompt", "le chat", "--seed", "1")
    assert generated.out.startswith("le chat")


@pytest.mark.parametrize("path", ["notes", "notes/*.md", "texte.txt.gz", "link.txt.gz"])
def test_a_run_goes_on_with_what_its_text_was_made_of(call, folder, monkeypatch, path):
    folder = folder / "[1]"  # a name that is a pattern
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "notes").mkdir()
    for name in "ab":
        (folder / "notes" / f"{name}.md").write_text("le chat dort. " * 200, encoding="utf-8")
    (folder / "texte.txt.gz").write_bytes(gzip.compress(b"le chat dort. " * 400))
    (folder / "blob").write_bytes((folder / "texte.txt.gz").read_bytes())
    (folder / "link.txt.gz").symlink_to("blob")
    args = ["train", "--config", TINY, *SHORT, "--data.path", path]
    assert call(*args, "--trainer.max_steps", "10").status == 0
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    run = "../lightning_logs/tiny/version_0"
    result = call("train", "--ckpt_path", run, "--trainer.max_steps", "20")
    assert result.status == 0, result.err
    assert state(folder / "lightning_logs/tiny/version_0")["global_step"] == 20
    assert call("evaluate", "--ckpt_path", run).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ma recette [v2]", "a*", "$HOME"])
def test_a_recipe_and_a_folder_with_a_name_like_a_pattern_resume(call, folder, name):
    (folder / f"{name}.yaml").write_text(Path(TINY).read_text(encoding="utf-8"), encoding="utf-8")
    args = ["train", "--config", f"{name}.yaml", *QUICK, "--ckpt_path", "last", "--trainer.default_root_dir", "in [1]*"]
    for steps in ("2", "4"):
        assert call(*args, "--trainer.max_steps", steps).status == 0
    (run,) = (folder / "in [1]*" / "lightning_logs" / name).iterdir()
    assert state(run)["global_step"] == 4
    assert "train/loss" in curves(run)
    assert call("generate", "--ckpt_path", str(run)).status == 0
    assert call("evaluate", "--ckpt_path", str(run), "--figures", "f [1]").status == 0


@pytest.mark.slow
def test_another_tokenizer_than_the_checkpoints_is_refused(call, folder):
    args = ["train", "--config", TINY, *QUICK, "--data.tokenizer", "bpe", "--data.max_vocab_size", "300"]
    assert call(*args, "--trainer.max_steps", "2").status == 0
    last = folder / "lightning_logs/tiny/version_0/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    merges = checkpoint["minigpt"]["data"]["tokenizer"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]  # as another version of the library might order them
    torch.save(checkpoint, last)
    result = call(*args, "--trainer.max_steps", "4", "--ckpt_path", "last")
    assert result.status == 2
    assert "token 259 is" in result.err
    result = call("evaluate", "--ckpt_path", str(last))
    assert result.status == 2
    assert "token 259 is" in result.err


@pytest.mark.slow
def test_what_keeps_the_bits_from_being_the_same_is_said(train, monkeypatch):
    assert "last bits" not in train("--trainer.max_steps", "4").err
    assert "last bits" not in train("--trainer.max_steps", "5", "--ckpt_path", "last").err
    result = train("--trainer.max_steps", "6", "--ckpt_path", "last", "--trainer.precision", "bf16-mixed")
    assert "differ in its last bits from an uninterrupted run: precision bf16-mixed instead of 32" in result.err
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    result = train("--trainer.max_steps", "7", "--ckpt_path", "last")
    assert "threads 99 instead of" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("step", [47, 48, 49])
def test_a_stop_at_the_end_of_a_pass_over_the_text_leaves_no_trace(folder, undisturbed, step):
    (folder / "short.txt").write_text("un matin, il fit beau; le soir, il plut. " * 7, encoding="utf-8")
    few = [*SHORT, "--data.path", str(folder / "short.txt")]
    whole = fit(*few, "--trainer.default_root_dir", "whole").run_dir
    fit(*few, "--ckpt_path", "last", stop=Interrupt(step))
    again = fit(*few, "--ckpt_path", "last")
    windows = len(again.datamodule.train_ids) - 64
    assert windows // 4 == 48, "a pass ends in batch 48"
    assert same(state(again.run_dir), state(whole))


def test_runs_that_start_at_the_same_time_take_folders_of_their_own(folder):
    from minigpt.runs import new_run

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: new_run(folder / "tiny"), range(40)))
    assert sorted(int(path.name.removeprefix("version_")) for path in made) == list(range(40))


def test_the_last_lines_tell_the_steps_of_this_start_from_those_before(train):
    assert " after 4 steps in " in train("--trainer.max_steps", "4").out
    assert " after 10 steps, the last 6 in " in train("--trainer.max_steps", "10", "--ckpt_path", "last").out


def test_a_finished_run_is_left_alone(train, folder):
    train("--trainer.max_steps", "10")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = train("--trainer.max_steps", "10", "--ckpt_path", "last")
    assert result.status == 0
    assert "has completed its 10 steps" in result.err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_one_line_serves_first_start_and_restart(train, folder):
    line = ["--trainer.max_steps", "10", "--ckpt_path", "last"]
    first = train(*line)
    assert first.status == 0
    assert "this is the first" in first.err
    train("--trainer.max_steps", "20", "--ckpt_path", "last")
    assert sorted(p.name for p in (folder / "lightning_logs" / "tiny").iterdir()) == ["version_0"]
    assert state(folder / "lightning_logs" / "tiny" / "version_0")["global_step"] == 20


@pytest.mark.slow
def test_a_run_resumes_from_another_folder_and_through_a_link(call, folder, monkeypatch):
    (folder / "texte.txt").write_text("le chat dort. " * 400, encoding="utf-8")
    fit(*SHORT, "--data.path", "texte.txt", stop=Interrupt(33))
    (folder / "below").mkdir()
    monkeypatch.chdir(folder / "below")
    (folder / "below" / "link.ckpt").symlink_to(folder / "lightning_logs/tiny/version_0/checkpoints/last.ckpt")
    assert call("train", "--ckpt_path", "link.ckpt", "--trainer.max_steps", "40").status == 0
    assert call("train", "--ckpt_path", "../lightning_logs/tiny/version_0").status == 0
    assert state(folder / "lightning_logs/tiny/version_0")["global_step"] == 60
    assert list((folder / "below").iterdir()) == [folder / "below" / "link.ckpt"]


@pytest.mark.slow
def test_a_new_learning_rate_is_taken_and_told(train, folder):
    train("--trainer.max_steps", "10")
    result = train("--trainer.max_steps", "20", "--model.learning_rate", "0.25", "--ckpt_path", "last")
    assert "model.learning_rate was 0.001 when the run began and is now 0.25." in result.err
    train("--trainer.max_steps", "30", "--model.learning_rate", "0.25", "--model.beta2", "0.9", "--ckpt_path", "last")
    groups = state(folder / "lightning_logs" / "tiny" / "version_0")["optimizer_states"][0]["param_groups"]
    assert [(group["lr"], group["betas"]) for group in groups] == [(0.25, (0.9, 0.9))]


@pytest.mark.slow
def test_another_optimizer_is_refused(call, folder):
    nano = ["train", "--config", TINY.replace("tiny", "modern_nano"), *QUICK, "--model.network.n_layer", "1"]
    assert call(*nano, "--trainer.max_steps", "2").status == 0
    result = call(*nano, "--trainer.max_steps", "4", "--ckpt_path", "last", "--model.optimizer", "adamw")
    assert result.status == 2
    assert "model.optimizer is adamw here and muon in" in result.err
    result = call(*nano, "--trainer.max_steps", "4", "--ckpt_path", "last", "--model.beta2", "0.5")
    assert result.status == 0
    groups = state(folder / "lightning_logs" / "modern_nano" / "version_0")["optimizer_states"][0]["param_groups"]
    assert [tuple(group["betas"]) for group in groups if "betas" in group] == [(0.9, 0.5)] * 2


COSINE = ["--model.lr_schedule", "cosine", "--trainer.log_every_n_steps", "1"]


def rates(run: Path) -> dict[int, float]:
    """The learning rate that each step was trained at, from the run's events."""
    return dict(curves(run)["train_step/learning_rate"])


def cosine(step: int, steps: int) -> float:
    return 1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


@pytest.mark.slow
def test_a_run_that_is_extended_has_its_schedule_laid_anew_over_all_its_steps_and_says_so(train, folder):
    run = folder / "lightning_logs" / "tiny" / "version_0"
    assert "schedule" not in train("--trainer.max_steps", "10", *COSINE).err
    longer = train("--trainer.max_steps", "16", *COSINE, "--ckpt_path", "last")
    assert "The learning-rate schedule now covers 16 steps instead of 10" in longer.err
    assert f"after step 10 at learning rate {cosine(11, 16):.3g}" in longer.err
    shorter = train("--trainer.max_steps", "14", *COSINE, "--ckpt_path", str(run / "checkpoints" / "last.ckpt"))
    assert "schedule" not in shorter.err
    found = rates(run)
    for step in range(1, 11):
        assert found[step] == pytest.approx(cosine(step, 10))
    for step in range(11, 17):
        assert found[step] == pytest.approx(cosine(step, 16))
    assert min(found.values()) > 0


def test_a_resume_with_fewer_or_the_same_steps_keeps_the_schedule(train, folder):
    run = folder / "lightning_logs" / "tiny" / "version_0"
    flags = [*COSINE, "--model.decay_steps", "20"]
    train("--trainer.max_steps", "5", *flags)
    again = train("--trainer.max_steps", "8", *COSINE, "--ckpt_path", "last")
    assert "The learning-rate schedule" not in again.err
    assert rates(run)[8] == pytest.approx(cosine(8, 20))


@pytest.mark.slow
def test_no_step_is_trained_at_rate_0_in_silence(train):
    flags = [*COSINE, "--model.decay_steps", "6"]
    said = "From step 6 to 8 the learning rate is 0, so nothing is learned. Raise model.decay_steps or model.min_lr."
    assert said in train("--trainer.max_steps", "8", *flags).err
    assert "nothing is learned" not in train("--trainer.max_steps", "8", *flags, "--model.min_lr", "1e-5").err
    assert "nothing is learned" not in train("--trainer.max_steps", "6", *flags).err


class Rates(Callback):
    """Keeps the learning rate that each step is trained at."""

    def __init__(self):
        self.rates = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates[trainer.global_step + 1] = optimizer.param_groups[0]["lr"]


def test_a_run_from_python_that_is_extended_has_its_schedule_laid_anew(folder, capsys):
    def fit(max_steps: int, ckpt_path: str | None = None) -> tuple[Trainer, dict[int, float]]:
        data, rates = TextDataModule(block_size=16), Rates()
        model = LitLanguageModel(TinyGPT(data.vocab_size, 64, 16), lr_schedule="cosine")
        trainer = Trainer(
            max_steps=max_steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            callbacks=[rates],
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
        return trainer, rates.rates

    trainer, rates = fit(6)
    assert rates == {step: pytest.approx(cosine(step, 6)) for step in range(1, 7)}
    trainer.save_checkpoint("six.ckpt")
    _, rates = fit(9, "six.ckpt")
    assert "now covers 9 steps instead of 6" in capsys.readouterr().err
    assert rates == {step: pytest.approx(cosine(step, 9)) for step in range(7, 10)}


class HangUp(Interrupt):
    """Sends SIGHUP several times, as the kernel and the shell do for one closed terminal."""

    def _send(self):
        for _ in range(3):
            os.kill(os.getpid(), self.number)


@pytest.fixture
def hangup():
    """Sets what SIGHUP does before a training, until the test ends."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_closed_terminal_leaves_no_trace(folder, undisturbed, hangup):
    hangup(signal.SIG_DFL)
    cli = fit(*SHORT, "--ckpt_path", "last", stop=HangUp(13, number=signal.SIGHUP))
    assert state(cli.run_dir)["global_step"] == 13
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL, "as before the training"
    cli = fit(*SHORT, "--ckpt_path", "last")
    assert same(state(cli.run_dir), state(undisturbed(*SHORT)))


def test_the_next_training_of_a_process_notices_a_signal_too(folder):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for stop in (Interrupt(3), Interrupt(5, number=signal.SIGTERM)):
        cli = fit(*SHORT, stop=stop)
        assert state(cli.run_dir)["global_step"] == stop.step
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_closed_terminal_is_ignored_under_nohup(folder, hangup):
    hangup(signal.SIG_IGN)
    cli = MiniGPTCLI(["--config", TINY, *SHORT, "--trainer.max_steps", "20"])
    cli.trainer.callbacks.insert(0, HangUp(13, number=signal.SIGHUP))
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert state(cli.run_dir)["global_step"] == 20


@pytest.mark.slow
def test_a_training_whose_terminal_is_closed_saves_its_step(folder):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", TINY, *SHORT]
    command += ["--trainer.max_steps", "100000", "--progress.every_n_steps", "10"]
    command += ["--checkpoint.every_n_steps", "100000", "--validation.every_n_steps", "0"]  # no other checkpoint
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is inherited, and ignored where the tests run under nohup
        os.execv(command[0], command)
    shown = b""
    while b"step 150/" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 129
    assert state(folder / "lightning_logs" / "tiny" / "version_0")["global_step"] >= 150


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.full),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.full),
    ],
)
def test_a_process_that_is_stopped_goes_on(folder, undisturbed, number, status):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", TINY, *SHORT]
    command += ["--trainer.max_steps", "4000", "--progress.every_n_steps", "10", "--ckpt_path", "last"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if line.startswith("step 150/"):
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait() == status
    assert "Traceback" not in rest
    if number != signal.SIGKILL:
        again = rest.split("Continue with: ")[1].splitlines()[0]
        assert again.endswith("--progress.every_n_steps 10 --ckpt_path lightning_logs/tiny/version_0")
    run_dir = folder / "lightning_logs" / "tiny" / "version_0"
    reached = state(run_dir)["global_step"]
    assert 140 <= reached < 4000
    target = ["--trainer.max_steps", str(reached + 17)]
    fit(*SHORT, *target, "--ckpt_path", "last")
    assert same(state(run_dir), state(fit(*SHORT, *target).run_dir))


@pytest.mark.full
def test_slurms_requeue_signal_ends_the_step_and_queues_the_job_again(folder, undisturbed):
    scontrol = folder / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {folder}/requeued\n')
    scontrol.chmod(0o755)
    slurm = {
        "NTASKS": "1",
        "NTASKS_PER_NODE": "1",
        "JOB_NAME": "train",
        "JOB_ID": "4321",
        "PROCID": "0",
        "LOCALID": "0",
    }
    there = {f"SLURM_{key}": value for key, value in slurm.items()} | {"SLURM_NODEID": "0", "SLURM_NODELIST": "here"}
    environment = os.environ | there | {"PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", TINY, *SHORT]
    command += ["--trainer.max_steps", "4000", "--progress.every_n_steps", "10", "--ckpt_path", "last"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    for line in process.stderr:
        if line.startswith("step 50/"):
            process.send_signal(signal.SIGUSR1)
            break
    rest = process.stderr.read()
    assert process.wait() == 128 + signal.SIGUSR1, rest
    assert (folder / "requeued").read_text() == "requeue 4321\n"
    run_dir = folder / "lightning_logs" / "tiny" / "version_0"
    reached = state(run_dir)["global_step"]
    assert 50 <= reached < 4000
    assert not list(folder.rglob("hpc_ckpt*")), "Lightning's own would be written in the middle of a step"
    target = ["--trainer.max_steps", str(reached + 17)]
    fit(*SHORT, *target, "--ckpt_path", "last")
    assert same(state(run_dir), state(fit(*SHORT, *target).run_dir))
