"""LoRA: adapters over any network, as peft computes them, alone in checkpoints, merged everywhere else."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F

import minigpt
from minigpt import checkpoints
from minigpt.cpu import layers
from minigpt.errors import MiniGPTError
from minigpt.models import lora
from minigpt.models.merging import is_adapter, merged
from minigpt.training.optim import OPTIMIZERS, parameter_groups

TEXT = "Le chat dort sur le banc, et la lune monte au-dessus du toit. " * 40
NEW = "Où est le café ? Le garçon rêve près de la fenêtre. " * 40
SOURCE = "lightning_logs/a/version_0"
RUN = "lightning_logs/b/version_0"
LORA = ["--lora.rank", "3", "--lora.alpha", "6", "--lora.dropout", "0.2"]


class Foreign(nn.Module):
    """A network that is not minigpt's, with two linear layers before its output layer."""

    def __init__(self, vocab_size: int, n_embd: int = 8):
        super().__init__()
        self.table = nn.Embedding(vocab_size, n_embd)
        self.hidden = nn.Sequential(nn.Linear(n_embd, 12), nn.Tanh(), nn.Linear(12, n_embd, bias=False))
        self.out = nn.Linear(n_embd, vocab_size)

    def forward(self, idx):
        return self.out(self.hidden(self.table(idx)))


def gpt(preset: str, **settings) -> minigpt.GPT:
    torch.manual_seed(0)
    return minigpt.GPT(30, 8, n_layer=2, n_head=2, n_embd=16, preset=preset, zero_init=False, **settings)


NETWORKS = {
    "gpt2": lambda: gpt("gpt2"), "llama": lambda: gpt("llama", n_kv_head=1), "modern": lambda: gpt("modern"),
    "foreign": lambda: Foreign(30),
}  # fmt: skip


def perturb(network: nn.Module) -> None:
    for parameter in lora.adapters(network).values():
        nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_adapters_keep_names_and_logits_and_merge_into_the_weights(name):
    network, ids = NETWORKS[name](), torch.randint(30, (2, 8))
    names, before = set(network.state_dict()), network(ids)
    lora.add(network, rank=4, alpha=8, n_new=3)
    assert names <= set(network.state_dict())
    torch.testing.assert_close(network(ids), before)
    perturb(network)
    adapted, state = network(ids), network.state_dict()
    assert (adapted - before).abs().max() > 0.01
    plain = NETWORKS[name]()
    plain.load_state_dict(merged(dict(state), 2.0))
    lora.merge(network)
    assert set(network.state_dict()) == names
    assert {type(module) for module in network.modules()} == {type(module) for module in plain.modules()}
    assert all(parameter.requires_grad for parameter in network.parameters())
    for both in (network, plain):
        torch.testing.assert_close(both(ids), adapted)
    if name == "gpt2":
        assert network.lm_head.weight is network.embed.weight
        assert network.embed.num_embeddings == network.lm_head.out_features == 30


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_weights_and_old_rows_stay_to_the_bit_and_the_rest_trains(name):
    network = NETWORKS[name]()
    lora.add(network, rank=4, n_new=3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    groups = parameter_groups(network, "adamw", 0.1, 0.1, weight_decay=0.5)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in lora.adapters(network).values()}
    optimizer = OPTIMIZERS["adamw"](groups, betas=(0.9, 0.99))
    for _ in range(2):  # A has a gradient once B is not zero
        optimizer.zero_grad()
        network(torch.arange(30).view(5, 6)).logsumexp(-1).sum().backward()
        optimizer.step()
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if is_adapter(key)}
    rows = [len(value) for key, value in before.items() if "new_rows" in key]
    assert rows
    assert set(rows) == {3}


def test_an_adapter_has_the_start_the_output_and_the_gradients_of_peft():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["hidden.0", "hidden.2"])
    torch.manual_seed(1)
    ours = Foreign(10)
    theirs = peft.inject_adapter_in_model(config, copy.deepcopy(ours))
    lora.add(ours, rank=4, alpha=8)
    pairs = [(ours.hidden[n], theirs.hidden[n]) for n in (0, 2)]
    for own, other in pairs:
        spread = own.lora_a.weight.abs().max()
        bound = other.lora_A["default"].weight.abs().max()
        torch.testing.assert_close(spread, bound, rtol=0.1, atol=0)  # both uniform, within the same bounds
        nn.init.normal_(own.lora_b.weight)
        other.lora_A["default"].weight.data.copy_(own.lora_a.weight)
        other.lora_B["default"].weight.data.copy_(own.lora_b.weight)
    ids, targets = torch.randint(10, (2, 6)), torch.randint(10, (12,))
    for network in (ours, theirs):
        F.cross_entropy(network(ids).flatten(0, 1), targets).backward()
    torch.testing.assert_close(ours(ids), theirs(ids))
    for own, other in pairs:
        assert own.lora_a.weight.grad.abs().max() > 0
        torch.testing.assert_close(own.lora_a.weight.grad, other.lora_A["default"].weight.grad)
        torch.testing.assert_close(own.lora_b.weight.grad, other.lora_B["default"].weight.grad)
        assert own.weight.grad is None
    assert ours.hidden[0].scale == theirs.hidden[0].scaling["default"]
    assert peft.LoraConfig().lora_alpha == peft.LoraConfig().r  # the default of lora.alpha


