"""The commands of `minigpt` and `scripts/`. This is the only module that turns errors into messages."""

import errno
import gc
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import minigpt
from minigpt import processes
from minigpt.command_line import (
    Parser,
    command,
    find_config,
    first_stray,
    first_training,
    or_none,
    path,
    short,
    split_seeds,
    tool,
    unexpected_argument,
)
from minigpt.errors import MiniGPTError, check_number, did_you_mean, needs, note, required, writing
from minigpt.words import message

if TYPE_CHECKING:  # commands import what they need when they run, since it takes seconds
    from torch import nn

    from minigpt.data.prepare import TokenizedCorpus
    from minigpt.training.cli import MiniGPTCLI

PROMPT = "un matin,"
SAMPLING = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}  # as in the article's example
FULL_DISK = (errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else []))
LARGEST_BATCH = 16  # the number of samples that are drawn at once


def main() -> int:
    """Run the installed command, `minigpt COMMAND ...`, and return the exit status as `run` does."""
    functions: list[Callable[[list[str]], int]] = [train, generate, evaluate, compare, export, app, sweep]
    commands = {function.__name__: function for function in functions}
    name = sys.argv[1] if sys.argv[1:] else "--help"
    if name in commands:
        return run(commands[name], sys.argv[2:])
    return run(lambda args: _without_command(name, commands))


def _without_command(name: str, commands: dict[str, Callable[[list[str]], int]]) -> int:
    """Answer a first argument that is an option or an unknown command."""
    program = command()
    if name == "--version":
        print(f"minigpt {minigpt.__version__}")
    elif name in ("-h", "--help"):
        print(f"Usage: {program} COMMAND [OPTION VALUE]...\n")
        for known, function in commands.items():
            print(f"  {known:10}{(function.__doc__ or '').partition(chr(10))[0]}")
        print(f"\n{program} COMMAND --help describes the options of a command. Quick start: {first_training()}")
    elif name.startswith("-"):
        raise MiniGPTError(f"'{name}' needs a command before it, such as: {first_training()}")
    else:
        hint = did_you_mean(name, commands) or f" The commands are {', '.join(commands)}."
        raise MiniGPTError(f"Unknown command '{name}'.{hint}")
    return 0


