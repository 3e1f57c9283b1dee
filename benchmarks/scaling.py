"""Predicted cost of a training: memory, operations, seconds per step and network volume of each strategy.

    python benchmarks/scaling.py --params 1e9 --devices 8
    python benchmarks/scaling.py --check growth.json --flops 152e9 --bandwidth 30e9

Each figure is one line of arithmetic below, over a transformer of the preset `modern`. The second form holds the
predictions to what growth.py measured (its --json) on a machine with so many float32 operations and bytes of memory a
second. Without --check the machine is one H200 a device, at the share of its bf16 peak that trainings usually reach;
the days are those of 20 tokens a parameter.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

VOCAB = 50_304  # byte pairs of a large corpus
KEPT = 34  # numbers of the width a token and layer: what autograd keeps, fitted to growth.py's larger models
PROCESS = 40e6  # bytes that a first step takes whatever the model
PASSES = 3  # an activation is written, read by the backward pass, and its gradient written
CALLS = 180  # operations that a layer takes, forward and back
TOKENS_PER_PARAMETER = 20  # Hoffmann et al., "Training Compute-Optimal Large Language Models", 2022


@dataclass
class Machine:
    """One device and its links: operations and bytes a second, bytes of memory, seconds to begin an operation."""

    flops: float
    bandwidth: float
    network: float
    memory: float
    call: float


# NVIDIA's data sheet: 989e12 bf16 operations, 4.8e12 bytes a second, 141e9 bytes, NVLink 450e9 a direction. Large
# trainings report 0.35 to 0.45 of peak. A GPU is given its operations ahead of time, so to begin one costs nothing.
H200 = Machine(flops=0.4 * 989e12, bandwidth=4.8e12, network=450e9, memory=141e9, call=0.0)


@dataclass
class Model:
    """The sizes that determine the cost."""

    n_layer: int
    n_embd: int
    vocab: int

    @property
    def parameters(self) -> int:
        """12 C * C a layer, and the two tables between ids and vectors."""
        return 12 * self.n_layer * self.n_embd**2 + 2 * self.vocab * self.n_embd

    def flops(self, context: int) -> float:
        """Operations per token, forward and backward: 6 per weight of a product, and 12 L C T for attention."""
        return 6 * (self.parameters - self.vocab * self.n_embd) + 12 * self.n_layer * self.n_embd * context

    def kept(self, size: int) -> float:
        """Return the bytes of activations per token, with `size` bytes per number, including logits and gradient."""
        return size * (KEPT * self.n_layer * self.n_embd + 2 * self.vocab)


def of_size(parameters: float, vocab: int = VOCAB) -> Model:
    """Return a model with about so many parameters outside its embeddings, with a usual ratio of width to depth."""
    aspect = 32 * max(1.0, parameters / 0.8e6) ** 0.15  # 32 at 0.8 M, 68 at 124 M, 130 at 10 B: GPT-2's and GPT-3's
    n_layer = max(2, round((parameters / (12 * aspect**2)) ** (1 / 3)))
    return Model(n_layer, max(64, round(math.sqrt(parameters / (12 * n_layer)) / 64) * 64), vocab)


def plan(
    model: Model,
    machine: Machine,
    strategy: str,
    devices: int,
    tokens: int,
    context: int,
    size: int,
    checkpointing: bool,
) -> dict[str, float]:
    """Return the cost of a step of `tokens` tokens on each of the devices.

    Args:
        model: What is trained.
        machine: Each device.
        strategy: `one`; `ddp`, a whole copy each; `fsdp`, a share of weights, gradients and moments each.
        devices: How many.
        tokens: Of a device and step.
        context: The window.
        size: Bytes of an activation: 4 in float32, 2 in bf16.
        checkpointing: Keep a block's input alone, and compute its inside again on the way back.

    Returns:
        Bytes of memory of a device, bytes that it sends in a step, and seconds of the step if nothing overlaps.
    """
    weights, share = model.parameters, devices if strategy == "fsdp" else 1
    state = 16 * weights / share  # float32: weights, gradients, two moments
    if strategy == "ddp":
        state += 4 * weights  # gradients again, in the buckets that are sent
    if strategy == "fsdp":  # whole: the block at work and the next, and a block's gradients as they are and as sent
        state += (2 * size + 2 * 4) * 12 * model.n_embd**2
    kept = model.kept(size) * tokens
    if checkpointing:
        kept = size * tokens * ((model.n_layer + KEPT) * model.n_embd + 2 * model.vocab)
    others = (devices - 1) / devices
    # A ring's all-reduce sends each gradient twice; FSDP gathers the weights twice and spreads the gradients once.
    sent = {"one": 0.0, "ddp": 2 * 4 * weights * others, "fsdp": (2 * size + 4) * weights * others}[strategy]
    seconds = model.flops(context) * tokens * (4 / 3 if checkpointing else 1) / machine.flops
    seconds += (PASSES * model.kept(size) * tokens + 28 * weights / share) / machine.bandwidth
    seconds += model.n_layer * CALLS * machine.call + sent / machine.network
    return {"memory": state + kept + PROCESS, "sent": sent, "seconds": seconds}


def check(file: Path, machine: Machine) -> None:
    """Print predictions and measurements for the points of growth.py."""
    from growth import TOKENS, WIDTHS

    results = json.loads(file.read_text())["results"]
    rows = [
        (f"{n:,} parameters", width, 64) for width, n in zip(WIDTHS, results["parameters"]["parameters"], strict=True)
    ]
    rows += [(f"context {context}", 256, context) for context in results["context, tokens"]["context, tokens"]]
    measured = [
        pair for table in ("parameters", "context, tokens")
        for pair in zip(results[table]["seconds"], results[table]["MB"], strict=True)
    ]  # fmt: skip
    print(
        "| | seconds, predicted | measured | error | MB, predicted | measured | error |\n|---|---|---|---|---|---|---|"
    )
    for (name, width, context), (seconds, megabytes) in zip(rows, measured, strict=True):
        found = plan(Model(4, width, 65), machine, "one", 1, TOKENS, context, 4, False)
        cells = []
        for predicted, real in ((found["seconds"], seconds), (found["memory"] / 1e6, megabytes)):
            cells += [f"{predicted:.3g}", f"{real:.3g}", f"{predicted / real - 1:+.0%}"]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=float, nargs="+", default=[1e6, 1e7, 1e8, 1e9, 1e10], help="sizes of models")
    parser.add_argument("--devices", type=int, default=8, help="how many devices share the work")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of a device and step")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--flops", type=float, default=H200.flops, help="operations a second that a device reaches")
    parser.add_argument("--bandwidth", type=float, default=H200.bandwidth, help="bytes of memory a second")
    parser.add_argument("--network", type=float, default=H200.network, help="bytes that a device sends a second")
    parser.add_argument("--memory", type=float, default=H200.memory, help="bytes of memory of a device")
    parser.add_argument("--check", type=Path, help="a JSON of growth.py, to hold predictions to")
    asked = parser.parse_args()
    machine = Machine(asked.flops, asked.bandwidth, asked.network, asked.memory, H200.call)
    if asked.check:
        machine.call = 15e-6  # of a small operation on a CPU
        return check(asked.check, machine)
    titles = ("parameters", "strategy", "memory of a device, GB", "sent a step, GB", "seconds a step", "days")
    print(f"| {' | '.join(titles)} |")
    print("|---|---|---|---|---|---|")
    for parameters in asked.params:
        model = of_size(parameters)
        name = f"{model.parameters:,} ({model.n_layer} × {model.n_embd})"
        for strategy, checkpointing in (("one", False), ("ddp", False), ("fsdp", False), ("fsdp", True)):
            devices = 1 if strategy == "one" else asked.devices
            found = plan(model, machine, strategy, devices, asked.tokens, asked.context, 2, checkpointing)
            fits = "" if found["memory"] < machine.memory else " (too much)"
            steps = TOKENS_PER_PARAMETER * model.parameters / (asked.tokens * devices)
            print(
                f"| {name} | {strategy}{', checkpointing' * checkpointing} | {found['memory'] / 1e9:.3g}{fits} | "
                f"{found['sent'] / 1e9:.3g} | {found['seconds']:.3g} | {steps * found['seconds'] / 86_400:.3g} |"
            )
            name = ""


if __name__ == "__main__":
    main()