def test_faster_modules_serve_networks_with_adapters():
    network = gpt("gpt2", dropout=0.1)
    lora.add(network, rank=4, dropout=0.1, n_new=3)
    layers.optimize(network)
    assert type(network.blocks[0].mlp.up.lora_dropout) is layers.Dropout
    assert type(network.embed.new_rows) is layers.Embedding  # whose gradients have the same bits in compiled code
    assert type(network.blocks[0].mlp.up) is lora.LoRALinear
    copied = copy.deepcopy(network)
    perturb(copied)
    lora.merge(copied)
    assert type(copied.embed) is nn.Embedding


def test_networks_without_layers_to_adapt_are_refused():
    adapted = gpt("gpt2")
    lora.add(adapted, rank=2)
    for network, reason in ((minigpt.TinyGPT(9), "no linear layer before"), (adapted, "has adapters already")):
        with pytest.raises(MiniGPTError, match=reason):
            lora.add(network, rank=2)


def test_layers_that_pytorch_does_not_call_are_left_alone():
    """In eval mode a `TransformerEncoderLayer` reads the weights of its layers, and would ignore adapters."""

    class Encoder(Foreign):
        def __init__(self):
            super().__init__(20)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.hidden = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))

    network, ids = Encoder(), torch.randint(20, (2, 6))
    lora.add(network, rank=2)
    perturb(network)
    logits = network.eval()(ids)
    torch.testing.assert_close(network.train()(ids), logits)
    lora.merge(network.eval())
    torch.testing.assert_close(network(ids), logits)


def write_texts(folder: Path) -> None:
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    (folder / "b.txt").write_text(NEW, encoding="utf-8")
    network = "{class_path: minigpt.GPT, init_args: {n_layer: 1, n_head: 2, n_embd: 16, preset: gpt2}}"
    data = "{path: a.txt, batch_size: 2, block_size: 16}"
    (folder / "a.yaml").write_text(
        f"data: {data}\nmodel: {{network: {network}, learning_rate: 1.0e-2}}\ntrainer: {{max_steps: 4}}\n"
    )
    (folder / "b.yaml").write_text(
        "data: {path: b.txt, batch_size: 2, block_size: 12}\nmodel: {learning_rate: 1.0e-2, weight_decay: 0.1}\n"
        "trainer: {max_steps: 6, gradient_clip_val: 1.0}\nvalidation: {every_n_steps: 3}\n"
    )


def cli_train(*args: str):
    from minigpt.training.cli import MiniGPTCLI

    cli = MiniGPTCLI([*args, *QUICK])
    cli.fit()
    return cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a source and a run of LoRA that started from it, with new characters and shorter windows."""
    folder = tmp_path_factory.mktemp("lora")
    write_texts(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli_train("--config", "a.yaml")
        cli_train("--config", "b.yaml", "--init_from", SOURCE, *LORA)
    return folder


@pytest.fixture
def place(made, folder):
    """A copy of that folder, as the working folder; the original is still where the run says that its source is."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder


def stored(run: str = RUN, name: str = "last") -> dict:
    return torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True)


def test_a_checkpoint_holds_adapters_and_new_rows_alone(place):
    checkpoint, source = stored(), stored(SOURCE)
    assert all(".lora_" in name or ".new_rows." in name for name in checkpoint["state_dict"])
    assert {"network.embed.new_rows.weight", "network.lm_head.new_rows.weight"} <= set(checkpoint["state_dict"])
    settings = checkpoint["minigpt"]["lora"]
    assert (settings["rank"], settings["alpha"], settings["dropout"]) == (3, 6, 0.2)
    assert checkpoint["minigpt"]["origin"]["sha256"] == checkpoints.checksum(Path(SOURCE, "checkpoints/best.ckpt"))
    n_states = sum(len(state["state"]) for state in checkpoint["optimizer_states"])
    assert n_states == len({weight.data_ptr() for weight in checkpoint["state_dict"].values()})
    assert len(source["state_dict"]) > n_states


