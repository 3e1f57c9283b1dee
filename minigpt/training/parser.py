"""The parser of `minigpt train`, which checks names before it parses and turns mistakes into sentences."""

import inspect
import os
import re
import shlex
import types
from collections.abc import Collection
from contextlib import suppress
from itertools import pairwise
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from minigpt.command_line import (
    CommandLine,
    command,
    example_config,
    example_recipe,
    missing_value,
    unexpected_argument,
)
from minigpt.data.tokenizer_base import Tokenizer
from minigpt.errors import MiniGPTError, did_you_mean
from minigpt.models import NETWORKS, import_network, instantiate
from minigpt.training import recipes, trust
from minigpt.training.datamodule import TextDataModule

_PLAIN_TYPES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list such as [a, b]",
    type(None): "null",
}  # fmt: skip


# The options of minigpt's networks, for messages about mistyped options.
NETWORK_FLAGS = [f"--model.network.{name}" for kind in NETWORKS.values() for name in inspect.signature(kind).parameters]


def network_sentence(message: str) -> str:
    """Return the message about a missing or unknown setting of the network; other messages are unchanged."""
    if match := re.match(r"the following arguments are required: (\w+)", message):
        return f"The network needs the setting '{match[1]}'. Add --model.network.{match[1]} with a value."
    match = re.match(r"Option '(.+?)' is not accepted", message)
    if not match:
        return message
    known = [flag.rpartition(".")[2] for flag in NETWORK_FLAGS]
    of_gpt = " It is one of minigpt.GPT: pass --model.network GPT." if match[1] in known else ""
    return f"The network has no setting '{match[1]}'.{of_gpt or did_you_mean(match[1], known)}"


def refuse_linked(settings: Collection[str], where: str) -> None:
    """Refuse settings of the network that are linked to the data, which jsonargparse would ignore silently.

    Raises:
        MiniGPTError: There is such a setting; the message names the one of the data.
    """
    for name in ("vocab_size", "block_size"):
        if name in settings:
            reason = "which the text determines" if name == "vocab_size" else "so set that one instead"
            raise MiniGPTError(f"{where}model.network.{name} always equals data.{name}, {reason}. Omit it.")


