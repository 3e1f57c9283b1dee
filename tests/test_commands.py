import inspect
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, TINY, read

import minigpt
from minigpt import command_line, commands
from minigpt.evaluation import evaluate


def test_generate_writes_the_text_and_nothing_else_to_stdout(call, trained_run):
    result = call("generate", "--ckpt_path", str(trained_run), "--seed", "3", "--max_new_tokens", "50")
    lm = minigpt.load(trained_run)
    assert result.out == lm.generate("un matin,", 50, temperature=0.8, top_k=30, top_p=0.9, seed=3) + "\n"
    assert "best.ckpt" in result.err


def test_generate_without_top_k_and_top_p(call, trained_run):
    flags = ["--top_k", "none", "--top_p", "none", "--temperature", "1", "--seed", "0", "--max_new_tokens", "80"]
    result = call("generate", "--ckpt_path", str(trained_run), *flags)
    assert result.out == minigpt.load(trained_run).generate("un matin,", 80, seed=0) + "\n"


def test_several_samples_are_told_apart(call, trained_run):
    flags = ["--ckpt_path", str(trained_run), "--seed", "3", "--max_new_tokens", "20", "--stop", "e"]
    both, first = call("generate", *flags, "--num_samples", "2"), call("generate", *flags)
    texts = both.out.split("\n---\n")
    assert len(texts) == 2
    assert texts[0] + "\n" == first.out
    assert texts[0] != texts[1]


def test_more_samples_than_a_batch_holds_are_all_of_the_seed(call, trained_run, monkeypatch):
    monkeypatch.setattr(commands.output, "LARGEST_BATCH", 2)
    result = call("generate", "--ckpt_path", str(trained_run), "--seed", "3", "--num_samples", "5", "--prompt", "le ")
    lm = minigpt.load(trained_run)
    expected = [lm.generate("le ", 200, **command_line.SAMPLING, seed=3, sample=n) for n in range(5)]
    assert result.out == "\n---\n".join(expected) + "\n"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_with_less_precision_it_is_nearly_the_same_model(call, trained_run, precision):
    whole, rounded = minigpt.load(trained_run), minigpt.load(trained_run, precision=precision)
    assert rounded.model.embed.weight.dtype == {"bf16": torch.bfloat16, "int8": torch.float32}[precision]
    assert rounded.model.lm_head.weight.dtype == {"bf16": torch.bfloat16, "int8": torch.int8}[precision]
    idx = torch.arange(20)[None]
    torch.testing.assert_close(rounded.model(idx).float(), whole.model(idx), rtol=0.1, atol=0.1)
    flags = ["--ckpt_path", str(trained_run), "--precision", precision]
    result = call("generate", *flags, "--max_new_tokens", "5")
    assert result.status == 0
    assert len(result.out) == len("un matin,") + 6
    losses = [json.loads(call("evaluate", *one).out)["loss"] for one in (flags, flags[:2])]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.01)


def test_what_cannot_be_compiled_goes_on_as_it_is(call, trained_run):
    flags = ["--ckpt_path", str(trained_run), "--seed", "1"]
    plain, compiled = call("generate", *flags), call("generate", *flags, "--compile")
    assert "for the class GPT, but this model is a TinyGPT" in compiled.err
    assert (compiled.status, compiled.out) == (0, plain.out)


@pytest.mark.slow
def test_compiled_generation_writes_the_same_text(call, train):
    train("--model.network", "GPT", "--model.network.preset", "modern", "--model.network.n_layer", "1",
          "--model.network.n_head", "2",
          "--model.network.n_embd", "16", "--trainer.max_steps", "5")  # fmt: skip
    plain, compiled = call("generate", "--seed", "1"), call("generate", "--seed", "1", "--compile")
    if "cannot be compiled here" in compiled.err:
        pytest.skip(compiled.err)
    assert "(compiled in" in compiled.err
    assert (compiled.status, compiled.out) == (0, plain.out)


def test_evaluate_reports_what_the_model_recites(call, trained_run):
    result = call("evaluate", "--ckpt_path", str(trained_run), "--memorisation", "2")
    memorised = json.loads(result.out)["memorisation"]
    data = minigpt.TextDataModule(lower=True, strip=True)
    train = data.tokenizer.decode(data.train_ids)
    for scores in memorised.values():
        assert scores["overlap"] in train
        assert scores["longest_overlap"] == len(scores["overlap"]) > 2
    assert memorised["text"]["share"] < 0.1


