"""A model that two processes share out trains as a whole one does, and its checkpoint is the same one file."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, made_once
from test_ddp import finish, start, torchrun
from test_resume import fit as resume
from test_resume import same, state
from test_training import curves, fit

import minigpt
from minigpt import loading, runs

MODEL = [
    "--model.network", "GPT", "--model.network.preset", "modern", "--model.network.n_layer", "2",
    "--model.network.n_head", "2",
    "--model.network.n_embd", "16", "--data.block_size", "32", "--data.batch_size", "8",
    "--trainer.accelerator", "cpu", "--trainer.max_steps", "100", "--trainer.gradient_clip_val", "1.0",
    "--trainer.log_every_n_steps", "10", "--validation.every_n_steps", "50", "--checkpoint.every_n_steps", "20",
    "--samples.every_n_steps", "50", "--samples.max_new_tokens", "20", "--progress.every_n_steps", "10",
]  # fmt: skip
SHARED_OUT = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A run of two processes that share the model out. Not to be written to."""

    def make(place: Path) -> None:
        finish(start(*MODEL, *SHARED_OUT, "--trainer.default_root_dir", str(place)), str(place))

    return next(made_once(tmp_path_factory, "sharded", make).glob("lightning_logs/tiny/*"))


@pytest.mark.slow
def test_it_trains_as_one_device_does(sharded, call):
    whole = fit(*MODEL).run_dir
    one, two = curves(whole), curves(sharded)
    assert one.keys() == two.keys()
    for tag in ("train/loss", "val/loss", "val/bits_per_char", "val/accuracy", "train_step/gradient_norm"):
        assert len(one[tag]) == len(two[tag]) >= 2
        for (step, value), (other_step, other) in zip(one[tag], two[tag], strict=True):
            assert step == other_step
            assert value == pytest.approx(other, abs=1e-5), (tag, step)


@pytest.mark.slow
def test_its_snapshots_have_the_whole_model(sharded):
    assert [*runs.snapshots(sharded)] == [50, 100]
    last = loading.read_checkpoint(sharded / "checkpoints/last.ckpt")["state_dict"]
    snapshot = loading.read_checkpoint(runs.find_checkpoint(f"{sharded}@100"))["state_dict"]
    assert same(snapshot, {name: weight.bfloat16().float() for name, weight in last.items()})


MORE = [*MODEL, "--trainer.max_steps", "120", "--ckpt_path"]


def ending(run: Path) -> list[float]:
    """The losses of the steps from 101 on of a run that ended at step 120."""
    assert (run / "checkpoints/last.ckpt").is_file()
    assert state(run)["global_step"] == 120
    return [value for step, value in curves(run)["train/loss"] if step > 100]


@pytest.mark.full
def test_what_several_write_is_one_file_that_any_number_of_processes_continue(sharded, call, folder):
    file = runs.find_checkpoint(sharded, prefer=("last",))
    held = loading.read_checkpoint(file)
    assert file.is_file()
    assert {path.name for path in file.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    (optimizer,) = held["optimizer_states"]
    numbers = [n for group in optimizer["param_groups"] for n in group["params"]]
    assert sorted(numbers) == sorted(optimizer["state"]) == list(range(len(held["state_dict"])))
    assert minigpt.load(sharded).generate("un ", 30, temperature=0)
    score = json.loads(call("evaluate", "--ckpt_path", str(sharded)).out)["loss"]
    assert score == pytest.approx(curves(sharded)["val/loss"][-1][1], abs=1e-5)

    logs = folder / "lightning_logs/tiny"
    for copy in ("version_1", "version_2"):
        shutil.copytree(sharded, logs / copy)
    shutil.copytree(fit(*MODEL, "--trainer.default_root_dir", "alone").run_dir, logs / "version_3")
    of_lightning = {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1},
    }
    by_two = ["--trainer.devices", "2", "--trainer.strategy", json.dumps(of_lightning)]
    resume(*MORE, str(logs / "version_1"))  # one process continues what two wrote
    one = ending(logs / "version_1")
    ends = [  # two processes continue what two wrote, and what one wrote
        ("version_2", start(*by_two, *MORE, str(logs / "version_2"))),
        ("version_3", start(*SHARED_OUT, *MORE, str(logs / "version_3"))),
    ]
    for version, process in ends:
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 0, err
        assert ending(logs / version) == pytest.approx(one, abs=1e-5)


