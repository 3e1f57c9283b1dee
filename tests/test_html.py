"""`export --format html`: one file with a model that writes, explains itself and replays its training."""

import json
import re
import shutil
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, made_once
from PIL import Image, ImageStat
from torch import nn

from minigpt import GPT, CharTokenizer, LanguageModel, TinyGPT, WordTokenizer
from minigpt.command_line import PROMPTS
from minigpt.errors import MiniGPTError
from minigpt.export import files_of, html, packing

MODERN = str(ROOT / "configs" / "modern_nano.yaml")
CHECKPOINT = {"minigpt": {"data": {}}, "global_step": 7}
TEXT = "un matin, la petite fille descend le chemin.\n"


def model_of(page: bytes) -> dict:
    """Return the facts about the model that a page holds."""
    return json.loads(re.search(rb'<script type="application/json" id="model">(.*?)</script>', page, re.S)[1])


def edited(page: bytes, model: dict) -> bytes:
    """The page with other knowledge of its model."""
    place = re.compile(rb'(id="model">)(.*?)(</script>)', re.S)
    return place.sub(lambda match: match[1] + html.in_script(model).encode() + match[3], page)


def small(tokenizer=None, **settings) -> LanguageModel:
    torch.manual_seed(3)
    tokenizer = tokenizer or CharTokenizer.from_text(TEXT)
    sizes = {"block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return LanguageModel(GPT(tokenizer.vocab_size, **sizes, **settings), tokenizer)


def page_of(lm: LanguageModel, **options) -> bytes:
    return files_of("html", CHECKPOINT, lm, **options)["index.html"]


@pytest.fixture(scope="session")
def runs_with_snapshots(tmp_path_factory):
    """Two runs with snapshots and samples, of the article's model and of a small transformer. Not to be written to."""

    def make(place: Path) -> None:
        from minigpt.training.cli import MiniGPTCLI

        common = [
            "--trainer.accelerator", "cpu", "--trainer.max_steps", "60", "--validation.every_n_steps", "20",
            "--samples.every_n_steps", "20", "--samples.max_new_tokens", "40", "--checkpoint.snapshots", "5",
            "--figures.every_n_steps", "0", "--trainer.default_root_dir", str(place),
        ]  # fmt: skip
        sizes = ["n_layer", "2", "n_head", "2", "n_embd", "32"]
        network = [f"--model.network.{word}" if n % 2 == 0 else word for n, word in enumerate(sizes)]
        for args in (["--config", TINY], ["--config", MODERN, *network]):
            cli = MiniGPTCLI([*args, *common])
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)

    return made_once(tmp_path_factory, "html_runs", make)


def run_of(place: Path, name: str) -> str:
    (run,) = place.glob(f"**/{name}/version_*")
    return str(run)


def exported(call, run: str, *args: str) -> bytes:
    result = call("export", "--format", "html", "--out", "page", "--ckpt_path", run, *args)
    assert result.status == 0, result.err
    return Path("page/index.html").read_bytes()


@pytest.mark.slow
def test_the_page_holds_the_run(call, runs_with_snapshots):
    page = exported(call, run_of(runs_with_snapshots, "tiny"))
    model = model_of(page)
    assert model["name"] == "tiny"
    assert [each["step"] for each in model["sets"]] == [20, 40, 60]
    assert model["start"] == 2
    assert [step for step, _ in model["curves"]["val"]] == [20, 40, 60]
    assert set(model["curves"]["baselines"]) == {"uniform", "unigram", "bigram", "xz"}
    assert [step for step, _ in model["samples"]] == [0, 20, 40, 60]
    assert model["prompt"] == "un matin,"
    assert abs(model["cost"]) < 0.01
    assert len(page) < 250_000  # the budget of the recipe


