"""The commands that train: train, also with several seeds, and sweep."""

import gc
import re
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.command_line import (
    PROMPTS,
    SAMPLING,
    command,
    find_config,
    first_stray,
    short,
    split_seeds,
    tool,
    unexpected_argument,
)
from minigpt.commands.options import Parser, announce
from minigpt.errors import MiniGPTError, check_number, needs, note
from minigpt.words import message

if TYPE_CHECKING:  # commands import what they need when they run, since it takes seconds
    from torch import nn

    from minigpt.training.cli import MiniGPTCLI


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
    from minigpt.training.repeated import check_repeatable

    cli = MiniGPTCLI(args)
    if begin:
        begin(check_repeatable(cli))
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
    sample = lm.generate(PROMPTS[0], 200, unknown="skip", seed=0, **SAMPLING)
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
        help="the SQLite file of the study; by default lightning_logs/STUDY/study.db",
    )  # fmt: skip
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="the seed of the draws of settings, which a grid does not have; by default other draws at each start",
    )
    asked, others = parser.parse_known(args)
    if (stray := first_stray(args)) is not None:
        raise MiniGPTError(unexpected_argument(stray, args))
    for flag in (arg.partition("=")[0] for arg in others):
        of_train = "." in flag or flag in ("--seed_everything", "--seeds", "--allow_code", "--init_from")
        of_train |= flag in ("--optimizer", "--lr_scheduler")
        if flag == "--ckpt_path":
            raise MiniGPTError("A sweep starts new runs: omit --ckpt_path. To continue a sweep, repeat its command.")
        if flag.startswith("--") and not of_train:
            parser.refuse(flag)
    check_number("trials", asked.trials, at_least=1, whole=True, optional=True)
    check_number("seed", asked.seed, at_least=0, below=2**32, whole=True, optional=True)
    announce("torch", "lightning")
    with needs("A sweep needs", "sweep", "optuna"):
        from optuna.trial import TrialState

        from minigpt.comparison import study
        from minigpt.training.recipes import as_flags
        from minigpt.training.sweep import Sweep

    recipes = [f"--config={find_config(file)}" for file in asked.config]
    sweep = Sweep([*recipes, *others], find_config(asked.space, "sweeps"), asked.study, asked.storage, asked.seed)
    try:
        sweep.run(asked.trials)
    except (KeyboardInterrupt, SystemExit):
        note(message("sweep_stopped", command("sweep", *args)))
        raise
    for file in study.draw(sweep.study, sweep.folder):
        note(short(file))
    print("\n".join(study.as_lines(sweep.study)))
    complete = study.ranked(sweep.study, TrialState.COMPLETE)
    if complete:
        recipe = [word for file in asked.config for word in ("--config", file)]
        settings = dict(complete[0].params)
        if not any(arg.startswith("--seed_everything") for arg in others):
            settings["seeds" if len(sweep.seeds) > 1 else "seed_everything"] = ",".join(map(str, sweep.seeds))
        best = command("train", *recipe, *split_seeds(others)[1], *as_flags(settings))
        print("", message("train_best"), f"  {best}", sep="\n")
    if len(complete) > 1:
        best_two = [short(sweep.folder / study.name_of(trial)) for trial in complete[:2]]
        print(message("compare_best"), f"  {command('compare', *best_two)}", sep="\n")
    gc.freeze()  # as after a training
    return 0


def resume_command(args: list[str], run_dir: Path | None) -> str:
    """Return a sentence with the command that continues a run."""
    pairs = pairwise(["", *args])
    kept = [arg for before, arg in pairs if before != "--ckpt_path" and not arg.startswith("--ckpt_path")]
    return message("go_on", command("train", *kept, *(["--ckpt_path", short(run_dir)] if run_dir else [])))
