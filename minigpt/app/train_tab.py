"""The tab of the page that trains."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from minigpt import runs
from minigpt.app import chart, texts
from minigpt.app.store import ModelStore
from minigpt.app.training import Status, Trainings, offered_recipes
from minigpt.app.visitors import Problem, say
from minigpt.inspection.curves import cached_curves
from minigpt.words import LABELS, MESSAGES

POLL_SECONDS = 2.0  # between two looks at a running training
I18N = gr.I18n(**LABELS)


class TrainingTab:
    """The components of the tab, in the context of which it is created.

    Args:
        trainings: Trains, or refuses to.
    """

    def __init__(self, trainings: Trainings):
        self.trainings = trainings
        self.hint = gr.Markdown(elem_id="train_hint")
        with gr.Column(visible=trainings.allowed) as self.form:
            self.paste = gr.Textbox(
                label=I18N("paste"), info=I18N("paste_info"), lines=6, max_lines=12, elem_id="paste",
                max_length=texts.MAX_MB * 2**20,
            )  # fmt: skip
            self.files = gr.File(
                file_count="multiple", file_types=list(texts.KINDS), label=I18N("files"), height=140, elem_id="files"
            )
            with gr.Row():
                self.recipe = gr.Dropdown(
                    recipe_choices(None), value=next(iter(offered_recipes()), None), label=I18N("recipe"),
                    info=I18N("recipe_info"), elem_id="recipe", scale=2, min_width=300,
                )  # fmt: skip
                self.steps = gr.Number(
                    recipe_steps(self.recipe.value),
                    precision=0,
                    label=I18N("steps"),
                    info=I18N("steps_info"),
                    elem_id="steps",
                    min_width=140,
                )
            self.start = gr.Button(I18N("start"), variant="primary", elem_id="start")
            with gr.Row():
                self.go_on = gr.Button(I18N("go_on"), visible=False, elem_id="go_on")
                self.stop = gr.Button(I18N("stop"), variant="stop", visible=False, elem_id="stop")
            self.notice = gr.Markdown(elem_id="train_notice")
            self.status = gr.HTML(elem_id="status")
            with gr.Row():
                with gr.Column(min_width=320):
                    self.curve = gr.HTML(elem_id="live")
                with gr.Column(min_width=320):
                    self.samples = gr.HTML(elem_id="samples")
        self.seen = gr.State(None)  # what the page shows, so that it is sent again only if it has changed
        self.timer = gr.Timer(POLL_SECONDS, active=False)

    def connect(
        self, page: gr.Blocks, tab: gr.Tab, store: ModelStore, choices: Callable, run: gr.Dropdown, other: gr.Dropdown
    ) -> None:
        """Connect the components with what they do.

        Args:
            page: The page.
            tab: The tab.
            store: The models, among which the trained one appears.
            choices: Returns the choices of the lists of checkpoints for a request.
            run: The list from which *Write* takes its checkpoint.
            other: The list from which *Compare* takes its second one.
        """
        trainings = self.trainings

        def may(request: gr.Request) -> bool:
            return trainings.is_for(request.headers.get("host"))

        def welcome(request: gr.Request) -> tuple[str, dict, dict]:
            hint = say(request, "text_kept", texts.FOLDER.as_posix(), texts.MAX_MB, ", ".join(texts.KINDS))
            allowed = may(request)
            return (
                hint if allowed else say(request, "training_off"),
                gr.update(choices=recipe_choices(request)),
                gr.update(visible=allowed),
            )

        def watch(seen: tuple | None, request: gr.Request) -> list[Any]:
            status = trainings.status() if may(request) else None
            if status is None:
                return [gr.skip()] * 10
            curves = cached_curves(status.run) if status.run else None
            newest = len(curves.texts.get(chart.SAMPLE, [])) if curves else 0
            now = (str(status.run), status.state, status.step, newest, said(status, request))
            if seen is not None and tuple(seen) == now:
                return [gr.skip()] * 10
            lists = [gr.skip(), gr.skip()]
            if status.state == "finished" and seen and seen[1] != "finished":
                offered = choices(request)
                new = next((file for _, file in offered if runs.run_of(Path(file)) == status.run), None)
                lists = [gr.update(choices=offered, value=new), gr.update(choices=offered)]
            return [
                shown(status, request),
                chart.draw(curves, status.max_steps, request) if curves else "",
                chart.samples(curves, request) if curves else "",
                gr.update(visible=not status.runs),
                gr.update(visible=status.state in ("starting", "running")),
                gr.update(visible=status.can_go_on),
                gr.Timer(active=status.runs),
                now,
                *lists,
            ]

        def start(pasted: str, uploads: list[str] | None, recipe: str, steps: int | None, request: gr.Request) -> str:
            def action() -> None:
                trainings.check_free()
                trainings.start(recipe, texts.keep(pasted, uploads), steps)

            return act(action, request)

        def act(action: Callable[[], None], request: gr.Request) -> str:
            try:
                if not may(request):
                    raise Problem("training_off")
                action()
            except Problem as problem:
                return problem.message(request)
            except OSError as error:
                return Problem("not_written", runs.ROOT, error.strerror).message(request)
            return ""

        def stop(request: gr.Request) -> str:
            return act(trainings.stop, request)

        def go_on(request: gr.Request) -> str:
            return act(trainings.go_on, request)

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        watched = [
            self.status, self.curve, self.samples, self.start, self.stop, self.go_on, self.timer, self.seen, run, other,
        ]  # fmt: skip
        page.load(welcome, None, [self.hint, self.recipe, self.form], **quiet)
        gr.on([page.load, tab.select, self.timer.tick], watch, self.seen, watched, **quiet)
        self.recipe.change(recipe_steps, self.recipe, self.steps, **quiet)
        pressed = [
            self.start.click(start, [self.paste, self.files, self.recipe, self.steps], self.notice, **quiet),
            self.stop.click(stop, None, self.notice, **quiet),
            self.go_on.click(go_on, None, self.notice, **quiet),
        ]
        for event in pressed:
            event.then(watch, self.seen, watched, **quiet)


def recipe_choices(request: gr.Request | None) -> list[tuple[str, str]]:
    """Return the offered recipes, each with a description and its measured time in the visitor's language."""
    choices = []
    for name, recipe in offered_recipes().items():
        known = f"recipe_{name}" in MESSAGES["en"]
        about = say(request, f"recipe_{name}") if known else say(request, "recipe_other", recipe.steps)
        choices.append((say(request, "recipe_choice", name, about, recipe.minutes), name))
    return choices


def recipe_steps(name: str | None) -> int | None:
    """Return the number of steps of an offered recipe."""
    recipe = offered_recipes().get(name or "")
    return recipe and recipe.steps


def said(status: Status, request: gr.Request | None) -> str:
    """Return a sentence about a training."""
    values: list[Any] = [status.recipe, status.text.name]
    if status.state not in ("starting", "stopping"):
        values += [status.step, status.max_steps]
    if status.state == "running":
        left = status.seconds_left
        unit = "seconds" if left is not None and left < 90 else "minutes"
        duration = "" if left is None else say(request, unit, left if unit == "seconds" else left / 60)
        values.append(duration and say(request, "status_left", duration))
    if status.state == "failed" and status.last_words:
        return say(request, "status_failed_because", *values, status.last_words)
    return say(request, f"status_{status.state}", *values)


def shown(status: Status, request: gr.Request | None) -> str:
    """Return the state of a training as HTML: a sentence and a bar."""
    bar = f'<progress value="{status.step}" max="{status.max_steps}"></progress>' if status.runs else ""
    return f'<p class="state {status.state}">{escape(said(status, request))}</p>{bar}'