@pytest.mark.slow
def test_what_does_not_fit_is_left_out_and_said(call, runs_with_snapshots):
    run = run_of(runs_with_snapshots, "modern_nano")
    whole = exported(call, run)
    block = max(len(each) for each in re.findall(rb'data-set="\d">([^<]*)<', whole))
    one = (len(whole) - block) / 1e6
    shutil.rmtree("page")
    result = call("export", "--format", "html", "--out", "page", "--ckpt_path", run, "--max_mb", f"{one:.6f}")
    page = Path("page/index.html").read_bytes()
    left_out = model_of(page)["left_out"]
    assert left_out > 0
    assert f"to stay below --max_mb {one:g}: {left_out}." in result.err
    assert len(page) <= one * 1e6


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(call, runs_with_snapshots):
    run = run_of(runs_with_snapshots, "tiny")
    result = call("export", "--format", "html", "--out", "page", "--ckpt_path", run, "--max_mb", "0.01")
    assert result.status == 2
    assert "MB without any snapshot, and --max_mb is 0.01" in result.err
    assert not Path("page").exists()


@pytest.mark.slow
def test_a_snapshot_has_a_page_too(call, runs_with_snapshots):
    model = model_of(exported(call, run_of(runs_with_snapshots, "tiny") + "@20"))
    assert model["sets"][model["start"]]["step"] == 20
    assert len(model["sets"]) == 3


@pytest.mark.slow
def test_snapshots_that_cannot_be_shown_are_left_out_by_name(call, runs_with_snapshots):
    shutil.copytree(run_of(runs_with_snapshots, "tiny"), "run")
    damaged, other = sorted(Path("run/snapshots").iterdir())[:2]
    damaged.write_bytes(damaged.read_bytes()[:-10])
    shutil.copy(next(Path(run_of(runs_with_snapshots, "modern_nano")).glob("snapshots/*20.*")), other)
    result = call("export", "--format", "html", "--out", "page", "--ckpt_path", "run")
    assert result.status == 0, result.err
    assert f"The snapshot '{damaged}' is left out" in result.err.replace(f"{Path.cwd()}/", "")
    assert f"The snapshot '{other}' is left out" in result.err.replace(f"{Path.cwd()}/", "")
    model = model_of(Path("page/index.html").read_bytes())
    assert ([each["step"] for each in model["sets"]], model["left_out"]) == ([60], 0)


@pytest.mark.slow
def test_a_diverged_run_has_a_page(call, runs_with_snapshots, monkeypatch):
    """Numbers that JSON has not: in the curves, and where the cost of rounding is measured."""
    curves = html.Curves({"val/bits_per_char": [(20, 3.0), (40, float("nan")), (60, float("inf"))]}, {})
    monkeypatch.setattr(html, "read_curves", lambda run_dir: curves)
    monkeypatch.setattr(html, "MULTIPLICATIONS", 1e6)
    monkeypatch.setattr(html, "unpacked", lambda specs, data: {
        name: weight * float("nan") for name, weight in packing.unpacked(specs, data).items()
    })  # fmt: skip
    model = model_of(exported(call, run_of(runs_with_snapshots, "tiny")))
    assert [each["bits"] for each in model["sets"]] == [3.0, None, None]
    assert model["cost"] is None


def test_weights_that_are_not_finite_are_refused():
    lm = small()
    lm.model.embed.weight.data[0, 0] = float("nan")
    with pytest.raises(MiniGPTError, match="training diverged"):
        page_of(lm)


def test_a_folder_whose_name_is_not_unicode(tmp_path):
    lm = small()
    lm.run_dir = tmp_path / "caf\udce9" / "version_0"
    assert model_of(page_of(lm, precision="32"))["name"] == "caf?"


@pytest.mark.parametrize(
    ("config", "prompt"),
    [
        ("samples: {prompts: [la fille, le]}", "la fille"), ("samples: {prompts: [WWW]}", ""), ("[" * 10_000, None),
        ("samples: {prompts: []}", None), ("samples: {prompts: [&a [1], *a]}", None), ("\x00", None), ("", None),
    ],
)  # fmt: skip
def test_the_prompt_is_that_of_the_samples_if_it_can_be_read(tmp_path, config, prompt):
    lm = small()
    lm.run_dir = tmp_path
    (tmp_path / "config.yaml").write_text(config)
    assert html.prompt_of(lm) == (PROMPTS[0] if prompt is None else prompt)


def test_max_mb_is_for_html_alone(call, trained_run):
    result = call(
        "export", "--format", "safetensors", "--out", "x", "--ckpt_path", str(trained_run), "--max_mb", "3"
    )  # fmt: skip
    assert (result.status, result.err.splitlines()[-1]) == (
        2, "--max_mb is for --format html, not safetensors. Leave it out.",
    )  # fmt: skip


