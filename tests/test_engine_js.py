"""The JavaScript engine of the HTML page computes what PyTorch computes with the same weights."""

import json
import math
import random
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import ROOT, lack, read
from test_gpt import randomise
from test_pretrained_tokenizer import MAKERS, TEXT, bytes_level, gpt2, ours, sentencepiece
from tokenizers import Regex, pre_tokenizers
from torch.nn import functional as F

from minigpt import GPT, BPETokenizer, CharTokenizer, LanguageModel, MiniGPTError, TinyGPT, WordTokenizer
from minigpt.cpu.int8 import quantize
from minigpt.data.tokenizer_base import Tokenizer, never_seen
from minigpt.data.tokenizers import from_definition
from minigpt.evaluation import evaluate
from minigpt.export.packing import description, pack, unpacked
from minigpt.export.web_tokenizer import definition_of
from minigpt.generation.sampling import filter_logits
from minigpt.inspection.introspection import attention
from minigpt.models.settings import PRESETS

WEB = ROOT / "minigpt" / "export" / "web"
SOURCE = "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in ("network", "sampling", "tokenizers"))


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
OFF = [(0, 1), (1, 2)]  # layer and head of the heads that are turned off


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
    lens: watch.lens.map(some),
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
    assert f"window of {size} tokens is full" in found["full"]


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


def kinds() -> dict[str, Tokenizer]:
    """One or more tokenizers of each kind, by name."""
    found = {f"pretrained {name}": ours(name) for name in MAKERS}
    found["pretrained without bytes"] = from_definition(sentencepiece(byte_fallback=False).to_str(), 200)
    for name, options in {"": {}, " lower": {"lower": True}, " without nfc": {"nfc": False}}.items():
        found[f"char{name}"] = CharTokenizer.from_text(TEXT, **options)
        found[f"char with bytes{name}"] = CharTokenizer.from_text(TEXT, byte_fallback=True, **options)
        found[f"word{name}"] = WordTokenizer.from_text(TEXT, max_vocab_size=330, **options)
        found[f"bpe{name}"] = BPETokenizer.from_text(TEXT, max_vocab_size=330, **options)
    # abxy has two pairs, and what follows the first one has a rank between theirs: merging the second pair at one place
    # makes a pair that comes before merging it at the next.
    merges = [(97, 98), (120, 121), (98, 257), (97, 258), (259, 256), (256, 257), (32, 32)]
    found["bpe with two pairs for a token"] = BPETokenizer(merges)
    nested = gpt2()
    nested.add_special_tokens(["<", "<s><s>"])  # parts of others
    return found | {"pretrained with nested special tokens": from_definition(nested.to_str(), 400)}


NASTY = [
    "", " ", "\n", "\r\n", "a\r\nb", "  a  b ", "\t\t\n \n\n x",
    "e\u0301", "É", "ÉE\u0301", "İ", "ΑΣ ΑΣΑ", "ẞß", "ſ K",
    "a\u00a0b", "a \u00a0 b", "\u202f!", "\ufeff a", "a\ufeffb \ufeff", "x\x1cy\x1d \x1f\x85z", "\u200b\u2028\u2029",
    "\x00\x7f",
    "٣٤ ²½Ⅷ 12345", "👩‍👩‍👧 𝄞🇫🇷", "中文字符", "नमस्ते", "a" * 2000, "ab" * 700, "é" * 600, "abxyabxyabxy  d   abxyaabxy",
    "xab" * 400, "H\u0331J\u030c", "<s><s><s>",
    "\ud800", "a\udc00b", "\udc00\ud800", "\ud800a\ud83d\ude00\udfff", "It's IT'S 'll 'Ve l'œuf x'ſa",
    "<s>a</s> <|im_start|><pad>",
    "<<s>s>", "▁", " ▁a▁▁ b", "<0x0A>", "__proto__ constructor toString", "\\d+ $& </script>", "—–«»…“”", "_a_1_",
]  # fmt: skip


