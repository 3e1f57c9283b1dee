"""The page itself, and its server."""

import errno
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from minigpt import runs
from minigpt.app.pictures import bars, ids_of, picture, surprise
from minigpt.app.store import ModelStore
from minigpt.app.visitors import Problem, say
from minigpt.command_line import first_training
from minigpt.errors import MiniGPTError
from minigpt.inspection.introspection import attention_size
from minigpt.words import LABELS

MAX_CONCURRENT = 16  # visitors whose text is generated at the same time
UPDATE_SECONDS = 0.1  # least time between two updates of a text
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
# A click on a token, or Enter, marks it and sends its position to the server.
PICK = """
const pick = event => {
  const token = event.target.closest('span[data-position]');
  if (!token) return;
  element.querySelectorAll('.picked').forEach(other => other.classList.remove('picked'));
  token.classList.add('picked');
  trigger('select', {index: Number(token.dataset.position)});
};
element.addEventListener('click', pick);
element.addEventListener('keydown', event => event.key === 'Enter' && pick(event));
"""


def filters(temperature: float, top_k: int, top_p: float, min_p: float) -> dict:
    return {"temperature": temperature, "top_k": int(top_k) or None, "top_p": top_p, "min_p": min_p or None}


def write(
    store: ModelStore, request: gr.Request | None, chosen: str | None, prompt: str, temperature: float, top_k: int,
    top_p: float, min_p: float, max_new_tokens: int, seed: int | None, stop: str, num_samples: int,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yield the text so far and a notice while texts are generated.

    Several texts are separated by a line `---`. Updates come at least `UPDATE_SECONDS` apart, however fast the model.
    """
    try:
        lm = store.load(chosen)
        ids = lm.encode_prompt(prompt or "", unknown="skip")
        cleaned = lm.tokenizer.decode(ids)
        left_out = dict.fromkeys(lm.tokenizer.clean(prompt or ""))
        for char in cleaned:
            left_out.pop(char, None)
        seed = random.randrange(2**31) if seed is None else int(seed)
        notice = say(request, "seed", seed)
        if left_out:
            notice = say(request, "left_out", " ".join(f"`{char}`" for char in left_out)) + f" · {notice}"
        steps = lm.stream_batch(
            [ids] * int(num_samples), int(max_new_tokens), **filters(temperature, top_k, top_p, min_p),
            seed=seed, stop=stop or None,
        )  # fmt: skip
        texts, shown = [[cleaned] for _ in range(int(num_samples))], time.monotonic()
        for pieces in steps:
            for text, piece in zip(texts, pieces, strict=True):
                text.append(piece)
            if time.monotonic() - shown >= UPDATE_SECONDS:
                yield _joined(texts), notice
                shown = time.monotonic()
        yield _joined(texts), notice
    except Problem as problem:
        yield "", problem.message(request)
    except MiniGPTError as error:
        yield "", f"⚠ {error}"


def _joined(texts: list[list[str]]) -> str:
    return "\n---\n".join("".join(text) for text in texts)


def build(store: ModelStore) -> gr.Blocks:
    """Build the page."""

    def choices() -> list[tuple[str, str]]:
        return [(file.removeprefix(f"{runs.ROOT}/").replace("/checkpoints/", " · "), file) for file in store.files()]

    def two(files: list[str]) -> tuple[str | None, str | None]:
        """Return the first file, and for comparison one of another run if there is one."""
        if not files:
            return None, None
        first = files[0]
        return first, next((file for file in files if runs.run_of(Path(file)) != runs.run_of(Path(first))), first)

    def refresh(chosen: str | None, other: str | None, request: gr.Request) -> tuple[dict, dict, str]:
        offered = choices()
        files = [file for _, file in offered]
        left, right = (old if old in files else new for old, new in zip((chosen, other), two(files), strict=True))
        notice = "" if offered else "⚠ " + say(request, "no_run", first_training())
        return gr.update(choices=offered, value=left), gr.update(choices=offered, value=right), notice

    def generate(
        run: str, prompt: str, temperature: float, top_k: int, top_p: float, min_p: float, max_new_tokens: int,
        seed: int | None, stop: str, num_samples: int, request: gr.Request,
    ) -> Iterator[tuple[str, str]]:  # fmt: skip
        """Continue a text with a trained model. Yields the text so far and a notice."""
        yield from write(
            store, request, run, prompt, temperature, top_k, top_p, min_p, max_new_tokens, seed, stop, num_samples
        )

    def compare(
        run: str, other: str, prompt: str, temperature: float, top_k: int, top_p: float, min_p: float,
        max_new_tokens: int, seed: int | None, stop: str, num_samples: int, request: gr.Request,
    ) -> Iterator[tuple[str, str, str]]:  # fmt: skip
        seed = random.randrange(2**31) if seed is None else seed  # the same seed for both models
        settings = (prompt, temperature, top_k, top_p, min_p, max_new_tokens, seed, stop, num_samples)
        first = second = notice = ""
        for first, notice in write(store, request, run, *settings):
            yield first, second, notice
        for second, further in write(store, request, other, *settings):
            yield first, second, " · ".join(dict.fromkeys((notice, further)))

    def look(run: str, text: str, layer: int, head: int, temperature: float, top_k: int, top_p: float, min_p: float,
             request: gr.Request) -> tuple[Any, ...]:  # fmt: skip
        try:
            lm = store.load(run)
            ids = ids_of(lm, text or "")
            if len(ids) < 2:
                raise Problem("nothing")
            position = len(ids) - 1
            sizes = attention_size(lm.model)
            sliders = [
                gr.update(visible=sizes is not None, maximum=max(2, size), value=min(value, size))
                for size, value in zip(sizes or (2, 2), (layer, head), strict=True)
            ]
            sampling = filters(temperature, top_k, top_p, min_p)
            inside = picture(lm, ids[:-1], layer, head, request)
            chart = bars(lm, ids, position, sampling, request)
            return surprise(lm, ids, position), chart, inside, *sliders, position, ""
        except Problem as problem:
            return "", "", "", gr.update(visible=False), gr.update(visible=False), 0, problem.message(request)

    def pick(run: str, text: str, layer: int, head: int, temperature: float, top_k: int, top_p: float, min_p: float,
             event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:  # fmt: skip
        try:
            lm = store.load(run)
        except Problem as problem:
            return "", "", 0, problem.message(request)
        ids = ids_of(lm, text or "")
        position = min(max(int(event.index), 0), len(ids) - 1)
        if position < 1:
            return "", gr.skip(), gr.skip(), gr.skip()
        sampling = filters(temperature, top_k, top_p, min_p)
        inside = picture(lm, ids[:position], layer, head, request)
        return bars(lm, ids, position, sampling, request), inside, position, gr.skip()

    def redraw(run: str, text: str, layer: int, head: int, position: int, request: gr.Request) -> str:
        try:
            lm = store.load(run)
        except Problem:
            return ""
        before = ids_of(lm, text or "")[:position]
        return picture(lm, before, layer, head, request) if before else ""

    offered = choices()
    first, second = two([file for _, file in offered])
    with gr.Blocks(title="minigpt", analytics_enabled=False) as page:
        gr.Markdown(I18N("title"))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                # Custom values are allowed, since runs appear and disappear; `ModelStore.resolve` checks them.
                run = gr.Dropdown(offered, value=first, label=I18N("run"), allow_custom_value=True, elem_id="run")
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
                        position = gr.State(0)  # of the selected token
                    with gr.Tab(I18N("compare")):
                        other = gr.Dropdown(
                            offered, value=second, label=I18N("other"), allow_custom_value=True, elem_id="other"
                        )
                        with gr.Row():
                            both = gr.Button(I18N("both"), variant="primary", elem_id="both")
                            halt_both = gr.Button(I18N("stop"), variant="stop")
                        with gr.Row():
                            left = gr.Textbox(label=I18N("first"), lines=16, elem_id="left")
                            right = gr.Textbox(label=I18N("second"), lines=16, elem_id="right")
        settings = [prompt, temperature, top_k, top_p, min_p, length, seed, stop_string, samples]
        private: dict[str, Any] = {"api_visibility": "private"}
        crowd: dict[str, Any] = {"concurrency_limit": MAX_CONCURRENT}
        gr.on([page.load, renew.click], refresh, [run, other], [run, other, notice], **private)
        written = gr.on(
            [go.click, prompt.submit], generate, [run, *settings], [text, notice], api_name="generate", **crowd
        )
        halt.click(None, cancels=[written], **private)
        compared = both.click(compare, [run, other, *settings], [left, right, notice], **private, **crowd)
        halt_both.click(None, cancels=[compared], **private)
        seen = [run, text, layer, head]
        sampling = [temperature, top_k, top_p, min_p]
        looked = [colours, chart, drawing, layer, head, position, notice]
        inside.select(look, [*seen, *sampling], looked, **private, **crowd)
        colours.select(pick, [*seen, *sampling], [chart, drawing, position, notice], **private, **crowd)
        gr.on([layer.release, head.release], redraw, [*seen, position], drawing, **private, **crowd)
    return page


def serve(store: ModelStore, host: str, port: int, auth: tuple[str, str] | None = None) -> gr.Blocks:
    """Serve the page on an address, in background threads.

    Raises:
        MiniGPTError: The address cannot be used.
    """
    host = host.removeprefix("[").removesuffix("]")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        raise _not_served(host, port, error) from error
    if store.device == "cpu":
        torch.set_num_threads(1)  # concurrent visitors are then served faster than one after the other on all cores
    page = build(store)
    page.queue(max_size=8 * MAX_CONCURRENT)
    system = ["system-ui", "sans-serif"]  # so that no font is downloaded
    try:
        page.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port, auth=auth, share=False, quiet=True,
            prevent_thread_lock=True, i18n=I18N, css=CSS,
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
            footer_links=["api"], max_threads=2 * MAX_CONCURRENT, ssr_mode=False,
        )  # fmt: skip
    except OSError as error:  # Gradio needs the port on 127.0.0.1 too
        raise _not_served(host, port, error) from error
    return page


def _not_served(host: str, port: int, error: Exception) -> MiniGPTError:
    reason = str(getattr(error, "strerror", None) or error).rstrip(".")
    number = getattr(error, "errno", None)
    taken = number in (None, errno.EADDRINUSE, errno.EACCES) and not isinstance(error, UnicodeError)
    way_out = "Pass a different --port" if taken else "Pass an address of this machine as --host"
    return MiniGPTError(f"The page cannot be served on port {port} of {host}: {reason}. {way_out}.")
