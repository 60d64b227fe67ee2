"""How the book's files behave when they are started: what `--help` says, and errors in one line."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from glassgpt.terminal_text import one_line
from glassgpt.weights.download.errors import DownloadError


def parser(docstring: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the file's docstring, line by line as it stands there."""
    return argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextlib.contextmanager
def errors_in_one_line(parser: argparse.ArgumentParser, unreachable: str = "") -> Iterator[None]:
    """End with exit code 1 and one line on stderr for what a user can put right, a missing package included.

    `unreachable` is the way out where a download fails, in place of the long one of the error itself.
    """
    try:
        yield
    except DownloadError as error:
        line = f"{error.reason}; {unreachable}" if unreachable and error.by_hand else str(error)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        line = str(error)
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted\n")
    else:
        return
    parser.exit(1, f"{parser.prog}: {one_line(line)}\n")
