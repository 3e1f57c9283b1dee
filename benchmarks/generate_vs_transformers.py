"""Generation speed of a pretrained model compared with transformers, in one run, from one folder.

    pip install transformers
    python benchmarks/generate_vs_transformers.py FOLDER [--tokens 100] [--rounds 5] [--out transformers.json]

FOLDER is a GPT-2 or a Llama as Hugging Face stores it. Each contender continues one prompt greedily in float32: first
transformers with its key-value cache, then minigpt in PyTorch, and compiled (`generate --compile`), also in 8 bits. All
but the last must write the same text. They take turns, round by round, so that a slow minute of the machine falls on
all; ratios are medians of the ratios within a round. `seconds` is what loading a model takes, with the compilation.
Prints a table, and writes JSON with --out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import minigpt
from minigpt.cpu.decoding import compile_decoding

PROMPT = "Once upon a time,"
Contender = Callable[[int], str]  # continues the prompt by this many tokens


def hugging_face(folder: Path) -> Contender:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # draw as many tokens as minigpt does
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def run(tokens: int) -> str:
        inputs = tokenizer(PROMPT, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0]
        return tokenizer.decode(ids[inputs.input_ids.shape[1] :])

    return run


def project(folder: Path, tokens: int, compiled: bool = False, precision: str = "32") -> Contender:
    lm = minigpt.load(folder, precision=precision)
    if compiled:
        compile_decoding(lm.model, 64 + tokens)
    return lambda n: "".join(lm.stream(PROMPT, n, temperature=0))


def measure(makers: dict[str, Callable[[], Contender]], tokens: int, rounds: int) -> dict:
    """Return each contender's seconds of loading, its tokens per second in each round, and its text."""
    contenders, results = {}, {}
    for name, make in makers.items():
        started = time.perf_counter()
        contenders[name] = make()
        results[name] = {"seconds": time.perf_counter() - started, "speeds": []}
        results[name]["text"] = contenders[name](tokens)  # checks the model, and warms it up
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run(tokens)
            results[name]["speeds"].append(tokens / (time.perf_counter() - started))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    makers = {
        "transformers": lambda: hugging_face(asked.folder),
        "minigpt": lambda: project(asked.folder, asked.tokens),
        "minigpt, compiled": lambda: project(asked.folder, asked.tokens, compiled=True),
        "minigpt, compiled, int8": lambda: project(asked.folder, asked.tokens, True, "int8"),
    }
    results = measure(makers, asked.tokens, asked.rounds)
    theirs = results["transformers"]
    print(f"{torch.get_num_threads()} threads, {asked.tokens} tokens, {asked.rounds} rounds")
    print(f"{'':25}{'tokens/s':>10}{'ratio':>8}{'seconds':>9}  text")
    for name, result in results.items():
        ratio = statistics.median(a / b for a, b in zip(result["speeds"], theirs["speeds"], strict=True))
        same = "the same" if result["text"] == theirs["text"] else "another"
        speed = statistics.median(result["speeds"])
        print(f"{name:25}{speed:10.1f}{ratio:8.2f}{result['seconds']:9.1f}  {same}")
    if asked.out:
        asked.out.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
