"""The page: what it writes and shows, in a browser and for many people at once; and TensorBoard beside it."""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import pytest
from conftest import QUICK, ROOT, free_port

from minigpt import MiniGPTError, commands
from minigpt.command_line import first_training

app = pytest.importorskip("minigpt.app", reason="needs gradio: pip install 'minigpt-lightning[app]'")
SETTINGS = {
    "prompt": "un matin,", "temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0, "max_new_tokens": 40, "seed": 3,
    "stop": "", "num_samples": 1,
}  # fmt: skip
FRENCH = SimpleNamespace(headers={"accept-language": "fr-FR,fr;q=0.9"})


@pytest.fixture
def store(folder, trained_run):
    shutil.copytree(trained_run, folder / "lightning_logs" / "tiny" / "version_0")
    return app.ModelStore()


def written(store, request=None, chosen="last", **changes) -> tuple[str, str]:
    *_, last = app.write(store, request, chosen, **SETTINGS | changes)
    return last


def test_the_page_writes_what_generate_writes(store, call):
    text, notice = written(store)
    result = call("generate", "--seed", "3", "--max_new_tokens", "40")
    assert text + "\n" == result.out
    assert notice == "Seed 3"
    assert written(store) == (text, notice)
    assert written(store, seed=4)[0] != text
    two, _ = written(store, num_samples=2)
    assert two.split("\n---\n")[0] == text
    assert written(store, stop="e")[0] == re.match(r"un matin,[^e]*", text)[0]


def test_no_seed_is_a_new_one_that_the_notice_names(store):
    text, notice = written(store, seed=None)
    assert written(store, seed=int(notice.removeprefix("Seed ")))[0] == text


@pytest.mark.slow
def test_updates_come_ten_times_a_second_at_most(store):
    started = time.monotonic()
    n = sum(1 for _ in app.write(store, None, "last", **SETTINGS | {"max_new_tokens": 20_000}))
    assert n <= (time.monotonic() - started) / app.UPDATE_SECONDS + 1


def test_unknown_characters_are_named_and_left_out_in_the_visitors_language(store):
    text, notice = written(store, prompt="un ☃matin")
    assert text.startswith("un matin")
    assert "left out: `☃`" in notice
    assert "omis : `☃`" in written(store, FRENCH, prompt="un ☃")[1]


def test_a_checkpoint_that_is_gone_or_broken_is_named_and_the_page_lives_on(store, folder):
    file = folder / "lightning_logs" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"
    broken = file.with_name("last.ckpt")
    broken.write_bytes(broken.read_bytes()[:500])
    here = "lightning_logs/tiny/version_0/checkpoints/last.ckpt"
    assert written(store, chosen=here) == ("", f"⚠ The checkpoint `{here}` cannot be read: it is damaged. "
                                               "Choose another.")  # fmt: skip
    assert written(store)[0]
    file.unlink()
    gone = "lightning_logs/tiny/version_0/checkpoints/best.ckpt"
    assert written(store, FRENCH, chosen=gone)[1] == f"⚠ Le checkpoint `{gone}` n'existe plus. Choisissez-en un autre."
    shutil.rmtree(folder / "lightning_logs")
    assert first_training() in written(store)[1]


def test_only_what_the_page_offers_is_loaded(store, folder, trained_run):
    elsewhere = str(trained_run / "checkpoints" / "best.ckpt")
    assert "no longer exists" in written(store, chosen=elsewhere)[1]
    assert "no longer exists" in written(store, chosen="../../etc/passwd")[1]
    assert written(app.ModelStore(elsewhere), chosen=elsewhere)[0]
    with pytest.raises(MiniGPTError, match="There is no run"):
        app.ModelStore("nowhere")


def test_few_models_are_kept(store, folder):
    run = folder / "lightning_logs" / "tiny" / "version_0"
    for n in range(1, 7):
        shutil.copytree(run, run.with_name(f"version_{n}"))
    first = store.load(store.files()[0])
    assert store.load(store.files()[0]) is first
    for file in store.files():
        store.load(file)
    assert store._model.cache_info().currsize == app.MAX_LOADED
    assert len(store.files()) == 21  # of seven runs


def test_what_a_model_writes_cannot_act_on_the_page(folder):
    from minigpt import CharTokenizer, TinyGPT
    from minigpt.generation.text import LanguageModel

    evil = "<script>alert(1)</script>"
    tokenizer = CharTokenizer.from_text(evil * 2)
    lm = LanguageModel(TinyGPT(tokenizer.vocab_size).eval(), tokenizer)
    ids = app.ids_of(lm, evil)
    shown = app.surprise(lm, ids, 3) + app.bars(lm, ids, 3, {"temperature": 1.0}, None)
    assert "<script" not in shown
    assert "&lt;" in shown
    assert shown.count("data-position") == len(evil)


