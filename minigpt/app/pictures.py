"""Pictures and tables of a model's predictions, as HTML.

Everything goes through `escape`, since a model may write anything.
"""

import base64
from html import escape

import gradio as gr

from minigpt.app.visitors import language_of, say
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
from minigpt.words import message

MAX_INSPECTED = 600  # characters at the end of a text that are inspected
BARS = 12  # tokens in the bar chart
FULL_COLOUR_BITS = 6.0  # the surprisal at which a token has the full colour


def ids_of(lm: LanguageModel, text: str) -> list[int]:
    """Return the ids of the last `MAX_INSPECTED` characters of the first text in a text box."""
    text = text.split("\n---\n")[0][-MAX_INSPECTED:]
    return lm.encode_prompt(text, unknown="skip")


def surprise(lm: LanguageModel, ids: list[int], picked: int, request: gr.Request | None = None) -> str:
    """Return a text as HTML, with each token coloured by its surprisal; the first token has none."""
    spans = []
    for position, (token, bits) in enumerate(zip(ids, [0.0, *surprisal(lm.model, ids).tolist()], strict=True)):
        red = min(bits / FULL_COLOUR_BITS, 1) * 0.75
        spans.append(
            f'<span role="button" tabindex="0" data-position="{position}" '
            f'class="{"picked" if position == picked else ""}" '
            f'title="{say(request, "surprisal", bits)}" style="background: rgba(228, 87, 46, {red:.2f})">'
            f"{escape(lm.tokenizer.decode([token]))}</span>"
        )
    return f'<div class="surprise">{"".join(spans)}</div>'


def bars(lm: LanguageModel, ids: list[int], position: int, sampling: dict, request: gr.Request | None) -> str:
    """Return a table, as HTML, of the probabilities at a position, before and after the sampling filters."""
    before, after = next_probabilities(lm.model, ids[:position], **sampling)
    likeliest = before.topk(min(BARS, len(before))).indices.tolist()
    if ids[position] not in likeliest:
        likeliest[-1] = ids[position]
    rows = []
    for token in likeliest:
        came = f" ← {say(request, 'came')}" if token == ids[position] else ""
        cells = "".join(
            f'<td><i class="{kind}" style="width: {p * 60:.1f}%"></i> {say(request, "share", p)}</td>'
            for kind, p in (("before", before[token].item()), ("after", after[token].item()))
        )
        cut = "cut" if after[token] == 0 else ""
        rows.append(f'<tr class="{cut}"><td>{escape(name_of(lm.tokenizer.decode([token])))}{came}</td>{cells}</tr>')
    context = escape(name_of(lm.tokenizer.decode(ids[max(0, position - 24) : position])))
    heads = "".join(f"<th>{say(request, name)}</th>" for name in ("model", "left"))
    caption = f"<caption>{say(request, 'picked', context)}</caption>"
    return f'<table class="bars">{caption}<tr><th></th>{heads}</tr>{"".join(rows)}</table>'


def picture(lm: LanguageModel, ids: list[int], layer: int, head: int, request: gr.Request | None) -> str:
    """Return an HTML image: a bigram model's transition table, or the attention of one head of one layer."""
    from minigpt.inspection import figures  # imports matplotlib

    language = language_of(request)
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
