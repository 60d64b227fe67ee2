"""A run as people watch it: a live view on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from glassgpt.terminal_text import visible
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared, TrainResult

_LINE_SECONDS = 10.0
_WORK_SECONDS = 2.0  # work that is done sooner is not worth a word
_CHART = (60, 10)  # columns, rows
_SMOOTHING = 0.95


def progress_for(stream: IO[str], live: bool | None = None) -> Progress:
    """A live view if `stream` is a terminal (or `live` says so), plain lines otherwise."""
    console = _Console(file=stream, highlight=False)
    console.soft_wrap = not console.is_terminal  # a line of a file is as long as it is
    return LiveView(console) if (console.is_interactive if live is None else live) else Lines(console)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """The reader of our lines has left, `| head` for one: the run, and what it saves, goes on without them."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # a stream that is no file of the system's
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Lines(Progress):
    """One line for each thing that happens, and one every ten seconds of training."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._loss: float | None = None
        self._began = self._shown = time.monotonic()
        self._work, self._done, self._total, self._first_done = "", 0, 0, 0

    def message(self, text: str) -> None:
        """See `Progress`."""
        self.console.print(Text(visible(text)))

    def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        """See `Progress`."""
        now = time.monotonic()
        if name != self._work or done < self._done or 0 < self._total <= self._done:  # other work than the last time
            self._began, self._first_done = now, done
            self._shown = now - _LINE_SECONDS + _WORK_SECONDS
        self._work, self._done, self._total = name, done, total
        self._show_work(unit, now)

    def _show_work(self, unit: str, now: float) -> None:
        if now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self.message(f"{self._work} {self._amount(unit, now)}")

    def _amount(self, unit: str, now: float) -> str:
        seconds, done, total = now - self._began, self._done, self._total
        if not total:
            return f"{_clock(seconds)} so far"
        rate = (done - self._first_done) / seconds if seconds else 0.0
        left = f"  {_clock((total - done) / rate)} left" if rate else ""
        if unit == "bytes":
            return f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB  {rate / 1e6:,.1f} MB/s{left}"
        return f"{done:,} of {total:,} {unit}  {rate:,.0f} {unit}/s{left}"

    def start(self, prepared: Prepared, first_step: int) -> None:
        """See `Progress`."""
        for choice in prepared.choices:
            self.message(choice)
        b = prepared.baselines
        self.message(
            f"this text, nats per token: {b.uniform:.3f} with every token alike (ln V), {b.unigram:.3f} knowing how "
            f"common each is, {b.bigram:.3f} knowing the token before (bigram)"
        )
        self._baselines, self._settings, self._first_step = b, prepared.settings, first_step
        self._began = self._shown = time.monotonic()

    def step(self, record: dict[str, Any]) -> None:
        """See `Progress`."""
        loss = record["loss"]
        if math.isfinite(loss):  # a step that was skipped must not hide all others
            self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._show_step(record)

    def _show_step(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown >= _LINE_SECONDS:
            self._shown = now
            done = record["step"] + 1
            left = (now - self._began) / max(1, done - self._first_step) * (self._settings.steps - done)
            self.message(
                f"step {done:,} of {self._settings.steps:,}  loss {self._loss_text()}  "
                f"{record['tokens_per_second']:,.0f} tokens/s  {_clock(left)} left"
            )

    def _loss_text(self) -> str:
        return "-" if self._loss is None else f"{self._loss:.3f}"

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """See `Progress`."""
        loss = record["val_loss"]
        names = (("uniform", "ln V"), ("unigram", "unigram"), ("bigram", "bigram"))
        below = [f"below {name}" for key, name in names if loss < getattr(self._baselines, key)]
        line = Text.assemble(
            f"step {record['step']:>6,}  epoch {record['epoch']:>4.1f}  ",
            (f"validation {loss:.3f}", "bold"),
            f"  {record['bits_per_byte']:.3f} bits per byte",
            (f"  {below[-1]}" if below else "", "green"),
            "" if best else "  (an earlier one was better)",
        )
        self.console.print(line)

    def sample(self, text: str) -> None:
        """See `Progress`."""
        line = Text(visible(" ".join(text.split())), style="dim italic")
        self.console.print(Padding(line, (0, 0, 0, 4)) if self.console.is_terminal else Text("    ") + line)

    def finish(self, result: TrainResult) -> None:
        """See `Progress`."""
        ended = "done" if result.finished else "stopped"
        self.message(
            f"{ended} after {result.steps:,} steps, {result.epochs:.1f} epochs: best validation loss "
            f"{result.best_val_loss:.3f} at step {result.best_step:,}; {result.directory} holds the "
            f"{result.keep} model"
        )
        if result.best_step == 0 < result.steps and result.keep == "best":
            self.message(
                f"the best model is the one that training began with, so that is what {result.directory} holds: add "
                "text, train with a lower learning rate, or keep the last model"
            )
        if not result.finished:
            self.message(f"resume with: glassgpt train --resume --out {shlex.quote(str(result.directory))}")


class LiveView(Lines):
    """Besides the lines, at the bottom: a bar, rate and time left, and the loss as a curve over its baselines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | Bar | None = None
        self._curve: list[float] = []

    def _show_work(self, unit: str, now: float) -> None:
        if isinstance(self._live, Bar) and self._live.tasks[0].description != self._work:
            self.close()
        if self._live is None and now - self._began >= _WORK_SECONDS:
            columns = (TextColumn("  {task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[amount]}"))
            self._bar = Bar(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task(self._work, amount="")
            self._live = self._bar
            self._live.start()
        if self._live is not None:
            amount = self._amount(unit, now)
            self._bar.update(self._task, completed=self._done, total=self._total or None, amount=amount)
        if self._done >= self._total > 0:
            self.close()

    def start(self, prepared: Prepared, first_step: int) -> None:
        """See `Progress`."""
        self.close()
        super().start(prepared, first_step)
        self._bar = Bar(
            TextColumn("  "),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} tokens/s  left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("", total=prepared.settings.steps, completed=first_step, loss="-", rate="-")
        self._live = Live(get_renderable=self._view, console=self.console, refresh_per_second=4)
        self._live.start()

    def _show_step(self, record: dict[str, Any]) -> None:
        if self._loss is not None:
            self._curve.append(self._loss)
        rate = f"{record['tokens_per_second']:,.0f}"
        self._bar.update(self._task, completed=record["step"] + 1, loss=self._loss_text(), rate=rate)

    def finish(self, result: TrainResult) -> None:
        """See `Progress`."""
        self.close()
        super().finish(result)

    def close(self) -> None:
        """Leave the terminal as it was; for a run that ends by an error, too."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _view(self) -> RenderableType:
        columns, rows = min(_CHART[0], self.console.width - 20), _CHART[1]
        if len(self._curve) < 2 or columns < 10 or self.console.height < rows + 4:
            return self._bar
        chart = (Text(line, style="cyan", no_wrap=True, overflow="ellipsis") for line in self._chart(columns, rows))
        return Group(*chart, self._bar)

    def _chart(self, columns: int, rows: int) -> Iterator[str]:
        wide = [self._curve[i * len(self._curve) // columns] for i in range(columns)]
        wide[-1] = self._curve[-1]
        levels = {
            "ln V": self._baselines.uniform,
            "unigram": self._baselines.unigram,
            "bigram": self._baselines.bigram,
        }
        top = max(self._baselines.uniform, max(wide))
        bottom = min(self._baselines.bigram, min(wide)) - 0.05 * (top - min(wide))
        height = max(top - bottom, 1e-6) / rows
        for row in range(rows):
            high, low = top - row * height, top - (row + 1) * height
            names = [f"{name} {level:.2f}" for name, level in levels.items() if low < level <= high]
            line = ""
            for value in wide:
                part = (value - low) / height
                empty = "╌" if names else " "
                line += "█" if part >= 1 else empty if part <= 0 else "▁▂▃▄▅▆▇█"[int(8 * part)]
            yield f"  {line} {', '.join(names)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