def test_bars_strike_through_what_the_controls_cut(store):
    lm = store.load("last")
    ids = app.ids_of(lm, "un matin,")
    shown = app.bars(lm, ids, 5, {"temperature": 1.0, "top_k": 3}, FRENCH)
    assert shown.count('<tr class="cut">') == app.BARS - 3
    assert "réel" in shown
    assert "après filtrage" in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--auth", "anne"], "name and a password"), (["--port", "{taken}"], "cannot be served on port"),
        (["--port", "70000"], "cannot be served on port"), (["--host", "203.0.113.9"], "of 203.0.113.9: Cannot assign"),
        (["--host", "203.0.113.9"], "Pass an address of this machine as --host."),
        (["--host", "2001:db8::9"], "Pass an address of this machine as --host."),
        (["--host", "a..b"], "Pass an address of this machine as --host."),
        (["--port", "{taken}"], "Pass a different --port."),
        (["--ckpt_path", "nowhere"], "no run or checkpoint at 'nowhere'"),
    ],
)  # fmt: skip
def test_mistakes_of_the_command(call, flags, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = call("app", *(flag.replace("{taken}", port) for flag in flags))
    assert result.status == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_without_gradio_the_command_says_what_to_install(call, monkeypatch):
    monkeypatch.delitem(sys.modules, "minigpt.app")
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = call("app")
    assert result.status == 2
    assert result.err == "The page needs gradio, which is not installed: pip install 'minigpt-lightning[app]'.\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained_run):
    """A folder with a run of a bigram and, newer, one of a small transformer, which has figures and samples."""
    from minigpt.training.cli import MiniGPTCLI

    here = tmp_path_factory.mktemp("page")
    shutil.copytree(trained_run, here / "lightning_logs" / "tiny" / "version_0")
    args = ["--config", str(ROOT / "configs" / "modern_nano.yaml"), *QUICK, "--trainer.max_steps", "20"]
    args += ["--model.network.n_embd", "32", "--samples.every_n_steps", "10", "--validation.every_n_steps", "10"]
    args += ["--figures.every_n_steps", "10"]
    cli = MiniGPTCLI([*args, "--trainer.default_root_dir", str(here)])
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return here


@pytest.fixture(scope="module")
def page(place):
    """The real command in a process of its own: its address and its process."""
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), "--port", str(free_port())]
    server = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True)
    address = server.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    yield SimpleNamespace(address=address, pid=server.pid)
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130


SLOW = """
import os
import pathlib

import torch


class Net(torch.nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx):
        if "SLOW" in os.environ:
            pathlib.Path("computing").touch()
            for _ in range(2000):
                torch.ones(600, 600) @ torch.ones(600, 600)
        return self.table(idx)
"""


@pytest.mark.full
def test_ctrl_c_ends_the_page_while_a_network_computes(folder, call):
    """Python's usual end would abort, since a thread returns from PyTorch at that moment."""
    from gradio_client import Client

    (folder / "slow.py").write_text(SLOW)
    flags = [*QUICK, "--trainer.max_steps", "1", "--figures.every_n_steps", "0", "--model.network", "slow.Net"]
    (folder / "slow.yaml").write_text("data: {batch_size: 2}\n")
    assert call("train", "--config", "slow.yaml", *flags).status == 0
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), "--port", str(free_port()), "--allow_code", "slow"]
    server = subprocess.Popen(command, env=os.environ | {"SLOW": "1"}, stdout=subprocess.PIPE, text=True)
    try:
        Client(server.stdout.readline().strip(), verbose=False).submit(**SETTINGS, api_name="/generate")
        while not (folder / "computing").exists():
            time.sleep(0.05)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
    finally:
        server.kill()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("flags", "address", "proxies"),
    [
        ([], "http://127.0.0.1:{port}", {"http_proxy": "http://127.0.0.1:9"}),
        ([], "http://127.0.0.1:{port}", {"HTTP_PROXY": "nonsense://", "all_proxy": "socks5://127.0.0.1:9"}),
        (["--host", "::1"], "http://[::1]:{port}", {"http_proxy": "http://127.0.0.1:9"}),
        (["--host", "[::1]"], "http://[::1]:{port}", {}),
    ],
)  # fmt: skip
def test_the_page_opens_on_its_address_whatever_the_proxy(store, call, monkeypatch, flags, address, proxies):
    if "::1" in address and not has_ipv6():
        pytest.skip("needs IPv6")
    port, pages = str(free_port()), []
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "example.org")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    class Visit:  # what the command waits for
        def wait(self):
            pages.append(direct.open(address.format(port=port)).read().decode())

    monkeypatch.setattr(commands.output, "threading", SimpleNamespace(**vars(threading) | {"Event": Visit}))
    result = call("app", "--port", port, *flags)
    assert (result.status, result.out) == (0, address.format(port=port) + "\n")
    assert "<html" in pages[0]
    assert os.environ["no_proxy"] == "example.org", "the proxy is for everything else as before"


