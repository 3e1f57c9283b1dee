"""The page where people play with a model: it writes, it shows what it thought, and two models write side by side.

Whatever is shown goes through `escape`, since a model may write anything.
"""

import base64
import errno
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported

import gradio as gr
import torch

from minigpt import runs
from minigpt.command_line import first_training
from minigpt.errors import MiniGPTError
from minigpt.generation.checks import block_size_of
from minigpt.generation.text import LanguageModel
from minigpt.inspection.introspection import (
    attention,
    attention_size,
    is_bigram,
    name_of,
    next_probabilities,
    surprisal,
)
from minigpt.words import LABELS, message

LOADED = 4  # models kept in memory
AT_ONCE = 16  # people whose text is drawn at the same time
PAUSE = 0.1  # seconds between two updates of a text
LOOKED_INTO = 600  # characters at the end of a text
BARS = 12
SURPRISED = 6.0  # bits, at which a character is coloured in full
PROMPTS = ["un matin,", "le soir,", "la petite fille", "dans la forêt"]
I18N = gr.I18n(**LABELS)

CSS = """
.surprise {white-space: pre-wrap; line-height: 1.9; font-size: 1.05rem; overflow-wrap: anywhere}
.surprise span {cursor: pointer; border-radius: 3px; padding: 2px 0}
.surprise span:hover, .surprise span:focus-visible, .surprise .picked {outline: 2px solid #2563a0}
.bars {border-collapse: collapse; width: 100%; font-size: .9rem; table-layout: fixed}
.bars, .bars tr, .bars td, .bars th {border: none !important}
.bars caption {text-align: left; padding: 0 6px; caption-side: top}
.bars td, .bars th {padding: 2px 6px; text-align: left; font-weight: normal}
.bars td:first-child {font-family: monospace; white-space: pre}
.bars i {display: inline-block; height: .8em; border-radius: 2px; vertical-align: middle; min-width: 1px}
.bars .before {background: #8ecad6} .bars .after {background: #2563a0}
.bars .cut td:first-child {text-decoration: line-through; opacity: .55}
.figure img {max-width: 100%; background: white}
"""
# A click on a token, or Enter, tells the server which; the token keeps its mark.
PICK = """
const pick = event => {
  const token = event.target.closest('span[data-place]');
  if (!token) return;
  element.querySelectorAll('.picked').forEach(other => other.classList.remove('picked'));
  token.classList.add('picked');
  trigger('select', {index: Number(token.dataset.place)});
};
element.addEventListener('click', pick);
element.addEventListener('keydown', event => event.key === 'Enter' && pick(event));
"""


class Shelf:
    """The checkpoints that the page offers, and the last few models that were asked for.

    Args:
        ckpt_path: What is offered first: `last`, a run folder or a file, which may lie outside `lightning_logs/`.
        device: Where models are put.
        allow_code: The modules outside minigpt whose networks may be imported.

    Raises:
        MiniGPTError: What is named is not there.
    """

    def __init__(self, ckpt_path: str = "last", device: str = "cpu", allow_code: Sequence[str] = ()):
        self.device = device
        self.allow_code = allow_code
        self.named = None if ckpt_path == "last" else str(runs.find_checkpoint(ckpt_path))
        self._model = lru_cache(LOADED)(self._read)
        self._lock = threading.Lock()

    def files(self) -> list[str]:
        """The checkpoints, the one that was named and the newest run's first."""
        found = sorted(Path(runs.ROOT).glob("*/version_*/checkpoints/*.ckpt"), key=_age)
        files = [str(file) for file in found if file.stem in ("best", "last")]
        return list(dict.fromkeys([self.named, *files] if self.named else files))

    def resolve(self, chosen: str | None) -> str:
        """The file of a choice: one of `files`, a run folder of theirs, or `last`.

        Raises:
            Problem: There is no run, or none like this.
        """
        files = self.files()
        if not files:
            raise Problem("no_run", first_training())
        if chosen in (None, "", "last"):
            return files[0]
        try:
            file = str(runs.find_checkpoint(chosen))
        except MiniGPTError:
            file = chosen
        if file not in files:  # what the page does not offer is none of its visitors' business
            raise Problem("gone", chosen)
        return file

    def load(self, chosen: str | None) -> LanguageModel:
        """The model of a choice.

        Raises:
            Problem: It is not there, or cannot be read.
        """
        file = self.resolve(chosen)
        with self._lock:  # of several people who ask for one model the first loads it
            try:
                return self._model(file, os.stat(file).st_mtime_ns)
            except OSError as error:
                raise Problem("gone", file) from error
            except MiniGPTError as error:
                raise Problem("broken", file) from error

    def _read(self, file: str, written: int) -> LanguageModel:
        return runs.language_model(runs.read_checkpoint(Path(file)), self.device, allow_code=self.allow_code)