def test_a_long_prompt_is_noted(call, trained_run):
    result = call("generate", "--ckpt_path", str(trained_run), "--prompt", "le " * 30, "--max_new_tokens", "3")
    assert result.status == 0
    assert "sees only the last 64 tokens" in result.err
    assert result.out.startswith("le " * 30)


def test_a_prompt_comes_from_standard_input_when_asked(call, trained_run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("le soir, "))
    result = call("generate", "--ckpt_path", str(trained_run), "--prompt", "-", "--max_new_tokens", "5")
    assert result.out.startswith("le soir, ")


def test_evaluate_scores_the_validation_text_of_the_run(call, trained_run):
    result = call("evaluate", "--ckpt_path", str(trained_run))
    scores = json.loads(result.out)
    data = minigpt.TextDataModule(lower=True, strip=True)
    expected = evaluate(minigpt.load(trained_run).model, data.val_ids, data.tokenizer.lengths)
    assert list(scores) == ["loss", "bits_per_char", "perplexity", "accuracy", "tokens", "characters", "baselines"]
    assert scores.pop("baselines") == pytest.approx(data.baselines, abs=1e-6)
    assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_evaluate_prints_a_table_on_a_terminal_unless_json_is_asked_for(call, trained_run, monkeypatch):
    piped = call("evaluate", "--ckpt_path", str(trained_run), "--memorisation", "1")
    scores = json.loads(piped.out)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert call("evaluate", "--ckpt_path", str(trained_run), "--memorisation", "1", "--json").out == piped.out
    table = call("evaluate", "--ckpt_path", str(trained_run), "--memorisation", "1").out
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in table.splitlines() if re.search(r"\S  +\S", line))
    assert rows["loss"] == f"{scores['loss']:.4f}  nats per token"
    assert rows["tokens"] == f"{scores['tokens']:,}"
    names = [line.split("  ")[0] for line in table.splitlines() if line[0] != " "]
    assert names == [name.replace("_", " ") + " (bits per char)" * (name == "baselines") for name in scores]
    samples = scores["memorisation"]["samples"]
    expected = rf"^    longest overlap +{samples['longest_overlap']}\n    share +{samples['share']:.4f}\n"
    assert re.search(expected, table, re.MULTILINE)
    assert f" {samples['overlap']!r}\n" in table


def test_every_setting_of_a_text_is_an_option_of_generate(call, trained_run):
    settings = set(inspect.signature(minigpt.LanguageModel.stream_batch).parameters) - {"self", "prompts", "first"}
    words = set(call("generate", "--help").out.replace("[", " ").split())
    assert {f"--{name}" for name in settings} <= words
    flags = ["--ckpt_path", str(trained_run), "--temperature", "0", "--max_new_tokens", "40"]
    lm = minigpt.load(trained_run)
    texts = []
    for value, penalty in (("none", None), ("1.7", 1.7)):
        texts.append(lm.generate("un matin,", 40, temperature=0, repetition_penalty=penalty, top_k=30, top_p=0.9))
        assert call("generate", *flags, "--repetition_penalty", value).out == texts[-1] + "\n"
    assert texts[0] != texts[1]


def test_evaluate_agrees_with_what_training_reported(call):
    trained = call("train", "--config", TINY, "--trainer.max_steps", "20", "--trainer.accelerator", "cpu")
    scores = json.loads(call("evaluate").out)
    assert f"validation loss {scores['loss']:.4f} nats per token" in trained.out


def test_evaluate_scores_the_whole_of_another_text(call, trained_run, folder):
    text = read("exemple", lower=True, strip=True)[:5000]
    (folder / "mine.txt").write_text(text, encoding="utf-8")
    scores = json.loads(call("evaluate", "--ckpt_path", str(trained_run), "--data.path", "mine.txt").out)
    assert scores["tokens"] == len(text.strip()) - 1


@pytest.mark.parametrize("command", ["train", "generate", "evaluate"])
def test_help_describes_and_exits_0(call, command):
    result = call(command, "--help")
    assert result.status == 0
    assert "--ckpt_path" in result.out


@pytest.mark.parametrize(("command", "default"), [("generate", "0.9"), ("sweep", None), ("compare", None)])
def test_help_shows_defaults_that_say_something(call, command, default):
    out = call(command, "--help").out
    assert "(default: None)" not in out
    assert default is None or f"(default: {default})" in " ".join(out.split())