def texts() -> list[str]:
    """Nasty texts, and some that are put together at random."""
    drawn = random.Random(0)
    letters = [*"aaeté \n\t'12.,!\u0301\u00a0\rœ▁👩\u200d\x1d\ufeff\u0663É", "<s>"]
    return [*NASTY, TEXT, *("".join(drawn.choices(letters, k=drawn.randrange(40))) for _ in range(150))]


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    # As the export does: JSON whose lone surrogates are escaped.
    given = {"definitions": {name: definition_of(each) for name, each in kinds().items()}, "texts": texts()}
    drawn = random.Random(1)
    given["ids"] = [[drawn.randrange(128, 256) for _ in range(drawn.randrange(12))] for _ in range(100)]
    program = """
    result = {};
    for (const [name, definition] of Object.entries(given.definitions)) {
      const tokenizer = makeTokenizer(definition);
      const streamed = (ids) => {
        const decoder = tokenizer.decoder();
        return ids.map((id) => decoder.add(id)).join("") + decoder.rest();
      };
      result[name] = {
        texts: given.texts.map((text) => {
          const { ids, missing } = tokenizer.encode(tokenizer.clean(text));
          const clean = tokenizer.clean(text), decoded = tokenizer.decode(ids);
          return { clean, ids, missing, decoded, streamed: streamed(ids) };
        }),
        bytes: given.ids.map((ids) => tokenizer.vocabSize < 256 ? "" : tokenizer.decode(ids)),
        opening: tokenizer.opening, prefix: tokenizer.prefix, size: tokenizer.vocabSize,
        tokens: tokenizer.tokens.map((token) => Array.from(token)),
      };
    }
    """
    return given["ids"], node(program, given, tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize("name", kinds())
def test_ids_are_those_of_the_tokenizer_in_python(tokenized, name):
    tokenizer, (ids, found) = kinds()[name], tokenized
    found = found[name]
    assert [bytes(token) for token in found["tokens"]] == tokenizer.tokens
    assert (found["prefix"], found["size"]) == (list(tokenizer.prefix), tokenizer.vocab_size)
    assert found["opening"] == LanguageModel(torch.nn.Module(), tokenizer)._opening_id()
    for text, theirs in zip(texts(), found["texts"], strict=True):
        clean = tokenizer.clean(text)
        assert theirs["clean"] == clean
        assert theirs["ids"] == tokenizer.encode(clean, "skip"), clean
        assert theirs["decoded"] == theirs["streamed"] == tokenizer.decode(theirs["ids"])
        if theirs["missing"]:
            with pytest.raises(MiniGPTError) as error:
                tokenizer.encode(clean)
            assert (
                str(error.value).split(". Write")[0] == str(never_seen(sorted(theirs["missing"]))).split(". Write")[0]
            )
        else:
            assert theirs["decoded"] == clean
    if tokenizer.vocab_size >= 256:  # of ids that are no text, the same number of U+FFFD
        assert found["bytes"] == [tokenizer.decode(each) for each in ids]


def sampling_cases() -> list[tuple[list[float], dict, list[int]]]:
    """Logits, some with ties or far apart, parameters, and the ids so far."""
    drawn, cases = torch.Generator().manual_seed(0), []
    kinds = [torch.randn(40, generator=drawn) * scale for scale in (0.5, 3, 30)]
    kinds += [
        torch.zeros(8),
        torch.tensor([1.0, 3, 3, -2, 3, 0, 0, -0.0]),
        torch.randint(-2, 3, (30,), generator=drawn),
    ]
    kinds += [torch.randn(1, generator=drawn), torch.tensor([0.5, 0.25, 0.125, 0.125]).log()]
    for logits in kinds:
        for temperature in (None, 0, 1e-6, 1e-5, 0.7, 1, 2.5):
            for params in (
                {}, {"top_k": 1}, {"top_k": 3}, {"top_k": 500}, {"top_p": 0.05}, {"top_p": 0.5}, {"top_p": 0.75},
                {"top_p": 0.95}, {"top_p": 1}, {"min_p": 0}, {"min_p": 0.1}, {"min_p": 1},
                {"repetition_penalty": 1.3}, {"repetition_penalty": 0.5},
                {"repetition_penalty": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
            ):  # fmt: skip
                ids = torch.randint(len(logits), (6,), generator=drawn).tolist()
                cases.append((logits.float().tolist(), {"temperature": temperature} | params, ids))
    return cases


def test_filters_keep_the_same_tokens_with_the_same_probabilities(tmp_path):
    cases = sampling_cases()
    program = """
    result = given.map(([numbers, params, ids]) => {
      const logits = Float32Array.from(numbers);
      const filtered = filterLogits(logits, params, ids), steps = filterSteps(logits, params, ids);
      const last = steps.length ? steps.at(-1).logits : logits;
      return {
        kept: Array.from(filtered, Number.isFinite), probabilities: Array.from(softmax(filtered)),
        names: steps.map(({ name }) => name), same: filtered.every((logit, id) => logit === last[id]),
        untouched: numbers.every((number, id) => number === logits[id]), bits: surprisal(logits, ids[0]),
      };
    });
    """
    for (logits, params, ids), found in zip(cases, node(program, cases, tmp_path), strict=True):
        given = {name: value for name, value in params.items() if value is not None}
        ours = filter_logits(torch.tensor([logits]), **given, generated=torch.tensor([ids]))[0]
        assert found["kept"] == ours.isfinite().tolist(), (logits, params)
        assert torch.allclose(torch.tensor(found["probabilities"]).float(), ours.softmax(-1), atol=1e-6)
        assert found["same"]
        assert found["untouched"]
        assert found["bits"] == pytest.approx(-math.log2(torch.tensor(logits).double().softmax(-1)[ids[0]]), abs=1e-5)
        order = ["repetition_penalty", "temperature", "top_k", "top_p", "min_p"]
        greedy = given.get("temperature", 1) < 1e-5
        assert found["names"] == [name for name in (order[:2] if greedy else order) if name in given]


def test_draws_have_their_probabilities_and_repeat_with_their_seed(tmp_path):
    program = """
    const probabilities = Float32Array.from([0.5, 0, 0.25, 0.125, 0.125, 0]);
    const drawn = (seed, n) => {
      const random = makeRandom(seed);
      return Array.from({ length: n }, () => draw(probabilities, random));
    };
    const numbers = Array.from({ length: 100000 }, makeRandom(1));
    result = {
      many: drawn(0, 40000), twice: [drawn(7, 50), drawn(7, 50)],
      others: [0, 1, 2, 2 ** 32, 2 ** 32 + 1, 2 ** 53 - 1, -1, 0.5].map((seed) => makeRandom(seed)()),
      last: draw(probabilities, () => 1 - 2 ** -33), first: draw(probabilities, () => 2 ** -33),
      least: Math.min(...numbers), greatest: Math.max(...numbers),
      mean: numbers.reduce((a, b) => a + b) / numbers.length,
      nan: said(() => draw(Float32Array.from([NaN, NaN]), makeRandom(0))),
      infinite: said(() => draw(softmax(Float32Array.from([Infinity, 0])), makeRandom(0))),
    };
    """
    found = node(program, None, tmp_path)
    shares = torch.tensor(found["many"]).bincount(minlength=6) / 40_000
    assert torch.allclose(shares, torch.tensor([0.5, 0, 0.25, 0.125, 0.125, 0]), atol=0.01)
    assert shares[1] == shares[5] == 0
    assert found["twice"][0] == found["twice"][1]
    assert len(set(found["others"])) >= 7
    assert (found["first"], found["last"]) == (0, 4)
    assert 0 < found["least"] < 1e-3
    assert 0.999 < found["greatest"] < 1
    assert found["mean"] == pytest.approx(0.5, abs=0.005)
    assert "NaN" in found["nan"]
    assert "NaN" in found["infinite"]


@pytest.fixture(scope="module")
def trained() -> LanguageModel:
    """A small transformer after a short training on the embedded text."""
    torch.manual_seed(0)
    text = read("exemple")
    tokenizer = CharTokenizer.from_text(text)
    data = torch.tensor(tokenizer.encode(text))
    model = GPT(tokenizer.vocab_size, 24, 2, 4, 32, "modern", ngrams=500)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        starts = torch.randint(len(data) - 25, (16,))
        windows = torch.stack([data[start : start + 25] for start in starts])
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 2.9
    return LanguageModel(model.eval(), tokenizer)


WRITE = """
const tokenizer = makeTokenizer(given.tokenizer);
const bytes = new Uint8Array(fs.readFileSync("weights.bin"));
const network = new Network(given.description, readWeights(given.specs, bytes));
result = given.prompts.map((prompt) => {
  const { ids } = tokenizer.encode(tokenizer.clean(prompt));
  if (!ids.length) ids.push(tokenizer.opening);
  const cache = network.newCache(), decoder = tokenizer.decoder();
  let text = prompt && tokenizer.decode(ids);
  let logits = network.feed(ids, cache);
  for (let n = 0; n < 100; n++) {
    const id = draw(softmax(filterLogits(logits, { temperature: 0 }, ids)), () => 0.5);
    ids.push(id);
    text += decoder.add(id);
    logits = ids.length <= network.blockSize ? network.step(id, cache) : network.predict(ids);
  }
  return text + decoder.rest();
});
"""


def test_greedy_text_is_that_of_minigpt_generate_also_beyond_the_window(trained, tmp_path):
    specs, data = pack(trained.model.state_dict(), "32")
    (tmp_path / "weights.bin").write_bytes(data)
    prompts = ["", "Un matin, ", "é"]
    given = {"description": description(trained.model), "specs": specs, "prompts": prompts}
    texts = node(WRITE, given | {"tokenizer": definition_of(trained.tokenizer)}, tmp_path)
    assert texts == [trained.generate(prompt, 100, temperature=0) for prompt in prompts]
    assert len(set(texts[1][10:])) > 5


def test_eight_bits_cost_little(trained):
    rounded = GPT(**trained.model.config).eval()
    specs, data = pack(trained.model.state_dict(), "int8")
    rounded.load_state_dict(unpacked(specs, data))
    ids, lengths = torch.tensor(trained.tokenizer.encode(read("exemple")[:5000])), trained.tokenizer.lengths
    exact, less = (evaluate(model, ids, lengths)["bits_per_char"] for model in (trained.model, rounded))
    assert 0 < abs(less - exact) < 0.01
    assert len(data) < len(pack(trained.model.state_dict(), "32")[1]) / 3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["32", "int8"])
def test_packed_weights_are_given_back_and_rounded_by_half_a_step_at_most(tied, precision):
    model = randomise(GPT(7, 5, 1, 1, 6, "gpt2", tie_weights=tied), 0)
    specs, data = pack(model.state_dict(), precision)
    again = unpacked(specs, data)
    assert ("lm_head.weight" in {spec["name"] for spec in specs}) is not tied
    assert all(spec["offset"] % 4 == 0 for spec in specs)
    for name, weight in model.state_dict().items():
        if precision == "32" or weight.dim() == 1:
            assert torch.equal(again[name], weight)
        else:
            step = weight.abs().amax(1, keepdim=True) / 127
            assert ((again[name] - weight).abs() <= 0.51 * step + 1e-3 * weight.abs()).all()
            assert not torch.equal(again[name], weight)


def test_another_network_or_a_changed_one_is_refused_by_name():
    class Mine(GPT):
        pass

    class Bigram(TinyGPT):
        pass

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked, changed, replaced, rounded = TinyGPT(5), TinyGPT(5), GPT(5, n_embd=16), GPT(5, n_embd=16)
    hooked.register_forward_hook(lambda *_: None)
    changed.lm_head = torch.nn.Linear(64, 5, bias=False)
    doubled = TinyGPT(5)
    doubled.lm_head = Doubled(64, 5)
    replaced.blocks[1].mlp.activation = torch.nn.ReLU()
    quantize(rounded)
    for model, said in (
        (torch.nn.GRU(2, 3), "no engine for a GRU"), (Mine(5), "the class Mine"), (Bigram(5), "the class Bigram"),
        (hooked, "the forward hook of TinyGPT"), (changed, r"lm_head\.bias"),
        (doubled, r"lm_head \(Doubled\)"), (replaced, r"mlp\.activation \(ReLU\)"),
        (rounded, "rounded to 8 bits"),
    ):  # fmt: skip
        with pytest.raises(MiniGPTError, match=said):
            description(model)
    assert description(TinyGPT(5, 6, 7)) == {
        "class": "TinyGPT",
        "settings": {"vocab_size": 5, "n_embd": 6, "block_size": 7},
    }


def test_an_edited_file_ends_in_a_sentence(tmp_path):
    """Numbers up to 10⁹ and wrong types in the header: nothing hangs, and no memory is allocated for them."""
    model = randomise(GPT(7, 5, 1, 2, 8, "llama", tie_weights=True), 0)
    specs, data = pack(model.state_dict(), "int8")
    (tmp_path / "weights.bin").write_bytes(data)
    program = """
    const bytes = new Uint8Array(fs.readFileSync("weights.bin"));
    const build = (description, specs) => said(() => new Network(description, readWeights(specs, bytes)));
    const { description, specs } = given;
    const wrong = [1e9, 1e300, -1, 0.5, null, "7", [7], undefined, {}];
    const changed = [];
    for (const name of Object.keys(description.settings)) {
      for (const value of wrong) {
        const settings = { ...description.settings, [name]: value };
        changed.push([name, value, build({ ...description, settings }, specs)]);
      }
    }
    for (const [n, spec] of specs.entries()) {
      for (const name of Object.keys(spec)) {
        for (const value of [...wrong, [1e9, 1e9], [0], [], [2 ** 53], "__proto__", "int4"]) {
          const other = specs.map((each, m) => (m === n ? { ...each, [name]: value } : each));
          changed.push([`${spec.name} ${name}`, value, build(description, other)]);
        }
      }
    }
    const cut = [0, 1, bytes.length - 1].map((size) => said(() => readWeights(specs, bytes.slice(0, size))));
    const many = Array.from({ length: 1e5 }, () => specs[0]);
    const odd = [null, {}, [], 5, "GPT"];
    result = {
      fine: build(description, specs), changed, cut, many: said(() => readWeights(many, bytes)),
      network: build({ class: "GRU", settings: {} }, specs), missing: build(description, specs.slice(1)),
      description: odd.map((each) => build(each, specs)), specs: odd.map((each) => build(description, each)),
      settings: odd.map((each) => build({ class: "GPT", settings: each }, specs)),
    };
    """
    found = node(program, {"description": description(model), "specs": specs}, tmp_path)
    assert found["fine"] is None
    assert found["network"] == "This page has no engine for the network GRU."
    assert found["missing"] == "This file is damaged: the weight embed.weight is missing. Export the model again."
    sentences = [*found["cut"], found["many"], *found["description"], *found["specs"], *found["settings"]]
    unused = {"block_size", "dropout", "tie_weights", "zero_init", "rope_base", "norm_eps", "softcap"}
    for name, value, sentence in found["changed"]:
        if sentence is None:
            assert name in unused or name.endswith(" name"), (name, value)
        else:
            sentences.append(sentence)
    for sentence in sentences:
        assert sentence, sentences
        assert sentence.startswith(("This file is damaged: ", "This page has no engine for the network "))


def test_a_damaged_definition_of_a_tokenizer_ends_in_a_sentence(tmp_path):
    definitions = [definition_of(kinds()[name]) for name in ("char", "word", "bpe", "pretrained llama 2")]
    program = """
    const wrong = [null, 5, "x", {}, [1e9], [-1], [0.5], ["("], [[1, 2]], [[1, 2, 1e9]], [null, null], [{}]];
    const odd = [null, undefined, 5, {}, []].map((each) => said(() => makeTokenizer(each)));
    result = { fine: [], changed: [], odd };
    for (const definition of given) {
      result.fine.push(said(() => makeTokenizer(definition)));
      for (const name of Object.keys(definition)) {
        for (const value of wrong) {
          const sentence = said(() => {
            const tokenizer = makeTokenizer({ ...definition, [name]: value });
            tokenizer.decode(tokenizer.encode(tokenizer.clean("Le chat <s> 12 é\\u4e2d")).ids);
          });
          result.changed.push([name, value, sentence]);
        }
      }
    }
    """
    found = node(program, definitions, tmp_path)
    assert found["fine"] == [None] * 4
    assert all(sentence.startswith("This file is damaged: ") for sentence in found["odd"])
    for name, value, sentence in found["changed"]:
        assert sentence is None or sentence.startswith("This file is damaged: "), (name, value, sentence)
    refused = {name for name, _, sentence in found["changed"] if sentence}
    assert refused >= {"tokens", "prefix", "opening", "special", "cuts", "whole", "units", "bytes", "merges", "longest"}


@pytest.mark.parametrize(
    ("cutting", "named"),
    [
        (pre_tokenizers.Punctuation(), "the pre-tokenizer Punctuation Isolated"),
        (pre_tokenizers.Split("a", "merged_with_next"), "the pre-tokenizer Split MergedWithNext"),
        (pre_tokenizers.Split(Regex(r"\p{Han}+"), "isolated"), "the regular expression"),
        (pre_tokenizers.Split(Regex(r"(?<=a)b|c++"), "isolated"), "the regular expression"),
        (pre_tokenizers.UnicodeScripts(), "the pre-tokenizer UnicodeScripts"),
    ],
)
def test_a_pretrained_tokenizer_with_other_parts_is_refused_by_name(cutting, named):
    theirs = bytes_level(cutting, pre_tokenizers.ByteLevel(add_prefix_space=False))
    with pytest.raises(MiniGPTError, match=named):
        definition_of(from_definition(theirs.to_str(), 400))
