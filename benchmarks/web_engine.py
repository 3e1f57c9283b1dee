"""Generation speed of the HTML page's JavaScript engine under Node, beside PyTorch's on the same machine.

    python benchmarks/web_engine.py [--rounds 5] [--out web_engine.json]

Networks with random weights in the shapes of the recipes tiny and modern_nano, and GPT-2's switches in modern_nano's
shape, with the characters of the embedded corpus. Each continues one id, with temperature 0.8, top-k 30 and top-p 0.9:
within the window, up to block_size ids, where both have a cache; and beyond it, where both compute the last block_size
ids again for each new one. The two take turns, round by round, each after a text to warm up; the ratio is the median of
the ratios within a round. PyTorch runs as `minigpt generate` does, in eager mode.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import minigpt
from minigpt import GPT, CharTokenizer, LanguageModel, TinyGPT
from minigpt.data.corpus import Corpus
from minigpt.export.packing import description, pack
from minigpt.loading import for_inference

SAMPLING = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}
WEB = Path(minigpt.__file__).parent / "export" / "web"
BEYOND = 40  # ids drawn after the window is full
PROGRAM = """
const fs = require("fs");
const { description, specs, params, beyond } = JSON.parse(fs.readFileSync("given.json", "utf8"));
const network = new Network(description, readWeights(specs, new Uint8Array(fs.readFileSync("weights.bin"))));
const random = makeRandom(0), size = network.bigram ? 200 : network.blockSize;
const choose = (logits, ids) => draw(softmax(filterLogits(logits, params, ids)), random);
let seconds;
for (let round = 0; round < 3; round++) { // the last one counts, since the first ones are compiled
  const ids = [0], cache = network.newCache();
  const started = performance.now();
  let logits = network.bigram ? network.predict(ids) : network.step(0, cache);
  while (ids.length < size) {
    ids.push(choose(logits, ids));
    logits = network.bigram || ids.length === size ? network.predict(ids) : network.step(ids.at(-1), cache);
  }
  const full = performance.now();
  for (let n = 0; n < beyond; n++) {
    ids.push(choose(logits, ids));
    logits = network.predict(ids);
  }
  seconds = [(full - started) / (size - 1) / 1000, (performance.now() - full) / beyond / 1000];
}
console.log(JSON.stringify(seconds.map((each) => 1 / each)));
"""


def shapes(vocab_size: int) -> dict[str, nn.Module]:
    """Return the networks by name."""
    sizes = {"block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128}
    networks = {
        "tiny": TinyGPT(vocab_size, 64, 64),
        "modern_nano": GPT(vocab_size, **sizes, preset="modern"),
        "gpt_nano": GPT(vocab_size, **sizes, preset="gpt2"),
        "modern, block 256": GPT(vocab_size, **sizes | {"block_size": 256}, preset="modern"),
    }
    for network in networks.values():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.1)
    return networks


def engine(network: nn.Module, folder: Path) -> tuple[float, float]:
    """Return the characters a second of the engine within the window and beyond it."""
    specs, data = pack(network.state_dict(), "32")
    given = {"description": description(network), "specs": specs, "params": SAMPLING, "beyond": BEYOND}
    (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
    (folder / "weights.bin").write_bytes(data)
    source = "\n".join((WEB / f"{name}.js").read_text(encoding="utf-8") for name in ("network", "sampling"))
    (folder / "program.js").write_text(source + PROGRAM, encoding="utf-8")
    node = shutil.which("node")
    if node is None:
        raise SystemExit("This benchmark needs Node.")
    within, beyond = json.loads(
        subprocess.run([node, "program.js"], cwd=folder, capture_output=True, check=True).stdout
    )
    return within, beyond


def pytorch(network: nn.Module, tokenizer: CharTokenizer) -> tuple[float, float]:
    """Return the characters a second of PyTorch within the window and beyond it."""
    size = 200 if isinstance(network, TinyGPT) else network.block_size
    lm = LanguageModel(network, tokenizer)
    for _ in range(2):
        times = [time.perf_counter()]
        for n, _ in enumerate(lm.stream([0], size - 1 + BEYOND, **SAMPLING)):
            if n in (size - 2, size - 2 + BEYOND):
                times.append(time.perf_counter())
    return (size - 1) / (times[1] - times[0]), BEYOND / (times[2] - times[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each runs")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    asked = parser.parse_args()
    tokenizer = CharTokenizer.from_text("".join(Corpus("exemple").pieces()))
    torch.manual_seed(0)
    results = {}
    print("| network | | engine, characters/s | PyTorch, characters/s | engine / PyTorch |\n|---|---|---|---|---|")
    for name, network in shapes(tokenizer.vocab_size).items():
        for_inference(network)
        rounds = []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(asked.rounds):
                rounds.append({"engine": engine(network, Path(folder)), "pytorch": pytorch(network, tokenizer)})
        results[name] = rounds
        for n, where in enumerate(("within the window", "beyond it")):
            ours, theirs = ([each[who][n] for each in rounds] for who in ("engine", "pytorch"))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            speeds = f"{statistics.median(ours):,.0f} | {statistics.median(theirs):,.0f}"
            print(f"| {name} | {where} | {speeds} | {ratio:.2f} |", flush=True)
    if asked.out:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rounds": results}
        asked.out.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