def test_without_ipv6_another_host_is_asked_for(call, monkeypatch):
    def none(*_, **options):
        assert options["family"] == socket.AF_INET6
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "create_server", none)
    result = call("app", "--host", "::1")
    assert result.status == 2
    assert result.err == (
        "The page cannot be served on port 7860 of ::1: Address family not supported by protocol. Pass an address of "
        "this machine as --host.\n"
    )


@pytest.mark.full
def test_a_proxy_that_gradio_cannot_use_does_not_keep_it_from_being_imported():
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), "--port", "70000"]
    done = subprocess.run(command, env=os.environ | {"all_proxy": "nonsense://"}, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("The page cannot be served on port 70000")


def opened(browser, address: str, locale: str = "fr-FR"):
    tab = browser.new_context(locale=locale, viewport={"width": 1280, "height": 1000}).new_page()
    tab.set_default_timeout(30_000)
    tab.elsewhere = []
    tab.on("request", lambda request: tab.elsewhere.append(request.url))
    tab.goto(address)
    tab.locator("#go").wait_for()
    return tab


def text_of(tab, name: str = "text") -> str:
    return tab.locator(f"#{name} textarea").input_value()


def until(condition, seconds: float = 30):
    """Wait for a condition; its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)
    return value


def idle(tab) -> bool:
    return tab.locator(".generating, .progress-text, .eta-bar").count() == 0


def set_length(tab, value: int, label: str = "Longueur en jetons") -> None:
    tab.locator(f"input[type=number][aria-label*='{label}']").fill(str(value))
    tab.keyboard.press("Tab")


@pytest.mark.full
def test_a_french_visitor_writes_streams_stops_and_looks_inside(browser, page, place):
    tab = opened(browser, page.address)
    assert "Amorce" in tab.content()
    tab.get_by_text("dans la forêt").click()
    until(lambda: tab.locator("#prompt textarea").input_value() == "dans la forêt")
    set_length(tab, 2000)
    tab.click("#go")
    lengths = set()
    while len(lengths) < 3:  # it comes piece by piece
        lengths.add(len(text_of(tab)))
        time.sleep(0.05)
    tab.click("#halt")
    until(lambda: idle(tab))
    assert not tab.locator("#halt").is_visible()
    stopped = text_of(tab)
    time.sleep(0.5)
    assert text_of(tab) == stopped
    assert stopped.startswith("dans la forêt")
    assert 13 < len(stopped) < 2000
    set_length(tab, 60)
    tab.click("#go")
    until(lambda: len(text_of(tab)) == 73 and idle(tab))
    once = text_of(tab)
    tab.click("#go")
    time.sleep(1)
    until(lambda: len(text_of(tab)) == 73 and idle(tab))
    assert text_of(tab) == once
    tab.get_by_role("tab", name="Regarder dedans").click()
    tokens = tab.locator("#colours [data-position]")
    until(lambda: tokens.count() == 73)
    tokens.nth(20).click()
    context = once[10:20].replace(" ", "␣").replace("\n", "↵")
    until(lambda: f"{context} »" in tab.locator("#bars caption").inner_text())
    assert tab.locator("#bars tr").count() == app.BARS + 1
    assert "après filtrage" in tab.locator("#bars").inner_text()
    assert tab.locator("#inside img").count() == 1
    before = tab.locator("#inside img").get_attribute("src")
    tokens.nth(40).focus()
    tab.keyboard.press("Enter")
    until(lambda: tab.locator("#inside img").get_attribute("src") != before)
    picked = tab.locator("#inside img").get_attribute("src")
    for head in (2, 1):  # of the same token, not of the text's end
        set_length(tab, head, "Tête")
        until(lambda head=head: (tab.locator("#inside img").get_attribute("src") == picked) == (head == 1))
    assert all(url.startswith(page.address) or url.startswith("data:") for url in tab.elsewhere)


@pytest.mark.full
def test_an_english_visitor_changes_the_checkpoint_errs_and_compares(browser, page, place):
    tab = opened(browser, page.address, "en-GB")
    assert "Refresh the list" in tab.content()
    set_length(tab, 50, "Length in tokens")
    tab.locator("#prompt textarea").fill("un ☃ matin")
    tab.click("#go")
    until(lambda: "left out" in tab.locator("#notice").inner_text())
    until(lambda: len(text_of(tab)) == 59)
    transformer = text_of(tab)
    tab.locator("#run input").click()
    tab.get_by_role("option", name="tiny/version_0 · best").click()
    tab.click("#go")
    until(lambda: len(text_of(tab)) == 59 and text_of(tab) != transformer)
    tab.get_by_role("tab", name="Look inside").click()
    until(lambda: tab.locator("#inside img").count() == 1)  # the bigram's table
    tab.get_by_role("tab", name="Write").click()
    assert text_of(tab, "prompt") == "un ☃ matin"
    tab.get_by_role("tab", name="Compare").click()
    assert text_of(tab, "same_prompt") == "un ☃ matin"
    shown = [tab.locator(f"#{side} label > span").inner_text() for side in ("left", "right")]
    assert shown == ["tiny/version_0 · best", "modern_nano/version_0 · best"], "two different ones, still"
    tab.locator("#same_prompt textarea").fill("le soir")
    tab.get_by_role("tab", name="Write").click()
    assert text_of(tab, "prompt") == "le soir"
    tab.locator("#prompt textarea").fill("un ☃ matin")
    tab.get_by_role("tab", name="Compare").click()
    tab.click("#both")
    until(lambda: len(text_of(tab, "left")) == 59 and len(text_of(tab, "right")) == 59)
    tab.locator("#run input").fill("/etc/passwd")
    tab.keyboard.press("Tab")
    tab.click("#both")
    until(lambda: "no longer exists" in tab.locator("#notice").inner_text())


def resident_mb(pid: int) -> float:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.full
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads memory from /proc")
def test_sixteen_people_at_once_get_their_own_texts_and_leave_nothing_behind(page, place, monkeypatch):
    from gradio_client import Client

    monkeypatch.chdir(place)
    run = "lightning_logs/modern_nano/version_0"
    lm = app.ModelStore().load(run)
    people = [Client(page.address, verbose=False) for _ in range(app.MAX_CONCURRENT)]
    args = {"run": run, "max_new_tokens": 80, "stop": "", "num_samples": 1} | {
        key: SETTINGS[key] for key in ("prompt", "temperature", "top_k", "top_p", "min_p")
    }

    def everyone() -> list[str]:
        jobs = [person.submit(**args, seed=n, api_name="/generate") for n, person in enumerate(people)]
        return [job.result(timeout=120)[0] for job in jobs]

    draw = {"max_new_tokens": 80, "temperature": 0.8, "top_k": 30, "top_p": 0.9}
    assert everyone() == [lm.generate("un matin,", seed=n, **draw) for n in range(app.MAX_CONCURRENT)]
    memory = resident_mb(page.pid)
    for _ in range(4):
        everyone()
    assert resident_mb(page.pid) < memory + 60
    # Fifteen long texts are stopped; then all places are free again for those who come after.
    long = [p.submit(**args | {"max_new_tokens": 2000, "num_samples": 8}, seed=0, api_name="/generate") for p in people]
    until(lambda: all(job.outputs() for job in long), 120)
    for job in long:
        job.cancel()
    started = time.monotonic()
    assert len(set(everyone())) == app.MAX_CONCURRENT
    assert time.monotonic() - started < 60
    for person in people:
        person.close()


@pytest.mark.full
def test_tensorboard_shows_curves_texts_and_figures(browser, place):
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs", "--port", str(port)]
    server = subprocess.Popen(command, cwd=place, stderr=subprocess.DEVNULL)
    tab = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    address = f"http://127.0.0.1:{port}"

    def shows(part: str, *words: str) -> bool:
        tab.goto(f"{address}/#{part}")
        tab.reload()
        for word in words:
            tab.get_by_text(word).first.wait_for()
        return True

    try:
        until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 60)
        assert shows("scalars", "train", "val", "modern_nano/version_0")
        assert shows("text", "samples/top_k", "un matin,")
        assert shows("images", "val_figures/attention", "val_figures/loss_by_position")
        assert shows("hparams", "model.network.n_embd")
        assert shows("custom_scalars", "bits per character")
    finally:
        server.terminate()
        server.wait()
