"""The tab of the page that trains: its texts, its trainings, and what it shows of them."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, free_port
from test_app import FRENCH, SETTINGS, opened, page, place, text_of, until  # noqa: F401  (some are fixtures)

from minigpt import MiniGPTError, runs
from minigpt.inspection.curves import Curves, cached_curves

app = pytest.importorskip("minigpt.app", reason="needs gradio: pip install 'minigpt-lightning[app]'")
chart, texts, train_tab, training = app.chart, app.texts, app.train_tab, app.training

TEXT = (ROOT / "minigpt" / "corpora" / "exemple.txt").read_text(encoding="utf-8")


@pytest.fixture
def text(folder) -> Path:
    return texts.keep(TEXT[:20_000], None)


def refused(name: str, call, *args) -> str:
    """The sentence of a mistake, which is there in both languages."""
    with pytest.raises(app.Problem) as problem:
        call(*args)
    assert problem.value.name == name
    french, english = problem.value.message(FRENCH), problem.value.message(None)
    assert french != english
    return english


# Texts.


def test_a_text_is_kept_under_its_first_words_and_the_same_text_once(folder):
    path = texts.keep("  Été à la mer,\r\nœuvre <b>. " + "vague " * 100, None)
    assert re.fullmatch(r"lightning_logs/texts/ete-a-la-mer-[0-9a-f]{12}\.txt", path.as_posix())
    assert path.read_bytes().decode().startswith("Été à la mer,\nœuvre <b>. vague")
    assert texts.keep("Été à la mer,\nœuvre <b>. " + "vague " * 100, []) == path
    assert [file.name for file in texts.FOLDER.iterdir()] == [path.name]


def test_uploads_are_decoded_joined_and_their_names_cannot_leave_the_folder(folder):
    (folder / "..  é$(rm) été.txt").write_bytes(("été " * 200).encode("latin-1"))
    (folder / "b.jsonl").write_text('{"text": "un"}\n{"text": "deux"}\n', encoding="utf-8")
    path = texts.keep("trois", [str(folder / "..  é$(rm) été.txt"), str(folder / "b.jsonl")])
    assert re.fullmatch(r"e-rm-ete-[0-9a-f]{12}\.txt", path.name)
    assert path.read_text(encoding="utf-8") == ("été " * 200).strip() + "\n\nun\n\ndeux\n\ntrois"
    assert path.parent == texts.FOLDER


def test_mistakes_with_texts(folder, monkeypatch):
    assert refused("no_text", texts.keep, " \n", None) == "⚠ There is no text yet. Paste one, or drop a file."
    assert "has 4 characters, and a training needs 500" in refused("short_text", texts.keep, "trop", [])
    (folder / "a.pdf").write_bytes(b"%PDF-1.4")
    (folder / "a.txt").write_bytes(b"%PDF-1.4")
    (folder / "b.txt").write_bytes(b"\0\1\2" * 1000)
    assert "`a.pdf`. It takes files that end in .txt, .md" in refused("wrong_kind", texts.keep, "", ["a.pdf"])
    assert "`a.txt` cannot be read as text" in refused("not_text", texts.keep, "", ["a.txt"])
    assert "`b.txt` cannot be read as text" in refused("not_text", texts.keep, "", ["b.txt"])
    assert "`gone.txt`" in refused("not_text", texts.keep, "", ["gone.txt"])
    assert "at most 10 files" in refused("too_many_files", texts.keep, "", ["a.txt"] * 11)
    monkeypatch.setattr(texts, "MAX_MB", 0.001)
    (folder / "c.txt").write_text("a" * 600, encoding="utf-8")
    assert "more than 0.001 MB" in refused("too_large", texts.keep, "b" * 600, ["c.txt"])
    assert not texts.FOLDER.exists(), "nothing is kept of a text that is refused"


# Starting.


class Started:
    """A stand-in for a process that runs until it is ended."""

    pid, ended = 4_000_000, None  # no process has this number

    def __init__(self, command, **_):
        Started.command = command

    def poll(self):
        return self.ended


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(training.subprocess, "Popen", Started)
    monkeypatch.setattr(Started, "ended", None)
    return Started


def test_the_recipes_train_from_nothing_within_minutes_on_any_processor():
    offered = training.offered_recipes()
    assert set(offered) == {"tiny", "quick_nano", "bpe", "modern_nano", "word", "gpt_nano", "llama_nano"}
    assert next(iter(offered.values())) == ("tiny", ROOT / "configs" / "tiny.yaml", 0.2, 500)
    choices = dict(train_tab.recipe_choices(FRENCH))
    assert choices["tiny : le modèle de l'article, 0,2 min"] == "tiny"
    assert len(choices) == len(offered)


def test_what_is_started_is_an_ordinary_training(text, started):
    trainings = app.Trainings()
    trainings.start("tiny", text, 500)
    args = started.command[started.command.index("minigpt") + 1 :]
    assert args[:5] == ["train", "--config", str(ROOT / "configs" / "tiny.yaml"), "--data.path", text.as_posix()]
    assert args[5:9] == ["--trainer.max_steps", "500", "--samples.prompts", '["La poule des"]']
    assert "--validation.every_n_steps" not in args
    started.ended = 0
    trainings.start("tiny", text, 20)
    assert started.command[-2:] == ["--trainer.log_every_n_steps", "1"]
    assert "--validation.every_n_steps 4" in " ".join(started.command)


def test_mistakes_when_starting(text, started):
    trainings = app.Trainings()
    assert refused("no_recipe", trainings.start, "../../evil", text) == "⚠ Choose one of the recipes."
    for steps in (0, -5, 501, 2.5, math.nan):
        assert "from 1 to 500 for tiny" in refused("wrong_steps", trainings.start, "tiny", text, steps)
    refused("no_training", trainings.stop)
    refused("no_training", trainings.go_on)
    trainings.start("tiny", text)
    assert "`tiny` is running" in refused("already_training", trainings.start, "word", text)
    refused("already_training", trainings.go_on)
    refused("already_training", trainings.check_free)


def test_a_page_that_may_not_train_says_who_can_allow_it(text, started):
    trainings = app.Trainings(allowed=False)
    assert "minigpt app --allow_training" in refused("training_off", trainings.start, "tiny", text)
    for call in (trainings.stop, trainings.go_on, trainings.check_free):
        refused("training_off", call)
    assert not training.FOLDER.exists()


@pytest.mark.parametrize(
    ("host", "flags", "allowed"),
    [
        ("127.0.0.1", [], True), ("localhost", [], True), ("127.0.0.2", [], True), ("0.0.0.0", [], False),
        ("0.0.0.0", ["--allow_training"], True),
    ],
)  # fmt: skip
def test_training_is_for_this_machine_alone_unless_it_is_allowed(call, monkeypatch, host, flags, allowed):
    made = []

    def build(store, trainings):
        made.append(trainings.allowed)
        raise MiniGPTError("That is enough.")

    monkeypatch.setattr("minigpt.app.server.build", build)
    result = call("app", "--host", host, "--port", str(free_port()), *flags)
    assert (result.status, result.err.splitlines()[-1]) == (2, "That is enough.")
    assert made == [allowed]


def test_a_page_of_this_machine_is_not_trained_on_through_another_name():
    here = app.Trainings()
    for host in ("127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860", "127.0.0.2"):
        assert here.is_for(host), host
    for host in ("evil.example:7860", "192.168.1.7:7860", "localhost.evil.example", "", None):
        assert not here.is_for(host), host
        assert app.Trainings(anywhere=True).is_for(host)
        assert not app.Trainings(allowed=False).is_for(host)


def test_programs_can_call_what_writes_and_nothing_else(folder):
    calls = app.build(app.ModelStore(), app.Trainings()).get_api_info()
    assert set(calls["named_endpoints"]) == {"/generate"}
    assert not calls["unnamed_endpoints"]


def visit(host: str = "127.0.0.1:7860") -> SimpleNamespace:
    return SimpleNamespace(headers={"host": host, "accept-language": "fr"})


def test_what_the_tab_answers(folder, started, monkeypatch):
    calls = {fn.name: fn.fn for fn in app.build(app.ModelStore(), app.Trainings()).fns.values()}
    elsewhere = visit("evil.example")
    for answer in (
        calls["start"](TEXT[:1000], None, "tiny", 20, elsewhere), calls["stop"](elsewhere), calls["go_on"](elsewhere),
    ):  # fmt: skip
        assert "Cette page n'entraîne pas" in answer
    assert not texts.FOLDER.exists()
    hint, _, form = calls["welcome"](elsewhere)
    assert (hint[:24], form["visible"]) == ("Cette page n'entraîne pa", False)
    assert calls["welcome"](visit())[2]["visible"]
    assert "`lightning_logs/texts` : 20 Mo" in calls["welcome"](visit())[0]
    assert "pas encore de texte" in calls["start"]("", None, "tiny", 20, visit())
    (folder / "file").touch()
    monkeypatch.setattr(texts, "FOLDER", Path("file/texts"))
    assert "n'est pas accessible en écriture" in calls["start"](TEXT[:1000], None, "tiny", 20, visit())


# What is shown.


def recorded(folder: Path, log: str, **changes) -> training.Status:
    """The state of a training that left a record and a log."""
    record = {
        "pid": 4_000_000, "recipe": "tiny", "text": "lightning_logs/texts/a.txt", "max_steps": 500, "run": None,
        "start_step": 0, "stopped": False,
    }  # fmt: skip
    training.FOLDER.mkdir(parents=True, exist_ok=True)
    (training.FOLDER / "training.json").write_text(json.dumps(record | changes))
    (training.FOLDER / "training.log").write_text(log, encoding="utf-8")
    return app.Trainings().status()


def test_how_a_training_ended_is_found_on_disk(folder):
    assert app.Trainings().status() is None
    failed = recorded(folder, "Loading …\nrun folder lightning_logs/tiny/version_7\n<b>The corpus</b> is too short.\n")
    assert (failed.state, failed.run) == ("failed", Path("lightning_logs/tiny/version_7"))
    assert not failed.can_go_on
    shown = train_tab.shown(failed, FRENCH)
    assert "s&#x27;est interrompu après 0 étapes sur 500 : &lt;b&gt;The corpus&lt;/b&gt; is too short." in shown
    for line in ("step 100/500  train loss 3.0", "    a sample", "étape 100/500  perte 3,0"):
        killed = recorded(folder, f"run folder lightning_logs/tiny/version_7\n{line}\n")
        assert train_tab.said(killed, None).endswith("ended after 0 of 500 steps without saying why.")
    checkpoint = folder / "lightning_logs" / "tiny" / "version_7" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    stopped = recorded(folder, "dossier lightning_logs/tiny/version_7\nArrêt.\n", stopped=True)
    assert (stopped.state, stopped.can_go_on) == ("stopped", True)
    assert train_tab.said(stopped, None) == "The training of tiny on a.txt was stopped after 0 of 500 steps."
    finished = recorded(folder, "run folder lightning_logs/tiny/version_7\nCourbes et échantillons :\n")
    assert (finished.state, finished.can_go_on) == ("finished", False)
    (training.FOLDER / "training.json").write_text("{")
    assert app.Trainings().status() is None


@pytest.mark.parametrize(
    ("state", "left", "words"),
    [
        ("starting", None, "L'entraînement de tiny sur a.txt commence."),
        ("running", None, "Entraînement de tiny sur a.txt : étape 1\u00a0000 sur 2\u00a0000."),
        ("running", 89.4, "Entraînement de tiny sur a.txt : étape 1\u00a0000 sur 2\u00a0000, encore 89 s environ."),
        ("running", 90.0, "Entraînement de tiny sur a.txt : étape 1\u00a0000 sur 2\u00a0000, encore 2 min environ."),
        ("stopping", None, "L'entraînement de tiny sur a.txt s'arrête après cette étape."),
        ("finished", None, "L'entraînement de tiny sur a.txt est terminé : 1\u00a0000 étapes sur 2\u00a0000. Le modèle "
                           "est dans l'onglet Écrire."),
    ],
)  # fmt: skip
def test_each_state_is_a_sentence_in_the_language_of_the_visitor(state, left, words):
    status = training.Status(state, "tiny", Path("a.txt"), None, 1000, 2000, left, "")
    assert train_tab.said(status, FRENCH) == words
    assert "tiny on a.txt" in train_tab.said(status, None)
    assert ("<progress" in train_tab.shown(status, None)) == (state != "finished")


CURVES = Curves(
    {
        "train/bits_per_char": [(1, 5.9), (20, 4.5), (40, math.nan)],
        "val/bits_per_char": [(20, 4.25)],
        "val_baselines/bigram": [(20, 3.35)],
        "val_baselines/<script>": [(20, 3.4)],
    },
    {"samples/top_k_top_p": [(0, "a<script>"), (20, "b")], "samples/top_k": [(0, "c")]},
)


def test_the_chart_has_both_curves_and_the_baselines_each_with_its_value():
    drawn = chart.draw(CURVES, 1000, FRENCH)
    for words in ("entraînement 4,50", "validation 4,25", "bigramme 3,35", "bits par caractère", "1\u00a0000"):
        assert words in drawn
    assert "<script" not in drawn
    assert "nan" not in drawn
    assert drawn.count('class="baseline" x1') == 2
    assert drawn.count("<circle") == 1
    heights = [float(y) for y in re.findall(r'<text class="\w+" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert all(later - earlier >= chart.LINE - 0.11 for earlier, later in pairwise(heights))
    assert chart.draw(Curves({}, {}), 10, None) == ""
    assert chart.draw(Curves({"train/bits_per_char": [(1, 2.0)]}, {}), 0, None).count("<polyline") == 2


def test_samples_come_newest_first_with_the_score_of_their_step():
    shown = chart.samples(CURVES, FRENCH)
    assert shown.index("étape 20 : 4,25 bits par caractère") < shown.index("étape 0")
    assert "a&lt;script&gt;" in shown
    assert ">c<" not in shown


def test_numbers_are_written_as_the_reader_does(folder, trained_run):
    store = app.ModelStore(str(trained_run))
    lm = store.load("last")
    ids = app.ids_of(lm, "un matin,")
    assert re.search(r"\d,\d\u202f%", app.bars(lm, ids, 5, {}, FRENCH))
    assert re.search(r"\d\.\d%", app.bars(lm, ids, 5, {}, None))
    assert re.search(r'title="\d,\d bits"', app.surprise(lm, ids, 3, FRENCH))


# The models.


@pytest.fixture
def store(folder, trained_run):
    """Two runs, which have kept the weights of step 60, and one those of two earlier steps too."""
    for n in (0, 1):
        shutil.copytree(trained_run, folder / "lightning_logs" / "tiny" / f"version_{n}")
    kept = folder / "lightning_logs" / "tiny" / "version_1" / "snapshots"
    kept.mkdir(exist_ok=True)
    for step in (20, 40):
        (kept / f"step_{step:06d}.safetensors").touch()
    return app.ModelStore()


def test_steps_are_offered_after_the_checkpoints_of_their_run(store):
    titles = [app.page.title(file, FRENCH) for file in store.files()]
    of_first = [name for name in titles if "version_1" in name]
    assert of_first == [f"tiny/version_1 · {name}" for name in ("best", "last", "étape 60", "étape 40", "étape 20")]
    assert "tiny/version_0 · best" in titles


def test_a_comparison_begins_with_two_different_checkpoints(store, folder):
    first, second = store.two()
    assert runs.run_of(Path(first)) != runs.run_of(Path(second))
    assert store.two(second) == (second, first)
    shutil.rmtree(folder / "lightning_logs" / "tiny" / "version_0")
    first, second = store.two()
    assert (app.page.title(first, None), app.page.title(second, None)) == (
        "tiny/version_1 · best",
        "tiny/version_1 · step 20",
    )
    shutil.rmtree(folder / "lightning_logs")
    assert store.two() == (None, None)


def test_a_model_becomes_a_web_page_or_a_sentence_says_why_not(store, monkeypatch):
    import minigpt.export

    given = []

    def files_of(form, checkpoint, lm, precision):
        given.append((form, precision, lm.run_dir.name, "minigpt" in checkpoint))
        return {"index.html": b"<html>"}

    monkeypatch.setattr(minigpt.export, "files_of", files_of)
    chosen = "lightning_logs/tiny/version_1"
    assert store.as_web_page(chosen) == ("tiny-version_1-best.html", b"<html>")
    assert given == [("html", "int8", "version_1", True)]

    def refuse(*_):
        raise MiniGPTError("There is no JavaScript for GRU.")

    monkeypatch.setattr(minigpt.export, "files_of", refuse)
    assert "There is no JavaScript for GRU." in refused("no_export", store.as_web_page, chosen)
    refused("gone", store.as_web_page, "../../etc/passwd")


# A training, with the real command.


@pytest.mark.full
def test_a_training_survives_its_page_is_stopped_by_another_and_goes_on(text):
    app.Trainings().start("modern_nano", text, 60)
    other = app.Trainings()  # of a page that was opened later
    assert other.status().state == "starting"
    refused("already_training", other.start, "tiny", text)
    running = until(lambda: (status := other.status()).state == "running" and status, 120)
    assert running.run == Path("lightning_logs/modern_nano/version_0")
    assert 0 < running.step < 60
    assert running.seconds_left > 0
    other.stop()
    assert other.status().state in ("stopping", "stopped")
    stopped = until(lambda: (status := other.status()).state == "stopped" and status, 60)
    assert stopped.can_go_on
    assert stopped.step < 60
    app.Trainings().go_on()
    finished = until(lambda: (status := other.status()).state in ("finished", "failed") and status, 180)
    assert (finished.state, finished.step, finished.run) == ("finished", 60, running.run)
    curves = cached_curves(finished.run)
    assert "val_baselines/bigram" in curves.scalars
    assert [step for step, _ in curves.texts[chart.SAMPLE]][-1] == 60
    *_, (written, _) = app.write(app.ModelStore(), None, "lightning_logs/modern_nano/version_0", **SETTINGS)
    assert written


@pytest.mark.full
def test_a_visitor_trains_closes_the_page_stops_goes_on_and_writes(browser, tmp_path):
    """In Chromium, on a screen as narrow as a phone's."""
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), "--port", str(free_port())]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        tab = opened(browser, address)
        assert not tab.locator("#halt").is_visible(), "nothing runs"
        tab.get_by_role("tab", name="Entraîner").click()
        tab.click("#start")
        until(lambda: "Il n'y a pas encore de texte" in tab.locator("#train_notice").inner_text())
        tab.locator("#paste textarea").fill(TEXT[:20_000])
        tab.locator("#recipe input").click()
        tab.get_by_role("option", name="quick_nano").click()
        # Only then has the recipe set the number of steps, which is not that of the recipe before.
        until(lambda: tab.locator("#steps input").input_value() == "150")
        tab.locator("#steps input").fill("60")
        tab.click("#start")
        until(lambda: "commence" in tab.locator("#status").inner_text(), 60)
        assert not tab.locator("#start").is_visible(), "one training at a time"
        tab.close()
        tab = opened(browser, address, "en-GB")
        tab.get_by_role("tab", name="Train").click()
        until(lambda: "of 60" in tab.locator("#status").inner_text(), 120)
        until(lambda: tab.locator("#live svg circle").count() >= 1, 120)  # a validation
        tab.click("#stop")
        until(lambda: "was stopped after" in tab.locator("#status").inner_text(), 60)
        tab.click("#go_on")
        until(lambda: "is complete: 60 of 60 steps" in tab.locator("#status").inner_text(), 180)
        assert "bigram" in tab.locator("#live").inner_text()
        assert "La poule des" in tab.locator("#samples").inner_text()
        tab.get_by_role("tab", name="Write").click()
        assert tab.locator("#run input").input_value() == "quick_nano/version_0 · best"
        tab.click("#go")
        until(lambda: len(text_of(tab)) > 100 and tab.locator("#go").is_visible(), 60)
        until(lambda: tab.locator("#curve svg").count() == 1)
        assert all(url.startswith((address, "data:")) for url in tab.elsewhere)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


