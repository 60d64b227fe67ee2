"""What stays at the bottom of the screen, on a small terminal of our own that wraps again as today's do."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console, Group
from rich.text import Text

from glassgpt.training.bottom import Bottom


class Terminal:
    """Rows that scroll, a cursor, and the codes that are used here."""

    def __init__(self, width: int) -> None:
        self.width, self.wraps = width, True
        self.lines = [""]  # each as long as what was written to it; it is shown in pieces of `width`
        self.y = 0
        self.x = 0

    def rows(self) -> list[str]:
        return [line[n : n + self.width] for line in self.lines for n in range(0, max(1, len(line)), self.width)]

    def write(self, text: str) -> None:
        for code in re.findall(r"\x1b\[\??\d*[A-Za-z]|[\r\n]|[^\x1b\r\n]", text):
            if code == "\r":
                self.x = 0
            elif code == "\n":
                self.x, self.y = 0, self.y + 1
                self.lines += [""] * (self.y >= len(self.lines))
            elif code == "\x1b[J":
                del self.lines[self.y + 1 :]
                self.lines[self.y] = self.lines[self.y][: self.x]
            elif code.endswith("A"):
                self.y -= int(code[2:-1])
            elif code in ("\x1b[?7l", "\x1b[?7h"):
                self.wraps = code.endswith("h")
            elif not code.startswith("\x1b"):
                line = self.lines[self.y]
                if self.wraps or self.x < self.width:
                    self.lines[self.y] = f"{line[: self.x]:{self.x}}{code}{line[self.x + 1 :]}"
                    self.x += 1


def console(width: int) -> Console:
    return Console(file=StringIO(), width=width, height=24, force_terminal=True, color_system=None)


def show(live: Bottom, terminal: Terminal) -> list[str]:
    """The rows on the screen after all that was printed since the last time."""
    assert isinstance(live.console.file, StringIO)
    terminal.write(live.console.file.getvalue())
    live.console.file.seek(0)
    live.console.file.truncate()
    return terminal.rows()


def bottom(width: int) -> tuple[Bottom, list[str]]:
    lines = ["chart " + "-" * (width - 7), "bar"]
    live = Bottom(lambda: Group(*map(Text, lines)), console(width))
    live.auto_refresh = False  # no thread: the test says when
    return live, lines


def test_lines_go_above_and_the_bottom_is_there_once() -> None:
    live, lines = bottom(40)
    terminal = Terminal(40)
    live.start()
    for n in range(3):
        live.console.print(f"message {n}")
        live.refresh()
        assert show(live, terminal) == [*(f"message {m}" for m in range(n + 1)), *lines]
    live.stop()
    live.console.print("done")
    assert show(live, terminal) == ["message 0", "message 1", "message 2", *lines, "done", ""]


def test_a_terminal_that_becomes_narrower_keeps_nothing_of_what_was_drawn() -> None:
    live, lines = bottom(40)
    terminal = Terminal(40)
    live.start()
    live.console.print("message")
    assert len(show(live, terminal)) == 3
    terminal.width = 15  # before we are told
    assert len(terminal.rows()) == 5
    live.refresh()
    assert show(live, terminal) == ["message", lines[0][:15], "bar"]
    live.console.size = (15, 24)  # type: ignore[assignment]
    lines[:] = ["narrow", "bar"]
    live.refresh()
    live.refresh()
    assert show(live, terminal) == ["message", "narrow", "bar"]
    terminal.width = 40
    live.console.size = (40, 24)  # type: ignore[assignment]
    lines[:] = ["wide again", "bar"]
    live.refresh()
    live.refresh()
    live.stop()
    assert show(live, terminal) == ["message", "wide again", "bar", ""]


def test_nothing_is_drawn_while_the_size_is_changing() -> None:
    live, _ = bottom(40)
    live.start()
    live.refresh()
    show(live, Terminal(40))
    for width in (38, 36, 34):
        live.console.size = (width, 24)  # type: ignore[assignment]
        live.refresh()
        assert live.console.file.getvalue() == ""  # type: ignore[attr-defined]
    live.refresh()
    assert "bar" in live.console.file.getvalue()  # type: ignore[attr-defined]
    live.console.size = (30, 24)  # type: ignore[assignment]
    live.stop()  # the last state is drawn whatever the size does
    assert live.console.file.getvalue().count("bar") == 2  # type: ignore[attr-defined]


def test_nothing_drawn_is_nothing_left() -> None:
    live, _ = bottom(40)
    live.stop()
    assert live.console.file.getvalue() == ""  # type: ignore[attr-defined]
