import copy
import math

import pytest
import torch

from minigpt import GPT, MiniGPTError, TinyGPT
from minigpt.training.optim import MuonAdamW, Schedule, matmul_dtype, orthogonalise, parameter_groups


def groups(model, optimizer="muon", **changes):
    settings = {"learning_rate": 1e-3, "muon_learning_rate": 0.02, "weight_decay": 0.1} | changes
    return parameter_groups(model, optimizer, **settings)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "modern"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group(preset, optimizer):
    model = GPT(20, 8, preset=preset)
    found = [p for group in groups(model, optimizer) for p in group["params"]]
    assert len(found) == len(set(map(id, found))) == len(list(model.parameters()))


def test_matrices_decay_and_vectors_do_not():
    for group in groups(GPT(20, 8), "adamw"):
        assert {p.dim() for p in group["params"]} == ({2} if group["weight_decay"] else {1})
    (one,) = groups(TinyGPT(20), "adamw", decay_vectors=True)
    assert one["weight_decay"] == 0.1


def test_muon_serves_the_matrices_of_the_blocks():
    model = GPT(20, 8, n_layer=2, preset="modern")
    muon = [p for group in groups(model) if group["muon"] for p in group["params"]]
    assert len(muon) == 2 * 4
    assert all(p is not q for p in muon for q in (model.embed.weight, model.lm_head.weight))


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(5, *shape), torch.float32))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_muon_is_torchs_muon():
    torch.manual_seed(0)
    start = [torch.randn(16, 16), torch.randn(48, 16), torch.randn(16, 64), torch.randn(16, 16)]
    ours, theirs = ([torch.nn.Parameter(t.clone()) for t in start] for _ in range(2))
    group = {"params": ours, "muon": True, "lr": 0.02, "weight_decay": 0.1}
    first = MuonAdamW([group], ns_dtype=torch.bfloat16)
    second = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    for _ in range(10):
        gradients = [torch.randn_like(t) for t in start]
        for parameters, optimizer in ((ours, first), (theirs, second)):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for one, other, origin in zip(ours, theirs, start, strict=True):
        moved = (other - origin).norm()
        assert (one - other).norm() < 0.03 * moved  # bfloat16 rounds sums in another order


def test_the_rest_is_torchs_adamw():
    torch.manual_seed(0)
    model, twin = GPT(20, 8, n_layer=1), GPT(20, 8, n_layer=1)
    twin.load_state_dict(model.state_dict())
    ours = MuonAdamW(groups(model, "adamw"), betas=(0.9, 0.99))
    theirs = torch.optim.AdamW(groups(twin, "adamw"), betas=(0.9, 0.99), fused=True)
    for _ in range(5):
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        ours.step()
        theirs.step()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, other)


def test_a_loaded_optimizer_goes_on_to_the_bit():
    def drawn(model, seed):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)

    torch.manual_seed(0)
    model = GPT(20, 8, n_layer=2, preset="modern")
    optimizer = MuonAdamW(groups(model))
    for step in range(3):
        drawn(model, step)
        optimizer.step()
    twin = GPT(20, 8, n_layer=2, preset="modern")
    twin.load_state_dict(model.state_dict())
    other = MuonAdamW(groups(twin))
    other.step()  # so that the AdamW inside is already there when the state is loaded
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for one, opt in ((model, optimizer), (twin, other)):
            drawn(one, step)
            opt.step()
    for parameter, same in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, same)


def test_a_schedule_warms_up_and_comes_down():
    cosine = Schedule("cosine", 100, 2000, 0.1, 0.4).factor
    assert cosine(0) == pytest.approx(1 / 101)
    assert cosine(99) == pytest.approx(100 / 101)
    assert cosine(100) == 1.0
    assert cosine(1050) == pytest.approx(0.55)
    assert cosine(2000) == cosine(9999) == pytest.approx(0.1)
    wsd = Schedule("wsd", 0, 1000, 0.0, 0.4).factor
    assert wsd(0) == wsd(600) == 1.0
    assert wsd(800) == pytest.approx(0.5)
    assert wsd(1000) == 0.0
    assert Schedule("constant", 0, -1, 0.0, 0.4).factor(12345) == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("linear", 0, 10, 0.0, 0.4), "lr_schedule is 'linear'"), (("cosine", 0, -1, 0.0, 0.4), "-1 steps, with 0"),
     (("wsd", 0, 10, 0.0, 0.0), "cooldown is 0"), (("constant", 0, 10, 0.0, 0.4, -5), "decay_steps is -5")],
)  # fmt: skip
def test_a_schedule_that_does_not_fit_is_refused(arguments, words):
    with pytest.raises(MiniGPTError, match=words):
        Schedule(*arguments)


def test_a_way_down_that_would_begin_in_the_warm_up_begins_after_it():
    wsd = Schedule("wsd", 80, 100, 0.0, 0.4).factor
    factors = [wsd(step) for step in range(101)]
    assert factors[80] == max(factors) == 1.0
    assert factors[90] == pytest.approx(0.5)
    assert factors[100] == 0.0


def test_what_muon_cannot_serve_is_refused():
    with pytest.raises(MiniGPTError, match="matrices in a network"):
        groups(TinyGPT(20))
    with pytest.raises(MiniGPTError, match="'sgd'"):
        groups(GPT(20, 8), "sgd")


@pytest.mark.parametrize(
    ("capability", "device", "dtype"),
    [("AVX2", "cpu", torch.float32), ("AVX512", "cpu", torch.bfloat16), ("AVX2", "cuda", torch.bfloat16)],
)
def test_newton_schulz_runs_in_bfloat16_where_that_is_fast(monkeypatch, capability, device, dtype):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert matmul_dtype(torch.device(device)) == dtype


def test_rates_reach_every_group():
    optimizer = MuonAdamW(groups(GPT(20, 8, preset="modern")))
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 1e-3, 1e-3]
    assert math.isclose(optimizer.param_groups[0]["lr"], 0.02)
