"""What a model thinks, as numbers and as pictures."""

import json
import math
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import QUICK, TINY
from matplotlib.text import Text
from torch.nn import functional as F

import minigpt
from minigpt.generation.sampling import filter_logits
from minigpt.inspection import canvas, figures, introspection
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
        settings = [minigpt.GPT(20, n_head=heads, n_embd=16).settings for heads in n_heads]
        self.layers = torch.nn.ModuleList(Attention(n, each) for n, each in enumerate(settings))

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
    assert "attention" in figures.draw_all(own, tokenizer, torch.arange(20), torch.ones(4))
    assert introspection.attention_size(Own((1, 2))) is None, "maps of different heads do not fit into one figure"
    assert introspection.attention_size(minigpt.TinyGPT(20)) is None


def test_transitions_are_the_model(distinct_model):
    model, tokenizer = distinct_model
    table = introspection.transitions(model)
    ids = tokenizer.encode("qu")
    torch.testing.assert_close(table[ids[0]], model(torch.tensor([[ids[0]]]))[0, 0].softmax(-1))


def pixels(picture) -> np.ndarray:
    """The grey levels of a figure as it is drawn, `(H, W)`."""
    picture.canvas.draw()
    return np.asarray(picture.canvas.buffer_rgba())[..., :3].mean(-1)


def texts(picture) -> list[str]:
    return [text.get_text() for text in picture.findobj(Text)]


