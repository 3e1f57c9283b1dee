"""Parsing of command lines, messages about mistakes in them, and commands to copy and paste."""

import os
import re
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from minigpt.errors import MiniGPTError, note
from minigpt.words import message

PACKAGE = Path(__file__).resolve().parent
CLONE = (
    PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
)  # a clone, or the folder of an editable install
CONFIGS = (CLONE or PACKAGE) / "configs"  # the recipes that minigpt ships
# What commands and pages try unless told otherwise; the sampling parameters are those of the article's example.
PROMPTS = ("un matin,", "le soir,", "la petite fille", "dans la forêt")
SAMPLING = {"temperature": 0.8, "top_k": 30, "top_p": 0.9}
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*(?<!\.yaml)(?<!\.yml)")


def command(name: str = "", *args: str | Path) -> str:
    """Return a command to paste into the current shell, in the form in which this process was started.

    Args:
        name: The command, such as `train`; empty for the program alone.
        *args: Its arguments; paths as `short` returns them.
    """
    python = "python" if shutil.which("python") == sys.executable else _program(Path(sys.executable))
    if script := _script(name):
        return shlex.join([python, short(script), *map(str, args)])
    by_console = Path(sys.argv[0]).stem == "minigpt"
    program = Path(sys.argv[0] if by_console else Path(sys.executable).with_name("minigpt")).absolute()
    on_path = shutil.which("minigpt")
    if on_path and Path(on_path).absolute().with_suffix("") == program.with_suffix(""):  # on Windows one has .exe
        words = ["minigpt"]
    else:
        words = [_program(program)] if by_console else [python, "-m", "minigpt"]
    return shlex.join([*words, *([name] if name else []), *map(str, args)])


def _script(name: str) -> Path | None:
    """Return the file in scripts/ for a command; None if this process was started as `minigpt`."""
    started = Path(sys.argv[0])
    if started.stem == "minigpt" or started.resolve() == PACKAGE / "__main__.py":
        return None
    script = CLONE and CLONE / "scripts" / f"{name}.py"
    return script if script and script.is_file() else None


def tool(name: str, *args: str) -> str:
    """Return a command for a program that is installed beside Python, such as `tensorboard`."""
    beside = Path(sys.executable).with_name(name)
    return shlex.join([name if shutil.which(name) == str(beside) else _program(beside), *args])


def _program(path: Path) -> str:
    """Return the path of a program to type, with a folder, since a shell looks up a bare name on PATH."""
    text = short(path)
    return text if os.path.dirname(text) else f"./{text}"


def example_config(name: str = "tiny") -> str:
    """Return the path of a recipe that minigpt ships, relative to the working folder where possible."""
    return short(CONFIGS / f"{name}.yaml")


def example_recipe(name: str = "tiny") -> str:
    """Return an example for `--config`: a name for `minigpt train`, a path for scripts/train.py."""
    return example_config(name) if _script("train") else name


def first_training() -> str:
    """Return the command for a first training."""
    return command("train", "--config", example_recipe())


def find_config(name: str, folder: str = "") -> str:
    """Return the path of a config file.

    Args:
        name: A path, which is returned unchanged, or the name of a file in `configs/` without `.yaml`. The `configs/`
            of the working folder is searched before the one that minigpt ships. `configs/NAME.yaml` also finds a
            shipped recipe, so that the commands of the README run in any folder.
        folder: The subfolder of `configs/` to search, such as `sweeps`.
    """
    if os.path.isfile(os.path.expanduser(name)):
        return name
    if match := re.fullmatch(r"configs/(.+)\.yaml", name):
        shipped = CONFIGS / f"{match[1]}.yaml"
        return str(shipped) if _NAME.fullmatch(match[1]) and shipped.is_file() else name
    files = [each / f"{name}.yaml" for each in _config_folders(folder)] if _NAME.fullmatch(name) else []
    for file in filter(Path.is_file, files):
        if os.path.isfile(f"{name}.yaml"):
            note(message("shipped_config", short(file.absolute()), name))
        return str(file)
    return name


def no_config(name: str, folder: str = "") -> str:
    """Return the message about a config file that does not exist; arguments as in `find_config`."""
    folders = [each.absolute() for each in _config_folders(folder)]
    names = {file.relative_to(each).with_suffix("").as_posix() for each in folders for file in each.rglob("*.yaml")}
    known = sorted(known for known in names if not known.startswith("sweeps/"))
    here = sorted(map(str, Path(os.path.expanduser(name)).parent.glob("*.yaml")))
    by_stem = {Path(choice).stem: choice for choice in [*known, *here]}
    near = get_close_matches(Path(name).stem, by_stem, n=1)
    hint = f"Did you mean '{by_stem[near[0]]}'?" if near else f"minigpt has {', '.join(known)}."
    if not _NAME.fullmatch(name):
        return f"The config file '{name}' cannot be read: it does not exist. {hint}"
    where = " or ".join(dict.fromkeys(f"'{short(each)}'" for each in folders))
    return f"There is no {'space' if folder else 'recipe'} '{name}' in {where}. {hint}"


def _config_folders(folder: str) -> list[Path]:
    """Return the folders where names are looked up: the working folder's `configs/`, then the shipped one."""
    return [Path("configs", folder), CONFIGS / folder]


def short(path: Path) -> str:
    """Return a path as a user would type it: relative if it is in the working folder."""
    text = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return f"./{text}" if text.startswith("-") else text  # not to be read as an option


