"""A run as people watch it: a live view on a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from glassgpt.training.progress import Progress

if TYPE_CHECKING:
    from glassgpt.training.prepare import Prepared
    from glassgpt.training.train import TrainResult

_LINE_SECONDS = 10.0
_CHART = (60, 10)  # columns, rows
_SMOOTHING = 0.95


def progress_for(stream: IO[str], live: bool | None = None) -> Progress:
    """A live view if `stream` is a terminal (or `live` says so), plain lines otherwise."""
    console = Console(file=stream, highlight=False, soft_wrap=True)
    return LiveView(console) if (console.is_terminal if live is None else live) else Lines(console)


class Lines(Progress):
    """One line for each thing that happens, and one every ten seconds of training."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._loss: float | None = None
        self._began = self._shown = time.monotonic()

    def message(self, text: str) -> None:
        """See `Progress`."""
        self._print(Text(text))

    def start(self, prepared: Prepared, dtype: str, first_step: int) -> None:
        """See `Progress`."""
        for choice in prepared.choices:
            self.message(choice)
        self.message(f"numbers: {dtype}")
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
        self._loss = loss if self._loss is None else _SMOOTHING * self._loss + (1 - _SMOOTHING) * loss
        self._show_step(record)

    def _show_step(self, record: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown >= _LINE_SECONDS:
            self._shown = now
            done = record["step"] + 1
            left = (now - self._began) / max(1, done - self._first_step) * (self._settings.steps - done)
            self.message(
                f"step {done:,} of {self._settings.steps:,}  loss {self._loss:.3f}  "
                f"{record['tokens_per_second']:,.0f} tokens/s  {left:.0f} s left"
            )

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """See `Progress`."""
        loss = record["val_loss"]
        names = (("uniform", "ln V"), ("unigram", "unigram"), ("bigram", "bigram"))
        below = [f"below {name}" for key, name in names if loss < getattr(self._baselines, key)]
        line = Text.assemble(
            f"step {record['step']:>6,}  ",
            (f"validation {loss:.3f}", "bold"),
            f"  {record['bits_per_byte']:.3f} bits per byte",
            (f"  {below[-1] if below else ''}", "green"),
            "" if best else "  (an earlier one was better, and is kept)",
        )
        self._print(line)

    def sample(self, text: str) -> None:
        """See `Progress`."""
        self._print(Text("    " + " ".join(text.split()), style="dim italic"))

    def finish(self, result: TrainResult) -> None:
        """See `Progress`."""
        ended = "done" if result.finished else "stopped"
        self.message(
            f"{ended} after {result.steps:,} steps: best validation loss {result.best_val_loss:.3f}, "
            f"saved in {result.directory}"
        )
        if not result.finished:
            self.message(f"go on with: glassgpt train --resume --out {result.directory}")

    def _print(self, line: Text) -> None:
        self.console.print(line)


class LiveView(Lines):
    """Besides the lines, at the bottom: a bar, rate and time left, and the loss as a curve over its baselines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live: Live | None = None
        self._curve: list[float] = []

    def start(self, prepared: Prepared, dtype: str, first_step: int) -> None:
        """See `Progress`."""
        super().start(prepared, dtype, first_step)
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
        assert self._loss is not None
        self._curve.append(self._loss)
        rate = f"{record['tokens_per_second']:,.0f}"
        self._bar.update(self._task, completed=record["step"] + 1, loss=f"{self._loss:.3f}", rate=rate)

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
        chart = [Text(line, style="cyan") for line in self._chart()] if len(self._curve) > 1 else []
        return Group(*chart, self._bar)

    def _chart(self) -> Iterator[str]:
        columns, rows = _CHART
        wide = [self._curve[i * len(self._curve) // columns] for i in range(columns)]
        wide[-1] = self._curve[-1]
        levels = {
            "ln V": self._baselines.uniform,
            "unigram": self._baselines.unigram,
            "bigram": self._baselines.bigram,
        }
        top = max(self._baselines.uniform, max(wide))
        bottom = min(self._baselines.bigram, min(wide)) - 0.05 * (top - min(wide))
        height = (top - bottom) / rows
        for row in range(rows):
            high, low = top - row * height, top - (row + 1) * height
            names = [f"{name} {level:.2f}" for name, level in levels.items() if low < level <= high]
            line = ""
            for value in wide:
                part = (value - low) / height
                empty = "╌" if names else " "
                line += "█" if part >= 1 else empty if part <= 0 else "▁▂▃▄▅▆▇█"[int(8 * part)]
            yield f"  {line} {', '.join(names)}"
