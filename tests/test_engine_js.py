"""The JavaScript engine of the HTML page computes what PyTorch computes with the same weights."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import ROOT, lack
from test_gpt import randomise

from minigpt import GPT, TinyGPT
from minigpt.export.packing import description, pack, unpacked
from minigpt.inspection.introspection import attention
from minigpt.models.settings import PRESETS

WEB = ROOT / "minigpt" / "export" / "web"
SOURCE = "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in ("network",))


def node(program: str, given: object, folder: Path) -> object:
    """Run a program after the engine under Node, with `given` as its data, and return its `result`."""
    if not (found := shutil.which("node")):
        lack("Node")
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    code = (
        "const fs = require('fs');\nconst given = JSON.parse(fs.readFileSync('given.json', 'utf8'));\nlet result;\n"
        "const said = (f) => { try { f(); return null; } catch (error) { return error.message; } };\n"
    )
    ending = "\nfs.writeFileSync('result.json', JSON.stringify(result));"
    (folder / "program.js").write_text(SOURCE + code + program + ending, encoding="utf-8")
    ran = subprocess.run([found, "program.js"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


SIZES = {"vocab_size": 29, "block_size": 12, "n_layer": 2, "n_head": 4, "n_embd": 16}
SWITCHES = {
    "position": ("learned", "rope"), "norm": ("layernorm", "rmsnorm"), "mlp": ("gelu", "swiglu", "relu2"),
    "qk_norm": (False, True), "bias": (False, True), "tie_weights": (False, True), "softcap": (0.0, 3.0),
}  # fmt: skip
OTHERS = [
    {"n_kv_head": 2}, {"n_kv_head": 1, "head_size": 6}, {"head_size": 10}, {"mlp_width": 7}, {"n_layer": 1},
    {"n_layer": 3}, {"n_embd": 12, "n_head": 3}, {"norm_eps": 0.3}, {"vocab_size": 2}, {"block_size": 1},
    {"rope_base": 100.0, "preset": "llama"}, {"ngrams": 50}, {"zero_init": True},
    {"ngrams": 997, "vocab_size": 20_011, "preset": "modern"}, {"n_embd": 3, "n_head": 1, "preset": "gpt2"},
]  # fmt: skip
GPTS: list[dict] = [{"preset": preset} for preset in PRESETS]
for preset, switches in PRESETS.items():
    flips = [(name, value) for name, values in SWITCHES.items() for value in values if value != switches[name]]
    GPTS += [{"preset": preset, name: value} for name, value in flips]
GPTS += [{"preset": preset} | other for other in OTHERS for preset in ("llama", "gpt2") if "preset" not in other]
GPTS += [other for other in OTHERS if "preset" in other]
CASES = [(settings, precision) for settings in [{}, *GPTS] for precision in ("32", "int8")]
OFF = [(0, 1), (1, 2)]  # layer and head of those that are switched off


def named(case: tuple[dict, str]) -> str:
    settings, precision = case
    return "-".join([*(f"{name}={value}" for name, value in settings.items()), precision]) or "TinyGPT"


@cache
def network(n: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a network with random weights, and a second one with the weights that the engine gets."""
    settings, precision = CASES[n]
    pair = [GPT(**SIZES | settings) if settings else TinyGPT(29, 7, 12) for _ in range(2)]
    model, rounded = (randomise(each, n) for each in pair)
    rounded.load_state_dict(unpacked(*pack(model.state_dict(), precision)))
    return model, rounded


def ids_of(n: int) -> list[int]:
    """Return more ids than the window of a case has, the largest among them."""
    V, size = network(n)[0].config["vocab_size"], network(n)[0].block_size
    ids = torch.randint(V, (size + 5,), generator=torch.Generator().manual_seed(n))
    ids[::3] = V - 1 - ids[::3] % min(V, 3)
    return ids.tolist()


