"""The commands that use a trained model: generate, export and app."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minigpt.command_line import PROMPTS, SAMPLING, first_training
from minigpt.commands.options import Parser, announce, or_none, path
from minigpt.errors import MiniGPTError, check_number, needs, note
from minigpt.words import message

LARGEST_BATCH = 16  # the number of samples that are drawn at once


def generate(args: list[str]) -> int:
    """Continue a prompt with a trained model."""
    parser = Parser(
        "generate",
        "Continue a prompt with a trained model. The text goes to stdout, everything else to stderr.",
        "ckpt_path", "allow_code", "device", "precision", "unknown",
    )  # fmt: skip
    parser.add_argument("--prompt", default=PROMPTS[0], help="the text to continue; `-` reads it from standard input")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="the number of tokens to draw")
    parser.add_argument(
        "--temperature",
        type=float,
        default=SAMPLING["temperature"],
        help="below 1 likely tokens become likelier; 0 is greedy",
    )
    parser.add_argument(
        "--top_k", type=or_none(int), default=SAMPLING["top_k"], help="draw from the k likeliest tokens; none for all"
    )
    parser.add_argument(
        "--top_p",
        type=or_none(float),
        default=SAMPLING["top_p"],
        help="draw from the likeliest tokens with this total probability; none for all",
    )
    parser.add_argument(
        "--min_p",
        type=or_none(float),
        default=None,
        help="draw from tokens with at least this share of the greatest probability; none for all",
    )
    parser.add_argument(
        "--repetition_penalty", type=or_none(float), default=None,
        help="above 1, tokens that the text already holds become less likely; none for no change",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=None, help="the same seed gives the same texts")
    parser.add_argument("--num_samples", type=int, default=1, help="the number of texts, which a line `---` separates")
    parser.add_argument("--stop", default=None, help="end a text before this string")
    parser.add_argument(
        "--compile", action="store_true", help="first compile faster code for a CPU, which takes some seconds"
    )
    asked = parser.parse(args)

    announce("torch")

    from minigpt import loading
    from minigpt.cpu.decoding import compile_decoding

    file, _, lm = loading.open_checkpoint(asked.ckpt_path, asked.device, asked.precision, asked.allow_code)
    prompt = (sys.stdin.read() if sys.stdin else "") if asked.prompt == "-" else asked.prompt
    ids = lm.encode_prompt(prompt, asked.unknown)
    shown = lm.tokenizer.decode(ids)
    check_number("num_samples", asked.num_samples, at_least=1, whole=True)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")
    sampling = {name: getattr(asked, name) for name in names}
    lm.stream_batch([ids], asked.max_new_tokens, **sampling)  # raises on a wrong parameter before anything is written
    block_size: Any = lm.model.block_size  # every loaded model has one
    if len(ids) > block_size:
        note(message("long_prompt", block_size))
    if asked.compile:
        note(message("compiling_decoding"))
        started = time.monotonic()
        try:
            compile_decoding(lm.model, len(lm.tokenizer.prefix) + len(ids) + asked.max_new_tokens)
            note(message("compiled", time.monotonic() - started))
        except MiniGPTError as error:
            print(error, file=sys.stderr)
    note(f"({file})")
    for first in range(0, asked.num_samples, LARGEST_BATCH):
        batch = [ids] * min(LARGEST_BATCH, asked.num_samples - first)
        later: list[list[str]] = [[] for _ in batch[1:]]
        print("---\n" * (first > 0) + shown, end="", flush=True)
        for piece, *others in lm.stream_batch(batch, asked.max_new_tokens, first=first, **sampling):
            print(piece, end="", flush=True)  # the first text of a batch is written as it is drawn
            for text, other in zip(later, others, strict=True):
                text.append(other)
        print()
        for text in later:
            print("---\n" + shown + "".join(text))
    return 0


def export(args: list[str]) -> int:
    """Write a trained model in a format that other programs load."""
    from minigpt.export import FORMATS

    description = "Write a trained model into a folder, in a format that other programs load."
    parser = Parser("export", description, "ckpt_path", "allow_code")
    kinds = ", ".join(f"{name}: {form.help}" for name, form in FORMATS.items())
    parser.add_argument("--format", choices=FORMATS, required=True, help=kinds)
    parser.add_argument(
        "--out", required=True, type=path, help="the folder to write; it must not exist yet, or be empty"
    )
    parser.add_argument(
        "--precision",
        choices=("32", "bf16", "int8"),
        default=None,
        help="of the matrices: 32, for html int8 unless set; gguf has bf16 and int8 too",
    )
    parser.add_argument(
        "--max_mb", type=float, default=None, help="the largest size of the html page in megabytes, 8 unless set"
    )
    asked = parser.parse(args)

    announce("torch")

    from minigpt import loading
    from minigpt.export import export as write

    file, checkpoint, lm = loading.open_checkpoint(asked.ckpt_path, allow_code=asked.allow_code)
    write(checkpoint, lm, asked.out, asked.format, asked.precision, max_mb=asked.max_mb)
    note(f"({file})")
    print(asked.out)
    return 0


def app(args: list[str]) -> int:
    """Serve a web page for trying trained models and for training."""
    description = "Serve a web page for trying trained models, only for this machine unless --host is set."
    parser = Parser("app", description, "ckpt_path", "allow_code", "device")
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve on; 0.0.0.0 for the whole network")
    parser.add_argument("--port", type=int, default=7860, help="the port to serve on")
    parser.add_argument("--auth", metavar="NAME:PASSWORD", default=None, help="require this name and password")
    parser.add_argument(
        "--allow_training", action="store_true",
        help="let visitors train also where other machines can reach the page; on this machine they always may",
    )  # fmt: skip
    asked = parser.parse(args)
    name, _, password = (asked.auth or "").partition(":")
    if asked.auth is not None and not (name and password):
        raise MiniGPTError("--auth takes a name and a password with a colon between them, such as --auth anne:secret.")
    announce("gradio", "torch")
    with _without_proxy():
        with needs("The page needs", "app", "gradio"):
            from minigpt.app import ModelStore, serve
            from minigpt.loading import pick_device

        store = ModelStore(asked.ckpt_path, pick_device(asked.device), asked.allow_code)
        page = serve(store, asked.host, asked.port, (name, password) if asked.auth else None, asked.allow_training)
    if not store.files():
        note(message("no_run", first_training()))
    print(str(page.local_url).rstrip("/") if ":" in asked.host else f"http://{asked.host}:{asked.port}", flush=True)
    try:
        threading.Event().wait()  # until Ctrl-C; Gradio's own waiting would end with status 0
    except KeyboardInterrupt:
        print(file=sys.stderr, flush=True)
        os._exit(130)  # Python's usual end aborts if a thread is still computing
    page.close(verbose=False)
    return 0


@contextmanager
def _without_proxy() -> Iterator[None]:
    """Disable a proxy of the environment: Gradio checks by a request whether its own server is running."""
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before
