"""Reading and writing recipes. A written recipe reads back equal, and a setting given twice is refused.

The parser of the command line uses the same functions to load and dump (in its mode `MODE`). It receives the settings
of a file that was read before as a `Recipe`, so that each file is opened once and is used as it was checked.
"""

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_dumper, set_loader
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from minigpt.command_line import example_config, no_config
from minigpt.errors import MiniGPTError

MODE = "recipe"


class DuplicateKeyError(yaml.YAMLError):
    """A setting is given twice.

    Args:
        key: The full name of the setting.
        first: The number of the first line with it, from 1.
        second: The number of the second line.
    """

    def __init__(self, key: str, first: int, second: int):
        where = f"on line {first}" if first == second else f"on lines {first} and {second}"
        super().__init__(f"gives '{key}' twice, {where}. Keep one of them.")


class _Loader(get_yaml_default_loader()):  # type: ignore[misc]  # a function that returns a class
    """jsonargparse's loader, for which `1e-3` is a number and `2024-01-01` is not a date, without duplicate keys."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        _refuse_duplicates(node, "", {}, set())
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, with quotes around a text that either loader would read as another type."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name is PyYAML's)
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
        for first in yaml.SafeDumper.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers
    }

    def represent_str(self, text: str) -> yaml.ScalarNode:
        # PyYAML escapes line breaks in double quotes, and loses line breaks other than "\n" in single quotes.
        style = '"' if text.splitlines() not in ([], [text]) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


class Recipe(str):
    """The text of a config file with its `settings` as plain values, which `load` returns without parsing again."""

    settings: dict[str, Any]


_pipes: dict[Any, str] = {}  # the texts of pipes, which can be read only once, for commands with several runs


def load(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: The text is not YAML, or (`DuplicateKeyError`) gives a setting twice.
    """
    return deepcopy(text.settings) if isinstance(text, Recipe) else yaml.load(text, Loader=_Loader)


def read(path: str, example: str = "tiny") -> Recipe:
    """Read a config file, which may be a pipe.

    Args:
        path: The file.
        example: The name of an example in `configs/`, for messages.

    Raises:
        MiniGPTError: The file cannot be read, is not YAML, or has no settings.
    """
    file = Path(os.path.expanduser(path))
    try:
        pipe = os.stat(file)[1:3] if file.is_fifo() else None  # its inode and device
        text = _pipes.get(pipe) or file.read_text(encoding="utf-8")
        if pipe:
            _pipes[pipe] = text
        recipe = Recipe(text)
        recipe.settings = load(text)
        json.dumps(recipe.settings, default=str)  # an anchor inside itself is a ValueError
    except UnicodeDecodeError as error:
        raise MiniGPTError(
            f"The config file '{path}' cannot be read: it is not UTF-8 text. Save it as UTF-8."
        ) from error
    except OSError as error:
        if not file.exists() or file.is_dir():
            raise MiniGPTError(no_config(path, os.path.dirname(example))) from error
        raise MiniGPTError(f"The config file '{path}' cannot be read: {error.strerror}.") from error
    except DuplicateKeyError as error:
        raise MiniGPTError(f"The config file '{path}' {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise MiniGPTError(f"The config file '{path}' is not valid YAML{where}. Fix it there.") from error
    if not isinstance(recipe.settings, dict):
        raise MiniGPTError(f"The config file '{path}' has no settings. Start from a copy of {example_config(example)}.")
    return recipe


def dump(value: Any) -> str:
    """Return the YAML text that `load` reads as `value`."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def as_text(value: Any) -> str:
    """Return a value as it is written after an option of a command line."""
    return value if isinstance(value, str) else dump(value).removesuffix("...\n").strip()


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return settings as flags of `minigpt train`."""
    return [f"--{key}={as_text(value)}" for key, value in values.items()]


def _refuse_duplicates(node: yaml.Node | None, prefix: str, lines: dict[str, int], visited: set[int]) -> None:
    """Refuse keys with the same full name, since `model: {n_embd: 8}` is also `model.n_embd: 8`."""
    if id(node) in visited:  # an alias
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, "", {}, visited)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # merged keys may be overridden
                _refuse_duplicates(value, "", {}, visited)
                continue
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise DuplicateKeyError(name, lines[name], line)
            lines[name] = line
            _refuse_duplicates(value, f"{name}.", lines, visited)


set_loader(MODE, load, exceptions=(yaml.YAMLError,))
set_dumper(MODE, dump)