def test_ctrl_c_ends_the_line_and_exits_130(call, trained_run, monkeypatch):
    from minigpt.generation import text

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(text, "generate_ids", interrupted)
    result = call("generate", "--ckpt_path", str(trained_run))
    assert result.status == 130
    assert result.out == "un matin,"


def test_the_command_that_goes_on_names_the_run_in_place_of_an_earlier_checkpoint():
    given = ["--data.path", "a.txt", "--ckpt_path=a", "--ckpt_path", "b", "--model.network.n_embd", "8"]
    again = commands.training.resume_command(given, Path("run"))
    assert again.endswith("train.py --data.path a.txt --model.network.n_embd 8 --ckpt_path run")


@pytest.mark.slow
def test_a_tilde_is_the_home_folder_in_every_path_and_form(call, folder, monkeypatch):
    home = folder / "home"
    (home / "cache").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "r.yaml").write_bytes(Path(TINY).read_bytes())
    (home / "s.yaml").write_text("model.network.n_embd: [8]")
    (home / "t.txt").write_text("un matin, il fit beau. " * 90)
    run = "~/runs/lightning_logs/r/version_0"
    train = ["--config=~/r.yaml", "--trainer.default_root_dir=~/runs", "--data.path=~/t.txt", *QUICK]
    train += ["--data.cache_dir=~/cache/a", "--data.in_memory_mb=0", "--figures.every_n_steps=0"]
    split = [word for arg in train for word in (arg.split("=", 1) if "=" in arg else [arg])]

    def done(*words: str) -> None:
        result = call(*words)
        assert result.status == 0, result.err
        assert not (folder / "~").exists()

    done("train", *train, "--trainer.max_steps=2")
    done("train", *split, f"--ckpt_path={run}", "--trainer.max_steps=4")
    done("train", "-c", "~/r.yaml", *split[2:], "--trainer.max_steps=6", "--ckpt_path", run)
    done("generate", f"--ckpt_path={run}")
    done("evaluate", f"--ckpt_path={run}", "--data.path=~/t.txt", "--data.cache_dir=~/cache/b", "--figures=~/f")
    done("evaluate", "--ckpt_path", run, "--data.path", "~/t.txt", "--figures", "~/f")
    done("export", "--ckpt_path", run, "--format=safetensors", "--out=~/e")
    done("export", "--ckpt_path", "~/e", "--format=safetensors", "--out", "~/e2")
    sweep = ["sweep", *train, "--trainer.max_steps=2", "--trials=1"]
    done(*sweep, "--space=~/s.yaml", "--storage=~/a.db")
    done(*sweep, "--space", "~/s.yaml", "--storage", "sqlite:///~/b.db")
    made = {"a.db", "b.db", "cache", "e", "e2", "f", "r.yaml", "runs", "s.yaml", "t.txt"}
    assert made <= {path.name for path in home.iterdir()}
    assert list((home / "cache" / "a").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["with blanks [1]", "-dash"])
def test_the_commands_that_are_printed_run_from_where_one_stands(call, train, folder, monkeypatch, place):
    (folder / place).mkdir()
    for here, root in ((folder, place), (folder / place, "."), (folder / place, str(folder / "else where"))):
        monkeypatch.chdir(here)
        result = train("--trainer.max_steps", "2", f"--trainer.default_root_dir={root}")
        curves, more = (shlex.split(line) for line in result.out.splitlines()[-3::2])
        assert shutil.which(curves[0])
        assert Path(curves[2], "config.yaml").is_file()
        assert Path(shutil.which(more[0])).samefile(sys.executable)
        assert Path(more[1]).samefile(ROOT / "scripts" / "generate.py")
        again = call("generate", *more[2:])
        assert again.status == 0, again.err
    monkeypatch.chdir(ROOT)
    assert command_line.command("train", "a b").endswith("python scripts/train.py 'a b'")
    assert command_line.example_config() == "configs/tiny.yaml"


@pytest.mark.parametrize(
    "args",
    [
        ("generate", "--ckpt_path", "a" * 300), ("generate", "--ckpt_path", "a/" * 3000),
        ("train", "--config", "a" * 300), ("train", "--config", TINY, "--init_from", "a" * 300),
        ("compare", "a" * 300, "last"),
    ],
    ids=lambda args: f"{args[0]} {args[-2]}",
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_a_mistake(call, args):
    answered = call(*args)
    assert answered.status == 2
    assert answered.err.splitlines()[-1].endswith("…' cannot be used: File name too long. Pass a different path.")
