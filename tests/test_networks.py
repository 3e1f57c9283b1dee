"""A network of one's own, examples/gru.py: what every command does with it, and what a mistake gets."""

import json
import shutil
import sys

import pytest
import torch
from conftest import QUICK, ROOT, TINY
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn

import minigpt
from minigpt import LitLanguageModel, MiniGPTError, TextDataModule
from minigpt.evaluation import evaluate
from minigpt.models import build_network, describe

RECIPE = str(ROOT / "examples" / "gru.yaml")
ALLOW = ["--allow_code", "examples.gru"]
SMALL = ["--model.network.hidden", "16", "--trainer.max_steps", "12", "--validation.every_n_steps", "6", *QUICK]


@pytest.fixture(autouse=True)
def examples(folder, monkeypatch):
    """The example beside the person, as in a clone, and nothing of it imported yet."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in (str(ROOT), "")])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("examples", "my_models")]:
        del sys.modules[name]


@pytest.fixture
def run(call, folder):
    result = call("train", "--config", RECIPE, *SMALL, *ALLOW)
    assert result.status == 0, result.err
    return folder / "lightning_logs" / "gru" / "version_0"


@pytest.mark.slow
def test_a_class_that_a_config_names_has_to_be_allowed_and_one_that_is_typed_has_not(call, folder):
    refused = call("train", "--config", RECIPE, *SMALL)
    assert refused.status == 2
    assert "names 'examples.gru.GRU'" in refused.err
    assert "--allow_code examples.gru" in refused.err
    assert not (folder / "lightning_logs").exists()
    typed = call("train", "--config", TINY, "--model.network", "examples.gru.GRU", *SMALL)
    assert typed.status == 0, typed.err
    assert "GRU, " in typed.err
    assert "rnn" in typed.err


@pytest.mark.slow
def test_it_is_evaluated_generated_from_and_exported(call, run, folder):
    scores = json.loads(call("evaluate", *ALLOW).out)
    lm = minigpt.load(run, allow_code="examples.gru")
    assert scores["loss"] == pytest.approx(torch.load(run / "checkpoints" / "best.ckpt",
    weights_only=True)["callbacks"][
        "Checkpoints"]["best_loss"], abs=1e-6)  # fmt: skip
    text = call("generate", *ALLOW, "--seed", "1", "--max_new_tokens", "20")
    options = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}
    assert text.out == lm.generate("un matin,", 20, seed=1, **options) + "\n"
    for form in ("safetensors", "onnx"):
        exported = call("export", *ALLOW, "--format", form, "--out", form)
        assert exported.status == 0, exported.err
    again = minigpt.load("safetensors", allow_code="examples.gru")
    assert again.generate("un matin,", 20, seed=1, **options) == lm.generate("un matin,", 20, seed=1, **options)
    ort = pytest.importorskip("onnxruntime")
    ids = torch.randint(80, (3, 20))
    (logits,) = ort.InferenceSession(folder / "onnx" / "model.onnx").run(None, {"ids": ids.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), lm.model(ids), rtol=1e-4, atol=1e-4)
    refused = call("export", *ALLOW, "--format", "hf", "--out", "hf")
    assert refused.status == 2
    assert "no class for this GRU" in refused.err


@pytest.mark.slow
def test_the_commands_that_are_printed_allow_its_code(call, folder):
    result = call("train", "--config", RECIPE, *SMALL, *ALLOW)
    assert result.out.rstrip().endswith("--ckpt_path lightning_logs/gru/version_0 --allow_code examples.gru")


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_with_the_same_bits(call, folder, run):
    part = ["--trainer.default_root_dir", "part", "--model.lr_schedule", "constant"]
    whole = ["--trainer.default_root_dir", "whole", "--model.lr_schedule", "constant"]
    call("train", "--config", RECIPE, *SMALL, *ALLOW, *whole)
    call("train", "--config", RECIPE, *SMALL, *ALLOW, *part, "--trainer.max_steps", "7")
    resumed = call("train", "--config", RECIPE, *SMALL, *ALLOW, *part, "--ckpt_path", "last")
    assert resumed.status == 0, resumed.err
    first, second = (
        torch.load(folder / place / "lightning_logs/gru/version_0/checkpoints/last.ckpt", weights_only=True)
        for place in ("part", "whole")
    )
    assert first["global_step"] == second["global_step"] == 12
    for name, weight in first["state_dict"].items():
        assert torch.equal(weight, second["state_dict"][name])
    other = call(
        "train", "--config", RECIPE, *SMALL, *ALLOW, *part, "--ckpt_path", "last", "--model.network.hidden", "8"
    )
    assert other.status == 2
    assert "model.network.hidden is 8 here and 16 in" in other.err


@pytest.mark.slow
def test_loading_says_how_to_allow_its_class_or_takes_an_instance(run):
    with pytest.raises(MiniGPTError, match=r"--allow_code examples\.gru .*allow_code='examples\.gru'.*network="):
        minigpt.load(run)
    lm = minigpt.load(run, allow_code=["examples.gru"])
    lm.model.head.weight.data.zero_()
    fresh = minigpt.load(run, network=type(lm.model)(80, 16))
    assert fresh.model.head.weight.any()
    assert fresh.model.block_size == 64  # the data's
    with pytest.raises(MiniGPTError, match="weights of the checkpoint do not fit GRU"):
        minigpt.load(run, network=type(lm.model)(80, 8))


@pytest.mark.slow
def test_the_checkpoint_keeps_class_and_arguments_in_plain_values(run):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    expected = {"class_path": "examples.gru.GRU", "init_args": {"vocab_size": 80, "hidden": 16, "layers": 1}}
    assert checkpoint["minigpt"]["model"] == expected
    network = build_network(expected, ["examples.gru"])
    assert describe(network) == expected


@pytest.mark.slow
def test_it_is_looked_at_in_the_page(run):
    app = pytest.importorskip("minigpt.app", reason="needs gradio: pip install 'minigpt-lightning[app]'")
    store = app.ModelStore(str(run), allow_code=["examples.gru"])
    lm = store.load(None)
    ids = app.ids_of(lm, "un matin, le chat dort")
    assert app.picture(lm, ids, 1, 1, None) == ""  # neither a table nor heads
    assert "un" in "".join(text for text, _ in app.write(store, None, None, "un", 0.8, 30, 0.9, 0, 20, 1, "", 1))
    assert 'class="bars"' in app.bars(lm, ids, 5, {}, None)


class MyGRU(nn.Module):
    """A network in ten lines."""

    def __init__(self, vocab_size):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(vocab_size, 16), nn.GRU(16, 16, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(16, vocab_size)

    def forward(self, idx):
        return self.head(self.dropout(self.rnn(self.embed(idx))[0]))


def test_a_plain_script_with_a_trainer_runs_all_entry_points_with_the_figures_of_evaluate(folder):
    data = TextDataModule(block_size=16, batch_size=8, max_val_tokens=2000)
    model = LitLanguageModel(MyGRU(data.vocab_size), learning_rate=1e-2, lr_schedule="cosine")
    callbacks = [EarlyStopping("val/loss", patience=3), LearningRateMonitor("step")]
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    logger = CSVLogger(folder, "csv")
    trainer = Trainer(max_steps=30, val_check_interval=10, check_val_every_n_epoch=None, callbacks=callbacks,
                      logger=logger, log_every_n_steps=10, enable_checkpointing=False, **options)  # fmt: skip
    trainer.fit(model, data)
    expected = evaluate(model.network, data.val_ids[:2001], data.tokenizer.lengths)
    (validated,), (tested,) = trainer.validate(model, data), trainer.test(model, data)
    for part, figures in (("val", validated), ("test", tested)):
        for name in ("loss", "bits_per_char", "perplexity", "accuracy"):
            assert figures[f"{part}/{name}"] == pytest.approx(expected[name], rel=1e-5)
    logits = trainer.predict(model, data.val_dataloader())
    assert logits[0].shape[-1] == data.vocab_size
    rows = (folder / "csv" / "version_0" / "metrics.csv").read_text(encoding="utf-8")
    assert "val/bits_per_char" in rows.splitlines()[0]
    assert "lr-AdamW" in rows.splitlines()[0]
    found = Tuner(
        Trainer(max_steps=100, limit_val_batches=0, logger=False, enable_checkpointing=False, **options)
    ).lr_find(model, datamodule=data, num_training=30)
    assert len(found.results["lr"]) >= 20


NETWORK = """
from torch import nn