@pytest.mark.full
def test_a_file_outside_a_run_is_continued_by_two_processes_with_compiled_code(sharded, folder):
    shutil.copy(runs.find_checkpoint(sharded, prefer=("last",)), folder / "one.ckpt")
    shutil.copytree(sharded, folder / "alone")
    resume(*MORE, str(folder / "alone"))
    process = start(*SHARED_OUT, "--model.compile", "true", *MORE, "one.ckpt")
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    assert "cannot be compiled" not in err
    assert "compiled in" in err
    assert ending(folder / "lightning_logs/tiny/version_0") == pytest.approx(ending(folder / "alone"), abs=1e-5)


@pytest.mark.full
def test_a_run_that_is_killed_and_stopped_ends_with_the_same_bits(sharded):
    line = [*MODEL, *SHARED_OUT, "--ckpt_path", "last"]
    for number, step in ((signal.SIGKILL, 30), (signal.SIGTERM, 70)):
        process = start(*line)
        for text in process.stderr:
            if text.startswith(f"step {step}/"):
                os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
                break
        rest = process.communicate(timeout=120)[1]
        assert process.returncode == {signal.SIGKILL: -9}.get(number, 128 + number), rest
    run = finish(start(*line))
    ends = [state(r) for r in (run, sharded)]
    assert same(*(end["state_dict"] for end in ends))
    assert same(*(end["optimizer_states"] for end in ends))
    assert curves(run) == curves(sharded)


OWN = [
    "--model.network", "examples.gru.GRU", "--model.network.hidden", "16", "--data.block_size", "32",
    "--data.batch_size", "8", "--trainer.accelerator", "cpu", "--trainer.max_steps", "60", "--samples.every_n_steps",
    "20", "--samples.max_new_tokens", "20", "--validation.every_n_steps", "30", "--progress.every_n_steps", "10",
]  # fmt: skip