class TrainParser(LightningArgumentParser):
    """The parser of `minigpt train`, which answers a mistake with a sentence instead of the usage."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"parser_mode": recipes.MODE, "prog": command("train")} | kwargs)
        self.line = CommandLine()
        self.tokenizer: Tokenizer | None = None  # that the data use instead of making one from the text
        self._recipes: dict[str, recipes.Recipe] = {}

    def parse_line(self, line: CommandLine) -> Namespace:
        """Parse a command line after checking the names in it and in its files.

        Raises:
            MiniGPTError: An option, a file, a key, a class or a value is wrong.
        """
        self.given(line)
        name = self._network()
        if name and name not in NETWORKS and re.fullmatch(r"\w+(\.\w+)+", name):
            import_network(name)  # for a message with the reason, which jsonargparse would not give
        try:
            return self.parse_args(line.args)
        except MiniGPTError as error:
            message = network_sentence(str(error))
            setting = re.match(r"(\w+) is '.*', which does not fit", message)
            if setting and not self._is_known(setting[1]):  # from the parser of the network's settings
                message = f"model.network.{message}"
            raise MiniGPTError(message) from error

    def given(self, line: CommandLine) -> dict[str, Any]:
        """Return the settings of a command line and its files by their full names; the names are checked once.

        Raises:
            MiniGPTError: An option, a file, a key or a class is wrong.
        """
        if line is not self.line:
            self.line, self._recipes = line, {}
            for file in line.files:
                self._check_recipe(file)
            self._check_flags()
        settings: dict[str, Any] = {}
        for file in line.files:
            settings |= flatten(self.recipe(file).settings)
        for flag, value in line.settings:
            key = flag.removeprefix("--").replace(".network.init_args.", ".network.")
            settings[key] = value
            with suppress(yaml.YAMLError, RecursionError):  # a text such as @20, or a mistake that the parser will name
                settings[key] = recipes.load(value)
        return settings

    def _network(self) -> str | None:
        """Return the name of the network's class from the last option, else from the last file."""
        names = [recipe.settings for recipe in self._recipes.values()]
        models = [model for settings in names if isinstance(model := settings.get("model"), dict)]
        networks = [network for model in models if isinstance(network := model.get("network"), dict)]
        named = [str(network["class_path"]) for network in networks if "class_path" in network]
        return next(reversed(named + self.line.values("--model.network")), None)

    def recipe(self, path: str) -> recipes.Recipe:
        """Return the content of a config file, which is read once, since it may be a pipe."""
        file = os.path.realpath(os.path.expanduser(path))
        if file not in self._recipes:
            self._recipes[file] = recipes.read(path)
        return self._recipes[file]

    def parse_path(self, path: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file from its stored content; jsonargparse calls this for each `--config`."""
        return self.parse_string(self.recipe(str(path)), *args, **kwargs)

    def instantiate_classes(self, cfg: Namespace, **kwargs: Any) -> Namespace:
        """Make the objects of the settings: Lightning's name for `instantiate`. A network remembers its arguments."""
        instantiators = [(instantiate, nn.Module, True), (self._data, TextDataModule, False)]
        made: Namespace = self.instantiate(cfg, instantiators=instantiators, **kwargs)
        return made

    def _data(self, kind: type[TextDataModule], **settings: Any) -> TextDataModule:
        data = kind(**settings)
        if self.tokenizer:
            data.use_tokenizer(self.tokenizer)  # now, since the size of its vocabulary goes to the network
        return data

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn an error of jsonargparse into a sentence.

        Raises:
            MiniGPTError: Always.
        """
        raise MiniGPTError(self._sentence(message)) from ex

    def _check_flags(self) -> None:
        for before, arg in pairwise(["", *self.line.given]):
            if not re.match(r"--\w|-[a-z]$", arg):  # a value, which may be a negative number or begin with a dash
                continue
            flag = arg.partition("=")[0]
            if match := re.match(r"--model\.network\.(?:init_args\.)?(\w+)$", flag):
                refuse_linked([match[1]], "")
            if not self._is_option(flag):
                as_value = f" If it is the value of {before}, write {before}={arg}." if self._is_option(before) else ""
                known = [*NETWORK_FLAGS, *self._option_string_actions]
                hint = did_you_mean(flag, known) if flag.startswith("--") else ""
                if flag == "--model.name":  # of 0.1
                    hint = " The network is chosen with --model.network GPT or TinyGPT."
                raise MiniGPTError(f"Unknown option '{flag}'.{hint}{as_value}")

    def _check_recipe(self, path: str) -> None:
        recipe = self.recipe(path).settings
        for key in ("allow_code", "config", "help", "print_config"):
            if recipe.get(key) is not None:
                raise MiniGPTError(
                    f"The config file '{path}' sets {key}, which only the command line can set. Remove it."
                )
        trust.check_names(recipe, path, self.line.values("--allow_code"))
        if isinstance(model := recipe.get("model"), dict) and "name" in model and "network" not in model:
            raise MiniGPTError(
                f"The config file '{path}' is for minigpt 0.1. Since 0.2 the network is model.network, with class_path "
                f"and init_args: see {example_config('modern_nano')}."
            )
        if isinstance(model, dict) and isinstance(network := model.get("network"), dict):
            init_args = network.get("init_args") or {}
            if not isinstance(init_args, dict):
                raise MiniGPTError(
                    f"The config file '{path}' has no settings under 'model.network.init_args'. Write them one a line."
                )
            refuse_linked(init_args, f"The config file '{path}': ")
        for key, value in flatten(recipe).items():
            if key in self._groups() and not isinstance(value, dict):
                raise MiniGPTError(f"The config file '{path}' has no settings under '{key}'. Write them one per line.")
            if not self._is_known(key.rstrip("+")):
                known = [flag.removeprefix("--") for flag in NETWORK_FLAGS]
                known += [action.dest for action in self._actions if not action.dest.startswith("help")]
                raise MiniGPTError(f"Unknown setting '{key}' in the config file '{path}'.{did_you_mean(key, known)}")

    def _is_option(self, flag: str) -> bool:
        return flag in self._option_string_actions or self._is_known(flag.removeprefix("--").rstrip("+"))

    def _is_known(self, key: str) -> bool:
        """Return whether `key` is a setting, a group of settings, or part of the value of a setting."""
        dests, groups, parts = {action.dest for action in self._actions}, self._groups(), key.split(".")
        return any(".".join(parts[:n]) in dests - groups for n in range(1, len(parts) + 1)) or key in groups

    def _groups(self) -> set[str]:
        groups = {action.dest.split(".")[0] for action in self._actions if "." in action.dest}
        return groups - {"optimizer", "lr_scheduler"}  # classes with their own settings

    def _sentence(self, message: str) -> str:
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            return unexpected_argument(match[1], self.line.given)
        if match := re.match(r"argument (\S+): expected", message):
            flags = match[1].split("/")
            typed = [arg for arg in self.line.given if any(arg == flag or arg.startswith(f"{flag}.") for flag in flags)]
            return missing_value(typed[-1:] or flags, self.line.given, self._option_string_actions)
        if message.startswith("the following arguments are required: model.network"):
            if self.line.files:
                return (
                    f"The recipe '{self.line.files[-1]}' names no network. Start from a model with --init_from, or set "
                    "--model.network."
                )
            return f"Pass a recipe with --config, such as --config {shlex.quote(example_recipe())}."
        if match := re.match(r'Linked "(.+?)" must be given via "(.+?)"', message):
            return f"{match[1]} always equals {match[2]}. Set that one instead."
        if match := re.match(r'Parser key "(.+?)":', message):
            return self._misfit(match[1], message)
        if match := re.search(r"Importing '(.+?)' is not allowed", message):
            return trust.not_allowed(match[1], "A setting")
        return " ".join(message.split())

    def _misfit(self, key: str, message: str) -> str:
        """Return the reason why a value was refused; the innermost one if the value has its own settings."""
        for flag, value in self.line.settings:
            if flag.removeprefix("--").rstrip("+") == key:
                try:
                    recipes.load(value)
                except recipes.DuplicateKeyError as error:
                    return f"{key} {error}"
                except (yaml.YAMLError, RecursionError):
                    pass
        if key == "model.network":
            name = self._network() or "not given"
            return (
                f"model.network is '{name}', which is not a network. It takes minigpt.GPT, minigpt.TinyGPT or a class "
                f"of yours that derives from torch.nn.Module.{did_you_mean(name, ['GPT', 'TinyGPT'])}"
            )
        nested = re.search(r"Given value: NestedArg\(key='(.+?)'", message)  # --trainer.callbacks.KEY
        if match := re.search(r"Option '(.+?)' is not accepted", message):
            known = trust.settings_of(f"{self.line.given} {message}")
            return f"{key} has no setting '{match[1]}'.{did_you_mean(match[1], known)}"
        if match := re.search(r"- (?:\S+\.)?(\S+ is '.*', which does not fit\. It takes .*\.)$", message, re.MULTILINE):
            return f"{key}.{match[1]}"
        if match := re.search(r"the following arguments are required: (\S+)", message):
            return f"{key} lacks the setting '{match[1]}'. Add --{key}.{match[1]} with a value."
        if match := re.search(r"Importing '(.+?)' is not allowed", message):
            if any(match[1].rpartition(".")[2] in arg for arg in self.line.given):
                return trust.not_allowed(match[1], "A setting")
            if nested:
                return (
                    f"{key}.{nested[1]} does not belong to a class. Pass one before it, such as --{key}+ EarlyStopping."
                )
        if key in self._groups():
            return f"{key} is a group of settings. Set them one by one, such as --model.learning_rate 1e-3."
        hint = {action.dest: getattr(action, "_typehint", None) for action in self._actions}.get(key)
        given = re.search(r"(?:Got|Given) value: (.*)", message)
        if not given or re.search(r"Namespace\(|NestedArg\(|'(?:class_path|init_args)'", given[1]):
            return f"{key} has a value that does not fit. It takes {_in_words(hint)}."
        name = did_you_mean(given[1], trust.SHORT) if "dot import path" in message else ""
        return f"{key} is '{given[1]}', which does not fit. It takes {_in_words(hint)}.{name}"


def inner_reason(message: str) -> str:
    """Return the most specific line of the parser's message about a value that does not fit any of several types."""
    generic = (
        "Expected a ",
        "Not a valid",
        "Problem with ",
        "Import path ",
        "Subclass types ",
        "a class path",
        "a dict ",
    )
    errors = message.partition("Errors:\n")[2].partition("Given value type:")[0]
    lines = [line.strip().removeprefix("- ") for line in errors.splitlines()]
    return next((line for line in lines if line and not line.startswith(generic)), " ".join(message.split()))


def _in_words(hint: Any) -> str:
    """Describe the values of a type hint in plain words."""
    if hint in _PLAIN_TYPES or get_origin(hint) in _PLAIN_TYPES:
        return _PLAIN_TYPES[hint if hint in _PLAIN_TYPES else get_origin(hint)]
    if get_origin(hint) is Literal:
        return ", ".join(str(value) for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(member) for member in get_args(hint)))
    name = getattr(hint, "__name__", str(hint))
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to full names, as in `{"model.n_embd": 64}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if key == "network" and isinstance(
            value, dict
        ):  # its arguments have the names that they have on a command line
            flat |= {f"{prefix}network": value["class_path"]} if "class_path" in value else {}
            flat |= flatten(value.get("init_args") or {}, f"{prefix}network.")
        elif isinstance(value, dict) and value and "class_path" not in value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