COMPUTE = """
result = given.map(({ description, specs, file, ids, first, off }) => {
  const network = new Network(description, readWeights(specs, new Uint8Array(fs.readFileSync(file))));
  const size = Math.min(network.blockSize, ids.length);
  const some = (logits) => Array.from(logits).filter((_, i) => i < 30 || i % 500 === 0);
  const window = ids.slice(0, size), heads = new Set(off);
  const steps = network.newCache(), one = network.newCache(), two = network.newCache(), watched = network.newCache();
  const watch = {};
  const seen = window.map((id) => some(network.step(id, watched, watch)));
  return {
    steps: window.map((id) => some(network.step(id, steps))),
    seen, length: steps.length,
    all: network.feed(window, network.newCache(), null, true).map(some),
    last: some(network.feed(window, network.newCache())),
    parts: [some(network.feed(window.slice(0, first), one)),
            ...window.slice(first).map((id) => some(network.step(id, one)))],
    twice: [network.feed(window.slice(0, first), two, null, true),
            size > first ? network.feed(window.slice(first), two, null, true) : []].flat().map(some),
    predicted: some(network.predict(ids)), again: some(network.predict(ids)), short: some(network.predict([ids[0]])),
    off: network.feed(window, network.newCache(), heads, true).map(some),
    predictedOff: some(network.predict(ids, heads)),
    attention: watch.attention.map((layer) => layer.map((head) => Array.from(head))),
    lens: watch.lens.map(some), norms: watch.norms,
    full: said(() => network.step(0, steps)), fields: [network.vocabSize, network.blockSize, network.nLayer,
      network.nHead, network.bigram],
  };
});
"""


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    given = []
    for n, (_, precision) in enumerate(CASES):
        model = network(n)[0]
        specs, data = pack(model.state_dict(), precision)
        (folder / f"{n}.bin").write_bytes(data)
        H = model.config.get("n_head", 1)
        heads = [layer * H + head % H for layer, head in OFF]
        given.append(
            {"description": description(model), "specs": specs, "file": f"{n}.bin", "ids": ids_of(n), "off": heads}
            | {"first": min(5, model.block_size)}
        )
    return node(COMPUTE, given, folder)


def some(logits: torch.Tensor) -> torch.Tensor:
    """The logits that the program returns, of a large vocabulary not all."""
    shown = torch.arange(logits.shape[-1])
    return logits[..., (shown < 30) | (shown % 500 == 0)]


def close(theirs: list, ours: torch.Tensor) -> bool:
    return torch.allclose(torch.tensor(theirs, dtype=torch.float32), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", range(len(CASES)), ids=[named(case) for case in CASES])
@torch.no_grad()
def test_logits_are_those_of_pytorch(computed, n):
    model, ids, found = network(n)[1], torch.tensor(ids_of(n)), computed[n]
    size = model.block_size
    logits = some(model(ids[None, :size])[0])
    assert found["length"] == size
    assert close(found["steps"], logits)
    assert found["seen"] == found["steps"]  # watching changes nothing
    assert close(found["all"], logits)
    assert close(found["last"], logits[-1])
    assert close(found["parts"], logits[min(5, size) - 1 :])
    assert close(found["twice"], logits)
    assert close(found["predicted"], some(model(ids[None, -size:])[0, -1]))
    assert found["again"] == found["predicted"]
    assert close(found["short"], some(model(ids[None, :1])[0, -1]))
    assert f"window of {size} ids is full" in found["full"]


@pytest.mark.parametrize("n", range(len(CASES)), ids=[named(case) for case in CASES])
@torch.no_grad()
def test_what_happens_inside_is_what_happens_in_pytorch(computed, n):
    model, ids, found = network(n)[1], torch.tensor(ids_of(n)), computed[n]
    window = ids[: model.block_size]
    streams = []  # the residual stream at the last token, after the embeddings and each layer
    if isinstance(model, TinyGPT):
        streams = [model.embed(window)[-1]]
        assert found["fields"] == [29, 12, 0, 0, True]
    else:
        hooks = [block.register_forward_pre_hook(lambda _, x: streams.append(x[0][0, -1])) for block in model.blocks]
        hooks.append(model.norm.register_forward_pre_hook(lambda _, x: streams.append(x[0][0, -1])))
        model(window[None])
        for hook in hooks:
            hook.remove()
        s = model.settings
        assert found["fields"] == [s.vocab_size, s.block_size, s.n_layer, s.n_head, False]
        assert close(found["attention"], attention(model, window)[:, :, -1])
    assert close(found["norms"], torch.stack(streams).norm(dim=-1))
    for lens, x in zip(found["lens"], streams, strict=True):
        logits = model.lm_head(model.norm(x) if isinstance(model, GPT) else x)
        cap = getattr(model, "softcap", 0)
        assert close(lens, some(cap * torch.tanh(logits / cap) if cap else logits))
    assert found["lens"][-1] == found["steps"][-1]


@pytest.mark.parametrize("n", range(2, len(CASES)), ids=[named(case) for case in CASES[2:]])
@torch.no_grad()
def test_a_head_that_is_off_adds_nothing(computed, n):
    ids = torch.tensor(ids_of(n))
    without = GPT(**SIZES | CASES[n][0]).eval()
    without.load_state_dict(network(n)[1].state_dict())
    D, H = without.settings.head_size, without.settings.n_head
    for layer, head in OFF:
        if layer < len(without.blocks):
            without.blocks[layer].attn.proj.weight[:, head % H * D : head % H * D + D] = 0
    size = without.block_size
    assert close(computed[n]["off"], some(without(ids[None, :size])[0]))
    assert close(computed[n]["predictedOff"], some(without(ids[None, -size:])[0, -1]))
    assert computed[n]["off"] != computed[n]["all"] or not without.blocks[0].attn.proj.weight.any()
