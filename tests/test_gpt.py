import math

import pytest
import torch
from torch.nn import functional as F

from minigpt import GPT, MiniGPTError
from minigpt.models.settings import PRESETS

SHAPES = [(1, 1, 16, 8), (2, 4, 32, 16), (3, 6, 96, 33)]  # n_layer, n_head, n_embd, block_size


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights far from the initial ones, so that nothing hides behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = (
                torch.randn(parameter.shape, generator=generator) * 0.3 / math.sqrt(max(1, parameter.shape[-1] / 16))
            )
            parameter.copy_(noise + 1 if parameter.dim() == 1 and "norm" in name and "bias" not in name else noise)
    return model.eval()


@pytest.mark.parametrize("ngrams", [0, 40])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_token_changes_no_logits_before_it(preset, ngrams):
    model = randomise(GPT(30, 16, 2, 4, 32, preset, ngrams=ngrams), 0)
    idx = torch.randint(0, 30, (2, 16))
    changed = idx.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 30
    before, after = model(idx), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(dim=-1).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_first_loss_is_about_that_of_a_guess(preset):
    torch.manual_seed(0)
    idx = torch.randint(0, 65, (8, 33))
    loss = F.cross_entropy(GPT(65, 32, preset=preset)(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.1


@pytest.mark.parametrize("preset", PRESETS)
def test_one_batch_can_be_learned_by_heart(preset):
    torch.manual_seed(0)
    idx = torch.randint(0, 20, (4, 17))
    model = GPT(20, 16, 2, 2, 32, preset)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(150):
        loss = F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_learns(preset):
    torch.manual_seed(0)
    model = randomise(GPT(30, 16, 2, 4, 32, preset), 0)
    F.cross_entropy(model(torch.randint(0, 30, (4, 16))).flatten(0, 1), torch.randint(0, 30, (64,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_ngrams_let_a_model_without_attention_see_three_tokens_and_no_more():
    model = randomise(GPT(30, 16, 2, 4, 32, "modern", ngrams=997), 0)
    for block in model.blocks:
        block.attn.proj.weight.zero_()
    idx = torch.randint(0, 30, (2, 16))
    changed = idx.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 30
    moved = (model(idx) != model(changed)).any(dim=-1).any(dim=0)
    assert moved.tolist() == [5 <= place <= 7 for place in range(16)]


def test_ngrams_start_as_no_change_and_learn():
    torch.manual_seed(0)
    model, plain = (GPT(30, 16, 2, 4, 32, "modern", zero_init=False, ngrams=n) for n in (40, 0))
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if "ngrams" not in name})
    idx = torch.randint(0, 30, (4, 16))
    logits = model(idx)
    assert torch.equal(logits, plain(idx))
    F.cross_entropy(logits.flatten(0, 1), idx.roll(-1).flatten()).backward()
    assert all(table.weight.grad.abs().sum() > 0 for table in model.ngrams)


def test_an_explicit_switch_wins_over_the_preset():
    model = GPT(10, 8, preset="llama", mlp="gelu", bias=True)
    assert model.settings.mlp == "gelu"
    assert model.blocks[0].mlp.up.bias is not None
    assert model.settings.position == "rope"


def test_the_switches_do_what_they_say():
    tied, free = GPT(10, 8, preset="gpt2"), GPT(10, 8, preset="gpt2", tie_weights=False)
    assert tied.lm_head.weight is tied.embed.weight
    assert free.lm_head.weight is not free.embed.weight
    capped = randomise(GPT(10, 8, preset="gpt2", softcap=2.0), 1)
    assert capped(torch.randint(0, 10, (4, 8))).abs().max() < 2
    zero = GPT(10, 8, preset="modern")
    assert zero(torch.randint(0, 10, (1, 8))).abs().max() == 0
    assert sum(p.numel() for n, p in GPT(10, 8, bias=False).named_parameters() if n.endswith("bias")) == 0


def test_rope_sees_distances_alone():
    torch.manual_seed(0)
    model = randomise(GPT(30, 32, 1, 2, 32, "llama"), 0)
    attn, x = model.blocks[0].attn, torch.randn(1, 4, 32)
    at_0, at_20 = (attn(x, model.rope(torch.arange(s, s + 4))) for s in (0, 20))
    torch.testing.assert_close(at_0, at_20)
    assert not torch.allclose(at_0, attn(x, None))


def test_grouped_heads_equal_repeated_ones():
    torch.manual_seed(0)
    grouped = randomise(GPT(30, 16, 1, 4, 32, "llama", n_kv_head=2), 0)
    full = GPT(30, 16, 1, 4, 32, "llama").eval()
    weights = grouped.state_dict()
    q, k, v = weights["blocks.0.attn.qkv.weight"].split([32, 16, 16])
    repeat = [t.view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32) for t in (k, v)]
    full.load_state_dict(weights | {"blocks.0.attn.qkv.weight": torch.cat([q, *repeat])})
    idx = torch.randint(0, 30, (2, 16))
    torch.testing.assert_close(grouped(idx), full(idx))


def test_dropout_is_for_training_alone():
    model = GPT(30, 16, dropout=0.5)
    randomise(model, 0)
    idx = torch.randint(0, 30, (1, 16))
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("n_layer", "n_head", "n_embd", "block_size"), SHAPES)
def test_gpt2_gives_hugging_faces_logits(seed, n_layer, n_head, n_embd, block_size):
    transformers = pytest.importorskip("transformers")
    ours = randomise(GPT(50, block_size, n_layer, n_head, n_embd, "gpt2"), seed)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50, n_positions=block_size, n_embd=n_embd, n_layer=n_layer, n_head=n_head,
            attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    from minigpt.export.hugging_face import to_hugging_face

    theirs.load_state_dict(to_hugging_face(ours)[1])
    idx = torch.randint(0, 50, (3, block_size), generator=torch.Generator().manual_seed(seed))
    assert (ours(idx) - theirs(idx).logits).abs().max() < 1e-5


# Sizes and constants that pretrained models set otherwise than a preset does.
UNUSUAL = {
    "grouped": {"n_kv_head": 2}, "tied": {"tie_weights": True}, "biases": {"bias": True},
    "constants": {"rope_base": 100_000.0, "norm_eps": 1e-3}, "sizes": {"head_size": 6, "mlp_width": 50},
}  # fmt: skip


@pytest.mark.parametrize("settings", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_llama_gives_hugging_faces_logits(settings):
    transformers = pytest.importorskip("transformers")
    from minigpt.export.hugging_face import to_hugging_face

    ours = randomise(GPT(50, 40, 2, 4, 32, "llama", **settings), 0)
    usual = GPT(50, 40, 2, 4, 32, "llama", bias=settings.get("bias"))
    config, weights = to_hugging_face(ours)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    theirs.load_state_dict(weights)
    idx = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(0))
    assert (ours(idx) - theirs(idx).logits).abs().max() < 1e-5
    if settings.keys() <= {"rope_base", "norm_eps"}:  # they change the logits of the same weights
        usual.load_state_dict(ours.state_dict())
        assert (ours(idx) - usual(idx)).abs().max() > 1e-3
    assert GPT(**ours.config).settings == ours.settings


def test_an_unusual_gpt2_gives_hugging_faces_logits():
    transformers = pytest.importorskip("transformers")
    from minigpt.export.hugging_face import to_hugging_face

    ours = randomise(GPT(50, 16, 2, 4, 32, "gpt2", mlp_width=48, norm_eps=1e-3, tie_weights=False), 0)
    config, weights = to_hugging_face(ours)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).eval()
    theirs.load_state_dict(weights)
    idx = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    assert (ours(idx) - theirs(idx).logits).abs().max() < 1e-5


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("n_kv_head", [None, 1])
@pytest.mark.parametrize(("n_layer", "n_head", "n_embd", "block_size"), SHAPES)
def test_llama_gives_hugging_faces_logits(seed, n_kv_head, n_layer, n_head, n_embd, block_size):
    transformers = pytest.importorskip("transformers")
    ours = randomise(GPT(50, block_size, n_layer, n_head, n_embd, "llama", n_kv_head=n_kv_head), seed)
    from minigpt.export.hugging_face import to_hugging_face

    config, weights = to_hugging_face(ours)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    theirs.load_state_dict(weights)
    idx = torch.randint(0, 50, (3, block_size), generator=torch.Generator().manual_seed(seed))
    assert (ours(idx) - theirs(idx).logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_embd": 130}, "n_embd is 130"),
        ({"n_kv_head": 3}, "not divisible by n_kv_head 3"),
        ({"n_embd": 12, "preset": "llama"}, "even head size"),
        ({"preset": "lama"}, "Did you mean 'llama'"),
        ({"position": "absolute"}, "position is 'absolute'"),
        ({"norm": "batchnorm"}, "norm is"),
        ({"mlp": "relu"}, "mlp is"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"dropout": 1.0}, "dropout is"),
        ({"softcap": -1.0}, "softcap is"),
        ({"ngrams": -1}, "ngrams is -1"),
        ({"head_size": 0}, "head_size is 0"),
        ({"head_size": 3, "preset": "llama"}, "even head size, but it is 3"),
        ({"mlp_width": 1.5}, "mlp_width is 1.5"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"rope_base": -1.0}, "rope_base is -1.0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings, words):
    with pytest.raises(MiniGPTError, match=words):
        GPT(10, 8, **settings)


def test_weight_averaging_leaves_the_tables_of_positions_alone():
    model = GPT(30, block_size=64, n_layer=1, n_head=2, n_embd=16, preset="modern")
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999), use_buffers=True
    )
    for _ in range(50):
        averaged.update_parameters(model)
    assert torch.equal(averaged.module.rope.cos, model.rope.cos)
    assert torch.equal(averaged.module.rope.sin, model.rope.sin)
    assert model.to(torch.bfloat16).rope.cos.dtype == torch.bfloat16, "they go where the weights go"
