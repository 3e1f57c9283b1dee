"""MiniGPTCLI: LightningCLI with minigpt's links, defaults and rules for a resume."""

import os
import shlex
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, ReduceLROnPlateau
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy

from minigpt import processes, runs
from minigpt.command_line import CommandLine, command, example_recipe
from minigpt.errors import MiniGPTError, check_number, note, writing
from minigpt.generation.contract import check_network
from minigpt.models import summary
from minigpt.training import adapting, recipes, trust
from minigpt.training.callbacks import Figures, Samples
from minigpt.training.checkpointing import Checkpoints, WholeFileCheckpointIO, check_writable
from minigpt.training.continuation import Continuation, note_changes
from minigpt.training.datamodule import TextDataModule, n_of
from minigpt.training.distributed import FSDP2Strategy, check_mesh
from minigpt.training.early_stopping import stopped_early
from minigpt.training.lightning_messages import in_sentences, not_installed, quiet, refused_by_lightning
from minigpt.training.module import LitLanguageModel
from minigpt.training.parser import TrainParser, inner_reason
from minigpt.training.progress import Progress
from minigpt.training.start import Source, Start
from minigpt.training.trainer import (
    COUNTS,
    DEFAULTS,
    STRATEGIES,
    check_options,
    check_strategy,
    run_lengths,
    run_logger,
    settle_rank,
)
from minigpt.training.typed import callbacks_of
from minigpt.words import message

# The settings of LitLanguageModel that `--optimizer` replaces.
RATES = (
    "optimizer", "learning_rate", "muon_learning_rate", "weight_decay", "decay_vectors", "beta2", "lr_schedule",
    "warmup_steps", "min_lr", "decay_steps", "cooldown",
)  # fmt: skip
# Options that are not settings of a run: the name of the value in `--help`, and the description.
COMMAND_LINE_ONLY = {
    "seeds": (
        "N", "Train N runs with the seeds 1 to N one after the other, or with the seeds of a list such as 1,2,7. The "
        "same command continues an interrupted group.",
    ),
    "ckpt_path": (
        None, "The run to continue: `last` (the newest run of this recipe, or a new one if there is none), a run "
        "folder, or a checkpoint file. Without --config the settings of the run are used.",
    ),
    "init_from": (
        "SOURCE", "Start a new run from the network, the weights and the tokenizer of an earlier run (`last`, a run "
        "folder, RUN@STEP or a checkpoint file), of a folder for transformers, or of a model on the Hugging Face hub.",
    ),
    "allow_code": ("MODULE", "Allow config files to name classes and functions of this module; may be repeated."),
}  # fmt: skip


