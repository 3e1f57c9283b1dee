"""The page: its tabs, and what their buttons do."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from minigpt import runs
from minigpt.app import chart
from minigpt.app.pictures import bars, ids_of, picture, surprise
from minigpt.app.store import ModelStore
from minigpt.app.train_tab import I18N, TrainingTab
from minigpt.app.training import FOLDER, Trainings
from minigpt.app.visitors import Problem, say
from minigpt.command_line import PROMPTS, first_training
from minigpt.errors import MiniGPTError
from minigpt.inspection.curves import cached_curves
from minigpt.inspection.introspection import attention_size

MAX_CONCURRENT = 16  # visitors whose text is generated at the same time
UPDATE_SECONDS = 0.1  # least time between two updates of a text
CACHE_SECONDS = 24 * 3600  # after which Gradio's copies of uploads and downloads are deleted
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
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
# Whether there is room for the sampling parameters beside the text; on a phone they are folded. Gradio has decided
# which tabs fit before it applied the style, and decides again when the window changes.
WIDE = """() => {
  window.dispatchEvent(new Event('resize'));
  return window.innerWidth >= 768;
}"""


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


def build(store: ModelStore, trainings: Trainings | None = None) -> gr.Blocks:
    """Build the page.

    Args:
        store: The models that it offers.
        trainings: Of the tab *Train*; by default one that does not train.
    """
    training = trainings or Trainings(allowed=False)

    def choices(request: gr.Request | None = None) -> list[tuple[str, str]]:
        return [(title(file, request), file) for file in store.files()]

    def refresh(chosen: str | None, other: str | None, request: gr.Request) -> tuple[dict, dict, str]:
        offered = choices(request)
        files = [file for _, file in offered]
        left, right = (old if old in files else new for old, new in zip((chosen, other), store.two(), strict=True))
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

    def columns(run: str | None, other: str | None, request: gr.Request) -> tuple[dict, dict]:
        """Name the columns of the comparison after the checkpoints."""
        names = {file: name for name, file in choices(request)}  # of no other file, which a visitor may only guess
        return gr.update(label=names.get(run or "", run)), gr.update(label=names.get(other or "", other))

    def differ(run: str | None, other: str | None) -> Any:
        """Choose another checkpoint to compare with if it would be the same."""
        return store.two(run)[1] if run == other else gr.skip()

    def curve(run: str | None, request: gr.Request) -> str:
        """Return the curve of the run of the chosen checkpoint."""
        folder = runs.run_of(Path(run)) if run in store.files() else None
        return chart.draw(cached_curves(folder), 0, request) if folder else ""

    def download(run: str | None, request: gr.Request) -> tuple[Any, str]:
        try:
            name, content = store.as_web_page(run)
        except Problem as problem:
            return gr.skip(), problem.message(request)
        file = FOLDER / name  # Gradio serves a copy
        try:
            FOLDER.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except OSError as error:
            return gr.skip(), Problem("not_written", FOLDER, error.strerror).message(request)
        return str(file), ""

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
            table = bars(lm, ids, position, sampling, request)
            return surprise(lm, ids, position, request), table, inside, *sliders, position, ""
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
    first, second = store.two()
    crowd: dict[str, Any] = {"concurrency_limit": MAX_CONCURRENT}
    with gr.Blocks(title="minigpt", analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS)) as page:
        gr.Markdown(I18N("title"), elem_id="title")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                notice = gr.Markdown(elem_id="notice")
                with gr.Tabs():
                    with gr.Tab(I18N("write"), id="write") as writing:
                        prompt = gr.Textbox(PROMPTS[0], label=I18N("prompt"), lines=2, elem_id="prompt")
                        go = gr.Button(I18N("generate"), variant="primary", elem_id="go")
                        halt = gr.Button(I18N("stop"), variant="stop", elem_id="halt", visible=False)
                        text = gr.Textbox(
                            label=I18N("text"), lines=12, max_lines=28, elem_id="text", buttons=["copy"],
                            interactive=True, autoscroll=False,
                        )  # fmt: skip
                        gr.Examples(list(PROMPTS), prompt, label=I18N("examples"), api_visibility="private")
                    with gr.Tab(I18N("look"), id="look") as inside:
                        gr.Markdown(I18N("look_hint"))
                        colours = gr.HTML(js_on_load=PICK, elem_id="colours")
                        table = gr.HTML(elem_id="bars")
                        with gr.Row():
                            layer = gr.Slider(1, 8, 1, step=1, label=I18N("layer"), visible=False)
                            head = gr.Slider(1, 8, 1, step=1, label=I18N("head"), visible=False)
                        drawing = gr.HTML(elem_id="inside")
                        position = gr.State(0)  # of the selected token
                    with gr.Tab(I18N("compare"), id="compare") as comparing:
                        # Custom values are allowed, since runs appear and disappear; `ModelStore.resolve` checks them.
                        other = gr.Dropdown(
                            offered, value=second, label=I18N("other"), allow_custom_value=True, elem_id="other"
                        )
                        same_prompt = gr.Textbox(PROMPTS[0], label=I18N("prompt"), lines=2, elem_id="same_prompt")
                        both = gr.Button(I18N("both"), variant="primary", elem_id="both")
                        halt_both = gr.Button(I18N("stop"), variant="stop", elem_id="halt_both", visible=False)
                        with gr.Row():
                            left = gr.Textbox(label=title(first or "", None), lines=14, elem_id="left", min_width=280)
                            right = gr.Textbox(
                                label=title(second or "", None), lines=14, elem_id="right", min_width=280
                            )
                    with gr.Tab(I18N("train"), id="train", elem_id="train_tab") as to_train:
                        tab = TrainingTab(training)
            with gr.Column(scale=2, min_width=320, elem_id="side") as side:
                with gr.Row():
                    run = gr.Dropdown(offered, value=first, label=I18N("run"), allow_custom_value=True, elem_id="run")
                with gr.Row():
                    renew = gr.Button(I18N("refresh"), size="sm", min_width=100)
                    save = gr.Button(I18N("download"), size="sm", min_width=100, elem_id="save")
                    saved = gr.DownloadButton(visible="hidden", elem_id="saved")
                drawn = gr.HTML(elem_id="curve")
                with gr.Accordion(I18N("parameters"), open=False, elem_id="parameters") as parameters:
                    temperature = gr.Slider(
                        0, 2, 0.8, step=0.05, label=I18N("temperature"), info=I18N("temperature_info")
                    )
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
                wide = gr.Checkbox(visible=False)
        settings = [temperature, top_k, top_p, min_p, length, seed, stop_string, samples]
        fresh = gr.on([page.load, renew.click], refresh, [run, other], [run, other, notice], **PRIVATE)
        quiet = PRIVATE | {"show_progress": "hidden"}
        run.change(differ, [run, other], other, **quiet)
        for naming in (fresh.then, run.change, other.change):
            naming(columns, [run, other], [left, right], **quiet)
        for drawing_curve in (fresh.then, run.change):
            drawing_curve(curve, run, drawn, **quiet)
        _running(
            [go.click, prompt.submit], go, halt, generate, [run, prompt, *settings], [text, notice],
            api_name="generate", **crowd,
        )  # fmt: skip
        _running(
            [both.click, same_prompt.submit], both, halt_both, compare, [run, other, same_prompt, *settings],
            [left, right, notice], **PRIVATE, **crowd,
        )  # fmt: skip
        prepared = save.click(download, run, [saved, notice], **PRIVATE)
        prepared.success(None, js="() => document.querySelector('#saved').click()", **PRIVATE)
        seen = [run, text, layer, head]
        sampling = [temperature, top_k, top_p, min_p]
        looked = [colours, table, drawing, layer, head, position, notice]
        inside.select(look, [*seen, *sampling], looked, **PRIVATE, **crowd)
        colours.select(pick, [*seen, *sampling], [table, drawing, position, notice], **PRIVATE, **crowd)
        gr.on([layer.release, head.release], redraw, [*seen, position], drawing, **PRIVATE, **crowd)
        # The two tabs with a prompt share it, in the browser.
        prompt.change(None, prompt, same_prompt, js="text => text", **PRIVATE)
        same_prompt.blur(None, same_prompt, prompt, js="text => text", **PRIVATE)
        for shown in (writing, inside, comparing):
            shown.select(lambda: gr.update(visible=True), None, side, **quiet)
        to_train.select(lambda: gr.update(visible=False), None, side, **quiet)
        tab.connect(page, to_train, store, choices, run, other)
        page.load(lambda wide: gr.update(open=wide), wide, parameters, js=WIDE, **quiet)
    return page


def title(file: str, request: gr.Request | None) -> str:
    """Return a short name of a checkpoint, such as `tiny/version_0 · step 100`."""
    run = runs.run_of(Path(file))
    if run is None:
        return file
    folder = run.relative_to(runs.ROOT) if run.is_relative_to(runs.ROOT) else run
    step = next((step for step, snapshot in runs.snapshots(run).items() if snapshot == Path(file)), None)
    return f"{folder.as_posix()} · {Path(file).stem if step is None else say(request, 'checkpoint_step', step)}"


def _running(
    triggers: list, go: gr.Button, halt: gr.Button, fn: Callable, inputs: list, outputs: list, **how: Any
) -> Dependency:
    """Connect a function with its triggers, so that the button that stops it replaces the other while it runs."""
    swap: dict[str, Any] = {"outputs": [go, halt], "show_progress": "hidden", "queue": False, **PRIVATE}
    began = gr.on(triggers, lambda: (gr.update(visible=False), gr.update(visible=True)), **swap)
    running = began.then(fn, inputs, outputs, trigger_mode="once", **how)
    running.then(lambda: (gr.update(visible=True), gr.update(visible=False)), **swap)
    halt.click(lambda: (gr.update(visible=True), gr.update(visible=False)), **swap, cancels=[running])
    return running
