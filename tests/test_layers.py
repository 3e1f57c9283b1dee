"""Layers that stand in for PyTorch's do what those do."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from minigpt import GPT
from minigpt.cpu.layers import Embedding, Int8Linear, dropped, gelu, quantize

PARTITIONED = "aot_eager_decomp_partition"  # the compiler's ways with random numbers, without its C++


@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_dropped_and_the_rest_makes_up_for_it(share, dtype):
    x = torch.ones(999, 1001, dtype=dtype, requires_grad=True)  # no multiple of four
    y = dropped(x, share)
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
    first, second = dropped(x, 0.5), dropped(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropped(x, 0.5), first)
    assert not torch.equal(first, second)
    assert dropped(x, 0.0) is x
    assert (dropped(x, 1 - 1e-9) == 0).double().mean() > 0.99


def test_compiled_code_drops_anew_each_time_and_the_same_on_the_way_back():
    def layers(x):
        return [dropped(x.sin(), 0.5) for _ in range(4)]

    x = torch.linspace(1, 2, 4096, requires_grad=True)
    outs = torch.compile(layers, backend=PARTITIONED)(x)
    for n, out in enumerate(outs):
        (gradient,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        assert torch.equal(gradient == 0, out == 0)
        assert not any(torch.equal(out == 0, other == 0) for other in outs[:n])


def test_compiled_blocks_computed_again_have_the_gradients_of_those_that_are_kept():
    idx = torch.arange(64).view(4, 16) % 11

    def gradients(again: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        torch.compiler.reset()
        model = GPT(11, 16, n_embd=32, n_layer=2, n_head=2, dropout=0.3, preset="llama").train()
        model.activation_checkpointing = again
        loss = torch.compile(lambda: F.cross_entropy(model(idx).flatten(0, 1), idx.flatten()), backend=PARTITIONED)
        torch.manual_seed(1)
        return torch.autograd.grad(loss(), list(model.parameters()))

    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(gradients(False), gradients(True), strict=True))


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
    compiled = torch.compile(lambda x: gelu(x), backend=backend)
    y, expected = compiled(x), F.gelu(x, approximate="tanh")
    assert torch.allclose(y, expected, atol=1e-6)
    (gradient,), (right,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(gradient, right, atol=1e-5)
    with torch.no_grad():
        compiled(x)
    assert ["sigmoid" in code for code in graphs] == [True, False]
    assert ["gelu" in code for code in graphs] == [False, True]


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
