"""What the commands print on: streams that take every text, warnings in one line, JSON, bars of long work."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.terminal_text import not_utf8, one_line

if TYPE_CHECKING:
    from glassgpt.training.progress import Progress


def say(message: str, code: int) -> int:
    """Print one line on standard error; returns the exit code."""
    print(f"glassgpt: {message}", file=sys.stderr)
    return code


def prepare_streams() -> None:
    """Printing never fails because a terminal's encoding lacks a letter, or because a stream is closed (`>&-`).

    A file or a pipe gets UTF-8, as every file that glassgpt reads, unless `PYTHONIOENCODING` says otherwise.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            utf8 = not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if utf8 else None, errors="backslashreplace")


def read_standard_input() -> str:
    """All of it, without the final line end that `echo` adds. `ValueError` where it is closed or not UTF-8."""
    if sys.stdin is None:
        raise ValueError("standard input is closed: give the prompt as an argument")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is {not_utf8(error)}") from None
    return text.removesuffix("\n").removesuffix("\r")


@contextlib.contextmanager
def warnings_shown() -> Iterator[None]:
    """Inside, every warning, logged or through `warnings`, is one line on standard error."""

    def show(message: object, *_: Any, **__: Any) -> None:
        print(f"glassgpt: warning: {one_line(message)}", file=sys.stderr)

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        root.removeHandler(handler)


def print_json(value: Any) -> None:
    """One line of JSON. It knows neither NaN nor infinity: they become null."""
    text = json.dumps(value, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None)))


def picture_kind(path: Path | None) -> str | None:
    """The format of a picture by its name; `ValueError` for another one, `FileExistsError` for one that is there."""
    if path is None:
        return None
    if path.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"{path} must end in .png or .svg")
    if path.exists():
        raise FileExistsError(f"{path} exists: choose a new name")
    return path.suffix.lower()[1:]


@contextlib.contextmanager
def run_view(on_stderr: bool) -> Iterator[Progress]:
    """The view of a run or of other long work; the terminal is left in order whatever happens."""
    from glassgpt.training.terminal import LiveView, progress_for

    progress = progress_for(sys.stderr if on_stderr else sys.stdout)
    try:
        yield progress
    finally:
        if isinstance(progress, LiveView):
            progress.close()


@contextlib.contextmanager
def download_bar() -> Iterator[Callable[[int, int | None], None]]:
    """A callback for downloads that draws a bar with rate and time left, from its first call on."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("", total=None)

    def progress(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        if bar.live.is_started:  # one that never was would still end with an empty line
            bar.stop()


class PromptsBar:
    """Of a batch of prompts: how many are done, tokens a second, and the time left."""

    def __init__(self, bar: Any, n_prompts: int, n_tokens: int) -> None:
        self.n_done = self._n_kept = self._n_drawn = 0
        self._n_prompts, self._began, self._bar = n_prompts, time.monotonic(), bar
        self._task = bar.add_task("", total=n_tokens, shown="")

    def kept(self, most: int) -> None:
        """A prompt was done before; it might have taken `most` tokens."""
        self._n_kept += 1
        self.finished(most)

    def token(self) -> None:
        """A token was drawn."""
        self._n_drawn += 1
        self._bar.update(self._task, advance=1, shown=self._shown())

    def finished(self, unused: int) -> None:
        """A prompt is done, and did not take so many of the tokens that it might have taken."""
        self.n_done += 1
        self._bar.update(self._task, advance=unused, shown=self._shown())

    def summary(self) -> str:
        """One line for the end."""
        return self._shown() + (f", {self._n_kept:,} of them before" if self._n_kept else "")

    def _shown(self) -> str:
        rate = self._n_drawn / max(time.monotonic() - self._began, 1e-9)
        return f"{self.n_done:,} of {self._n_prompts:,} prompts done" + (f", {rate:,.0f} tokens/s" if rate else "")


@contextlib.contextmanager
def prompts_bar(n_prompts: int, n_tokens: int) -> Iterator[PromptsBar]:
    """A bar on standard error, where that is a terminal, for prompts that take at most `n_tokens` new tokens in all."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    # standard output is ours, and records go to it as they are
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, redirect_stdout=False
    ) as bar:
        yield PromptsBar(bar, n_prompts, n_tokens)
