"""The command line. Each command imports what it needs when it runs, so that `glassgpt --help` loads no torch."""

from __future__ import annotations

import argparse
import dis
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from glassgpt.cli import bench, generate, inspect, plan, prepare, quantize, runs, serve, sweep, train, weights
from glassgpt.cli.console import prepare_streams, say, warnings_shown
from glassgpt.cli.options import DONE, FAILED, MISUSED, Parser
from glassgpt.terminal_text import one_line, visible
from glassgpt.weights.download.errors import DownloadError

_MISUSE = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_FAILURES = (OSError, RuntimeError, MemoryError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors that a user can cause are one line on standard error."""
    prepare_streams()
    # Read by OpenMP when torch is loaded: how long a thread spins before it sleeps while it waits for work. With the
    # default, 300,000 turns, one other busy process on two cores made a training step take 14 times as long, and more.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser().print_help()
        return DONE
    arguments, unknown = parser().parse_known_args(argv)
    if unknown:
        arguments.parser.refuse(unknown)
    try:
        with warnings_shown():
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return say("interrupted", FAILED)
    except BrokenPipeError:  # the reader of our output has left, `| head` for one: nothing more to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        message, code = describe(error)
        say(message, code)
        for note in getattr(error, "__notes__", ()):  # a table that belongs to the message
            print(visible(note), file=sys.stderr)
        return code


def describe(error: Exception) -> tuple[str, int]:
    """The line that a user reads about an error, and the exit code.

    A `ValueError` tells of misuse only where somebody wrote `raise`: one that comes out of a calculation is a bug.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        line = f"{error.filename2 or error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    elif isinstance(error, DownloadError) and error.by_hand is not None:
        name, source = error.by_hand
        command = f"glassgpt download {name}{' --openai' if source == 'openai' else ''} --print-urls"
        line = f"{error.reason}; `{command}` lists what to fetch by hand"
    else:
        line = str(error)
    line = one_line(line) or type(error).__name__
    if isinstance(error, _MISUSE) and (isinstance(error, (OSError, UnicodeError)) or _was_raised(error)):
        return line, MISUSED
    if isinstance(error, _FAILURES):
        return line, FAILED
    return f"internal error: {type(error).__name__}: {line} (please report it, with what --traceback shows)", FAILED


def _was_raised(error: Exception) -> bool:
    """Whether a `raise` statement in Python made this error, not an operation that failed."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


class _Version(argparse.Action):
    """Prints the version of the installed package, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"glassgpt {importlib.metadata.version('glassgpt')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of all commands, in the order of the help."""
    result = Parser(prog="glassgpt", description="A GPT you can see through: train, generate, look inside.")
    result.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = result.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for room in (train, plan, prepare, runs, sweep, generate, serve, inspect, bench, weights, quantize):
        room.add_commands(commands)
    return result