def test_loading_merges_the_adapters_into_the_source(place):
    lm, source = minigpt.load(RUN), minigpt.load(SOURCE)
    weights = stored(name="best")["state_dict"]
    n = source.tokenizer.vocab_size
    assert torch.equal(lm.model.embed.weight[:n], source.model.embed.weight)
    assert torch.equal(lm.model.embed.weight[n:], weights["network.embed.new_rows.weight"])
    assert lm.model.lm_head.weight is lm.model.embed.weight
    assert torch.equal(lm.model.position.weight, source.model.position.weight[:12])  # shorter windows
    layer = "blocks.0.mlp.up"
    product = weights[f"network.{layer}.lora_b.weight"] @ weights[f"network.{layer}.lora_a.weight"]
    expected = source.model.get_submodule(layer).weight + 2 * product
    torch.testing.assert_close(lm.model.get_submodule(layer).weight, expected)
    assert product.abs().max() > 0


def test_a_resume_is_exact_to_the_bit(place):
    cli_train("--ckpt_path", RUN, "--trainer.max_steps", "9")
    resumed = stored()
    shutil.rmtree("lightning_logs/b")
    cli_train("--config", "b.yaml", "--init_from", SOURCE, *LORA, "--trainer.max_steps", "9")
    straight = stored()
    assert resumed["global_step"] == straight["global_step"] == 9
    for name, weight in straight["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], weight), name
    for name in ("exp_avg", "exp_avg_sq"):
        for one, other in zip(
            *(each["optimizer_states"][0]["state"].values() for each in (resumed, straight)), strict=True
        ):
            assert torch.equal(one[name], other[name])


def test_the_commands_use_the_merged_model(place, call):
    checkpoint = stored(name="best")
    scores = json.loads(call("evaluate", "--ckpt_path", RUN).out)
    best = checkpoint["callbacks"]["Checkpoints"]["best_loss"]
    assert scores["loss"] == pytest.approx(best, abs=1e-5)
    for precision in ("32", "bf16", "int8"):
        result = call("generate", "--ckpt_path", RUN, "--precision", precision, "--max_new_tokens", "5", "--seed", "1")
        assert result.status == 0, result.err
        assert "int8" not in result.err
    assert call("export", "--ckpt_path", RUN, "--format", "safetensors", "--out", "out").status == 0
    ids = torch.arange(12)[None]
    torch.testing.assert_close(minigpt.load("out").model(ids), minigpt.load(RUN).model(ids))
    assert call("export", "--ckpt_path", RUN, "--format", "hf", "--out", "hf").status == 0
    assert minigpt.load(RUN, precision="int8").model.blocks[0].mlp.up.weight.dtype == torch.int8


def test_a_run_of_lora_is_a_source_like_any_other(place):
    cli = cli_train("--config", "b.yaml", "--init_from", RUN, "--trainer.max_steps", "2")
    assert all(parameter.requires_grad for parameter in cli.model.network.parameters())
    again = cli_train("--config", "b.yaml", "--init_from", RUN, *LORA, "--trainer.max_steps", "2")
    assert lora.describe(again.model.network)["n_new"] == 0
    model = minigpt.load(again.run_dir).model  # adapters over adapters over the source
    lora.merge(again.model.network.eval())
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model(ids), again.model.network(ids))


def test_a_training_without_checkpoints_returns_a_network_without_adapters(place):
    settings = {"lora.rank": 2, "max_steps": 2, "enable_checkpointing": False, "accelerator": "cpu"}
    model = minigpt.train("b.yaml", init_from=SOURCE, **settings).model
    assert lora.describe(model) is None
    assert all(type(layer) is nn.Linear for layer in model.modules() if isinstance(layer, nn.Linear))


def lose_source(place: Path, path: str = "/nowhere/best.ckpt") -> None:
    """Make the run say that its source is elsewhere."""
    for name in ("best", "last"):
        checkpoint = stored(name=name)
        checkpoint["minigpt"]["origin"]["path"] = path
        torch.save(checkpoint, place / RUN / "checkpoints" / f"{name}.ckpt")


def test_run_and_source_can_be_moved_together(place):
    before = minigpt.load(RUN).generate("le", 20, seed=0)
    lose_source(place)
    assert minigpt.load(RUN).generate("le", 20, seed=0) == before
    cli_train("--ckpt_path", RUN, "--trainer.max_steps", "7")  # writes where the source is now
    settings = stored()["minigpt"]
    assert settings["origin"]["path"] == str(place / SOURCE / "checkpoints" / "best.ckpt")
    assert settings["lora"]["base"] == "../../a/version_0/checkpoints/best.ckpt"


