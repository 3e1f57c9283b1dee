"""What a model thinks, as numbers and as pictures."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import QUICK, TINY
from torch.nn import functional as F

import minigpt
from minigpt import figures, introspection
from minigpt.generation.sampling import filter_logits
from minigpt.models.gpt import Attention


@pytest.fixture
def gpt():
    torch.manual_seed(3)
    model = minigpt.GPT(vocab_size=30, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, preset="llama")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("first", [1, 3, 8, 9, 12, 20])
def test_the_next_logits_are_those_of_the_window_that_generation_sees(gpt, first):
    ids = torch.randint(0, 30, (20,)).tolist()
    logits = introspection.next_logits(gpt, ids, first)
    assert len(logits) == 20 - first + 1
    for row, length in zip(logits, range(first, 21), strict=True):
        window = torch.tensor([ids[:length][-8:]])
        torch.testing.assert_close(row, gpt(window)[0, -1], atol=1e-5, rtol=1e-5)


def test_surprisal_is_the_bits_of_each_id(gpt):
    ids = torch.randint(0, 30, (8,)).tolist()
    bits = introspection.surprisal(gpt, ids, first=3)
    expected = F.cross_entropy(gpt(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:]), reduction="none") / math.log(2)
    torch.testing.assert_close(bits, expected[2:])
    assert len(introspection.surprisal(gpt, ids, first=8)) == 0


def test_next_probabilities_before_and_after_the_controls(gpt):
    ids = [1, 2, 3]
    before, after = introspection.next_probabilities(gpt, ids, temperature=0.5, top_k=4, top_p=0.9)
    logits = gpt(torch.tensor([ids]))[:, -1]
    torch.testing.assert_close(before, logits.softmax(-1)[0])
    torch.testing.assert_close(after, filter_logits(logits, 0.5, 4, 0.9).softmax(-1)[0])
    assert 1 <= (after > 0).sum() <= 4
    _, less = introspection.next_probabilities(gpt, ids, repetition_penalty=3.0)
    penalised = filter_logits(logits, repetition_penalty=3.0, generated=torch.tensor([ids]))
    torch.testing.assert_close(less, penalised.softmax(-1)[0])
    assert not torch.allclose(less, before)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "modern"])
def test_attention_gives_what_the_kernel_computed(preset):
    torch.manual_seed(0)
    model = minigpt.GPT(vocab_size=20, block_size=16, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, preset=preset).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 20, (12,))
    maps = introspection.attention(model, ids)
    assert maps.shape == (2, 4, 12, 12)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 12))
    assert maps.triu(1).abs().max() == 0
    attn, seen = model.blocks[1].attn, {}
    hooks = [
        attn.register_forward_pre_hook(lambda _, args: seen.update(args=args)),
        attn.proj.register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0])),
    ]
    model(ids[None])
    for hook in hooks:
        hook.remove()
    v = attn.project(*seen["args"][:2])[2].repeat_interleave(attn.groups, dim=1)
    mixed = (maps[1] @ v[0]).transpose(0, 1).reshape(1, 12, 32)
    torch.testing.assert_close(mixed, seen["mixed"], atol=1e-5, rtol=1e-4)
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
    assert introspection.attention(model, torch.randint(0, 20, (40,))).shape == (2, 4, 16, 16)


class Own(torch.nn.Module):
    """A network of one's own with attention layers of minigpt's."""

    def __init__(self, n_heads=(2, 2)):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(20, 16), torch.nn.Linear(16, 20)
        settings = {"qk_norm": False, "bias": True}
        self.layers = torch.nn.ModuleList(
            Attention(n, 16, heads, heads, 0.0, settings) for n, heads in enumerate(n_heads)
        )

    def forward(self, idx):
        x = self.embed(idx)
        for layer in self.layers:
            x = x + layer(x, None)
        return self.head(x)


def test_a_network_that_has_attention_layers_shows_them_whatever_its_class():
    own = Own().eval()
    assert introspection.attention_size(own) == (2, 2)
    assert introspection.attention(own, torch.arange(6)).shape == (2, 2, 6, 6)
    tokenizer = minigpt.CharTokenizer.from_text("abcdefghijklmnopqrst")
    assert "attention" in figures.figures(own, tokenizer, torch.arange(20), torch.ones(4))
    assert introspection.attention_size(Own((1, 2))) is None, "maps of different heads do not fit into one figure"
    assert introspection.attention_size(minigpt.TinyGPT(20)) is None


def test_transitions_are_the_model(distinct_model):
    model, tokenizer = distinct_model
    table = introspection.transitions(model)
    ids = tokenizer.encode("qu")
    torch.testing.assert_close(table[ids[0]], model(torch.tensor([[ids[0]]]))[0, 0].softmax(-1))


def test_a_cell_is_as_dark_as_its_value_is_high():
    values = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    image = figures.draw_table(values, ["a"], ["", "", "", ""], "four")
    pixels = np.array(image.convert("L"))
    row = pixels[pixels.shape[0] - 12]
    shades = [shade for shade in dict.fromkeys(row.tolist()) if shade != 255]
    assert shades == sorted(shades, reverse=True)
    assert len(shades) == 3  # nothing is as white as the paper
    assert shades[-1] < 40


def test_the_letters_of_a_figure_are_drawn():
    plain, named = (figures.draw_table(torch.zeros(2, 2), ["", ""], ["", ""], title) for title in ("", "title"))
    assert not (np.array(plain) == figures.INK).any()
    assert (np.array(named)[:20] == figures.INK).any()


def test_a_single_map_leaves_room_for_its_title():
    few, many = (np.array(figures.draw_attention(torch.zeros(1, n_head, 40, 40))) for n_head in (1, 8))
    few, many = ((image[:20] < figures.PAPER).sum() for image in (few, many))
    assert few == many > 0


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_figures_of_a_bigram_over_any_tokens(tokenizer):
    from minigpt.data.tokenizers import KINDS

    text = "un matin, le chat dort près du feu — « œuf » à l'aube !\n" * 30
    tokens = KINDS[tokenizer].from_text(text)
    ids = torch.tensor(tokens.encode(text))[:60]
    drawn = figures.figures(minigpt.TinyGPT(tokens.vocab_size, n_embd=8), tokens, ids, torch.rand(64))
    assert set(drawn) == {"transitions", "next_token", "loss_by_position"}
    assert all(max(image.size) < 3000 for image in drawn.values())


def test_evaluate_draws_into_a_folder(call, folder, trained_run):
    result = call("evaluate", "--ckpt_path", str(trained_run), "--figures", "drawn/here")
    assert result.status == 0, result.err
    json.loads(result.out)
    names = {file.name for file in (folder / "drawn" / "here").iterdir()}
    assert names == {"transitions.png", "next_token.png", "loss_by_position.png"}
    (folder / "file").touch()
    result = call("evaluate", "--ckpt_path", str(trained_run), "--figures", "file")
    assert result.status == 2
    assert "'file'" in result.err


def test_loss_by_position_falls_where_context_helps_and_its_mean_is_the_loss():
    from minigpt.evaluation import measure

    class Repeater(torch.nn.Module):
        """Sure of a period of four once it has seen it."""

        block_size = 16

        def forward(self, idx):
            logits = torch.zeros(*idx.shape, 5)
            logits[:, 3:] += 20 * F.one_hot(idx[:, :-3], 5)
            return logits

    data = torch.tensor([0, 1, 2, 3] * 41)
    metrics = measure(Repeater(), data, torch.ones(5).long())
    by_position = metrics.by_position.compute()
    assert by_position[0].item() == pytest.approx(math.log(5), rel=1e-5)
    assert by_position[8] < 1e-3
    weights = metrics.by_position.windows / metrics.by_position.windows.sum()
    assert (by_position * weights).sum().item() == pytest.approx(metrics.compute()["loss"].item(), rel=1e-5)
    assert metrics.scores()["tokens"] == len(data) - 1


def images(run_dir) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    shown: dict[str, list[int]] = {}
    for file in run_dir.glob("events.*"):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.tag.startswith("figures/"):
                    shown.setdefault(value.tag, []).append(event.step)
    return shown


@pytest.mark.slow
def test_figures_come_with_validations_and_can_be_switched_off(folder, call):
    base = ["train", "--config", TINY, "--trainer.accelerator", "cpu", "--samples.every_n_steps", "0"]
    base += ["--trainer.max_steps", "25", "--validation.every_n_steps", "10"]
    assert call(*base, "--figures.every_n_steps", "1").status == 0
    run = folder / "lightning_logs" / "tiny" / "version_0"
    names = {"figures/transitions", "figures/next_token", "figures/loss_by_position"}
    assert images(run) == {name: [10, 20, 25] for name in names}
    names = (run / "00025" / "embedding" / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert "é" in names
    assert "␣" in names
    assert call(*base, "--figures.every_n_steps", "20").status == 0
    assert set(map(tuple, images(run.with_name("version_1")).values())) == {(20, 25)}
    assert call(*base, "--figures.every_n_steps", "0").status == 0
    assert images(run.with_name("version_2")) == {}
    assert not (run.with_name("version_2") / "projector_config.pbtxt").exists()
    states = [
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in run.parent.iterdir()
    ]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in state)


@pytest.mark.parametrize("values", [[1.0], [math.nan] * 5, [2.0, math.nan, math.inf, 1.0]])
def test_a_single_position_and_a_model_that_diverged_are_drawn(values):
    by_position = torch.tensor(values).squeeze()
    assert figures.draw_loss(by_position).width > 0


def test_the_loss_by_position_takes_a_title():
    by_position = torch.tensor([2.5, 2.0, 1.8, 1.7])
    plain, french = figures.draw_loss(by_position), figures.draw_loss(by_position, "perte selon la position")
    assert plain.tobytes() == figures.draw_loss(by_position, "loss in nats by position in the context").tobytes()
    assert plain.tobytes() != french.tobytes()


def test_a_block_of_one_token_trains_with_figures(call, folder):
    flags = ["--trainer.max_steps", "3", "--figures.every_n_steps", "1", "--data.block_size", "1"]
    result = call("train", "--config", TINY, *QUICK, *flags)
    assert result.status == 0, result.err
    assert images(folder / "lightning_logs" / "tiny" / "version_0").keys() >= {"figures/next_token"}