def test_networks_without_an_engine_are_refused_by_name():
    class GRU(nn.Module):
        block_size = 8

    tokenizer = CharTokenizer.from_text(TEXT)
    with pytest.raises(MiniGPTError, match="no engine for a GRU"):
        page_of(LanguageModel(GRU(), tokenizer))
    hooked = small()
    hooked.model.blocks[0].register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(MiniGPTError, match=r"the forward hook of blocks\.0"):
        page_of(hooked)


@pytest.mark.parametrize("max_mb", [0, -1, float("nan")])
def test_max_mb_is_positive(max_mb):
    with pytest.raises(MiniGPTError, match="max_mb"):
        page_of(small(), max_mb=max_mb)


def test_nothing_that_a_model_says_ends_its_script():
    words = ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028", "{{weights}}", "{{model}}"]
    page = page_of(small(WordTokenizer(words)))
    assert page.count(b"</script>") == page.count(b"<script")
    assert b"alert(1)</script>" not in page
    assert b"<!--" not in page
    assert set(words) <= set(json.dumps(model_of(page)["tokenizer"], ensure_ascii=False).split('"')) | {"\u2028"}


def test_without_a_run_the_page_has_the_model_alone():
    model = model_of(page_of(small()))
    assert [each["step"] for each in model["sets"]] == [7]
    assert (model["cost"], model["samples"], model["curves"]["val"]) == (None, [], [])
    assert model["prompt"] == "un matin,"
    assert model_of(page_of(LanguageModel(TinyGPT(3), CharTokenizer.from_text("abc"))))["prompt"] == ""


def test_numbers_that_json_has_not_are_left_out_of_curves():
    curves = [(step, 5.0 if step % 2 else float("nan")) for step in range(1, 2000)]
    thin = html.thinned(curves, 50)
    assert len(thin) == 50
    assert (thin[0], thin[-1]) == ((1, 5.0), (1999, 5.0))
    gaps = [b - a for (a, _), (b, _) in pairwise(thin)]
    assert max(gaps) - min(gaps) <= 2


def test_the_page_loads_nothing_and_has_only_its_own_files():
    page = page_of(small()).decode()
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)""", page)
    sources = {file.name for file in html.WEB.iterdir()}
    assert sources == {"page.html", "style.css", *(f"{name}.js" for name in (*html.ENGINE, html.WORKER, *html.PAGE))}
    for name in sources:  # readable, and within the budget
        assert max(map(len, html.read(name).splitlines())) <= 120, name
    lines = {name: len((html.WEB / name).read_text(encoding="utf-8").splitlines()) for name in sources}
    assert sum(lines[f"{name}.js"] for name in html.ENGINE) <= 500
    assert sum(lines.values()) <= 1800


def test_both_languages_say_the_same():
    source = html.read("words.js")
    english, french = source.split("};")[0].split("fr:")
    names = [set(re.findall(r"[{,]\s+(\w+): \"", part)) for part in (english, french)]
    assert names[0] == names[1]
    used = "".join(html.read(f"{name}.js") for name in html.PAGE) + html.read("page.html")
    for name in re.findall(r"""say\("(\w+)"|data-say="(\w+)\"""", used):
        assert "".join(name) in names[0]


