"""A model that two processes share out trains as a whole one does, and its shards are one checkpoint."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath
from traceback import StackSummary
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from test_ddp import finish, start
from test_resume import same, state
from test_training import curves, fit
from torch.distributed.checkpoint.api import CheckpointException

import minigpt
from minigpt import runs, shards
from minigpt.errors import MiniGPTError
from minigpt.training.checkpointing import save_sharded

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
    place = tmp_path_factory.mktemp("sharded")
    process = start(*MODEL, *SHARED_OUT, "--trainer.default_root_dir", str(place))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("validation loss") == 1
    return next(place.glob("lightning_logs/tiny/*"))


def test_it_trains_as_one_device_does(sharded, call):
    whole = fit(*MODEL).run_dir
    one, two = curves(whole), curves(sharded)
    assert one.keys() == two.keys()
    for tag in ("train/loss", "val/loss", "val/bits_per_char", "val/accuracy", "train/gradient_norm"):
        assert len(one[tag]) == len(two[tag]) >= 2
        for (step, value), (other_step, other) in zip(one[tag], two[tag], strict=True):
            assert step == other_step
            assert value == pytest.approx(other, abs=1e-5), (tag, step)


def test_shards_are_read_and_exported_and_trained_on_as_one_checkpoint(sharded, call, folder):
    exported = folder / "one"
    assert call("export", "--ckpt_path", str(sharded), "--format", "checkpoint", "--out", str(exported)).status == 0
    (file,) = exported.iterdir()
    texts = {minigpt.load(path).generate("un ", 30, temperature=0) for path in (sharded, file)}
    assert len(texts) == 1
    scores = [json.loads(call("evaluate", "--ckpt_path", str(path)).out)["loss"] for path in (sharded, file)]
    assert scores[0] == scores[1] == pytest.approx(curves(sharded)["val/loss"][-1][1], abs=1e-5)

    last = runs.find_checkpoint(sharded, prefer=("last",))
    held = shards.read(last.resolve())
    numbers = [n for group in held["optimizer_states"][0]["param_groups"] for n in group["params"]]
    assert sorted(numbers) == sorted(held["optimizer_states"][0]["state"]) == list(range(len(held["state_dict"])))
    for copy, links in (("version_1", False), ("version_2", True)):
        shutil.copytree(sharded, folder / "lightning_logs/tiny" / copy, symlinks=links)
    more = [*MODEL, "--trainer.max_steps", "120", "--ckpt_path"]
    by_two_into_one_file = {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
    }
    whole = ["--trainer.devices", "2", "--trainer.strategy", json.dumps(by_two_into_one_file)]
    ends = [  # of shards copied without links by one process, of shards by two, and of one file by two, compiled
        ("version_1", start(*more, "lightning_logs/tiny/version_1")),
        ("version_2", start(*whole, *more, "lightning_logs/tiny/version_2")),
        ("version_3", start(*SHARED_OUT, "--model.compile", "true", *more, str(file))),
    ]
    for version, process in ends:
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 0, err
        assert "cannot be compiled" not in err
        assert ("compiled in" in err) == (version == "version_3")
        run = Path("lightning_logs/tiny") / version
        assert runs.read_checkpoint(runs.find_checkpoint(run, prefer=("last",)))["global_step"] == 120
        losses = [value for step, value in curves(run)["train/loss"] if step > 100]
        assert losses == pytest.approx(
            [value for step, value in curves(Path("lightning_logs/tiny/version_1"))["train/loss"] if step > 100],
            abs=1e-5,
        )
    for version in (1, 2):
        place = Path(f"lightning_logs/tiny/version_{version}/checkpoints")
        assert (place / "last.ckpt").is_file()
        assert not list(place.glob(".last.ckpt*")), "the shards that it replaced are cleared away"


def test_reading_follows_a_training_that_moves_the_link(sharded, folder, monkeypatch):
    place, known = folder / "last.ckpt", runs.find_checkpoint(sharded, prefer=("last",)).resolve()
    for name in ("old", "new"):
        shutil.copytree(known, folder / name)
    place.symlink_to("old")
    read_rest = shards.read_rest

    def while_it_saves(path):
        rest = read_rest(path)
        if place.resolve().name == "old":
            place.unlink()
            place.symlink_to("new")
            shutil.rmtree(folder / "old")
        return rest

    monkeypatch.setattr(shards, "read_rest", while_it_saves)
    assert same(shards.read(place)["state_dict"], shards.read(known)["state_dict"])


def test_a_run_that_is_killed_and_stopped_ends_with_the_same_bits(sharded):
    line = [*MODEL, *SHARED_OUT, "--ckpt_path", "last"]
    for number, step in ((signal.SIGKILL, 30), (signal.SIGTERM, 70)):
        process = start(*line)
        for text in process.stderr:
            if text.startswith(f"step {step}/"):
                os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
                break
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == {signal.SIGKILL: -9}.get(number, 128 + number), rest
    run = finish(start(*line))
    ends = [runs.read_checkpoint(runs.find_checkpoint(r, prefer=("last",))) for r in (run, sharded)]
    assert same(*(end["state_dict"] for end in ends))
    assert same(*(end["optimizer_states"] for end in ends))
    assert curves(run) == curves(sharded)
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert len(kept) == 4, "what a killed process left is cleared away"


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


def test_muon_sees_whole_matrices(folder):
    (folder / "muon.py").write_text(MUON)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29519"]
    done = subprocess.run([*torchrun, "muon.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout == "equal\n", done.stderr


class Harm:
    def __reduce__(self):
        return Path("harm").touch, ()


def test_an_index_gives_no_class_an_attribute(sharded, folder):
    bad = folder / "bad"
    shutil.copytree(runs.find_checkpoint(sharded), bad)
    rest = (bad / runs.SHARDS).read_bytes()
    state = pickle.dumps((None, {"harmed": 1}), 2)[2:-1]
    (bad / runs.SHARDS).write_bytes(b"\x80\x04cpathlib\nPurePosixPath\n" + state + b"b0" + rest[2:])
    with pytest.raises(MiniGPTError, match="is damaged"):
        runs.read_checkpoint(bad)
    assert not hasattr(PurePosixPath, "harmed")


@pytest.mark.parametrize(
    "where",
    [
        "index", "value", "rest", "elsewhere", "linked", "cut off", "gone", "flipped bits", "no numbers",
        "a list of many",
    ],
)  # fmt: skip
def test_what_shards_may_hold_is_plain(sharded, folder, call, where):
    bad, longer = folder / "bad", ["train", "--config", TINY, *MODEL, "--trainer.max_steps", "120"]
    shutil.copytree(runs.find_checkpoint(sharded), bad)
    index = pickle.loads((bad / runs.SHARDS).read_bytes())
    some = next(info for key, info in index.storage_data.items() if key.fqn.endswith("weight_decay"))
    part = bad / some.relative_path
    if where == "index":
        index.planner_data = Harm()
    elif where == "value":
        torch.save(Harm(), folder / "harm.pt")
        some.offset, some.length = part.stat().st_size, (folder / "harm.pt").stat().st_size
        part.write_bytes(part.read_bytes() + (folder / "harm.pt").read_bytes())
    elif where == "rest":
        torch.save(Harm(), bad / shards.REST)
    elif where == "elsewhere":
        some.relative_path = f"../bad/{some.relative_path}"
    elif where == "linked":
        part.rename(folder / part.name)
        part.symlink_to(folder / part.name)
    elif where == "flipped bits":
        tensor = next(info for key, info in index.storage_data.items() if key.fqn.endswith("exp_avg_sq"))
        bad_part, middle = bad / tensor.relative_path, tensor.offset + tensor.length // 2
        data = bytearray(bad_part.read_bytes())
        data[middle] ^= 0x40
        bad_part.write_bytes(data)
    elif where == "no numbers":
        next(iter(index.state_dict_metadata.values())).chunks.clear()
    elif where == "a list of many":
        name = next(iter(index.planner_data))
        index.planner_data[name] = (*index.planner_data[name][:-1], 10**9)
    elif where == "cut off":
        part.write_bytes(part.read_bytes()[:-2000])
    else:
        part.unlink()
    (bad / runs.SHARDS).write_bytes(pickle.dumps(index))
    for command in (["generate", "--ckpt_path"], [*longer, "--ckpt_path"]):
        result = call(*command, str(bad))
        assert (result.status, result.out) == (2, "")
        assert result.err.strip().endswith("is damaged: not all of its shards can be read. Name another.")
        assert command[0] == "train" or result.err.count("\n") == 1
    assert not Path("harm").exists()


def test_nobody_else_unpickles_an_index(sharded, folder):
    bad = folder / "bad"
    shutil.copytree(runs.find_checkpoint(sharded), bad)
    index = pickle.loads((bad / runs.SHARDS).read_bytes())
    index.storage_meta = 5  # at which PyTorch's reader stumbles, and reads an index of each process
    (bad / runs.SHARDS).write_bytes(pickle.dumps(index))
    (bad / f"__0{runs.SHARDS}").write_bytes(pickle.dumps(Harm()))
    line = [*MODEL, "--trainer.strategy", "fsdp2", "--trainer.max_steps", "101", "--ckpt_path", str(bad)]
    err = start(*line).communicate(timeout=120)[1]
    assert "step 101/101" in err
    assert not Path("harm").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(folder):
    def full(path):
        raise OSError(28, "No space left on device")

    def cut_off(path):
        raise RuntimeError("basic_ios::clear: iostream error")  # torch's word for it

    def whole(path):
        (path / shards.REST).write_text("whole")

    strategy = SimpleNamespace(broadcast=lambda path: path)
    place = folder / "checkpoints" / "last.ckpt"
    for save in (whole, whole):
        save_sharded(SimpleNamespace(is_global_zero=True, strategy=strategy, save_checkpoint=save), place)

    def several(path):
        raise CheckpointException("write", {1: (OSError(28, "No space left on device"), StackSummary())})

    for save, reason in ((full, "No space left"), (cut_off, "iostream error"), (several, "No space left")):
        with pytest.raises(MiniGPTError, match=f"written \\(.*{reason}.*\\). Make room") as caught:
            save_sharded(SimpleNamespace(is_global_zero=True, strategy=strategy, save_checkpoint=save), place)
        assert "Traceback" not in str(caught.value)
        assert len(list(place.parent.iterdir())) == 2, "the link, and the folder that it leads to"
    assert (place / shards.REST).read_text() == "whole"


def test_shards_take_the_place_of_a_copy_made_without_links(folder):
    place = folder / "last.ckpt"
    place.mkdir()
    (place / shards.REST).write_text("copied")

    def save(path):
        (path / shards.REST).write_text("fresh")

    strategy = SimpleNamespace(broadcast=lambda path: path)
    save_sharded(SimpleNamespace(is_global_zero=True, strategy=strategy, save_checkpoint=save), place)
    assert (place / shards.REST).read_text() == "fresh"
    assert len(list(folder.iterdir())) == 2, "the link, and the folder that it leads to"


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        ("fsdp", "ddp or fsdp2"),
        ('{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}', "auto (data) by auto (tensor)"),
        (
            '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", '
            '"init_args": {"data_parallel_size": 1, "tensor_parallel_size": 2}}',
            "1 (data) by 2 (tensor), and minigpt needs 2 by 1. Set --trainer.strategy fsdp2",
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
    assert "Leave one of them out" in result.err


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