def test_a_source_that_is_gone_is_named_and_found_again_under_base(place, call):
    from minigpt.app import ModelStore, Problem

    before = minigpt.load(RUN).generate("le", 20, seed=0)
    lose_source(place)
    Path("lightning_logs/a").rename("elsewhere")
    for command in (["generate"], ["train"]):
        result = call(*command, "--ckpt_path", RUN)
        assert result.status == 2
        assert "which is not at '/nowhere/best.ckpt' any more" in result.err.splitlines()[-1]
        assert f"'{RUN}/base'" in result.err
    with pytest.raises(Problem, match="no_base"):
        ModelStore(RUN, "cpu").load(None)
    Path(RUN, "base").symlink_to(Path("elsewhere/version_0").resolve())
    assert ModelStore(RUN, "cpu").load(None).generate("le", 20, seed=0) == before
    assert minigpt.load(RUN).generate("le", 20, seed=0) == before
    Path(RUN, "base").unlink()
    Path(RUN, "base").symlink_to(Path("elsewhere/version_0/checkpoints/best.ckpt").resolve())
    assert minigpt.load(RUN).generate("le", 20, seed=0) == before
    cli_train("--ckpt_path", RUN, "--trainer.max_steps", "7")


def test_a_source_that_has_changed_is_refused(place, call):
    lose_source(place)
    other = stored(SOURCE)
    other["state_dict"]["network.norm.weight"] += 1
    torch.save(other, f"{SOURCE}/checkpoints/best.ckpt")
    result = call("evaluate", "--ckpt_path", RUN)
    assert result.status == 2
    assert "which has other weights in '" in result.err.splitlines()[-1]


@pytest.mark.parametrize("what", ["shape", "rank", "frozen"])
def test_adapters_that_do_not_fit_are_refused(place, call, what):
    checkpoint = stored(name="best")
    if what == "shape":
        checkpoint["state_dict"]["network.blocks.0.mlp.up.lora_a.weight"] = torch.zeros(3, 5)
    elif what == "rank":
        checkpoint["minigpt"]["lora"]["rank"] = 0
    else:
        checkpoint["minigpt"]["lora"]["frozen"]["network.other"] = 3
    torch.save(checkpoint, "wrong.ckpt")
    result = call("generate", "--ckpt_path", "wrong.ckpt")
    assert (result.status, result.err.splitlines()[-1]) == (
        2, "The adapters in 'wrong.ckpt' do not fit their base. Pass a different checkpoint.",
    )  # fmt: skip


FROM = ["--init_from", SOURCE]
MISTAKES = [
    ([*LORA], "Pass the model with --init_from"),
    ([*FROM, "--lora.rank", "-1"], "lora.rank is -1. Give it a whole number of 0 or more, where 0 means no adapters."),
    ([*FROM, "--lora.rank", "1.5"], "lora.rank is '1.5', which does not fit. It takes a whole number or null."),
    ([*FROM, "--lora.rank", "2", "--lora.alpha", "0"], "lora.alpha is 0.0. Give it a number above 0."),
    ([*FROM, "--lora.rank", "2", "--lora.dropout", "1"], "lora.dropout is 1.0. Give it a number of 0 or more"),
    ([*FROM, *LORA, "--model.optimizer", "muon"], "model.optimizer muon is for whole matrices"),
    ([*FROM, *LORA, "--optimizer", "SGD", "--optimizer.lr", "0.1"], "not with --optimizer torch.optim.SGD"),
    ([*FROM, *LORA, "--trainer.callbacks+=EMAWeightAveraging"], "does not support weight averaging"),
    ([*FROM, *LORA, "--trainer.strategy", "fsdp2"], "Use --trainer.strategy ddp."),
    (["--ckpt_path", RUN, "--lora.rank", "2"], "lora.rank is 2 here and 3 in"),
    (["--ckpt_path", RUN, "--lora.rank", "0"], "lora.rank is 0 here and 3 in"),
    (["--ckpt_path", SOURCE, *LORA], "lora.rank is 3 here and 0 in"),
]


@pytest.mark.parametrize(("flags", "words"), MISTAKES, ids=[" ".join(flags[-2:]) for flags, _ in MISTAKES])
def test_mistakes_get_a_sentence(place, call, flags, words):
    config = [] if "--ckpt_path" in flags else ["--config", "b.yaml" if "--init_from" in flags else "a.yaml"]
    count = len(list(Path("lightning_logs").rglob("*.yaml")))
    result = call("train", *config, *QUICK, *flags)
    assert result.status == 2, result.err
    assert words in result.err.splitlines()[-1]
    assert len(list(Path("lightning_logs").rglob("*.yaml"))) == count