class Problem(Exception):
    """What the page tells its visitor, by its name in `MESSAGES`."""

    def __init__(self, name: str, *values: object):
        super().__init__(name)
        self.name, self.values = name, values

    def message(self, request: gr.Request | None) -> str:
        """The sentence, in the visitor's language."""
        return "⚠ " + _say(request, self.name, *self.values)


def _age(file: Path) -> tuple[int, str]:
    try:
        newest = max(other.stat().st_mtime_ns for other in file.parent.glob("*.ckpt"))
    except (OSError, ValueError):  # gone in the meantime
        newest = 0
    return -newest, str(file)


def _language(request: gr.Request | None) -> str:
    languages = (request.headers.get("accept-language", "") if request and request.headers else "").lower()
    return "fr" if languages.startswith("fr") else "en"


def _say(request: gr.Request | None, name: str, *values: object) -> str:
    return message(name, *values, language=_language(request))


def _controls(temperature: float, top_k: int, top_p: float, min_p: float) -> dict:
    return {"temperature": temperature, "top_k": int(top_k) or None, "top_p": top_p, "min_p": min_p or None}


def write(
    shelf: Shelf, request: gr.Request | None, chosen: str | None, prompt: str, temperature: float, top_k: int,
    top_p: float, min_p: float, max_new_tokens: int, seed: int | None, stop: str, num_samples: int,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """What the page shows of a text while it is written: the text so far, and a notice.

    Several texts are separated by a line `---`. Updates come `PAUSE` seconds apart at least, however fast the model.
    """
    try:
        lm = shelf.load(chosen)
        cleaned = lm.prepare(prompt or "", unknown="skip")
        dropped = dict.fromkeys(lm.tokenizer.clean(prompt or ""))
        for char in cleaned:
            dropped.pop(char, None)
        seed = random.randrange(2**31) if seed is None else int(seed)
        notice = _say(request, "seed", seed)
        if dropped:
            notice = _say(request, "dropped", " ".join(f"`{char}`" for char in dropped)) + f" · {notice}"
        steps = lm.stream_batch(
            [prompt or ""] * int(num_samples), int(max_new_tokens), **_controls(temperature, top_k, top_p, min_p),
            seed=seed, stop=stop or None, unknown="skip",
        )  # fmt: skip
        texts, shown = [[cleaned] for _ in range(int(num_samples))], time.monotonic()
        for pieces in steps:
            for text, piece in zip(texts, pieces, strict=True):
                text.append(piece)
            if time.monotonic() - shown >= PAUSE:
                yield _joined(texts), notice
                shown = time.monotonic()
        yield _joined(texts), notice
    except Problem as problem:
        yield "", problem.message(request)
    except MiniGPTError as error:
        yield "", f"⚠ {error}"


def _joined(texts: list[list[str]]) -> str:
    return "\n---\n".join("".join(text) for text in texts)


def ids_of(lm: LanguageModel, text: str) -> list[int]:
    """The ids of the first of the texts in a box, the last `LOOKED_INTO` characters of it."""
    text = text.split("\n---\n")[0][-LOOKED_INTO:]
    return lm.tokenizer.encode(lm.prepare(text, unknown="skip"))


def surprise(lm: LanguageModel, ids: list[int], picked: int) -> str:
    """A text as HTML, each token behind the colour of its surprisal; the first has none before it."""
    spans = []
    for place, (token, bits) in enumerate(zip(ids, [0.0, *surprisal(lm.model, ids).tolist()], strict=True)):
        red = min(bits / SURPRISED, 1) * 0.75
        spans.append(
            f'<span role="button" tabindex="0" data-place="{place}" class="{"picked" if place == picked else ""}" '
            f'title="{bits:.1f} bits" style="background: rgba(228, 87, 46, {red:.2f})">'
            f"{escape(lm.tokenizer.decode([token]))}</span>"
        )
    return f'<div class="surprise">{"".join(spans)}</div>'


def bars(lm: LanguageModel, ids: list[int], place: int, controls: dict, request: gr.Request | None) -> str:
    """The probabilities in the place of a token, the model's own and what the controls leave, as HTML."""
    before, after = next_probabilities(lm.model, ids[:place], **controls)
    likeliest = before.topk(min(BARS, len(before))).indices.tolist()
    if ids[place] not in likeliest:
        likeliest[-1] = ids[place]
    rows = []
    for token in likeliest:
        came = f" ← {_say(request, 'came')}" if token == ids[place] else ""
        cells = "".join(
            f'<td><i class="{kind}" style="width: {p * 70:.1f}%"></i> {p:.1%}</td>'
            for kind, p in (("before", before[token].item()), ("after", after[token].item()))
        )
        cut = "cut" if after[token] == 0 else ""
        rows.append(f'<tr class="{cut}"><td>{escape(name_of(lm.tokenizer.decode([token])))}{came}</td>{cells}</tr>')
    context = escape(name_of(lm.tokenizer.decode(ids[max(0, place - 24) : place])))
    heads = "".join(f"<th>{_say(request, name)}</th>" for name in ("model", "left"))
    caption = f"<caption>{_say(request, 'picked', context)}</caption>"
    return f'<table class="bars">{caption}<tr><th></th>{heads}</tr>{"".join(rows)}</table>'


def picture(lm: LanguageModel, ids: list[int], layer: int, head: int, request: gr.Request | None) -> str:
    """Return the table of a bigram model, or where one head of one layer looks, as an HTML image."""
    from minigpt.inspection import figures  # imports matplotlib

    language = _language(request)
    if is_bigram(lm.model):
        drawn = figures.draw_transitions(lm.model, lm.tokenizer, language=language)
    elif size := attention_size(lm.model):
        ids = ids[-min(block_size_of(lm.model, len(ids)), 48) :]
        layer, head = min(layer, size[0]), min(head, size[1])
        title = message("figure_head", layer, head, language=language)
        try:
            weights = attention(lm.model, ids)[layer - 1, head - 1]
        except MiniGPTError as error:
            return f"<p>⚠ {escape(str(error))}</p>"
        drawn = figures.draw_head(weights, figures.names_of(lm.tokenizer, ids), title, language)
    else:
        return ""
    data = base64.b64encode(drawn.png()).decode()
    return f'<div class="figure"><img alt="" src="data:image/png;base64,{data}"></div>'


def build(shelf: Shelf) -> gr.Blocks:
    """The page."""

    def choices() -> list[tuple[str, str]]:
        return [(file.removeprefix(f"{runs.ROOT}/").replace("/checkpoints/", " · "), file) for file in shelf.files()]

    def two(files: list[str]) -> tuple[str | None, str | None]:
        """The first, and one of another run to compare it with, where there is one."""
        if not files:
            return None, None
        first = files[0]
        return first, next((file for file in files if runs.run_of(Path(file)) != runs.run_of(Path(first))), first)

    def refresh(chosen: str | None, other: str | None, request: gr.Request) -> tuple[dict, dict, str]:
        found = choices()
        files = [file for _, file in found]
        left, right = (old if old in files else new for old, new in zip((chosen, other), two(files), strict=True))
        notice = "" if found else "⚠ " + _say(request, "no_run", first_training())
        return gr.update(choices=found, value=left), gr.update(choices=found, value=right), notice

    def generate(
        run: str, prompt: str, temperature: float, top_k: int, top_p: float, min_p: float, max_new_tokens: int,
        seed: int | None, stop: str, num_samples: int, request: gr.Request,
    ) -> Iterator[tuple[str, str]]:  # fmt: skip
        """Continue a text with a trained model; yields the text so far and a notice."""
        yield from write(
            shelf, request, run, prompt, temperature, top_k, top_p, min_p, max_new_tokens, seed, stop, num_samples
        )

    def compare(
        run: str, other: str, prompt: str, temperature: float, top_k: int, top_p: float, min_p: float,
        max_new_tokens: int, seed: int | None, stop: str, num_samples: int, request: gr.Request,
    ) -> Iterator[tuple[str, str, str]]:  # fmt: skip
        seed = random.randrange(2**31) if seed is None else seed  # one for both
        settings = (prompt, temperature, top_k, top_p, min_p, max_new_tokens, seed, stop, num_samples)
        first = second = notice = ""
        for first, notice in write(shelf, request, run, *settings):
            yield first, second, notice
        for second, further in write(shelf, request, other, *settings):
            yield first, second, " · ".join(dict.fromkeys((notice, further)))

    def look(run: str, text: str, layer: int, head: int, temperature: float, top_k: int, top_p: float, min_p: float,
             request: gr.Request) -> tuple[Any, ...]:  # fmt: skip
        try:
            lm = shelf.load(run)
            ids = ids_of(lm, text or "")
            if len(ids) < 2:
                raise Problem("nothing")
            place = len(ids) - 1
            sizes = attention_size(lm.model)
            sliders = [
                gr.update(visible=sizes is not None, maximum=max(2, size), value=min(value, size))
                for size, value in zip(sizes or (2, 2), (layer, head), strict=True)
            ]
            controls = _controls(temperature, top_k, top_p, min_p)
            inside = picture(lm, ids[:-1], layer, head, request)
            return surprise(lm, ids, place), bars(lm, ids, place, controls, request), inside, *sliders, place, ""
        except Problem as problem:
            return "", "", "", gr.update(visible=False), gr.update(visible=False), 0, problem.message(request)

    def pick(run: str, text: str, layer: int, head: int, temperature: float, top_k: int, top_p: float, min_p: float,
             event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:  # fmt: skip
        try:
            lm = shelf.load(run)
        except Problem as problem:
            return "", "", 0, problem.message(request)
        ids = ids_of(lm, text or "")
        place = min(max(int(event.index), 0), len(ids) - 1)
        if place < 1:
            return "", gr.skip(), gr.skip(), gr.skip()
        controls = _controls(temperature, top_k, top_p, min_p)
        return bars(lm, ids, place, controls, request), picture(lm, ids[:place], layer, head, request), place, gr.skip()

    def redraw(run: str, text: str, layer: int, head: int, place: int, request: gr.Request) -> str:
        try:
            lm = shelf.load(run)
        except Problem:
            return ""
        before = ids_of(lm, text or "")[:place]
        return picture(lm, before, layer, head, request) if before else ""

    found = choices()
    first, second = two([file for _, file in found])
    with gr.Blocks(title="minigpt", analytics_enabled=False) as page:
        gr.Markdown(I18N("title"))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                # Custom values, since runs come and go while the page is open; `Shelf.resolve` judges them.
                run = gr.Dropdown(found, value=first, label=I18N("run"), allow_custom_value=True, elem_id="run")
                renew = gr.Button(I18N("refresh"), size="sm")
                prompt = gr.Textbox(PROMPTS[0], label=I18N("prompt"), lines=2, elem_id="prompt")
                gr.Examples(PROMPTS, prompt, label=I18N("examples"), api_visibility="private")
                temperature = gr.Slider(0, 2, 0.8, step=0.05, label=I18N("temperature"), info=I18N("temperature_info"))
                top_k = gr.Slider(0, 200, 30, step=1, label=I18N("top_k"), info=I18N("top_k_info"))
                top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label=I18N("top_p"), info=I18N("top_p_info"))
                min_p = gr.Slider(0, 1, 0, step=0.01, label=I18N("min_p"), info=I18N("min_p_info"))
                with gr.Row():
                    length = gr.Slider(1, 2000, 300, step=1, label=I18N("length"))
                    samples = gr.Slider(1, 8, 1, step=1, label=I18N("samples"))
                with gr.Row():
                    seed = gr.Number(
                        0, precision=0, minimum=0, maximum=2**31 - 1, label=I18N("seed"), info=I18N("seed_info")
                    )
                    stop_string = gr.Textbox("", label=I18N("stop_string"), max_lines=1)
            with gr.Column(scale=3, min_width=320):
                notice = gr.Markdown(elem_id="notice")
                with gr.Tabs():
                    with gr.Tab(I18N("write")):
                        with gr.Row():
                            go = gr.Button(I18N("generate"), variant="primary", elem_id="go")
                            halt = gr.Button(I18N("stop"), variant="stop", elem_id="halt")
                        text = gr.Textbox(
                            label=I18N("text"), lines=16, max_lines=28, elem_id="text", buttons=["copy"],
                            interactive=True, autoscroll=False,
                        )  # fmt: skip
                    with gr.Tab(I18N("look")) as inside:
                        gr.Markdown(I18N("look_hint"))
                        colours = gr.HTML(js_on_load=PICK, elem_id="colours")
                        chart = gr.HTML(elem_id="bars")
                        with gr.Row():
                            layer = gr.Slider(1, 8, 1, step=1, label=I18N("layer"), visible=False)
                            head = gr.Slider(1, 8, 1, step=1, label=I18N("head"), visible=False)
                        drawing = gr.HTML(elem_id="inside")
                        place = gr.State(0)  # of the token that was picked
                    with gr.Tab(I18N("compare")):
                        other = gr.Dropdown(
                            found, value=second, label=I18N("other"), allow_custom_value=True, elem_id="other"
                        )
                        with gr.Row():
                            both = gr.Button(I18N("both"), variant="primary", elem_id="both")
                            halt_both = gr.Button(I18N("stop"), variant="stop")
                        with gr.Row():
                            left = gr.Textbox(label=I18N("first"), lines=16, elem_id="left")
                            right = gr.Textbox(label=I18N("second"), lines=16, elem_id="right")
        settings = [prompt, temperature, top_k, top_p, min_p, length, seed, stop_string, samples]
        private: dict[str, Any] = {"api_visibility": "private"}
        crowd: dict[str, Any] = {"concurrency_limit": AT_ONCE}
        gr.on([page.load, renew.click], refresh, [run, other], [run, other, notice], **private)
        written = gr.on(
            [go.click, prompt.submit], generate, [run, *settings], [text, notice], api_name="generate", **crowd
        )
        halt.click(None, cancels=[written], **private)
        compared = both.click(compare, [run, other, *settings], [left, right, notice], **private, **crowd)
        halt_both.click(None, cancels=[compared], **private)
        seen = [run, text, layer, head]
        controls = [temperature, top_k, top_p, min_p]
        looked = [colours, chart, drawing, layer, head, place, notice]
        inside.select(look, [*seen, *controls], looked, **private, **crowd)
        colours.select(pick, [*seen, *controls], [chart, drawing, place, notice], **private, **crowd)
        gr.on([layer.release, head.release], redraw, [*seen, place], drawing, **private, **crowd)
    return page


def serve(shelf: Shelf, host: str, port: int, auth: tuple[str, str] | None = None) -> gr.Blocks:
    """Open the page on an address, in threads of its own.

    Raises:
        MiniGPTError: The address cannot be had.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        raise _not_served(host, port, error) from error
    if shelf.device == "cpu":
        torch.set_num_threads(1)  # people side by side are faster so than each on all cores in turn
    page = build(shelf)
    page.queue(max_size=8 * AT_ONCE)
    system = ["system-ui", "sans-serif"]  # no font is fetched from elsewhere
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port, auth=auth, share=False, quiet=True,
            prevent_thread_lock=True, i18n=I18N, css=CSS,
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
            footer_links=["api"], max_threads=2 * AT_ONCE, ssr_mode=False,
        )  # fmt: skip
    except OSError as error:  # gradio wants the port on 127.0.0.1 as well
        raise _not_served(host, port, error) from error
    return page


def _not_served(host: str, port: int, error: Exception) -> MiniGPTError:
    reason = str(getattr(error, "strerror", None) or error).rstrip(".")
    number = getattr(error, "errno", None)
    taken = number in (None, errno.EADDRINUSE, errno.EACCES) and not isinstance(error, UnicodeError)
    way_out = "Give --port another number" if taken else "Give --host an address of this machine"
    return MiniGPTError(f"The page cannot have port {port} on {host}: {reason}. {way_out}.")
