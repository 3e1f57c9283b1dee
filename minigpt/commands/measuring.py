"""The commands that measure trained models: evaluate and compare."""

import json
import sys
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from minigpt.command_line import SAMPLING
from minigpt.commands.options import Parser, announce, path
from minigpt.errors import MiniGPTError, check_number, note, writing
from minigpt.words import message

if TYPE_CHECKING:  # commands import what they need when they run, since it takes seconds
    from minigpt.data.prepare import TokenizedCorpus


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

    from minigpt import loading
    from minigpt.data.corpus import Corpus
    from minigpt.evaluation import as_table, baselines, measure, memorisation

    file, checkpoint, lm = loading.open_checkpoint(asked.ckpt_path, asked.device, asked.precision, asked.allow_code)
    metadata = checkpoint["minigpt"]["data"]
    try:
        own: TokenizedCorpus | None = loading.tokens_of(file, metadata, asked.cache_dir)
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
        from minigpt.inspection.canvas import PRINT_DPI
        from minigpt.inspection.figures import draw_all

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
        help="a run folder, a file, 'last' or RUN@STEP; or a recipe's name, a sweep's STUDY/trial_N or a folder, for "
        "all its runs as seeds",
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
        from minigpt.inspection.canvas import PRINT_DPI

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