def test_adapters_train_in_python_with_a_plain_trainer(place):
    """Without a file to read the frozen weights from again, a checkpoint holds all weights."""
    data = minigpt.TextDataModule("a.txt", block_size=16, batch_size=2)

    def trainer(steps: int) -> Trainer:
        options = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "enable_model_summary": False}
        return Trainer(max_steps=steps, limit_val_batches=0, enable_checkpointing=False, **options)

    def module() -> minigpt.LitLanguageModel:
        torch.manual_seed(0)
        network = minigpt.GPT(data.vocab_size, 16, n_layer=1, n_head=2, n_embd=16)
        lora.add(network, rank=2, dropout=0.1)
        return minigpt.LitLanguageModel(network)

    straight, first = module(), trainer(2)
    trainer(4).fit(straight, data)
    first.fit(module(), data)
    first.save_checkpoint("two.ckpt")
    resumed, second = module(), trainer(4)
    second.fit(resumed, data, ckpt_path="two.ckpt", weights_only=True)
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])
    second.save_checkpoint("four.ckpt")
    ids = torch.arange(10)[None]
    torch.testing.assert_close(minigpt.load("four.ckpt").model(ids), straight.network.eval()(ids))


def test_the_python_function_takes_the_settings_by_their_full_names(place):
    lm = minigpt.train("b.yaml", init_from=SOURCE, max_steps=1, **{"lora.rank": 2, "samples.every_n_steps": 0})
    assert stored(lm.run_dir)["minigpt"]["lora"]["alpha"] == 2
    assert lm.generate("le", 5, seed=0).startswith("le")


@pytest.mark.full
def test_two_processes_train_as_one_does(place):
    flags = ["--config", "b.yaml", *FROM, "--lora.rank", "2", *QUICK]
    one = cli_train(*flags).trainer.callback_metrics["val/loss"].item()
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *flags]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    two = stored("lightning_logs/b/version_2")
    assert set(two["state_dict"]) == set(stored()["state_dict"])
    assert two["callbacks"]["DueValidation"]["metrics"]["val/loss"] == pytest.approx(one, abs=1e-4)


@pytest.mark.full
def test_a_compiled_training_has_the_losses_of_an_eager_one(place):
    flags = ["--config", "b.yaml", *FROM, "--lora.rank", "2"]
    losses = [cli_train(*flags, "--model.compile", on).trainer.callback_metrics["val/loss"] for on in ("false", "true")]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=0)


def test_rank_0_or_null_trains_all_weights(place):
    cli = cli_train("--config", "b.yaml", *FROM, "--lora.rank", "null", "--trainer.max_steps", "1")
    assert lora.describe(cli.model.network) is None
    assert stored("lightning_logs/b/version_1")["minigpt"]["lora"] is None


def test_peft_is_for_a_base_of_hugging_face(place, call):
    for run, words in ((RUN, f"and this base is {SOURCE}"), (SOURCE, "trained without --lora.rank")):
        result = call("export", "--ckpt_path", run, "--format", "peft", "--out", "out")
        assert result.status == 2
        assert words in result.err.splitlines()[-1]
    assert not Path("out").exists()


SIZES = {
    "GPT2LMHeadModel": {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "LlamaForCausalLM": {
        "max_position_embeddings": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_pretrained(folder: Path, kind: str) -> None:
    """Write a random model as transformers does, with a tokenizer of bytes."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(3)
    model = getattr(transformers, kind)
    theirs = model(model.config_class(vocab_size=256, bos_token_id=None, eos_token_id=None, **SIZES[kind]))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SIZES)
def test_adapters_of_a_pretrained_model_load_in_peft(place, call, kind):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    write_pretrained(place / "base", kind)
    cli_train("--config", "b.yaml", "--init_from", "base", *LORA)
    ours, ids = minigpt.load(RUN := "lightning_logs/b/version_1").model, torch.randint(256, (2, 12))
    assert call("export", "--ckpt_path", RUN, "--format", "peft", "--out", "adapters").status == 0
    base = transformers.AutoModelForCausalLM.from_pretrained("base").eval()
    with torch.no_grad():
        before = base(ids).logits
        after = peft.PeftModel.from_pretrained(base, "adapters").eval()(ids).logits
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, ours(ids), atol=1e-4, rtol=1e-4)
    config = json.loads(Path("adapters/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