def run(command: Callable[[list[str]], int], args: list[str] | None = None) -> int:
    """Run one of the commands below with its arguments (None for the command line) and return the exit status.

    0 is success, 2 a user's mistake (one or two sentences on stderr), 129 a closed terminal, 130 Ctrl-C, 143 SIGTERM.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)  # whatever the locale
    ignored = processes.forget_leftovers(alone=command is not train)
    if ignored and command is train:
        note(message("ignored", ", ".join(ignored)))
    processes.known = None if command is train else 0
    on_thread_exception, threading.excepthook = threading.excepthook, _on_thread_exception
    try:
        with required():
            return command(sys.argv[1:] if args is None else args)
    except MiniGPTError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in FULL_DISK:
            print(f"A file could not be written: {error.strerror}. Free some space and try again.", file=sys.stderr)
            return 2
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if not (denied or error.errno == errno.ENAMETOOLONG) or error.filename is None:
            raise
        remedy = "Change its permissions, or pass a different path" if denied else "Pass a different path"
        name = str(error.filename) if denied else f"{str(error.filename)[:60]}…"
        print(f"'{name}' cannot be used: {error.strerror}. {remedy}.", file=sys.stderr)
        return 2
    finally:
        threading.excepthook = on_thread_exception


def _on_thread_exception(failure: threading.ExceptHookArgs) -> None:
    """Report a full disk in a sentence, in the thread that writes TensorBoard's events, and other errors as usual.

    A training ends at the next record that it writes, which raises the error again.
    """
    if isinstance(failure.exc_value, OSError) and failure.exc_value.errno in FULL_DISK:
        note(f"The records for TensorBoard are not complete: {failure.exc_value.strerror}.")
    else:
        threading.__excepthook__(failure)


def announce(*packages: str) -> None:
    """Print which of the packages will be loaded now, since loading takes seconds.

    Args:
        *packages: The names under which the packages are imported.
    """
    titles = {"gradio": "Gradio", "lightning": "Lightning", "optuna": "Optuna", "torch": "PyTorch"}
    if missing := [titles[package] for package in packages if package not in sys.modules]:
        note(message("loading", message("and").join(missing)))


def generate(args: list[str]) -> int:
    """Continue a prompt with a trained model."""
    parser = Parser(
        "generate",
        "Continue a prompt with a trained model. The text goes to stdout, everything else to stderr.",
        "ckpt_path", "allow_code", "device", "precision", "unknown",
    )  # fmt: skip
    parser.add_argument("--prompt", default=PROMPT, help="the text to continue; `-` reads it from standard input")
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

    from minigpt import runs
    from minigpt.cpu.decoding import compile_decoding

    file, _, lm = runs.open_checkpoint(asked.ckpt_path, asked.device, asked.precision, asked.allow_code)
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


def evaluate(args: list[str]) -> int:
    """Score a trained model on its validation text or on another text."""
    parser = Parser(
        "evaluate",
        "Score a trained model on the validation text of its run, or on a whole text of yours. Prints a table on a "
        "terminal, and JSON to a pipe or a file.",
        "ckpt_path", "allow_code", "device", "precision", "unknown",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    parser.add_argument(
        "--data.path", dest="path", default=None, help="a whole text to score instead of the run's validation text"
    )
    parser.add_argument(
        "--data.encoding",
        dest="encoding",
        default=None,
        help="the encoding of that text, if it is not detected correctly",
    )
    parser.add_argument(
        "--data.cache_dir", dest="cache_dir", default=None, help="the folder for the ids of large texts"
    )
    parser.add_argument(
        "--memorisation", nargs="?", type=int, const=16, metavar="N",
        help="also draw N texts (16) and report how much of them is copied from the training text",
    )  # fmt: skip
    parser.add_argument("--figures", type=path, metavar="DIR", help="also draw figures of the model into this folder")
    asked = parser.parse(args)
    check_number("memorisation", asked.memorisation, at_least=1, whole=True, optional=True)
    if asked.encoding and asked.path is None:
        raise MiniGPTError("--data.encoding is for a text given with --data.path. Pass one, or omit --data.encoding.")
    if asked.figures:
        with writing(asked.figures, "--figures"), TemporaryFile(dir=asked.figures):
            pass  # checks that the folder is writable

    announce("torch")

    import torch

    from minigpt import runs
    from minigpt.data.corpus import Corpus
    from minigpt.evaluation import as_table, baselines, measure, memorisation

    file, checkpoint, lm = runs.open_checkpoint(asked.ckpt_path, asked.device, asked.precision, asked.allow_code)
    metadata = checkpoint["minigpt"]["data"]
    try:
        own: TokenizedCorpus | None = runs.tokens_of(file, metadata, asked.cache_dir)
    except MiniGPTError as error:
        if asked.path is None or asked.memorisation:
            raise
        if metadata["path"] is not None:  # a pretrained model comes without its text
            note(message("no_baselines", error))
        own = None
    if own and asked.path is None:
        val = own.val
    else:
        cleaning = {key: metadata[key] for key in ("lower", "strip", "nfc")}
        pieces = Corpus(asked.path, asked.encoding, **cleaning).pieces()
        val = torch.cat([torch.from_numpy(lm.tokenizer.encode_array(piece, asked.unknown)) for piece in pieces])
    # A pretrained model may take windows that are much longer than those with which it can be scored here.
    block_size = min(getattr(lm.model, "block_size"), metadata["block_size"])  # noqa: B009  (every loaded model has one)
    metrics = measure(lm.model, val, lm.tokenizer.lengths, block_size)
    scores: dict[str, Any] = {name: round(value, 6) for name, value in metrics.scores().items()}
    scores["baselines"] = None
    if own:
        scores["baselines"] = {name: round(bits, 6) for name, bits in baselines(own.train, val, lm.tokenizer).items()}
    if own and asked.memorisation:
        scores["memorisation"] = memorisation(lm, own.train, val, asked.memorisation, **SAMPLING)
    note(f"({file})")
    if asked.figures:
        from minigpt.inspection.figures import PRINT_DPI, draw_all

        pictures = draw_all(lm.model, lm.tokenizer, val, metrics.by_position.compute())
        with writing(asked.figures, "--figures"):
            for name, picture in pictures.items():
                drawing = asked.figures / f"{name}.png"
                drawing.write_bytes(picture.png(PRINT_DPI))
                note(str(drawing))
    on_a_terminal = sys.stdout.isatty() and not asked.json
    print("\n".join(as_table(scores)) if on_a_terminal else json.dumps(scores, indent=2))
    return 0


def compare(args: list[str]) -> int:
    """Compare trained models on one text, with the uncertainty of the difference."""
    parser = Parser(
        "compare",
        "Compare trained models on one text: their scores, their differences with 95 % intervals, and where they "
        "differ. Prints a report on a terminal, and JSON to a pipe or a file.",
        "allow_code", "device",
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="a run folder, a file, 'last' or RUN@STEP; or a recipe's name or a folder, for all its runs as seeds",
    )  # fmt: skip
    parser.add_argument(
        "--data.path", dest="path", default=None, help="a text to score instead of the runs' validation text"
    )
    parser.add_argument(
        "--data.encoding", dest="encoding", default=None, help="the encoding of that text, if it is not detected"
    )
    parser.add_argument("--json", action="store_true", help="print JSON on a terminal too")
    parser.add_argument(
        "--plot", type=path, metavar="DIR", help="also draw curves, intervals and the loss by position into this folder"
    )
    parser.add_argument(
        "--samples", nargs="?", type=int, const=4, metavar="N",
        help="also write N texts (4) of each side from the same prompts and seeds; with --plot as samples.html too",
    )  # fmt: skip
    asked = parser.parse(args)
    if asked.encoding and asked.path is None:
        raise MiniGPTError("--data.encoding is for a text given with --data.path. Pass one, or omit --data.encoding.")
    check_number("samples", asked.samples, at_least=1, whole=True, optional=True)
    if asked.plot:
        with writing(asked.plot, "--plot"), TemporaryFile(dir=asked.plot):
            pass  # checks that the folder is writable

    announce("torch")

    from minigpt.comparison import samples
    from minigpt.comparison.report import as_json, as_lines
    from minigpt.comparison.sides import find_sides, score_all
    from minigpt.terminal import wrapped

    sides = score_all(find_sides(asked.runs), asked.path, asked.encoding, asked.device, asked.allow_code)
    rows = samples.draw(sides, asked.samples, asked.allow_code) if asked.samples else []
    if asked.plot and rows:
        with writing(asked.plot, "--plot"):
            (asked.plot / "samples.html").write_text(samples.as_html(sides, rows), encoding="utf-8")
    if asked.plot:
        from minigpt.comparison.figures import draw_all
        from minigpt.inspection.figures import PRINT_DPI

        with writing(asked.plot, "--plot"):
            for name, picture in draw_all(sides).items():
                drawing = asked.plot / f"{name}.png"
                drawing.write_bytes(picture.png(PRINT_DPI))
                note(str(drawing))
    if sys.stdout.isatty() and not asked.json:
        print(wrapped("\n".join(as_lines(sides))))
        if rows:
            print("\n".join(["", *samples.as_lines(sides, rows)]))
    else:
        print(json.dumps(as_json(sides) | ({"samples": rows} if rows else {}), indent=2))
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

    from minigpt import runs
    from minigpt.export import export as write

    file, checkpoint, lm = runs.open_checkpoint(asked.ckpt_path, allow_code=asked.allow_code)
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
            from minigpt.runs import pick_device

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


def train(args: list[str]) -> int:
    """Train a model from a recipe, or continue a run."""
    seeds, args = split_seeds(args)
    if not seeds:
        return _train(args)
    announce("torch", "lightning")

    from minigpt.training.repeated import SeedGroup

    group = SeedGroup(args)
    try:
        for n, seed in enumerate(seeds, 1):
            note(message("seed_begins", seed, n, len(seeds)))
            _train([*args, *group.arguments(seed)], partial(group.add, seed))
    except (SystemExit, KeyboardInterrupt):
        note(message("seeds_again"))
        raise
    print("\n".join(["", *group.summary(seeds)]))
    return 0


def _train(args: list[str], begin: Callable[[Path], None] | None = None) -> int:
    """Train one run, and report it.

    Args:
        args: The command line.
        begin: Called with the run folder before the first step.
    """
    if not any(re.match(r"(-h|--([\w.]+\.)?help)(=|$)", arg) for arg in args):
        announce("torch", "lightning")

    from minigpt.data.tokenizers import CharTokenizer
    from minigpt.models import summary
    from minigpt.training.cli import MiniGPTCLI
    from minigpt.training.distributed import full_network

    cli = MiniGPTCLI(args)
    if begin:
        if cli.trainer.world_size > 1 or cli.run_dir is None:
            raise MiniGPTError("--seeds trains on one device, and in a run folder. Leave it out.")
        begin(cli.run_dir)
    if cli.stopped:
        note(message("was_stopped_early", cli.checkpoint, cli.start_step, cli.stopped))
        note(message("raise_max_steps"))
        return 0
    if cli.finished:
        note(f"{message('finished', cli.checkpoint, cli.trainer.max_steps)} {message('raise_max_steps')}")
        return 0
    model, data = cli.model.network, cli.datamodule
    size = sum(p.numel() for p in model.parameters())
    note(message("network", type(model).__name__, size, cli.trainer.strategy.root_device))
    note(message("training_text", len(data.train_ids), data.vocab_size))
    if cli.run_dir:
        note(message("run_folder", short(cli.run_dir)))
    all_characters = isinstance(data.tokenizer, CharTokenizer) and not data.tokenizer.byte_fallback
    note(summary.as_text(summary.parts(model, "characters" if all_characters else "tokens")))
    started = time.monotonic()
    try:
        cli.fit()
    except SystemExit as stop:
        if isinstance(stop.code, int) and stop.code > 128:
            note(f"{message('interrupted', cli.trainer.global_step)} {resume_command(args, cli.run_dir)}")
        gc.freeze()
        raise
    except RuntimeError as error:
        if cli.trainer.world_size == 1 or not re.search("gloo|NCCL|Connection closed|DistBackend", repr(error)):
            raise
        run_dir = cli.run_dir if cli.trainer.is_global_zero else Path("last")  # only the first process knows the folder
        raise MiniGPTError(
            "Another process of this training has ended, so this one cannot continue. See the last output of that "
            "process for the reason. " + resume_command(args, run_dir)
        ) from error
    if cli.config.trainer.fast_dev_run or cli.run_dir is None:
        note(message("fast_dev_run", cli.trainer.global_step))
        return 0
    seconds, trained = time.monotonic() - started, full_network(cli.trainer)
    if trained is None:
        return 0
    if "val/loss" in cli.trainer.callback_metrics:
        _summary(cli, cli.run_dir, trained, seconds)
    elif cli.trainer.global_step == cli.trainer.max_steps:
        note(message("no_validation", cli.trainer.global_step))
    else:
        note(message("time_used_up", cli.trainer.global_step))
    gc.freeze()  # saves a second of garbage collection at exit
    return 0


def _summary(cli: "MiniGPTCLI", run_dir: Path, model: "nn.Module", seconds: float) -> None:
    from minigpt.generation.text import LanguageModel
    from minigpt.terminal import GAP, wrapped

    metrics, trainer, run = cli.trainer.callback_metrics, cli.trainer, short(run_dir)
    lm = LanguageModel(model, cli.datamodule.tokenizer)
    sample = lm.generate(PROMPT, 200, unknown="skip", seed=0, **SAMPLING)
    early = trainer.global_step < trainer.max_steps
    duration = message(
        "duration", trainer.global_step, message("of_steps", trainer.max_steps) if early else "",
        message("last_steps", trainer.global_step - cli.start_step) if cli.start_step else "",
        seconds, message("early") if early else "",
    )  # fmt: skip
    baselines = (message("baseline", message(name), bits) for name, bits in cli.datamodule.baselines.items())
    print(
        message("final_loss", metrics["val/loss"].item(), metrics["val/bits_per_char"].item()),
        f"  {duration}",
        message("baselines"),
        f"  {GAP.join(baselines)}\n",
        f"{wrapped(sample)}\n",
        message("curves"),
        f"  {tool('tensorboard', '--logdir', run)}",
        message("more_text"),
        f"  {command('generate', '--ckpt_path', run, *_allow_code_option(cli.model.architecture))}",
        sep="\n",
    )


def _allow_code_option(network: dict) -> list[str]:
    """Return the option with which commands load a network from outside minigpt."""
    from minigpt.models import NETWORKS

    path = network["class_path"]
    return [] if path in NETWORKS else ["--allow_code", path.rpartition(".")[0]]


def sweep(args: list[str]) -> int:
    """Train a recipe many times to find better settings."""
    parser = Parser(
        "sweep",
        "Train a recipe many times to find the settings with the fewest bits per character. All flags of train apply "
        "to every trial. Repeat the command to continue a study, also while other processes work on it.",
    )
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        required=True,
        help="the recipe: a file or a name; a later one overrides an earlier one",
    )
    parser.add_argument("--space", required=True, help="the settings to search: a file, or a name such as nano")
    parser.add_argument(
        "--trials", type=int, default=None,
        help="the number of trials of the study in all, over all processes; by default 20, or the whole grid",
    )  # fmt: skip
    parser.add_argument("--study", default=None, help="the name of the study; by default RECIPE-SPACE")
    parser.add_argument(
        "--storage", default=None,
        help="a file for SQLite, or the URL of a database that several machines reach; by default "
        "lightning_logs/STUDY/study.db",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=None, help="the seed of the draws of settings; by default other draws at each start"
    )
    asked, others = parser.parse_known(args)
    if (stray := first_stray(args)) is not None:
        raise MiniGPTError(unexpected_argument(stray, args))
    for flag in (arg.partition("=")[0] for arg in others):
        of_train = "." in flag or flag in ("--ckpt_path", "--seed_everything", "--seeds", "--allow_code")
        if flag.startswith("--") and not of_train:
            parser.refuse(flag)
    check_number("trials", asked.trials, at_least=1, whole=True, optional=True)
    check_number("seed", asked.seed, at_least=0, below=2**32, whole=True, optional=True)
    announce("torch", "lightning")
    with needs("A sweep needs", "sweep", "optuna"):
        from minigpt.training.space import as_flags
        from minigpt.training.sweep import GRACE, Sweep

    recipes = [f"--config={find_config(file)}" for file in asked.config]
    study = Sweep([*recipes, *others], find_config(asked.space, "sweeps"), asked.study, asked.storage, asked.seed)
    try:
        study.run(asked.trials)
    except (KeyboardInterrupt, SystemExit):
        note(message("sweep_stopped", command("sweep", *args)))
        raise
    for file in study.draw():
        note(short(file))
    print("\n".join(study.table()))
    if study.n_running():
        note(message("trials_running", study.n_running(), GRACE))
    complete = study.complete()
    if complete:
        recipe = [word for file in asked.config for word in ("--config", file)]
        best = command("train", *recipe, *others, *as_flags(complete[0].params))
        print("", message("train_best"), f"  {best}", sep="\n")
    if len(complete) > 1:
        best_two = [short(study.folder_of(trial)) for trial in complete[:2]]
        print(message("compare_best"), f"  {command('compare', *best_two)}", sep="\n")
    gc.freeze()  # as after a training
    return 0


def resume_command(args: list[str], run_dir: Path | None) -> str:
    """Return a sentence with the command that continues a run."""
    pairs = pairwise(["", *args])
    kept = [arg for before, arg in pairs if before != "--ckpt_path" and not arg.startswith("--ckpt_path")]
    return message("go_on", command("train", *kept, *(["--ckpt_path", short(run_dir)] if run_dir else [])))