class GRU(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, 4)

    def forward(self, idx):
        return self.embed(idx)
"""
MISTAKES = {
    "no module": ("class GRU:\n    pass\n", "my_models.GRU is not a network"),
    "no class": ("class LSTM:\n    pass\n", "The module my_models has no class GRU."),
    "a syntax error": ("class GRU(\n", "SyntaxError: '(' was never closed (my_models.py, line 1)."),
    "a package that is not installed": ("\nimport nowhere\n", "No module named 'nowhere' (my_models.py, line 2)."),
    "an error of its own": ("import math\n\nmath.tua\n", "no attribute 'tua' (my_models.py, line 3)."),
    "an argument that is required": (
        NETWORK.replace("vocab_size):", "vocab_size, width: int):"),
        "The network needs the setting 'width'. Add --model.network.width with a value.",
    ),
    "another shape": (NETWORK.replace("embed(idx)", "embed(idx)[:, -1]"), "returns (1, 4) for (1, 2) ids"),
    "no tensor": (NETWORK.replace("self.embed(idx)", "self.embed(idx), None"), "returns a tuple"),
    "too few scores": (NETWORK, "GRU scores 4 tokens"),
    "a sight of later ids": (
        NETWORK.replace("4)", "vocab_size)").replace("embed(idx)", "embed(idx).flip(1)"),
        "The logits of GRU at a position change with later ids",
    ),
    "a fault in forward": (NETWORK.replace("embed(idx)", "embedding(idx)"), "'embedding' (my_models.py, line 10)."),
    "shapes that do not fit": (
        NETWORK.replace("embed(idx)", "embed(idx) @ self.embed.weight[:2]"),
        "(my_models.py, line 10). A network takes",
    ),
    "no forward": (NETWORK.replace("forward", "backward"), "has no forward"),
    "no parameters": ("from torch import nn\nclass GRU(nn.Module):\n    pass\n", "GRU has no parameters"),
    "an argument that is not given": (NETWORK.replace("vocab_size", "size"), "cannot be built with {'size': None}"),
}


@pytest.mark.parametrize(("code", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_class_that_is_no_network_is_answered(call, folder, code, words):
    (folder / "my_models.py").write_text(code, encoding="utf-8")
    result = call("train", "--config", TINY, "--model.network", "my_models.GRU", "--trainer.max_steps", "2", *QUICK)
    assert result.status == 2, result.err
    assert words in result.err
    assert "Traceback" not in result.err
    assert not (folder / "lightning_logs").exists()


@pytest.mark.parametrize("kind", ["no module", "no class", "a syntax error"])
def test_a_class_that_a_recipe_names_is_answered_alike(call, folder, kind):
    code, words = MISTAKES[kind]
    (folder / "my_models.py").write_text(code, encoding="utf-8")
    recipe = "model: {network: {class_path: my_models.GRU}}\ndata: {path: exemple}\ntrainer: {max_steps: 2}\n"
    (folder / "mine.yaml").write_text(recipe, encoding="utf-8")
    result = call("train", "--config", "mine.yaml", "--allow_code", "my_models", *QUICK)
    assert result.status == 2, result.err
    assert words in result.err


def test_settings_that_it_does_not_have_and_classes_that_are_not_there_are_named(call):
    network = ["train", "--config", RECIPE, *SMALL, *ALLOW]
    wrong = call(*network, "--model.network.n_layer", "2")
    assert wrong.status == 2
    assert "no setting 'n_layer'" in wrong.err
    absent = call("train", "--config", TINY, "--model.network", "examples.gru.LSTM", *QUICK)
    assert absent.status == 2
    assert "The module examples.gru has no class LSTM" in absent.err
    nowhere = call("train", "--config", TINY, "--model.network", "exemples.gru.GRU", *QUICK)
    assert nowhere.status == 2
    assert "there is no module exemples. Run the command in the folder of its file" in nowhere.err
    wide = call("train", "--config", TINY, "--model.network", "examples.gru.GRU", "--model.network.hidden", "wide")
    assert wide.status == 2
    assert wide.err.splitlines()[-1] == "model.network.hidden is 'wide', which does not fit. It takes a whole number."
    with pytest.raises(MiniGPTError, match=r"The network is a type\. Pass an instance"):
        LitLanguageModel(MyGRU)


@pytest.mark.filterwarnings("ignore:\\s*Hit failing import")
def test_order_of_class_and_arguments_does_not_matter(call):
    flags = ["--model.network.n_layer", "1", "--model.network", "GPT", "--trainer.max_steps", "1", *QUICK]
    result = call("train", *flags, "--config", TINY)
    assert result.status == 0, result.err
    assert "1 block:" in result.err
