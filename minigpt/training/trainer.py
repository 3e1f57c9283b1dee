"""The Trainer of a run: its options, its lengths in optimizer steps, its strategy and rank, and its logger."""

import os
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from minigpt import processes
from minigpt.errors import MiniGPTError, check_number
from minigpt.training.datamodule import TextDataModule, n_of
from minigpt.training.distributed import FSDP2Strategy
from minigpt.training.resume import accumulation_schedulers, steps_of_passes
from minigpt.training.typed import callbacks_of

# Options of Lightning's Trainer with other defaults.
DEFAULTS = {
    "num_sanity_val_steps": 0, "enable_model_summary": False, "use_distributed_sampler": False,
    "check_val_every_n_epoch": None,
}  # fmt: skip
# Options that are a count (1) or a share (1.0). The types are declared again, in this order: a `typing.Union`, which
# Lightning uses, may get the order in which any library declared the same types first.
COUNTS = {
    "limit_train_batches": (int | float | None, None, "Batches per pass, a number or a share; null for all."),
    "limit_val_batches": (int | float | None, None, "Batches per validation, a number or a share; null for all."),
    "limit_test_batches": (int | float | None, None, "Batches per test, a number or a share; null for all."),
    "limit_predict_batches": (int | float | None, None, "Batches per prediction, a number or a share; null for all."),
    "overfit_batches": (int | float, 0, "Train on so many batches (or a share) again and again; 0 for all."),
    "val_check_interval": (
        int | float | str | None, None,
        "Batches between two validations, a share of a pass, or a time such as 00:00:10:00; null for "
        "validation.every_n_steps.",
    ),
}  # fmt: skip
# Trainer options that are refused, with the reason and the alternative.
REFUSED = {
    "barebones": "disables checkpoints and logging, which a run needs. Use lightning.Trainer in Python",
    "use_distributed_sampler": "is not needed, since each process draws its own rows of every batch. Omit it",
    "reload_dataloaders_every_n_epochs": "has no effect, since the seed determines the batches. Omit it",
}
STRATEGIES = "minigpt trains on one device, or on several with --trainer.strategy ddp or fsdp2. Set one of them."
FLUSH_SECONDS = 2  # from a record to its file, so that curves can be watched; TensorBoard's own default is 120


def check_options(options: Any, every_n_steps: int, callbacks: list) -> None:
    """Check the Trainer's options before it is built.

    Args:
        options: The options.
        every_n_steps: The optimizer steps between two validations.
        callbacks: The callbacks among the options.

    Raises:
        MiniGPTError: An option is refused, is out of range, or contradicts another.
    """
    for key, reason in REFUSED.items():
        if options[key]:
            raise MiniGPTError(f"trainer.{key} {reason}.")
    endless = options.max_steps < 1 and (options.max_epochs or 0) < 1
    if endless and options.max_time is None and not options.fast_dev_run:
        raise MiniGPTError(
            "The training has no end. Set trainer.max_steps or trainer.max_epochs to 1 or more, or set "
            "trainer.max_time."
        )
    end_only = "where 0 means at the end only"
    check_number("validation.every_n_steps", every_n_steps, at_least=0, whole=True, hint=end_only)
    for key, least in {"accumulate_grad_batches": 1, "log_every_n_steps": 0, "check_val_every_n_epoch": 1}.items():
        check_number(f"trainer.{key}", options[key], at_least=least, whole=True, optional=True)
    if options.val_check_interval == 0:
        raise MiniGPTError(
            "trainer.val_check_interval is 0. Set it to a number of 1 or more, a share of a pass or a time, or set "
            "validation.every_n_steps to 0 for a validation at the end only."
        )
    if accumulation_schedulers(callbacks) and (options.accumulate_grad_batches or 1) > 1:
        raise MiniGPTError(
            "trainer.accumulate_grad_batches and GradientAccumulationScheduler both set the accumulation. Omit "
            "one of them."
        )


def run_lengths(
    options: Any, data: TextDataModule, every_n_steps: int, callbacks: list
) -> tuple[int, int | float | None, Any]:
    """Return the steps of the training, the batches of a pass, and the batches between two validations.

    A run counts steps, so passes are converted to steps. A pass and an interval are whole optimizer steps. An interval
    in passes becomes one in batches, and `check_val_every_n_epoch` of the options becomes None.
    """
    accumulate = options.accumulate_grad_batches or 1
    n, limit = data.n_batches(accumulate), options.limit_train_batches
    if limit is not None:
        limit = n = max(accumulate, min(n_of(limit, n), n) // accumulate * accumulate)
    steps = options.max_steps
    if (options.max_epochs or 0) > 0:
        of_passes = steps_of_passes(options.max_epochs, n, callbacks, accumulate)
        steps = min(filter(lambda count: count > 0, (steps, of_passes)))
    interval = options.val_check_interval
    if interval is None and options.check_val_every_n_epoch:
        interval, options.check_val_every_n_epoch = options.check_val_every_n_epoch * n, None
    elif isinstance(interval, float):
        interval = max(1, n_of(interval, n))
    elif interval is None:
        interval = every_n_steps * accumulate or sys.maxsize
    if isinstance(interval, int):
        interval += -interval % accumulate
    return steps, limit, interval


def settle_rank(trainer: Trainer) -> None:
    """Use the Trainer's rank in all of minigpt.

    Raises:
        MiniGPTError: A launcher started another number of processes than the Trainer has.
    """
    launcher = trainer._accelerator_connector.cluster_environment
    if trainer.world_size == 1 and launcher.creates_processes_externally and launcher.world_size() > 1:
        raise MiniGPTError(
            f"A launcher started {launcher.world_size()} processes, but the training has one. Pass --trainer.devices "
            f"{launcher.world_size()}, or start it without the launcher and its variables (WORLD_SIZE, SLURM_NTASKS)."
        )
    processes.known = rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]  # Lightning sets it, too


def check_strategy(trainer: Trainer) -> None:
    """Check that a training can run on the Trainer's devices.

    Raises:
        MiniGPTError: The strategy is not for one device, DDP or FSDP2, or does not go together with a callback.
    """
    strategy = trainer.strategy
    # The processes of the other start methods would have to pickle the callbacks.
    spawned = isinstance(strategy, DDPStrategy) and strategy._start_method != "popen"
    if spawned or not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy)):
        raise MiniGPTError(STRATEGIES)
    if isinstance(strategy, FSDP2Strategy) and callbacks_of(trainer, WeightAveraging):
        raise MiniGPTError(
            "Weight averaging copies the whole model, which --trainer.strategy fsdp2 shards. Omit one of them."
        )


def run_logger(run_dir: Path, start_step: int) -> TensorBoardLogger:
    """Return TensorBoard's logger for a run folder.

    Args:
        run_dir: The folder.
        start_step: The step from which the training continues; later records of the run are hidden.
    """
    return _RunLogger(run_dir, start_step)


class _RunLogger(TensorBoardLogger):
    """Does not expand a `$` in the name of a folder, and writes records to disk soon.

    It is private, since `--help` offers every public logger.
    """

    def __init__(self, run_dir: Path, purge_step: int):
        super().__init__(
            run_dir.parent.parent, run_dir.parent.name, run_dir.name, default_hp_metric=False, purge_step=purge_step,
            flush_secs=FLUSH_SECONDS,
        )  # fmt: skip
        self.purge_step = purge_step  # see `DueValidation`

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return os.path.join(self.root_dir, str(self.version))
