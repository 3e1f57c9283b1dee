"""Take the pictures of the HTML page that the READMEs and the guide show, in English and in French.

python docs/images/pages.py --tiny lightning_logs/tiny/version_0 --modern lightning_logs/modern_nano/version_0
python docs/images/pages.py --film lightning_logs/quick_nano/version_0

The first line exports two runs as the guide does, and photographs their pages. The second one writes the moving
picture of the READMEs: at each snapshot of a run the page writes from the same prompt, with the same seed. Its run was
`minigpt train --config quick_nano --validation.every_n_steps 10 --samples.every_n_steps 10 --checkpoint.snapshots 20`.
The script needs Chromium, playwright and Pillow, which the tests and matplotlib bring.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from minigpt import loading
from minigpt.export import export

IMAGES = Path(__file__).parent
GUIDE = IMAGES.parent / "guide"
LOCALES = {"": "en-GB", ".fr": "fr-FR"}  # by what a picture's name has before its ending
COLOURS, STILL_COLOURS = 48, 128  # of the moving picture, and of the others
FRAME, LAST = 700, 3000  # milliseconds for which a frame is shown


def page_of(run: str, folder: Path) -> Path:
    """Export a run with all its snapshots, and return the page."""
    _, checkpoint, lm = loading.open_checkpoint(run)
    export(checkpoint, lm, folder, "html", max_mb=100)
    return folder / "index.html"


def opened(browser: Browser, page: Path, locale: str, width: int, height: int) -> Page:
    """Open a page, and wait for its first text."""
    context = browser.new_context(locale=locale, viewport={"width": width, "height": height}, device_scale_factor=1)
    tab = context.new_page()
    tab.goto(page.as_uri())
    done(tab)
    return tab


def done(tab: Page) -> None:
    """Wait until the page has written and explained its text."""
    tab.locator("#text[aria-busy=false]").wait_for(timeout=120_000)
    tab.wait_for_timeout(400)


def save(picture: bytes, file: Path) -> None:
    """Write a picture with few colours, which takes a third of the space."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(STILL_COLOURS).save(file, optimize=True)


def write(tab: Page, count: int) -> None:
    """Let the page write some tokens."""
    tab.evaluate("count => { state.settings.count = count; makeSliders(); }", count)
    tab.locator("#write").click()
    done(tab)
    tab.evaluate("scrollTo(0, 0)")


def still(browser: Browser, tiny: Path, modern: Path) -> None:
    """Take the pictures of the guide and of the page on exports."""
    for name, locale in LOCALES.items():
        tab = opened(browser, tiny, locale, 1000, 620)
        tab.locator("#tab-time").click()
        tab.locator("#moment").fill("0")
        tab.wait_for_timeout(800)
        write(tab, 150)
        save(tab.screenshot(full_page=True), GUIDE / f"bigram_page{name}.png")
        tab = opened(browser, modern, locale, 1000, 620)
        write(tab, 120)
        for position in range(30, 100):  # a place where some of the candidates are cut
            tab.locator(f"#token-{position}").click()
            tab.wait_for_timeout(200)
            if 4 <= tab.locator("#why-bars .cut").count() <= 6:
                break
        save(tab.screenshot(full_page=True), IMAGES / f"page_why{name}.png")
        tab.locator("#stages button").nth(-2).click()
        tab.wait_for_timeout(500)
        save(tab.locator("#why").screenshot(), GUIDE / f"sampling_page{name}.png")
        tab.locator("#tab-inside").click()
        tab.locator(".heads button").nth(4).click()
        tab.locator("#turn-off").check()
        tab.locator("#off-bars tr").first.wait_for()
        tab.wait_for_timeout(500)
        save(tab.locator("#inside").screenshot(), GUIDE / f"modern_page{name}.png")


def film(browser: Browser, page: Path) -> None:
    """Take a moving picture of a run's snapshots."""
    for name, locale in LOCALES.items():
        tab = opened(browser, page, locale, 980, 660)
        tab.locator("#parameters summary").click()
        tab.locator("#tab-time").click()
        frames = []
        for moment in range(int(tab.locator("#moment").get_attribute("max") or 0) + 1):
            tab.locator("#moment").fill(str(moment))
            tab.wait_for_timeout(600)
            write(tab, 170)
            picture = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            frames.append(picture.quantize(COLOURS, dither=Image.Dither.NONE))
        times = [FRAME] * (len(frames) - 1) + [LAST]
        file = IMAGES / f"page{name}.gif"
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)
        print(f"{file.name}: {len(frames)} frames, {file.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for run in ("--tiny", "--modern", "--film"):
        parser.add_argument(run)
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if asked.tiny and asked.modern:
            still(browser, page_of(asked.tiny, Path(folder) / "tiny"), page_of(asked.modern, Path(folder) / "modern"))
        if asked.film:
            film(browser, page_of(asked.film, Path(folder) / "film"))
        browser.close()


if __name__ == "__main__":
    main()