def lightness(colours: np.ndarray) -> np.ndarray:
    """The CIE lightness L* of `(N, 3)` sRGB colours from 0 to 1."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_equal_steps_of_the_colour_scale_look_equal_also_without_colour():
    light = lightness(canvas.SCALE(np.linspace(0, 1, 101))[:, :3])
    assert light[0] == pytest.approx(100)
    assert light[-1] < 20
    assert np.abs(light - np.linspace(light[0], light[-1], 101)).max() < 1.5


def test_a_likelier_token_has_a_darker_cell():
    picture = figures.draw_head(torch.tensor([[0.0, 0.25], [0.5, 1.0]]), ["a", "b"], "two")
    grey, box = pixels(picture), picture.axes[0].get_window_extent()
    at = [(box.x0 + box.width * x, len(grey) - box.y0 - box.height * y) for y in (0.75, 0.25) for x in (0.25, 0.75)]
    shades = [grey[round(y), round(x)] for x, y in at]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] == 255
    assert shades[-1] < 60


def test_tokens_are_on_both_axes_of_every_outer_map_and_each_map_has_a_caption():
    tokens = [name for name in "abcdef"]
    said = texts(figures.draw_attention(torch.rand(2, 3, 6, 6), tokens, language="en"))
    assert [said.count(token) for token in tokens] == [2 + 3] * 6
    assert {f"Layer {layer}, head {head}" for layer in (1, 2) for head in (1, 2, 3)} <= set(said)
    assert {"Token that looks", "Token looked at", "Attention weight", "100%"} <= set(said)
    alone = texts(figures.draw_attention(torch.rand(1, 4, 6, 6), tokens, language="fr"))
    assert [alone.count(token) for token in tokens] == [2 + 2] * 6, "four heads of a layer are in two rows"
    assert {"Tête 4", "Jeton qui regarde", "100 %"} <= set(alone)
    picture = figures.draw_attention(torch.full((12, 9, 24, 24), math.nan), ["x"] * 24)
    assert sum(text.startswith(("Layer", "Couche")) for text in texts(picture)) == 64
    assert max(picture.pixels) < 4000


@pytest.mark.parametrize("n", [2, 53, 96])
def test_the_names_of_a_table_do_not_collide(n):
    tokenizer = minigpt.CharTokenizer.from_text("".join(chr(97 + i) if i < 26 else chr(0x390 + i) for i in range(n)))
    picture = figures.draw_transitions(minigpt.TinyGPT(n, n_embd=4), tokenizer)
    renderer, names = picture.canvas.get_renderer(), set("".join(map(tokenizer.decode, [[i] for i in range(n)])))
    boxes = [text.get_window_extent(renderer) for text in picture.axes[0].texts if text.get_text() in names]
    assert len(boxes) == 2 * n
    rows, columns = boxes[:n], boxes[n:]
    assert all(above.y0 >= below.y1 for above, below in pairwise(rows))
    assert all(left.x1 <= right.x0 for left, right in pairwise(columns))
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)


def test_a_large_vocabulary_shows_the_tokens_that_are_expected_most():
    model = minigpt.TinyGPT(200, n_embd=4)
    with torch.no_grad():
        model.lm_head.bias[50:150] += 20
    assert introspection.most_expected(model, 96).min() >= 50
    assert introspection.most_expected(model, 96).max() < 150
    assert introspection.most_expected(model, 300).tolist() == list(range(200))
    rows = torch.tensor([3, 199])
    torch.testing.assert_close(introspection.transitions(model, rows), introspection.transitions(model)[rows])


HOSTILE = ["$x^2$", "_", r"\frac{1}{2}", "$", "{", "漢", "🦊", "\ufffd", "\x00", "a" * 90, "", "é"]


def test_any_token_is_drawn_as_it_is_and_without_a_warning(capfd, recwarn):
    picture = figures.draw_head(torch.rand(12, 12), [introspection.name_of(token) for token in HOSTILE], "$a_b$ 🦊")
    picture.png()
    said = texts(picture)
    assert {"$x^2$", "_", "$", "{", "▯", "a" * 11 + "…", "é"} <= set(said)
    assert "🦊" not in "".join(said), "DejaVu lacks it"
    assert not any(text.get_parse_math() for text in picture.axes[0].texts)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_white_space_and_control_characters_have_signs():
    assert introspection.name_of(" a\n\t\r\u00a0") == "␣a↵⇥␍⍽"


def test_a_figure_shows_itself_in_a_notebook_and_is_larger_on_paper():
    picture = figures.draw_loss(torch.tensor([2.5, 2.0, 1.8, 1.7]))
    small, large = picture._repr_png_(), picture.png(canvas.PRINT_DPI)
    sizes = [struct.unpack(">II", png[16:24]) for png in (small, large)]
    assert sizes[0] == picture.pixels
    assert sizes[1][0] > 900
    assert picture.png() == small


def test_visitors_of_the_page_draw_at_the_same_time():
    weights, tokens = torch.rand(20, 20), list("abcdefghijklmnopqrst")
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: figures.draw_head(weights, tokens, "title", "en").png(), range(8)))
    assert set(drawn) == {figures.draw_head(weights, tokens, "title", "en").png()}


@pytest.mark.parametrize("tokenizer", ["char", "word", "bpe"])
def test_figures_of_a_bigram_over_any_tokens(tokenizer):
    from minigpt.data.tokenizers import KINDS

    text = "un matin, le chat dort près du feu — « œuf » à l'aube !\n" * 30
    tokens = KINDS[tokenizer].from_text(text)
    ids = torch.tensor(tokens.encode(text))[:60]
    drawn = figures.draw_all(minigpt.TinyGPT(tokens.vocab_size, n_embd=8), tokens, ids, torch.rand(64))
    assert set(drawn) == {"transitions", "next_token", "loss_by_position"}
    assert all(500 < max(picture.pixels) < 3000 for picture in drawn.values())


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
                if value.tag.startswith("val_figures/"):
                    shown.setdefault(value.tag, []).append(event.step)
    return shown


@pytest.mark.slow
def test_figures_come_with_validations_and_can_be_switched_off(folder, call):
    base = ["train", "--config", TINY, "--trainer.accelerator", "cpu", "--samples.every_n_steps", "0"]
    base += ["--trainer.max_steps", "25", "--validation.every_n_steps", "10"]
    assert call(*base, "--figures.every_n_steps", "1").status == 0
    run = folder / "lightning_logs" / "tiny" / "version_0"
    names = {"val_figures/transitions", "val_figures/next_token", "val_figures/loss_by_position"}
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
    picture = figures.draw_loss(by_position, language="en")
    picture.png()
    assert ("The loss is not finite." in texts(picture)) == all(map(math.isnan, values))
    assert figures.draw_attention(torch.full((1, 1, 2, 2), math.nan), ["a", "b"]).png()


def test_a_model_of_nan_has_all_its_figures():
    model, tokenizer = minigpt.TinyGPT(5, n_embd=4), minigpt.CharTokenizer.from_text("abcde")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    drawn = figures.draw_all(model, tokenizer, torch.arange(5), torch.full((4,), math.inf))
    assert all(picture.png() for picture in drawn.values())


def test_the_loss_by_position_has_axes_with_units_a_title_and_a_language():
    by_position = torch.tensor([2.5, 2.0, 1.8, 1.7, 1.6])
    axes = figures.draw_loss(by_position, language="fr").axes[0]
    assert axes.get_xlabel() == "Position dans le contexte (jetons)"
    assert axes.get_ylabel() == "Perte (nats par jeton)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3–4", "5"]
    assert axes.lines[0].get_ydata() == pytest.approx([2.5, 2.0, 1.75, 1.6])
    assert np.ptp(axes.get_ylim()) >= 1
    assert not axes.texts, "no number lies over the line"
    assert figures.draw_loss(by_position, "A title").axes[0].get_title(loc="left") == "A title"


def test_a_block_of_one_token_trains_with_figures(call, folder):
    flags = ["--trainer.max_steps", "3", "--figures.every_n_steps", "1", "--data.block_size", "1"]
    result = call("train", "--config", TINY, *QUICK, *flags)
    assert result.status == 0, result.err
    assert images(folder / "lightning_logs" / "tiny" / "version_0").keys() >= {"val_figures/next_token"}


def test_figures_take_at_most_three_hundredths_of_the_training_time(monkeypatch):
    from minigpt.training import callbacks

    now = [0.0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(callbacks.Figures, "_draw", lambda *_: now.__setitem__(0, now[0] + 2.0))
    monkeypatch.setattr(callbacks.Figures, "_log_settings", lambda *_: None)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision: decision)
    trainer = SimpleNamespace(sanity_checking=False, max_steps=100, strategy=strategy)
    drawn = {}
    for every in (None, 0, 1, 40):
        figures_, steps = callbacks.Figures(every), []
        figures_.on_train_start(trainer, None)
        for trainer.global_step in range(10, 101, 10):
            now[0] += 10.0  # seconds of training
            before = now[0]
            figures_.on_validation_end(trainer, None)
            steps += [trainer.global_step] * (now[0] > before)
        drawn[every] = steps
    assert drawn == {None: [40, 100], 0: [], 1: list(range(10, 101, 10)), 40: [40, 80, 100]}