@pytest.mark.full
def test_a_network_of_ones_own_is_shared_out_sampled_and_resumed_to_the_bit(folder):
    shutil.copytree(ROOT / "examples", folder / "examples")
    whole = finish(start(*OWN, *SHARED_OUT, "--trainer.default_root_dir", "whole"), "whole")
    process = start(*OWN, *SHARED_OUT, "--ckpt_path", "last")
    for text in process.stderr:
        if text.startswith("step 20/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, rest
    run = finish(start(*OWN, *SHARED_OUT, "--ckpt_path", "last"))
    assert same(state(run), state(whole))
    assert curves(run) == curves(whole)
    samples = curves(run)["samples/top_k_top_p/text_summary"]
    assert [step for step, _ in samples] == [0, 20, 40, 60]
    assert len({text for _, text in samples}) == 4, "of the weights at each step"
    one = fit(*OWN, "--samples.every_n_steps", "20", "--trainer.default_root_dir", "one").run_dir
    assert curves(one)["train/loss"][-1][1] == pytest.approx(curves(run)["train/loss"][-1][1], abs=1e-5)


PYTHON = """
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.distributed.fsdp import FSDPModule
import minigpt
from minigpt.training.callbacks import Samples
from minigpt.training.distributed import full_network
class Own(nn.Module):
    def __init__(self, embed, *, rnn):
        super().__init__()
        self.blocks = 2  # not what GPT has under this name
        self.embed, self.rnn, self.head = embed, rnn, nn.Linear(16, embed.num_embeddings)
        self.head.weight = embed.weight
        self.register_buffer("calls", torch.zeros(()), persistent=False)
    def forward(self, idx):
        self.calls += self.training
        return self.head(self.rnn(self.embed(idx))[0])
class Look(Callback):
    def on_validation_end(self, trainer, module):
        network, ids = trainer.lightning_module.network, torch.arange(8)[None]
        logits = network(ids)  # leaves what it gathered of the network where it is
        full = full_network(trainer)
        if trainer.global_rank:
            assert full is None
            return
        assert type(full) is Own and not full.training and isinstance(network, FSDPModule)
        assert full.head.weight is full.embed.weight and full.calls == trainer.global_step == 10
        assert (full(ids) - logits).abs().max() < 1e-6
def run(steps, ckpt_path=None):
    torch.manual_seed(0)
    data = minigpt.TextDataModule(block_size=32, batch_size=8)
    network = Own(nn.Embedding(data.vocab_size, 16), rnn=nn.GRU(16, 16, batch_first=True))
    module = minigpt.LitLanguageModel(network)
    options = {"accelerator": "cpu", "devices": 2, "strategy": "fsdp2", "use_distributed_sampler": False}
    options |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"num_sanity_val_steps": 0, "enable_model_summary": False}
    trainer = Trainer(max_steps=steps, callbacks=[Samples(20), Look()][:1 + (steps == 10)], **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(f"{steps}.ckpt" if ckpt_path is None else "resumed.ckpt")
    again = Trainer(**options)
    return trainer.validate(module, data), again.validate(module, data, ckpt_path=f"{steps}.ckpt")
run(10)
one, other = run(20)
assert one == other
assert run(20, "10.ckpt")[0] == one
if torch.distributed.get_rank() == 0:
    print("equal")
"""


@pytest.mark.full
def test_a_network_made_in_python_is_gathered_whatever_its_arguments_and_ties(folder):
    (folder / "own.py").write_text(PYTHON, encoding="utf-8")
    done = subprocess.run([*torchrun(), "own.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("equal\n"), done.stderr
    ends = [torch.load(f"{name}.ckpt", weights_only=True) for name in ("20", "resumed")]
    for key in ("state_dict", "optimizer_states"):
        assert same(ends[0][key], ends[1][key])


ODD = """
import threading, torch
from minigpt import TinyGPT
class Odd(TinyGPT):
    def __init__(self, vocab_size):
        super().__init__(vocab_size)
"""


@pytest.mark.full
@pytest.mark.parametrize("fault", ["scalar", "lock"])
def test_a_network_that_cannot_be_shared_out_is_answered_in_a_sentence(folder, fault):
    line = {"scalar": "self.scale = torch.nn.Parameter(torch.ones(()))", "lock": "self.lock = threading.Lock()"}[fault]
    (folder / "my_models.py").write_text(ODD + f"        {line}\n", encoding="utf-8")
    process = start(
        "--model.network", "my_models.Odd", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2", *SHARED_OUT
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert "Odd cannot be sharded: " in err
    assert err.rstrip().endswith("Use --trainer.strategy ddp.")
    assert "Traceback" not in err


MUON = """
import sys, torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from minigpt.training.optim import MuonAdamW
def steps(share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 3))
    if share:
        fully_shard(model)
    matrices, vectors = [model[0].weight, model[1].weight], [model[1].bias]
    optimizer = MuonAdamW([{"params": matrices, "muon": True, "weight_decay": 0.1}, {"params": vectors}])
    for n in range(5):
        model(torch.arange(10.0).view(2, 5).sin() + n).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
torch.distributed.init_process_group("gloo")
one, two = steps(False), steps(True)
if torch.distributed.get_rank() == 0:
    assert all(torch.allclose(one[name], two[name], atol=1e-7) for name in one), (one, two)
    print("equal")
"""


@pytest.mark.full
def test_muon_sees_whole_matrices(folder):
    (folder / "muon.py").write_text(MUON)
    done = subprocess.run([*torchrun(), "muon.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("fsdp", "ddp or fsdp2"),
        ('{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}', "auto (data) by auto (tensor)"),
        (
            '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", '
            '"init_args": {"data_parallel_size": 1, "tensor_parallel_size": 2}}',
            "1 (data) by 2 (tensor), and minigpt needs 2 by 1. Use --trainer.strategy fsdp2",
        ),
    ],
)
def test_other_ways_to_share_out_are_refused(call, strategy, sentence):
    result = call("train", "--config", TINY, *MODEL, "--trainer.devices", "2", "--trainer.strategy", strategy)
    assert result.status == 2
    assert sentence in result.err
    assert result.err.count("\n") == 1


def test_weight_averaging_and_sharing_out_do_not_go_together(call):
    averaging = ["--trainer.callbacks+", "lightning.pytorch.callbacks.EMAWeightAveraging"]
    result = call("train", "--config", TINY, *MODEL, *SHARED_OUT, *averaging)
    assert result.status == 2
    assert "Omit one of them" in result.err


@pytest.mark.full
def test_computing_activations_again_gives_the_same_bits_and_keeps_less(folder):
    def kept(cli) -> int:
        sizes = []
        x = torch.zeros(4, 32, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            cli.model.network.train()(x)
        return sum(sizes)

    flags = [*MODEL, "--trainer.max_steps", "20", "--model.network.dropout", "0.2", "--model.network.n_layer", "6"]
    plain, again = (fit(*flags, *more) for more in ([], ["--model.activation_checkpointing", "true"]))
    assert same(state(plain.run_dir)["state_dict"], state(again.run_dir)["state_dict"])
    assert curves(plain.run_dir) == curves(again.run_dir)
    assert kept(again) < kept(plain) / 3


def test_tinygpt_has_nothing_to_compute_again(train):
    result = train("--model.activation_checkpointing", "true")
    assert result.status == 2
    assert "has no activation_checkpointing" in result.err