def luminance(colour: tuple[float, float, float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple, other: tuple) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrasts_meet_level_aa(dark):
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text, also on the colour of the most surprising token; 1.4.11: 3 to 1 for signs."""
    blocks = re.findall(r":root \{(.*?)\}", html.read("style.css"), re.S)
    values = dict(re.findall(r"--(\w[\w-]*): ([^;]+);", blocks[0] + (blocks[1] if dark else "")))
    colour = {
        name: tuple(int(value[n : n + 2], 16) / 255 for n in (1, 3, 5))
        for name, value in values.items()
        if value.startswith("#")
    }
    share = float(values["most"].split("%")[0]) / 100
    hot = tuple(share * a + (1 - share) * b for a, b in zip(colour["hot"], colour["panel"], strict=True))
    for text, ground in [
        ("ink", "paper"), ("ink", "panel"), ("faint", "paper"), ("faint", "panel"), ("on-accent", "accent"),
    ]:  # fmt: skip
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    assert contrast(colour["ink"], hot) >= 4.5
    for sign in ("accent", "hot", "faint"):
        assert contrast(colour[sign], colour["paper"]) >= 3, sign


@pytest.fixture
def opened(browser, tmp_path):
    """`opened(page, ...)`: a tab with a page from a file, which has written its first text. Errors fail the test."""
    errors, requests, contexts = [], [], []

    def opened(page: bytes, width: int = 1280, locale: str = "fr-FR", wait: bool = True, before: str = "", **options):
        file = tmp_path / "page.html"
        file.write_bytes(page)
        context = browser.new_context(locale=locale, viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: requests.append(request.url))
        if before:
            tab.add_init_script(before)
        tab.goto(file.as_uri())
        if wait:
            done(tab)
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert errors == []
    assert all(url.startswith(("file:", "blob:")) for url in requests)


def done(tab) -> str:
    """Wait until nothing is written any more; the text."""
    tab.locator("#text[aria-busy=false]").wait_for()
    assert not tab.locator("#stop").is_visible()
    return tab.locator("#text").inner_text()


def percents(tab, panel: str = "#why-bars") -> list[tuple[str, str]]:
    """The names in a bar chart, with their probability after."""
    rows = tab.locator(f"{panel} tbody tr")
    return [(row.locator("th").inner_text(), row.locator("td").last.inner_text()) for row in rows.all()]


@pytest.mark.full
def test_the_page_writes_explains_and_goes_on(call, runs_with_snapshots, opened):
    tab = opened(exported(call, run_of(runs_with_snapshots, "tiny")))
    text = done(tab)
    assert text.startswith("un matin,")
    assert len(text) == 9 + 300
    assert "TinyGPT de 6\u202f837 paramètres, après 60 étapes" in tab.locator("#facts").inner_text()
    tab.locator("#write").click()  # the same seed
    assert done(tab) == text
    tab.locator("#token-20").click()
    assert tab.locator("#token-20").get_attribute("aria-selected") == "true"
    assert "bits" in tab.locator("#token-20").get_attribute("aria-label")
    tab.locator("#text").focus()
    for key, chosen in (("ArrowRight", 21), ("ArrowLeft", 20), ("Home", 0), ("ArrowDown", 20)):
        tab.keyboard.press(key)
        assert tab.locator(f"#token-{chosen}").get_attribute("aria-selected") == "true", key
    before = percents(tab)
    other = tab.locator("#why-bars tbody tr:not(.came) button").first
    token = other.get_attribute("data-id")
    other.press("Enter")  # what if it had been this one?
    tab.locator("#why-bars .came button").wait_for()
    changed = done(tab)
    assert changed[:20] == text[:20]
    assert changed[20] != text[20]
    assert percents(tab)[0] == before[0]
    assert tab.locator("#why-bars .came button").get_attribute("data-id") == token
    tab.evaluate("choose(0)")
    tab.locator("#why-where", has_text="deuxième").wait_for()
    tab.locator("#more").click()
    assert len(done(tab)) == len(changed) + 300
    tab.evaluate("whatIf(400, state.ids[400])")  # in a longer text than the slider's
    assert len(done(tab)) == len(changed) + 300
    tab.evaluate("whatIf(state.ids.length, state.ids[0])")
    assert len(done(tab)) == len(changed) + 600


@pytest.mark.full
def test_the_bars_follow_the_sliders(call, runs_with_snapshots, opened):
    tab = opened(exported(call, run_of(runs_with_snapshots, "tiny")))
    assert len(tab.locator("#why-bars tbody tr").all()) >= 10
    first = percents(tab)
    assert re.fullmatch(r"\d+,\d[\u202f\u00a0]%", first[0][1])
    tab.locator("#set-top_k").fill("2")
    assert tab.locator("#why-bars tr.cut").count() >= 8
    assert {p.replace("\u202f", "\u00a0") for _, p in percents(tab)[2:]} == {"0,0\u00a0%"}
    tab.locator("#set-temperature").fill("0")
    assert percents(tab)[0][1].startswith("100,0")
    tab.locator("#set-temperature").fill("1")
    tab.locator("#set-top_k").fill("30")
    stages = tab.locator("#stages button")
    assert [stage.inner_text().split(" −")[0] for stage in stages.all()] == ["Température", "Top-k", "Top-p", "Tout"]
    stages.last.focus()
    tab.keyboard.press("ArrowRight")
    assert stages.first.get_attribute("aria-checked") == "true"
    before = tab.locator("#why-bars tbody tr td.number:nth-last-child(2)").first.inner_text()
    assert before == percents(tab)[0][1]  # a temperature of 1 changes nothing


@pytest.mark.full
def test_a_long_text_can_be_stopped_while_it_is_written(call, runs_with_snapshots, opened):
    tab = opened(exported(call, run_of(runs_with_snapshots, "modern_nano")))
    tab.locator("#set-count").fill("2000")
    tab.locator("#write").click()
    tab.locator("#token-30").wait_for()
    tab.locator("#token-12").click()  # the page answers while it writes
    tab.locator("#why-bars .came").wait_for()
    tab.locator("#stop").click()
    tab.locator("#stop").wait_for(state="hidden")
    assert 30 < len(tab.locator("#text").inner_text()) < 2000


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny", "modern_nano"])
def test_hasty_clicks_end_in_the_text_of_the_last(call, runs_with_snapshots, opened, name):
    tab = opened(exported(call, run_of(runs_with_snapshots, name)))
    text = done(tab)
    tab.evaluate("for (let n = 0; n < 5; n++) byId('write').click()")
    assert done(tab) == text
    tab.locator("#set-count").fill("2000")
    tab.evaluate("byId('write').click(); byId('stop').click(); byId('stop').click()")
    assert len(done(tab)) < 2000
    tab.locator("#set-count").fill("300")
    tab.evaluate("byId('more').click(); byId('write').click()")
    assert done(tab) == text
    tab.evaluate("useSet(0); byId('write').click()")  # the text waits for the weights
    early = done(tab)
    tab.locator("#write").click()
    assert done(tab) == early != text


@pytest.mark.full
def test_the_keyboard_keeps_its_place(call, runs_with_snapshots, opened):
    tab = opened(exported(call, run_of(runs_with_snapshots, "tiny")))
    tab.evaluate("choose(12)")
    other = tab.locator("#why-bars tbody tr:not(.came) button").first
    token = other.get_attribute("data-id")
    other.focus()
    tab.keyboard.press("Enter")
    done(tab)
    tab.locator(f"#why-bars .came [data-id='{token}']").wait_for()
    assert tab.evaluate("document.activeElement.dataset.id") == token
    tab.locator("#tab-inside").click()  # slower, so that it can be stopped
    tab.locator("#more").click()
    tab.locator("#stop").wait_for()
    tab.locator("#stop").press("Enter")
    done(tab)
    assert tab.evaluate("document.activeElement.id") == "write"


@pytest.mark.full
def test_every_token_can_be_seen_and_chosen(opened):
    lm = small(CharTokenizer.from_text("\n ab\u202ec", byte_fallback=True))
    tab = opened(page_of(lm))
    tab.locator("#prompt").fill("a\n\u202eé")
    tab.locator("#set-count").fill("1")
    tab.locator("#write").click()
    done(tab)
    for position, name in enumerate(["a", "↵", "⟨202E⟩", "<C3>", "<A9>"]):
        tab.locator(f"#token-{position}").click()
        assert tab.locator(f"#token-{position}[aria-selected=true]").get_attribute("aria-label").startswith(name)


@pytest.mark.full
def test_of_a_large_table_all_followers_are_named(opened):
    lm = LanguageModel(TinyGPT(300, 8), WordTokenizer([f"mot{n}" for n in range(44)]))
    last = lm.tokenizer.encode("mot43")[0]
    lm.model.lm_head.bias.data[:] = torch.arange(300) / 20  # the last ones are in the table
    lm.model.lm_head.weight.data.zero_()
    lm.model.embed.weight.data.zero_()
    lm.model.embed.weight.data[last, 0] = lm.model.lm_head.weight.data[0, 0] = 20.0  # after the last, the first
    tab = opened(page_of(lm))
    tab.locator("#prompt").fill("mot43")
    tab.locator("#write").click()
    done(tab)
    tab.evaluate("choose(1)")
    tab.locator("#tab-inside").click()
    tab.locator("#inside-words", has_text=re.compile("Après « mot43 » : ␀ 100,0")).wait_for()


@pytest.mark.full
def test_inside_a_transformer_heads_are_seen_and_turned_off(call, runs_with_snapshots, opened):
    tab = opened(exported(call, run_of(runs_with_snapshots, "modern_nano")))
    tab.locator("#tab-why").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#inside").is_visible()
    tab.locator("#off-bars").wait_for(state="attached")
    tab.locator("#flow .layer").last.wait_for()
    assert tab.locator("#flow .layer").count() == 3  # the embeddings and two layers
    assert tab.locator("#flow .heads button").count() == 4
    words = tab.locator("#inside-words").inner_text()
    tab.locator("#flow .heads button").nth(3).click()
    assert tab.locator("#head h2").inner_text() == "Tête 2 de la couche 2"
    assert tab.locator("#inside-words").inner_text() != words
    assert tab.locator("#off-bars tr").count() == 0
    tab.locator("#turn-off").check()
    tab.locator("#off-bars tr").first.wait_for()
    changes = [row.locator("td.number").all_inner_texts() for row in tab.locator("#off-bars tbody tr").all()]
    assert any(before != after for before, after in changes)
    tab.locator("#turn-off").uncheck()
    tab.locator("#off-bars tr").first.wait_for(state="detached")
    last = tab.locator("#flow .layer").last.locator("li").first.inner_text()
    tab.locator("#tab-why").click()
    tab.locator("#why-bars tr").first.wait_for()
    expected = tab.locator("#why-bars tbody tr").first
    assert last == f"{expected.locator('th').inner_text()} {expected.locator('td.number').first.inner_text()}"


@pytest.mark.full
def test_time_brings_back_the_model_of_each_snapshot(call, runs_with_snapshots, opened):
    run = run_of(runs_with_snapshots, "tiny")
    page = exported(call, run)
    tab = opened(page)
    shutil.rmtree("page")
    tab.locator("#tab-time").click()
    assert tab.locator("#curve svg polyline.val").count() == 1
    samples = dict(model_of(page)["samples"])
    assert tab.locator("#sample").inner_text().split() == samples[60].split()
    tab.locator("#moment").focus()
    tab.keyboard.press("Home")
    tab.locator("#step", has_text="20").wait_for()
    assert tab.locator("#sample").inner_text().split() == samples[20].split()
    labels = [tab.locator(f"#token-{n}").get_attribute("aria-label") for n in (1, 100, 200, 300)]
    assert all("bits" in label for label in labels)  # the whole text is scored by this step's model
    tab.locator("#write").click()
    early = done(tab)
    assert model_of(exported(call, run + "@20"))["start"] == 0
    other = opened(Path("page/index.html").read_bytes())
    assert done(other) == early  # the same weights, prompt and seed
    tab.locator("#play").click()
    tab.locator("#step", has_text="60").wait_for()
    tab.locator("#play", has_text="Lire").wait_for()
    tab.locator("#write").click()
    assert done(tab) != early


@pytest.mark.full
@pytest.mark.parametrize("val", [[[1, 5.0], [9, 1e9]], [[0, 0.0]], [[1, 2.51], [9, 2.5]], [[5, 1e9]]])
def test_any_curve_is_drawn_with_a_few_lines(opened, val):
    page = page_of(small())
    model = model_of(page)
    model["curves"]["val"] = val
    tab = opened(edited(page, model))
    tab.locator("#tab-time").click()
    tab.locator("#curve .now").wait_for(state="attached")
    lines = tab.locator("#curve .axis")
    assert 2 * (val[0][1] != 0) <= lines.count() <= 10
    assert "NaN" not in tab.locator("#curve").inner_html()


@pytest.mark.full
@pytest.mark.parametrize("name", ["tiny", "modern_nano"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_at_both_widths_nothing_is_wider_than_the_window(call, runs_with_snapshots, opened, name, width, scheme):
    tab = opened(exported(call, run_of(runs_with_snapshots, name)), width, "en-GB", color_scheme=scheme)
    for panel in ("why", "inside", "time"):
        tab.locator(f"#tab-{panel}").click()
        tab.wait_for_timeout(300)
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= width, panel
        assert tab.evaluate("() => [...document.querySelectorAll('button, input, summary')].every(e => e.textContent "
                            "|| e.labels?.length || e.getAttribute('aria-label'))")  # fmt: skip
    pages = tab.pdf(format="A4")
    assert pages.startswith(b"%PDF")


@pytest.mark.full
def test_pictures_of_the_dark_screen_are_printed_on_white(opened):
    tab = opened(page_of(small()), color_scheme="dark")
    tab.locator("#tab-inside").click()
    tab.locator("#inside-picture.dark").wait_for()
    tab.evaluate("panels.inside.refresh = async () => {}")  # a browser prints what is there
    tab.emulate_media(media="print")
    whole = tab.screenshot(full_page=True, clip=tab.locator("#inside-picture").bounding_box())
    assert ImageStat.Stat(Image.open(BytesIO(whole)).convert("L")).mean[0] > 128


@pytest.mark.full
def test_the_language_is_the_browsers_and_can_be_changed(call, runs_with_snapshots, opened):
    tab = opened(exported(call, run_of(runs_with_snapshots, "tiny")), locale="en-GB")
    assert tab.locator("#write").inner_text() == "Write"
    assert tab.locator("html").get_attribute("lang") == "en"
    assert re.fullmatch(r"\d+\.\d%", percents(tab)[0][1])
    tab.locator("#language").click()
    assert tab.locator("#write").inner_text() == "Écrire"
    assert tab.locator("html").get_attribute("lang") == "fr"
    tab.locator("#why-bars td", has_text=",").first.wait_for()
    assert "surprise de" in tab.locator("#token-3").get_attribute("aria-label")


@pytest.mark.full
def test_prompts_that_are_empty_or_unknown(call, runs_with_snapshots, opened):
    tab = opened(exported(call, run_of(runs_with_snapshots, "tiny")), locale="en-GB")
    tab.locator("#prompt").fill("la 猫 dort")
    tab.locator("#prompt").press("Control+Enter")
    tab.locator("#notice", has_text="never seen 猫").wait_for()
    assert tab.locator("#text").inner_text().startswith("la  dort")
    tab.locator("#prompt").fill("")
    tab.locator("#write").click()
    tab.locator("#notice", has_text="prompt is empty").wait_for()
    assert tab.locator("#text").inner_text().strip()


@pytest.mark.full
def test_a_hostile_or_damaged_file_says_so_and_runs_nothing(opened):
    words = ["</script><script>document.title = 'taken'</script>", "<img src=x onerror=\"document.title='taken'\">"]
    tab = opened(page_of(small(WordTokenizer(words))))
    for panel in ("inside", "time", "why"):
        tab.locator(f"#tab-{panel}").click()
        tab.wait_for_timeout(200)
    assert "taken" not in tab.title()
    page = page_of(small())
    model = model_of(page)
    for change in (
        lambda m: m["specs"][0]["shape"].__setitem__(0, 10**9),
        lambda m: m.__setitem__("size", 10),
        lambda m: m["description"]["settings"].__setitem__("n_layer", 10**9),
        lambda m: m["description"]["settings"].__setitem__("block_size", 10**12),
        lambda m: m["description"].__setitem__("class", "GRU"),
        lambda m: m.__setitem__("tokenizer", {}),
    ):
        changed = json.loads(json.dumps(model))
        change(changed)
        tab = opened(edited(page, changed), wait=False)
        tab.locator("#problem", has_text="échoué").wait_for()
        assert tab.locator("#problem").inner_text().count("damaged") <= 1


@pytest.mark.full
def test_a_browser_that_is_too_old_gets_a_sentence(opened):
    for missing in ("window.DecompressionStream", "String.prototype.toWellFormed"):
        tab = opened(page_of(small()), wait=False, before=f"delete {missing}")
        assert "made after 2023" in tab.locator("#problem").inner_text()
