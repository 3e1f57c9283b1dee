"""The models that the page offers."""

import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from minigpt import loading, runs
from minigpt.app.visitors import Problem
from minigpt.command_line import first_training
from minigpt.errors import MiniGPTError
from minigpt.generation.text import LanguageModel

MAX_LOADED = 4  # models kept in memory


class ModelStore:
    """The checkpoints that the page offers, with a cache of the models used last.

    Args:
        ckpt_path: The checkpoint to offer first: `last`, a run folder or a file, also outside `lightning_logs/`.
        device: The device of the models.
        allow_code: The modules outside minigpt whose networks may be imported.

    Raises:
        MiniGPTError: The checkpoint does not exist.
    """

    def __init__(self, ckpt_path: str = "last", device: str = "cpu", allow_code: Sequence[str] = ()):
        self.device = device
        self.allow_code = allow_code
        self.named = None if ckpt_path == "last" else str(runs.find_checkpoint(ckpt_path))
        self._model = lru_cache(MAX_LOADED)(self._read)
        self._lock = threading.Lock()

    def files(self) -> list[str]:
        """Return the checkpoint files: first the one named at the start, then those of the newest runs."""
        newest_first = sorted((file for run in runs.run_folders() for file in run.glob("checkpoints/*.ckpt")), key=_age)
        files: dict[Path, list[str]] = {}  # of each run
        for file in newest_first:
            if file.stem in ("best", "last"):
                files.setdefault(file.parent.parent, []).append(str(file))
        for run, of_run in files.items():
            of_run += [str(snapshot) for snapshot in reversed(runs.snapshots(run).values())]
        named = [self.named] if self.named else []
        return list(dict.fromkeys([*named, *(file for of_run in files.values() for file in of_run)]))

    def two(self, chosen: str | None = None) -> tuple[str | None, str | None]:
        """Return two files to compare: the chosen one, or the first; and one of another run, or an early one of its."""
        files = self.files()
        if not files:
            return None, None
        first = chosen if chosen in files else files[0]
        run = runs.run_of(Path(first))
        others = [file for file in files if runs.run_of(Path(file)) != run]
        others += [file for file in reversed(files) if file != first]
        return first, others[0] if others else first

    def resolve(self, chosen: str | None) -> str:
        """Return the file for a visitor's choice: one of `files`, the run folder of one, or `last`.

        Raises:
            Problem: There is no run, or no such checkpoint.
        """
        files = self.files()
        if not files:
            raise Problem("no_run", first_training())
        if chosen in (None, "", "last"):
            return files[0]
        try:
            file = str(runs.find_checkpoint(chosen))
        except MiniGPTError:
            file = chosen
        if file not in files:  # visitors may load only what the page offers
            raise Problem("gone", chosen)
        return file

    def load(self, chosen: str | None) -> LanguageModel:
        """Return the model for a visitor's choice.

        Raises:
            Problem: The checkpoint does not exist or cannot be read.
        """
        file = self.resolve(chosen)
        with self._lock:  # so that a model that several visitors request is loaded once
            try:
                return self._model(file, os.stat(file).st_mtime_ns)
            except OSError as error:
                raise Problem("gone", file) from error
            except loading.MissingBase as error:
                raise Problem("no_base", file) from error
            except MiniGPTError as error:
                raise Problem("broken", file) from error

    def as_web_page(self, chosen: str | None) -> tuple[str, bytes]:
        """Return a checkpoint as a web page that generates text by itself, and a name for its file.

        Raises:
            Problem: The checkpoint does not exist or cannot be read, or a web page cannot compute its network.
        """
        from minigpt.export import files_of

        file = Path(self.resolve(chosen))
        try:
            _, checkpoint, lm = loading.open_checkpoint(file, allow_code=self.allow_code)
            content = files_of("html", checkpoint, lm, "int8")["index.html"]
        except MiniGPTError as error:
            raise Problem("no_export", error) from error
        run = runs.run_of(file)
        parts = [run.parent.name, run.name, file.stem] if run else [file.stem]
        return f"{'-'.join(parts)}.html", content

    def _read(self, file: str, written: int) -> LanguageModel:
        return loading.language_model(loading.read_checkpoint(Path(file)), self.device, allow_code=self.allow_code)


def _age(file: Path) -> tuple[int, str]:
    try:
        newest = max(other.stat().st_mtime_ns for other in file.parent.glob("*.ckpt"))
    except (OSError, ValueError):  # deleted in the meantime
        newest = 0
    return -newest, str(file)
