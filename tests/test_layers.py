"""The modules that `minigpt.cpu` puts in the place of PyTorch's compute the same."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from test_gpt import randomise
from torch.nn import functional as F

import minigpt
from minigpt import GPT
from minigpt.cpu import layers, optimize
from minigpt.cpu.int8 import Int8Linear, quantize
from minigpt.cpu.layers import GELU, Embedding, dropout
from minigpt.models import describe
from minigpt.models.stock import unknown_part
from minigpt.training.compiling import Compiling, OptimizeForCPU

PARTITIONED = "aot_eager_decomp_partition"  # the compiler's ways with random numbers, without its C++


@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_dropped_and_the_rest_makes_up_for_it(share, dtype):
    x = torch.ones(999, 1001, dtype=dtype, requires_grad=True)  # no multiple of four
    y = dropout(x, share)
    assert (y == 0).double().mean().item() == pytest.approx(share, abs=0.003)
    assert y.dtype == dtype
    assert y.unique().tolist() == [0, torch.tensor(1 / (1 - share), dtype=dtype).item()]
    y.sum().backward()
    assert torch.equal(x.grad, y)
    for dim in (0, 1):  # neither rows nor columns are dropped together
        assert (y == 0).double().mean(dim).std() == pytest.approx((share * (1 - share) / 1000) ** 0.5, rel=0.2)


def test_what_is_dropped_is_the_generators_choice():
    x = torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)
    assert dropout(x, 0.0) is x
    assert (dropout(x, 1 - 1e-9) == 0).double().mean() > 0.99


@pytest.mark.slow
def test_compiled_code_drops_anew_each_time_and_the_same_on_the_way_back():
    def four(x):
        return [dropout(x.sin(), 0.5) for _ in range(4)]

    x = torch.linspace(1, 2, 4096, requires_grad=True)
    outs = torch.compile(four, backend=PARTITIONED)(x)
    for n, out in enumerate(outs):
        (gradient,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        assert torch.equal(gradient == 0, out == 0)
        assert not any(torch.equal(out == 0, other == 0) for other in outs[:n])


@pytest.mark.slow
def test_compiled_blocks_computed_again_have_the_gradients_of_those_that_are_kept():
    idx = torch.arange(64).view(4, 16) % 11

    def gradients(again: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        torch.compiler.reset()
        model = GPT(11, 16, n_embd=32, n_layer=2, n_head=2, dropout=0.3, preset="llama").train()
        optimize(model)
        model.activation_checkpointing = again
        loss = torch.compile(lambda: F.cross_entropy(model(idx).flatten(0, 1), idx.flatten()), backend=PARTITIONED)
        torch.manual_seed(1)
        return torch.autograd.grad(loss(), list(model.parameters()))

    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(gradients(False), gradients(True), strict=True))


@pytest.mark.slow
def test_an_embedding_compiled_on_two_threads_has_one_gradient():
    torch.set_num_threads(2)
    torch.manual_seed(0)
    table, idx = Embedding(7, 16), torch.randint(7, (64, 64))
    weights = torch.randn(64, 64, 16)
    compiled = torch.compile(lambda: (table(idx) * weights).sum())
    gradients = [torch.autograd.grad(compiled(), table.weight)[0] for _ in range(20)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    (eager,) = torch.autograd.grad((F.embedding(idx, table.weight) * weights).sum(), table.weight)
    assert torch.allclose(eager, gradients[0], atol=1e-4)


def test_gelu_in_code_compiled_for_training_is_the_same_function_without_a_tanh():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph

    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    compiled = torch.compile(GELU(approximate="tanh"), backend=backend)
    y, expected = compiled(x), F.gelu(x, approximate="tanh")
    assert torch.allclose(y, expected, atol=1e-6)
    (gradient,), (right,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(gradient, right, atol=1e-5)
    with torch.no_grad():
        compiled(x)
    assert ["sigmoid" in code for code in graphs] == [True, False]
    assert ["gelu" in code for code in graphs] == [False, True]


def test_a_draw_of_the_generator_serves_four_numbers():
    torch.manual_seed(3)
    found = dropout(torch.ones(1001), 0.25)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(torch.randint(2**63 - 1, (1,)).item())
    draws = torch.empty(251, dtype=torch.int64).random_(-(2**63), None, generator=generator).tolist()
    words = [
        int.from_bytes((draw % 2**64).to_bytes(8, "little")[n : n + 2], "little")
        for draw in draws
        for n in (0, 2, 4, 6)
    ]
    signed = [word - 2**16 * (word >= 2**15) for word in words][:1001]
    assert (found == 0).tolist() == [word < 0.25 * 2**16 - 2**15 for word in signed]


MODELS = {
    "gpt2": {"preset": "gpt2", "dropout": 0.2}, "llama": {"preset": "llama", "n_kv_head": 2},
    "modern": {"preset": "modern", "ngrams": 40}, "gelu": {"preset": "modern", "mlp": "gelu", "dropout": 0.1},
}  # fmt: skip


def logits_and_gradients(model, idx):
    logits = model(idx)
    return logits, torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), idx.flatten()), list(model.parameters()))


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_an_optimized_gpt_is_the_plain_one_where_nothing_is_dropped(settings):
    model = randomise(GPT(30, 16, 2, 4, 32, **settings), 0)
    optimized = copy.deepcopy(model)
    optimize(optimized)
    for each in (model, optimized):
        each.train(settings.get("dropout") is None)
    idx = torch.arange(32).view(2, 16) % 30
    assert str(optimized) == str(model)
    assert sum(type(module) in layers.REPLACEMENTS.values() for module in optimized.modules()) >= 8
    assert describe(optimized) == describe(model)
    (logits, gradients), (expected, right) = (logits_and_gradients(each, idx) for each in (optimized, model))
    assert torch.equal(logits, expected)
    assert all(torch.equal(*pair) for pair in zip(gradients, right, strict=True))
    state = optimized.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for other in (copy.deepcopy(optimized), pickle.loads(pickle.dumps(optimized))):
        assert [type(module) for module in other.modules()] == [type(module) for module in optimized.modules()]
        assert torch.equal(other(idx), expected)


def test_attention_in_four_operations_drops_its_share_of_weights_and_nothing_else():
    torch.manual_seed(0)
    model = GPT(30, 16, 1, 2, 32, dropout=0.3)
    plain, replaced = model.blocks[0].attn, copy.deepcopy(model.blocks[0].attn)
    optimize(replaced)
    q, k, v = torch.randn(3, 2, 2, 16, 16).unbind()
    expected = plain.eval().attend(q, k, v, None)
    torch.testing.assert_close(replaced.train().attend(q, k, v, None).shape, expected.shape)
    mean = torch.stack([replaced.attend(q, k, v, None) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.15)
    one_hot = torch.eye(16).expand(2, 2, 16, 16)  # with which attention returns its weights
    dropped = replaced.attend(q, k, one_hot, None)
    weights = plain.attend(q, k, one_hot, None)
    left = dropped != 0
    torch.testing.assert_close(dropped[left], weights[left] / 0.7)
    assert left.sum() / (weights != 0).sum() == pytest.approx(0.7, abs=0.06)


def test_optimizing_twice_changes_nothing_and_a_shared_module_stays_shared():
    model = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.Embedding(5, 4), torch.nn.GELU(approximate="tanh"))
    model.append(model[0])
    weight, before = model[1].weight, list(model)
    optimize(model)
    kinds = [type(module) for module in model]
    assert kinds == [layers.Dropout, layers.Embedding, layers.GELU, layers.Dropout]
    optimize(model)
    assert [type(module) for module in model] == kinds
    assert all(one is two for one, two in zip(model, before, strict=True))
    assert model[1].weight is weight


class Half(torch.nn.Dropout):
    def forward(self, x):
        return x / 2


def test_modules_that_may_compute_something_else_are_left_alone():
    hooked, replaced = torch.nn.Dropout(0.1), torch.nn.Dropout(0.1)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    replaced.forward = lambda x: 3 * x
    modules = [
        Half(), hooked, replaced, torch.nn.Dropout(0.1, inplace=True), torch.nn.Dropout(1.0), torch.nn.GELU(),
        torch.nn.Embedding(5, 4, padding_idx=0), torch.nn.Embedding(5, 4, max_norm=1.0),
        torch.nn.Embedding(5, 4, sparse=True), torch.nn.Embedding(5, 4, scale_grad_by_freq=True),
        torch.nn.Dropout1d(0.1), torch.nn.Linear(2, 2),
    ]  # fmt: skip
    model = torch.nn.Sequential(*modules)
    kinds = [type(module) for module in model]
    optimize(model)
    assert [type(module) for module in model] == kinds


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_ordered_weights_are_the_same_values_under_the_same_names(preset):
    torch.manual_seed(0)
    model = GPT(30, 16, 1, 2, 32, preset=preset, bias=False).eval()
    plain = copy.deepcopy(model)
    layers.order_weights(model)
    assert not model.blocks[0].mlp.up.weight.is_contiguous()
    assert model.blocks[0].mlp.down.weight.is_contiguous()
    assert model.embed.weight.is_contiguous(), "an embedding reads rows, also where it is the output layer"
    for (name, weight), (other, expected) in zip(model.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(weight, expected)
    idx = torch.randint(30, (2, 16))
    with torch.no_grad():
        assert torch.allclose(model(idx), plain(idx), atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_training_on_a_cpu_optimizes_its_network(device, stage):
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision="32-true")
    module = SimpleNamespace(network=GPT(30, 16, 1, 2, 32))
    OptimizeForCPU().setup(trainer, module, stage)
    optimized = (device, stage) == ("cpu", "fit")
    assert isinstance(module.network.blocks[0].attn, layers.Attention) == optimized
    Compiling().setup(trainer, module, stage)  # on any device it needs the embedding whose gradient has one order
    assert type(module.network.embed) is layers.Embedding
    assert isinstance(module.network.dropout, layers.Dropout) == optimized


@pytest.mark.parametrize(
    ("capability", "precision", "noted"),
    [("AVX2", "bf16-mixed", True), ("AVX2", "32-true", False), ("AVX512", "bf16-mixed", False)],
)
def test_bf16_on_a_cpu_that_multiplies_it_slowly_is_noted(monkeypatch, capfd, capability, precision, noted):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision=precision)
    OptimizeForCPU().setup(trainer, SimpleNamespace(network=GPT(30, 16, 1, 2, 32)), "fit")
    assert ("pass --trainer.precision 32." in capfd.readouterr().err) == noted


def test_the_trainer_of_lightning_optimizes_a_network_of_ones_own(folder):
    (folder / "text.txt").write_text("abcd " * 200, encoding="utf-8")
    data = minigpt.TextDataModule("text.txt", block_size=8, batch_size=2)
    network = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 5))
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(minigpt.LitLanguageModel(network), data)
    assert [type(module) for module in network] == [layers.Embedding, layers.Dropout, torch.nn.Linear]


def test_an_optimized_model_is_still_a_stock_one():
    model = GPT(30, 16, 2, 4, 32, ngrams=40, dropout=0.1)
    optimize(model)
    assert unknown_part(model) is None


@pytest.mark.parametrize("preset", ["gpt2", "modern"])
def test_under_bf16_autocast_attention_is_what_float32_gives(preset, monkeypatch):
    model = randomise(GPT(vocab_size=20, block_size=24, n_layer=2, n_head=2, n_embd=16, preset=preset), 0)
    optimize(model)
    idx, y = torch.randint(0, 20, (2, 3, 24))

    def gradients(**autocast) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, **autocast):
            logits = model(idx)
        F.cross_entropy(logits.float().flatten(0, 1), y.flatten()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact = gradients(enabled=False)
    in_four = gradients()
    monkeypatch.setattr("minigpt.cpu.layers.LONGEST_MATERIALISED", 23)  # from here on the kernel attends
    kernel = gradients()
    error, error_of_kernel = ((found - exact).norm() / exact.norm() for found in (in_four, kernel))
    assert 0 < error < 0.03
    assert 0 < error_of_kernel < 0.03
    assert not torch.equal(in_four, kernel)


def test_under_bf16_autocast_no_token_sees_a_later_one():
    model = GPT(vocab_size=20, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=0.5)
    optimize(model)
    idx = torch.randint(0, 20, (1, 16))
    changed = torch.cat((idx[:, :9], (idx[:, 9:] + 1) % 20), dim=1)
    logits = []
    for ids in (idx, changed):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits.append(model(ids))
    assert torch.equal(logits[0][:, :9], logits[1][:, :9])
    assert not torch.equal(logits[0][:, 9:], logits[1][:, 9:])


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 48), (48, 5), (40, 7), (33, 7)])  # two for PyTorch's kernel
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_layer_in_8_bits_is_nearly_the_same_in_a_quarter_of_the_memory(n_in, n_out, bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(n_in, n_out, bias=bias)
    linear.weight[0] *= 1000  # each output has steps of its own
    linear.weight[1] = 0
    small = Int8Linear(linear)
    rounded = small.weight * small.scale.float()[:, None]
    assert ((rounded - linear.weight).abs() <= 0.51 * small.scale.float()[:, None]).all()
    assert small.weight.abs().amax(dim=1)[0] == 127
    assert (small.scale > 0).all()
    assert small.weight.nbytes + small.scale.nbytes <= linear.weight.nbytes / 4 + 2 * n_out
    for shape in ((1, 1), (5,), (3, 40), (2, 0)):
        x = torch.randn(*shape, n_in)
        exact = F.linear(x, rounded, linear.bias)
        y = small(x)
        assert (y.shape, y.dtype) == (exact.shape, x.dtype)
        torch.testing.assert_close(y / (1 + linear.weight.norm(dim=1)), exact / (1 + linear.weight.norm(dim=1)),
                                   rtol=0, atol=0.02 if n_in % 16 == 0 else 1e-5)  # fmt: skip
        assert bias or not y.numel() or torch.equal(y, y.bfloat16().float()) == (n_in % 16 == 0)  # the kernel's mark
    expected = small(x := torch.randn(2, 3, n_in))
    for other in (copy.deepcopy(small).double().float(), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), expected)


@torch.no_grad()
def test_what_is_no_number_stays_none_in_8_bits():
    for wrong in (float("nan"), float("inf")):
        linear = torch.nn.Linear(32, 2)
        linear.weight[1, 3] = wrong
        y = Int8Linear(linear)(torch.ones(1, 32))
        assert y[0, 0].isfinite()
        assert y[0, 1].isnan()


@torch.no_grad()
def test_a_model_in_8_bits_keeps_its_embeddings_also_in_the_output_layer():
    torch.manual_seed(0)
    for tied in (True, False):
        model = GPT(30, 16, 2, 2, 32, preset="gpt2", tie_weights=tied)
        idx = torch.randint(30, (2, 16))
        whole, table = model(idx), model.embed.weight.clone()
        quantize(model)
        assert torch.equal(model.embed.weight, table)
        left = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        assert left == (["lm_head"] if tied else [])
        assert not tied or model.lm_head.weight is model.embed.weight
        away = (model(idx) - whole).square().mean().sqrt()
        assert 0 < away < 0.03 * whole.square().mean().sqrt()
