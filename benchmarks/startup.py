"""Start-up time: `import minigpt` and the first character of generate.py, compared with `import torch`.

    python benchmarks/startup.py

Each is timed as a whole process, in turn, several times; the run that generate.py reads is trained first, for one
step. Prints a table of medians and writes JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "un matin,"


def python(*args: str, cwd: str, characters: int | None = None) -> float:
    """Return the seconds until a process ends, or has written so many characters."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *args], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.read(-1 if characters is None else characters)
    if characters is None:
        process.wait()
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    asked = parser.parse_args()

    imports = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import torch"
    names = "minigpt.load, minigpt.generate, minigpt.TinyGPT, minigpt.CharTokenizer, minigpt.CharDataset"
    with tempfile.TemporaryDirectory() as folder:
        config = str(ROOT / "configs" / "tiny.yaml")
        python(str(ROOT / "scripts" / "train.py"), "--config", config, "--trainer.max_steps", "1", cwd=folder)
        starts = {
            "python -c 'import torch'": lambda: python("-c", imports, cwd=folder),
            "and import minigpt, with what sampling needs": lambda: python(
                "-c", f"{imports}, minigpt; {names}", cwd=folder
            ),
            "generate.py, first character": lambda: python(
                str(ROOT / "scripts" / "generate.py"), cwd=folder, characters=len(PROMPT) + 1
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in starts}
        for start in starts.values():
            start()  # fills the file cache
        for _ in range(asked.rounds):
            for name, start in starts.items():
                seconds[name].append(start())

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    torch_alone = next(iter(medians.values()))
    print(f"{'':46}{'s (min to max)':>22}{'of torch':>10}")
    for name, median in medians.items():
        spread = f"{median:.2f} ({min(seconds[name]):.2f} to {max(seconds[name]):.2f})"
        print(f"{name:46}{spread:>22}{median / torch_alone:>10.2f}")
    if asked.json:
        asked.json.write_text(json.dumps(seconds, indent=2))


if __name__ == "__main__":
    main()