@pytest.mark.full
def test_on_a_phone_the_text_comes_first_and_nothing_runs_off_the_screen(browser, page):  # noqa: F811
    tab = browser.new_context(locale="fr-FR", viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
    tab.goto(page.address)
    tab.locator("#go").wait_for()
    until(lambda: tab.get_by_role("tab").count() == 4)  # Gradio hides tabs that do not fit
    tops = [tab.locator(name).bounding_box()["y"] for name in ("#prompt", "#go", "#text", "#run", "#parameters")]
    assert tops == sorted(tops)
    assert tops[2] < 500, "the text is on the first screen"
    assert not tab.get_by_text("Température").is_visible(), "folded"
    assert not tab.locator("#halt").is_visible(), "nothing runs"
    tab.click("#go")
    until(lambda: len(text_of(tab)) > 100 and tab.locator("#go").is_visible(), 60)
    tab.get_by_role("tab", name="Regarder dedans").click()
    figure = until(lambda: tab.locator("#inside img").count() and tab.locator("#inside img"))
    assert "invert" in figure.evaluate("image => getComputedStyle(image).filter"), "it follows the dark theme"
    for name in ("Écrire", "Regarder dedans", "Comparer", "Entraîner"):
        tab.get_by_role("tab", name=name).click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_records_of_a_training_can_be_read_while_it_runs(folder):
    from minigpt.training.trainer import run_logger

    logger = run_logger(folder / "tiny" / "version_0", 0)
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert until(lambda: cached_curves(folder / "tiny" / "version_0").scalars, 30) == {"train/loss": [(1, 1.0)]}
    logger.finalize("success")
