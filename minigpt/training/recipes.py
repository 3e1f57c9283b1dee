"""Reading and writing recipes: what is written reads back equal, and a setting that is given twice is refused.

The parser of the command line uses the same two functions (its mode is `MODE`), so that a check of a file sees what the
parser will take from it.
"""

from enum import Enum
from typing import Any

import yaml
from jsonargparse import set_dumper, set_loader
from jsonargparse._loaders_dumpers import get_yaml_default_loader

MODE = "recipe"


class DuplicateKeyError(yaml.YAMLError):
    """A setting is given twice.

    Args:
        key: The setting, after the groups that it belongs to.
        first: The line where it is given first, counted from 1.
        second: The line where it is given again.
    """

    def __init__(self, key: str, first: int, second: int):
        where = f"on line {first}" if first == second else f"on lines {first} and {second}"
        super().__init__(f"gives '{key}' twice, {where}. Keep one of them.")


class _Loader(get_yaml_default_loader()):
    """jsonargparse's loader, for which `1e-3` is a number and `2024-01-01` is not a date, without duplicate keys."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        _refuse_duplicates(node, "", {}, set())
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes a text that either loader would read as something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name is PyYAML's)
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
        for first in yaml.SafeDumper.yaml_implicit_resolvers | _Loader.yaml_implicit_resolvers
    }

    def represent_str(self, text: str) -> yaml.Node:
        # In double quotes PyYAML escapes line breaks. In single quotes it loses those that are not "\n".
        style = '"' if text.splitlines() not in ([], [text]) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def load(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: The text is not YAML, or (`DuplicateKeyError`) gives a setting twice.
    """
    return yaml.load(text, Loader=_Loader)


def dump(value: Any) -> str:
    """Return the YAML text that `load` reads as `value`."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def _refuse_duplicates(node: yaml.Node | None, prefix: str, lines: dict[str, int], visited: set[int]) -> None:
    """Compare the keys of a document by their full names, since `model: {n_embd: 8}` is also `model.n_embd: 8`."""
    if id(node) in visited:  # an alias
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, "", {}, visited)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # what `<<` brings may be overridden
                _refuse_duplicates(value, "", {}, visited)
                continue
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise DuplicateKeyError(name, lines[name], line)
            lines[name] = line
            _refuse_duplicates(value, f"{name}.", lines, visited)


set_loader(MODE, load, exceptions=(yaml.YAMLError,))
set_dumper(MODE, dump)
