"""A run as people watch it: a live view on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from glassgpt.terminal_text import visible
from glassgpt.training.bottom import Bottom
from glassgpt.training.chart import LINE, Curve, chart
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared, TrainResult

_LINE_SECONDS = 10.0
_WORK_SECONDS = 2.0  # work that is done sooner is not worth a word
_MOST_COLUMNS, _MOST_ROWS = 110, 20  # of the chart: more shows no more
_LEAST_BAR = 12


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
        self._curve = Curve()
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

    def history(self, records: list[dict[str, Any]]) -> None:
        """See `Progress`."""
        self._curve = Curve()
        for record in records:
            if record["kind"] == "step":
                self._curve.step(record["step"], record["loss"])
            else:
                self._curve.evaluation(record["step"], record["val_loss"])

    def start(self, prepared: Prepared, first_step: int) -> None:
        """See `Progress`."""
        for choice in prepared.choices:
            self.message(choice)
        b = prepared.baselines
        self.message(
            f"this text, nats per token: {b.uniform:.3f} with every token alike (ln V), {b.unigram:.3f} knowing how "
            f"common each is, {b.bigram:.3f} knowing the token before (bigram)"
        )
        assert prepared.settings.steps is not None
        self._baselines, self._steps, self._first_step = b.labelled(), prepared.settings.steps, first_step
        self._began = self._shown = time.monotonic()

    def step(self, record: dict[str, Any]) -> None:
        """See `Progress`."""
        self._curve.step(record["step"], record["loss"])
        self._show_step(record)

    def _show_step(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self.message(f"step {'  '.join(self._facts(record))}")

    def _facts(self, record: dict[str, Any]) -> list[str]:
        """How far the run is, its loss, its speed, the time left."""
        done = record["step"] + 1
        seconds = (time.monotonic() - self._began) / max(1, done - self._first_step)
        return [
            f"{done:,} of {self._steps:,}",
            "loss -" if self._curve.last is None else f"loss {self._curve.last[1]:.3f}",
            f"{record['tokens_per_second']:,.0f} tokens/s",
            f"{_clock(seconds * (self._steps - done))} left",
        ]

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """See `Progress`."""
        loss = record["val_loss"]
        self._curve.evaluation(record["step"], loss)
        below = [f"below {name}" for name, baseline in self._baselines.items() if loss < baseline]
        line = Text.assemble(
            f"step {record['step']:>6,}  epoch {record['epoch']:>4.1f}  ",
            (f"validation {loss:.3f}", "bold"),
            f"  {record['bits_per_byte']:.3f} bits per byte",
            (f"  {below[-1]}" if below else "", "green"),
            "" if best else "  (an earlier one was better)",
        )
        self.console.print(line)

    def saved(self, step: int) -> None:
        """See `Progress`."""
        self.message(f"step {step:>6,}  saved")

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
    """Besides the lines, at the bottom: the loss as a curve between its baselines, a bar, rate and time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | Bar | None = None
        self._saved = ""

    def _show_work(self, unit: str, now: float) -> None:
        if isinstance(self._live, Bar) and self._live.tasks[0].description != self._work:
            self.close()
        if self._live is None and now - self._began >= _WORK_SECONDS:
            columns = (TextColumn("  {task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[amount]}"))
            self._work_bar = Bar(*columns, console=self.console, transient=True)
            self._task = self._work_bar.add_task(self._work, amount="")
            self._live = self._work_bar
            self._live.start()
        if self._live is not None:
            amount = self._amount(unit, now)
            self._work_bar.update(self._task, completed=self._done, total=self._total or None, amount=amount)
        if self._done >= self._total > 0:
            self.close()

    def start(self, prepared: Prepared, first_step: int) -> None:
        """See `Progress`."""
        self.close()
        super().start(prepared, first_step)
        self._done, self._shown_facts = first_step, [f"{first_step:,} of {self._steps:,}"]
        self._live = Bottom(self._view, self.console)
        self._live.start()

    def _show_step(self, record: dict[str, Any]) -> None:
        self._done, self._shown_facts = record["step"] + 1, self._facts(record)

    def saved(self, step: int) -> None:
        """See `Progress`."""
        self._saved = f"saved at {step:,}"

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """See `Progress`."""
        self.saved(record["step"])
        super().evaluation(record, best)

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
        width = min(self.console.width - 1, _MOST_COLUMNS)  # a cursor in the last column is not the same everywhere
        bar = self._bar(width)
        # half of the screen, so that a screen that becomes narrower has room for the lines that it wraps
        rows = min(self.console.height // 2 - 3, _MOST_ROWS)
        return Group(*chart(self._curve, self._baselines, width, rows), bar)

    def _bar(self, width: int) -> Text:
        """How far the run is as a bar and in numbers, as many of them as there is room for."""
        done, *facts = self._shown_facts
        facts = [done, *facts[:1], *facts[2:], *facts[1:2], *([self._saved] if self._saved else [])]  # as they matter
        while len(facts) > 1 and sum(2 + len(fact) for fact in facts) + 2 + _LEAST_BAR > width:
            facts.pop()
        columns = min(40, width - 2 - sum(2 + len(fact) for fact in facts))
        if columns < _LEAST_BAR:
            return Text(f"  {facts[0]}", overflow="ellipsis", no_wrap=True)
        filled = round(columns * self._done / max(1, self._steps))
        return Text.assemble("  ", ("━" * filled, LINE), ("─" * (columns - filled), "dim"), "  ", "  ".join(facts))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