class MiniGPTCLI(LightningCLI):
    """Parses the recipe and the flags, and builds the data, the model and the Trainer of a new or resumed run.

    Args:
        args: The command line, without the program's name.
        run_dir: The folder of a new run; None for the next `version_N` of its recipe.

    After construction `trainer`, `model` and `datamodule` are ready to fit, `run_dir` is the folder of the run, and
    `checkpoint` the file to continue from, or None.

    Raises:
        MiniGPTError: A flag, key or value is wrong, the corpus cannot be used, or a setting contradicts the checkpoint.
    """

    parser: TrainParser
    model: LitLanguageModel
    datamodule: TextDataModule

    def __init__(self, args: list[str], run_dir: Path | None = None):
        quiet()
        self._new_run_dir = run_dir
        self.checkpoint: Path | None = None
        self._continued: Continuation | None = None
        self._start: Start | None = None
        self._line = CommandLine(args)
        trust.allow_imports(self._line.settings)
        try:
            super().__init__(
                LitLanguageModel,
                TextDataModule,
                args=self._line.args,
                run=False,
                parser_class=TrainParser,
                save_config_callback=None,
                load_from_checkpoint_support=False,
            )
        except ValueError as error:  # arguments that a class refuses
            if "Requirement '" in str(error):
                raise not_installed(error) from error
            reason = shorten(inner_reason(str(error)), 300, placeholder=" …")
            raise MiniGPTError(f"The settings do not fit: {reason}") from error
        except ImportError as error:
            raise not_installed(error) from error

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options for the seed, the checkpoint to continue, and allowed modules."""
        recipe = next(action for action in parser._actions if "--config" in action.option_strings)
        recipe.help = "The recipe: a file, or a name in configs/, such as tiny. A later one overrides an earlier one."
        parser.add_argument("--seed_everything", type=int, default=1337, help="The seed of all random numbers.")
        for name, (value, description) in COMMAND_LINE_ONLY.items():
            parser.add_argument(f"--{name}", type=str | None, default=None, metavar=value, help=description)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups trainer, model and data."""
        parser.add_class_arguments(Trainer, "trainer", skip=set(COUNTS), instantiate=False, fail_untyped=False)
        for key, (kind, default, what) in COUNTS.items():
            parser.add_argument(f"--trainer.{key}", type=kind, default=default, help=what)
        parser.set_defaults({f"trainer.{key}": value for key, value in DEFAULTS.items()})
        parser.add_lightning_class_args(LitLanguageModel, "model")
        parser.add_lightning_class_args(TextDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the groups with intervals in optimizer steps, and the links between groups."""
        parser.add_argument(
            "--validation.every_n_steps",
            type=int,
            default=100,
            help="Optimizer steps between two validations; 0 for a validation at the end only.",
        )
        parser.add_class_arguments(adapting.LoRA, "lora")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Samples, "samples")
        parser.add_lightning_class_args(Figures, "figures")
        parser.add_lightning_class_args(Progress, "progress")
        for seed in ("data.seed", "model.seed"):
            parser.link_arguments("seed_everything", seed)
        for size in ("vocab_size", "block_size"):  # if the network has such an argument
            parser.link_arguments(f"data.{size}", f"model.network.init_args.{size}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Check names, then parse; a resume without --config uses the config of the run."""
        ckpt_path = next(reversed(self._line.values("--ckpt_path")), None)
        if not self._line.files and ckpt_path is not None:
            self._continued = Continuation(runs.find_checkpoint(ckpt_path, prefer=("last",)))
            if self._continued.run:
                self._line.files = [str(self._continued.run / "config.yaml")]
                self._line.flags[:0] = self._continued.own_flags()
        self._use_source(ckpt_path)
        self.config = self.parser.parse_line(self._line)
        if not self.config.config:
            example = shlex.quote(example_recipe("finetune" if self._start else "tiny"))
            raise MiniGPTError(f"Pass a recipe with --config, such as --config {example}.")
        check_number("seed_everything", self.config.seed_everything, at_least=0, below=2**32, whole=True)
        self.name = runs.config_name(str(self.config.config[0]))
        trainer = self.config.trainer
        alone = trainer.devices in (1, "1") and trainer.num_nodes == 1 and not trainer.plugins
        if ignored := processes.forget_leftovers(alone):
            note(message("ignored_alone", ", ".join(ignored)))

    def _use_source(self, ckpt_path: str | None) -> None:
        """Take the network and the tokenizer from a source: that of --init_from, or a run that began so.

        Raises:
            MiniGPTError: The source cannot be used, or a setting contradicts it.
        """
        given, allowed = self.parser.given(self._line), self._line.values("--allow_code")
        source: Source | None = None
        if given.get("init_from") is not None:
            if ckpt_path is not None:
                raise MiniGPTError(
                    "--init_from begins a new run and --ckpt_path continues an old one. Pass one of them."
                )
            source = self._start = Start(str(given["init_from"]))
            self._start.check(given)
        elif ckpt_path is not None:
            if self._continued is None:
                root = Path(os.path.expanduser(given.get("trainer.default_root_dir") or "."), runs.ROOT)
                file = self._find_checkpoint(ckpt_path, root)
                self._continued = Continuation(file) if file else None
            if self._continued and self._continued.content["minigpt"]["data"].get("tokenizer_given"):
                metadata = self._continued.content["minigpt"]
                source = Source(metadata["model"], metadata["data"], str(self._continued.file))
        if source:
            self._line.flags[:0] = source.flags(given, allowed)
            self.parser.tokenizer = source.tokenizer

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule, optimizer: torch.optim.Optimizer, lr_scheduler: Any = None
    ) -> Any:
        """Return the optimizer and scheduler of `--optimizer` and `--lr_scheduler`; most schedulers move every step."""
        if lr_scheduler is None:
            return optimizer
        monitor = {"monitor": lr_scheduler.monitor} if isinstance(lr_scheduler, ReduceLROnPlateau) else {}
        interval = "epoch" if monitor else "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": interval, **monitor}}

    def _note_unused_rates(self) -> None:
        """Print a note with the model settings that have no effect because of `--optimizer`."""
        optimizer, model = self.config.get("optimizer"), self.config.model
        if not optimizer:
            return
        defaults = signature(LitLanguageModel).parameters
        unused = [f"model.{key}" for key in RATES if key in model and model[key] != defaults[key].default]
        self.model.optimizer_class = optimizer.class_path
        if unused:
            note(message("unused_rates", optimizer.class_path, ", ".join(unused)))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, with lengths in optimizer steps and checkpoints that are never half-written."""
        trainer = self.config_init.trainer
        every_n_steps = self.config_init.validation.every_n_steps
        given = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        check_options(trainer, every_n_steps, given)
        show = trainer.enable_progress_bar is not False
        of_ones_own = any(isinstance(callback, ProgressBar) for callback in given)
        left_out = ["progress"] * (not show or of_ones_own) + ["checkpoint"] * (trainer.enable_checkpointing is False)
        if trainer.fast_dev_run:
            left_out = ["checkpoint", "samples", "figures", *["progress"] * (not show or of_ones_own)]
        for key in left_out:
            self.parser.callback_keys.remove(key)
        if trainer.overfit_batches:  # becomes data.overfit_batches, which a resume keeps
            self.datamodule.overfit_batches = max(1, n_of(trainer.overfit_batches, self.datamodule.n_batches(1)))
        steps, limit, interval = run_lengths(trainer, self.datamodule, every_n_steps, given)
        self._loggers = trainer.logger
        if trainer.profiler == "xla" and not find_spec("torch_xla"):  # Lightning would fail again in its teardown
            raise not_installed(ModuleNotFoundError(name="torch_xla"))
        plugins = trainer.plugins or []
        if trainer.strategy in ("fsdp", "fsdp_cpu_offload"):  # Lightning would answer that these need a GPU
            raise MiniGPTError(STRATEGIES)
        asked = trainer.strategy if type(trainer.strategy) is ModelParallelStrategy else None
        if asked:
            trainer.strategy = FSDP2Strategy(asked._process_group_backend, asked._timeout)
        try:
            trainer = super().instantiate_trainer(
                logger=False,  # set once the run has a folder
                max_epochs=-1,
                max_steps=steps,
                limit_train_batches=limit,
                overfit_batches=0,
                enable_progress_bar=show,
                val_check_interval=interval,
                plugins=[*(plugins if isinstance(plugins, list) else [plugins]), WholeFileCheckpointIO()],
            )
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise refused_by_lightning(error) from error
        if asked:
            check_mesh(asked._data_parallel_size, asked._tensor_parallel_size, trainer.world_size)
        check_strategy(trainer)
        settle_rank(trainer)
        if not isinstance(trainer.strategy, FSDP2Strategy):
            processes.keep_memory()
        return trainer

    def after_instantiate_classes(self) -> None:
        """Create a new run or take up that of a checkpoint, and make the training write into it."""
        self.datamodule.check_processes(self.trainer.world_size)
        self._note_unused_rates()
        self.run_dir: Path | None = None
        self.finished = False
        self.stopped: str | None = None  # the reason of an early stop
        self.start_step, kept = 0, 0  # the step to continue from, and the length of the checkpoint's schedule
        if self._start:
            self._start.load_weights(self.model.network)
            note(message("started_from", self._start.name))
            self.model.origin = self._start.origin
        if self._continued:
            kept = self._take_up(self._continued)
        source = self._start or self._continued
        adapting.adapt(self.model, self.trainer, self.config_init.lora, self.datamodule.vocab_size, source)
        # Raise on mistakes in the schedule and the network before a folder is created.
        self.model.build_schedule(max(kept, self.trainer.max_steps))
        check_network(self.model.network, self.datamodule.vocab_size, self.datamodule.block_size)
        root = Path(self.trainer.default_root_dir) / runs.ROOT
        if not self.trainer.is_global_zero:
            self.run_dir = self.run_dir or root  # the first process creates the folder, and Lightning broadcasts it
        elif self.config.trainer.fast_dev_run:
            self.run_dir = None  # nothing is written
        elif not self.finished:
            self.run_dir = self.run_dir or self._create_run(root / self.name)
            self._write_into(self.run_dir)

    def _take_up(self, continued: Continuation) -> int:
        """Take up a checkpoint, in its own run if it is that run's last, and return the length of its schedule.

        Raises:
            MiniGPTError: A setting, the network or the text contradicts the checkpoint.
        """
        continued.check(self.datamodule, self.model, self.trainer, self.config_init.lora.resolved())
        self.checkpoint, checkpoint = continued.file, continued.content
        self.start_step = checkpoint["global_step"]
        self.finished = 0 < self.trainer.max_steps <= self.start_step
        self.stopped = None if self.finished else stopped_early(self.trainer, checkpoint)
        self.finished |= self.stopped is not None
        self.run_dir = continued.run_to_continue()
        if self.run_dir:
            began = self.parser.recipe(str(self.run_dir / "config.yaml")).settings
            note_changes(began, recipes.load(self._recipe()))
        return checkpoint["minigpt"]["schedule_steps"]

    def _create_run(self, parent: Path) -> Path:
        """Return the folder of a new run, which holds its settings: the given one, or a new one in `parent`.

        Raises:
            MiniGPTError: It cannot be written to.
        """
        run_dir = self._new_run_dir or runs.new_run(parent)
        with writing(run_dir, "--trainer.default_root_dir"):
            (run_dir / "config.yaml").write_text(self._recipe(), encoding="utf-8")
            if self._start:
                self._start.copy_licence(run_dir)
        return run_dir

    def _write_into(self, run_dir: Path) -> None:
        """Make the training write into a run folder; note a network too large for its text, and a partial validation.

        Raises:
            MiniGPTError: The folder cannot be written to.
        """
        check_writable(run_dir)
        tokens, network = self.datamodule.tokens, self.model.network
        n_characters = round(tokens.n_characters * (1 - tokens.val_fraction))
        oversized = summary.oversized_note(network, self.model.architecture, n_characters)
        if oversized and self.parser.tokenizer is None:  # a source has learned from other texts too
            note(oversized)
        most, n = self.datamodule.max_val_tokens, len(self.datamodule.val_ids) - 1
        if most and most < n:
            note(message("val_part", most, n, command("evaluate")))
        self.trainer.loggers = self._all_loggers(run_dir)
        for callback in callbacks_of(self.trainer, Checkpoints):
            callback.run_dir = run_dir

    def _all_loggers(self, run_dir: Path) -> list[Logger]:
        """Return TensorBoard's logger for the run folder and the loggers of the settings; none for `false`."""
        if self._loggers is False:
            return []
        others = self._loggers if isinstance(self._loggers, list) else [self._loggers]
        given = [logger for logger in others if isinstance(logger, Logger)]
        return [run_logger(run_dir, self.start_step), *given]

    def fit(self) -> None:
        """Train.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed before the training began.
            SystemExit: A signal, such as that of Ctrl-C, ended the training; the code is 128 and its number.
            MiniGPTError: A setting turns out to be wrong, or needs a package that is not installed.
        """
        try:
            with in_sentences():
                self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint, weights_only=True)
            for callback in callbacks_of(self.trainer, Checkpoints):
                if callback.signal:  # it came after the last hook that looks for one
                    raise SystemExit(128 + callback.signal)
        except SystemExit as stop:
            if stop.code == 1:  # Lightning's exit on a Ctrl-C outside the time of our handler
                raise KeyboardInterrupt from None
            raise

    def _recipe(self) -> str:
        """Return all settings of the run as YAML."""
        recipe = self.config.clone()
        for name in ("config", *COMMAND_LINE_ONLY):
            recipe.pop(name)
        return self.parser.dump(recipe, skip_unset=False, skip_link_targets=True)

    def _find_checkpoint(self, ckpt_path: str, root: Path) -> Path | None:
        if ckpt_path != "last":
            return runs.find_checkpoint(ckpt_path, prefer=("last",))
        if not self._line.files:
            return None
        name = runs.config_name(self._line.files[0])
        run = runs.newest_run(name, root)
        if run is None:
            note(message("first_run", name))
        return run and run / "checkpoints" / "last.ckpt"
