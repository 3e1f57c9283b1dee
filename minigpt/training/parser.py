"""The parser of `scripts/train.py`: names are checked before anything is parsed, and mistakes become sentences."""

import json
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from minigpt.errors import MiniGPTError, did_you_mean
from minigpt.training import trust

_PLAIN_TYPES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list such as [a, b]",
    type(None): "null",
}  # fmt: skip


class TrainParser(LightningArgumentParser):
    """The parser of `scripts/train.py`: a mistake is answered with a sentence instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        """Turn the parser's complaint into a sentence.

        Raises:
            MiniGPTError: Always.
        """
        raise MiniGPTError(self._sentence(message)) from ex

    def check_names(self, args: list[str]) -> None:
        """Refuse a flag, a config file or a key in it that does not exist, before anything is parsed.

        Raises:
            MiniGPTError: It names the thing, and the nearest right one.
        """
        trusted = trust.trusted_modules(args)
        for position, arg in enumerate(args):
            if not re.match(r"--\w|-[a-z]$", arg):  # a value; it may be a negative number or begin with a dash
                continue
            flag, _, value = arg.partition("=")
            if flag not in self._option_string_actions and not self._is_known(flag.removeprefix("--").rstrip("+")):
                raise MiniGPTError(f"There is no option '{flag}'.{did_you_mean(flag, self._option_string_actions)}")
            if flag in ("-c", "--config") and (value or args[position + 1 :]):
                self._check_file(value or args[position + 1], trusted)

    @staticmethod
    def read_recipe(path: str, example: str = "configs/tiny.yaml") -> dict:
        """The settings in a config file, as plain values.

        Args:
            path: The file.
            example: A good one, to name to those whose file holds nothing.

        Raises:
            MiniGPTError: It cannot be read, is no YAML, or holds no settings.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MiniGPTError(f"The config file '{path}' cannot be read. {_nearest_config(path)}") from error
        try:
            recipe = yaml.safe_load(text)
            json.dumps(recipe, default=str)  # an anchor inside itself is a ValueError, so is a date such as 2024-99-99
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise MiniGPTError(f"The config file '{path}' is broken YAML{where}. Mend it there.") from error
        if not isinstance(recipe, dict):
            raise MiniGPTError(f"The config file '{path}' holds no settings. Start from a copy of {example}.")
        return recipe

    def _check_file(self, path: str, trusted: list[str]) -> None:
        recipe = self.read_recipe(path)
        for key in ("allow_code", "config"):
            if recipe.get(key) is not None:
                raise MiniGPTError(f"The config file '{path}' sets {key}, which only the command line can. Drop it.")
        trust.check_names(recipe, path, trusted)
        for key, value in flatten(recipe).items():
            if key in self._groups() and not isinstance(value, dict):
                raise MiniGPTError(f"The config file '{path}' has no settings under '{key}'. Write them, one a line.")
            if not self._is_known(key):
                known = [action.dest for action in self._actions if not action.dest.startswith("help")]
                raise MiniGPTError(f"The config file '{path}' has no use for '{key}'.{did_you_mean(key, known)}")

    def _is_known(self, key: str) -> bool:
        """Whether `key` is a setting, a group of settings, or inside the value of a setting."""
        dests, groups, parts = {action.dest for action in self._actions}, self._groups(), key.split(".")
        return any(".".join(parts[:n]) in dests - groups for n in range(1, len(parts) + 1)) or key in groups

    def _groups(self) -> set[str]:
        return {action.dest.split(".")[0] for action in self._actions if "." in action.dest}

    def _sentence(self, message: str) -> str:
        if match := re.search(r"Importing '(.+?)' is not allowed", message):
            return trust.not_allowed(match[1], "A setting")
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            return f"'{match[1]}' is no option and belongs to none. Options look like --trainer.max_steps 1000."
        if match := re.match(r"argument (\S+): expected", message):
            return f"The option {match[1]} needs a value."
        if match := re.match(r'Linked "(.+?)" must be given via "(.+?)"', message):
            return f"{match[1]} always equals {match[2]}. Set that one instead."
        if match := re.match(r'Parser key "(.+?)":', message):
            value = re.search(r"(?:Got|Given) value: (.*)", message)
            if match[1] in self._groups():
                return f"{match[1]} is a group of settings, not one. Set them singly, such as --model.n_embd 64."
            types_ = {action.dest: getattr(action, "_typehint", None) for action in self._actions}
            given = f"is '{value[1]}', which does not fit" if value else "has a value that does not fit"
            return f"{match[1]} {given}. It takes {_in_words(types_.get(match[1]))}."
        return " ".join(message.split())


def _in_words(hint: Any) -> str:
    """What a type hint admits, in a person's words."""
    if hint in _PLAIN_TYPES or get_origin(hint) in _PLAIN_TYPES:
        return _PLAIN_TYPES[hint if hint in _PLAIN_TYPES else get_origin(hint)]
    if get_origin(hint) is Literal:
        return ", ".join(str(value) for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(member) for member in get_args(hint)))
    return f"a {getattr(hint, '__name__', hint)}"


def _nearest_config(path: str) -> str:
    near = sorted(str(file) for file in Path(path).parent.glob("*.yaml")) or sorted(map(str, Path("configs").glob("*")))
    return did_you_mean(path, near).strip() or f"Those here: {', '.join(near) or 'none'}."


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Nested settings as `{"model.n_embd": 64}`."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value and "class_path" not in value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
