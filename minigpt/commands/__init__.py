"""The commands of `minigpt` and `scripts/`. This is the only module that turns errors into messages."""

import errno
import os
import sys
import threading
from collections.abc import Callable

import minigpt
from minigpt import processes
from minigpt.command_line import command, first_training
from minigpt.commands.measuring import compare, evaluate
from minigpt.commands.output import app, export, generate
from minigpt.commands.training import sweep, train
from minigpt.errors import MiniGPTError, did_you_mean, note, required
from minigpt.words import message

FULL_DISK = (errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else []))


def main() -> int:
    """Run the installed command, `minigpt COMMAND ...`, and return the exit status as `run` does."""
    functions: list[Callable[[list[str]], int]] = [train, generate, evaluate, compare, export, app, sweep]
    commands = {function.__name__: function for function in functions}
    name = sys.argv[1] if sys.argv[1:] else "--help"
    if name in commands:
        return run(commands[name], sys.argv[2:])
    return run(lambda args: _without_command(name, commands))


def _without_command(name: str, commands: dict[str, Callable[[list[str]], int]]) -> int:
    """Answer a first argument that is an option or an unknown command."""
    program = command()
    if name == "--version":
        print(f"minigpt {minigpt.__version__}")
    elif name in ("-h", "--help"):
        print(f"Usage: {program} COMMAND [OPTION VALUE]...\n")
        for known, function in commands.items():
            print(f"  {known:10}{(function.__doc__ or '').partition(chr(10))[0]}")
        print(f"\n{program} COMMAND --help describes the options of a command. Quick start: {first_training()}")
    elif name.startswith("-"):
        raise MiniGPTError(f"'{name}' needs a command before it, such as: {first_training()}")
    else:
        hint = did_you_mean(name, commands) or f" The commands are {', '.join(commands)}."
        raise MiniGPTError(f"Unknown command '{name}'.{hint}")
    return 0


def run(command: Callable[[list[str]], int], args: list[str] | None = None) -> int:
    """Run one of the commands below with its arguments (None for the command line) and return the exit status.

    0 is success, 2 a user's mistake (one or two sentences on stderr), 129 a closed terminal, 130 Ctrl-C, 143 SIGTERM.
    """
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)  # whatever the locale
    ignored = processes.forget_leftovers(alone=command is not train)
    if ignored and command is train:
        note(message("ignored", ", ".join(ignored)))
    processes.known = None if command is train else 0
    on_thread_exception, threading.excepthook = threading.excepthook, _on_thread_exception
    try:
        with required():
            return command(sys.argv[1:] if args is None else args)
    except MiniGPTError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in FULL_DISK:
            print(f"A file could not be written: {error.strerror}. Free some space and try again.", file=sys.stderr)
            return 2
        denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        if not (denied or error.errno == errno.ENAMETOOLONG) or error.filename is None:
            raise
        remedy = "Change its permissions, or pass a different path" if denied else "Pass a different path"
        name = str(error.filename) if denied else f"{str(error.filename)[:60]}…"
        print(f"'{name}' cannot be used: {error.strerror}. {remedy}.", file=sys.stderr)
        return 2
    finally:
        threading.excepthook = on_thread_exception


def _on_thread_exception(failure: threading.ExceptHookArgs) -> None:
    """Report a full disk in a sentence, in the thread that writes TensorBoard's events, and other errors as usual.

    A training ends at the next record that it writes, which raises the error again.
    """
    if isinstance(failure.exc_value, OSError) and failure.exc_value.errno in FULL_DISK:
        note(f"The records for TensorBoard are not complete: {failure.exc_value.strerror}.")
    else:
        threading.__excepthook__(failure)
