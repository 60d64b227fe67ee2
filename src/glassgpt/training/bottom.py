"""What stays at the bottom of a terminal while lines scroll past above it, also when the terminal changes its size."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
from rich.live import Live
from rich.segment import ControlType, Segment


class Bottom(Live):
    """A `Live` that leaves nothing behind when the terminal changes its width.

    A terminal that becomes narrower wraps the lines it shows, often before it tells us. Rich's `Live` goes up as many
    rows as it drew and leaves the others standing, again and again. Here the cursor waits at the start of the first
    line, which a terminal keeps track of: all below it is erased, however it is wrapped. While the size is changing
    nothing is drawn, because each drawing that is wrapped moves what is above it out of reach.
    """

    def __init__(self, view: Callable[[], RenderableType], console: Console) -> None:
        self._rows = 0  # that are drawn below the cursor
        self._size = console.size
        super().__init__(get_renderable=view, console=console, refresh_per_second=4)

    def refresh(self) -> None:
        """Draw again, unless the terminal's size is another than it was a moment ago."""
        before, self._size = self._size, self.console.size
        if self._size == before or not self.is_started:
            super().refresh()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What rich is about to print, with our lines erased before it and drawn again after it."""
        if not self.console.is_interactive or self.console.legacy_windows:
            return super().process_renderables(renderables)
        lines = self.console.render_lines(self.get_renderable(), pad=False)
        erase = _Codes("\r\x1b[J" if self._rows else "")
        self._rows = len(lines)
        up = f"\x1b[{self._rows - 1}A" if self._rows > 1 else ""
        # without wrapping, for a terminal that has become narrower in this moment: a line is a row
        return [erase, *renderables, _Codes("\x1b[?7l"), _Lines(lines), _Codes(f"\x1b[?7h\r{up}")]

    def stop(self) -> None:
        """The last state stays on the screen, and what comes next goes below it."""
        super().stop()
        if self._rows:
            self.console.print(_Codes("\n" * self._rows), end="")
            self._rows = 0


class _Codes:
    """What commands the terminal and takes no room."""

    def __init__(self, codes: str) -> None:
        self._codes = codes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self._codes, None, [(ControlType.CARRIAGE_RETURN,)])  # any type marks a text as control codes


class _Lines:
    """Lines as they were rendered, without an end of line after the last one."""

    def __init__(self, lines: list[list[Segment]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for n, line in enumerate(self._lines):
            if n:
                yield Segment.line()
            yield from line
