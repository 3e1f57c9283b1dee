"""Size of the HTML page, and how fast it writes in Chromium, beside PyTorch on the same machine.

    python benchmarks/html_page.py lightning_logs/tiny/version_0 lightning_logs/modern_nano/version_0 [--rounds 3]

For each run: the size of its page with and without snapshots, in int8 and in float32, and what int8 costs in bits per
character. Then the page and `minigpt generate`'s loop write 300 tokens in turn, with the same sampling parameters; the
ratio is the median of the ratios within a round. The page's time is the whole of a visitor's wait, display included.
Prints a table and writes JSON.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import Browser, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minigpt import LanguageModel, loading
from minigpt.export import files_of

TOKENS = 300
SAMPLING = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}


def sizes(run: str) -> tuple[dict[str, float], bytes]:
    """Return the sizes of a run's pages in kB, and the page without snapshots in int8."""
    _, checkpoint, lm = loading.open_checkpoint(run)
    found, pages = {}, {}
    for precision in ("int8", "32"):
        page = files_of("html", checkpoint, lm, precision)["index.html"]
        blocks = [len(block) for block in re.findall(rb'data-set="\d+">([^<]*)<', page)]
        found[f"{precision} with snapshots"] = len(page) / 1000
        found[f"{precision}"] = (len(page) - sum(blocks) + max(blocks)) / 1000
        pages[precision] = page
    model = json.loads(re.search(rb'id="model">(.*?)</script>', pages["int8"], re.S)[1])
    found["cost in bits"] = model["cost"]
    found["steps"] = len(model["sets"])
    return found, pages["int8"]


def in_chromium(browser: Browser, page: Path, rounds: int) -> list[float]:
    """Return the tokens per second of each round in the page."""
    tab = browser.new_page(locale="en-GB")
    tab.goto(page.as_uri())
    speeds = []
    for _ in range(rounds + 1):  # the first is a warm-up
        tab.locator("#text[aria-busy=false]").wait_for(timeout=600_000)
        started = time.perf_counter()
        tab.locator("#write").click()
        tab.locator("#text[aria-busy=false]").wait_for(timeout=600_000)
        speeds.append(TOKENS / (time.perf_counter() - started))
    tab.close()
    return speeds[1:]


def in_torch(lm: LanguageModel, rounds: int) -> list[float]:
    """Return the tokens per second of each round in PyTorch."""
    speeds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        for _ in lm.stream("un matin,", TOKENS, seed=1, unknown="skip", **SAMPLING):
            pass
        speeds.append(TOKENS / (time.perf_counter() - started))
    return speeds[1:]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="html_page.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    results = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for run in asked.runs:
            found, content = sizes(run)
            page = Path(folder) / "page.html"
            page.write_bytes(content)
            lm = loading.load(run)
            pairs = [
                (in_chromium(browser, page, 1)[0], in_torch(lm, 1)[0]) for _ in range(asked.rounds)
            ]  # fmt: skip
            found["chromium tokens/s"] = statistics.median(page for page, _ in pairs)
            found["torch tokens/s"] = statistics.median(other for _, other in pairs)
            found["ratio"] = statistics.median(page / other for page, other in pairs)
            results[run] = found
            print(run, *(f"  {name:22} {value:,.4g}" for name, value in found.items()), sep="\n")
        browser.close()
    Path(asked.out).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