def missing_value(flags: Collection[str], args: Sequence[str], options: Collection[str] = ()) -> str:
    """Return the message about an option without a value, for example because the value looks like an option.

    Args:
        flags: The option, in all its spellings.
        args: The command line.
        options: All known options.
    """
    for flag, value in pairwise(args):
        if flag in flags and value.startswith("-") and value.partition("=")[0] not in options:
            return (
                f"The option {flag} needs a value. If '{value}' is the value, write {shlex.quote(f'{flag}={value}')}."
            )
    return f"The option {next((arg for arg in args if arg in flags), min(flags))} needs a value."


def first_stray(args: Sequence[str]) -> str | None:
    """Return the first argument that is neither an option nor a value, if every option takes one value."""
    pairs = pairwise(["", *args])
    return next((arg for before, arg in pairs if arg[:1] != "-" and not re.fullmatch(r"--[^=]+|-c", before)), None)


def unexpected_argument(stray: str, args: Sequence[str]) -> str:
    """Return the message about an argument that does not belong to an option.

    Often the cause is a pattern or a text with spaces without quotes, which a shell splits into several arguments.

    Args:
        stray: The argument.
        args: The command line.
    """
    at = next((n for n, (a, b) in enumerate(pairwise(args), 1) if b == stray and not re.match(r"--[^=]+$", a)), 0)
    start = next((n for n in range(at - 1, -1, -1) if args[n].startswith("--")), None)
    if start is None:
        return f"Unexpected argument '{stray}'. Options look like --trainer.max_steps 1000."
    flag, _, value = args[start].partition("=")
    values = [value] * bool(value) + list(args[start + 1 : at])
    after = f"Unexpected argument '{stray}' after {shlex.join(args[start:at])}."
    if not values or re.fullmatch(r"[\d.]+|true|false|null|none", values[0]):
        return f"{after} Options look like --trainer.max_steps 1000."
    if all(os.path.exists(os.path.expanduser(value)) for value in [*values, stray]):
        if flag != "--data.path":
            return f"{after} {flag} takes one path."
        pattern = os.path.join(os.path.dirname(stray), f"*{Path(stray).suffix}")
        return f"{after} Quote a pattern: {flag} {shlex.quote(pattern)}."
    return f"{after} Quote a text with spaces: {flag} {shlex.quote(' '.join([*values, stray]))}."


class CommandLine:
    """The command line of a training, in the order that the parser needs.

    The parser applies files and flags in their order. So `args` begins with the config files, in their order: flags
    then override files, and later files override earlier ones. The class of the network follows, since the parser
    checks the network's arguments against the class known so far. All other flags come last.

    Args:
        given: The command line as it was typed.

    Attributes:
        files: The paths of the config files.
        flags: All other arguments, in order.
        settings: The options with a value, each with its value.
    """

    def __init__(self, given: Sequence[str] = ()):
        self.given = list(given)
        self.files: list[str] = []
        self.settings: list[tuple[str, str]] = []
        classes: list[str] = []
        flags: list[str] = []
        rest = deque(given)
        while rest:
            words = [rest.popleft()]
            flag, value = self._split(words[0])
            is_config = flag in ("-c", "--config")
            if value is None and rest and (is_config or flag.startswith("--")):
                # A text may begin with a dash, such as -chat in `--samples.prompts -chat`; a file name may not.
                is_value = not rest[0].startswith("-" if is_config else "--") and rest[0] != "-c"
                words += [value := rest.popleft()] if is_value else []
            if value is not None:
                self.settings.append((flag, value))
            if is_config and value is not None:
                self.files.append(find_config(value))
            else:
                (classes if flag == "--model.network" else flags).extend(words)
        self.flags = [*classes, *flags]

    @staticmethod
    def _split(arg: str) -> tuple[str, str | None]:
        """Split an argument into the option and the value attached to it, if any."""
        if match := re.fullmatch(r"(-c)=?(.+)|(--[^=]+)=(.*)", arg, re.DOTALL):
            return match[1] or match[3], match[2] if match[1] else match[4]
        return arg, None

    @property
    def args(self) -> list[str]:
        """The arguments in the order that the parser needs."""
        return [*(f"--config={file}" for file in self.files), *self.flags]

    def values(self, flag: str) -> list[str]:
        """Return all values of an option; the last one counts."""
        return [value for option, value in self.settings if option == flag]


MOST_SEEDS = 100  # that --seeds takes


def split_seeds(args: Sequence[str]) -> tuple[list[int], list[str]]:
    """Take --seeds out of a command line, and return the seeds and the other arguments.

    Raises:
        MiniGPTError: The seeds are not a number of seeds or a list of different ones, or a single seed or run is given
            as well.
    """
    rest: list[str] = []
    value: str | None = None
    words = iter(args)
    for word in words:
        flag, equals, after = word.partition("=")
        if flag == "--seeds":
            value = after if equals else next(words, "")
        else:
            rest.append(word)
    if value is None:
        return [], rest
    for other in ("--seed_everything", "--ckpt_path"):
        if any(word.split("=")[0] == other for word in rest):
            raise MiniGPTError(f"--seeds trains several runs, and {other} is for one. Leave one of them out.")
    return _seeds(value), rest


def _seeds(value: str) -> list[int]:
    """Return the seeds that `3` (1, 2 and 3) or `1,2,7` names."""
    try:
        seeds = [int(word) for word in value.split(",")]
    except ValueError:
        seeds = []
    if len(seeds) == 1 and "," not in value:
        seeds = list(range(1, seeds[0] + 1)) if seeds[0] <= MOST_SEEDS else []
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise MiniGPTError(
            f"--seeds is '{value}'. Pass how many seeds (up to {MOST_SEEDS}), such as 3, or a list such as 1,2,7."
        )
    return seeds
