"""Text that is safe to print: no character in it is obeyed by a terminal."""

from __future__ import annotations

from collections.abc import Sequence

# C0, DEL and C1, which a terminal obeys; Unicode has pictures of the first two
_PICTURES: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd"), ord("\r"): None}


def visible(text: str) -> str:
    """`text` for a terminal: no character in it moves the cursor, changes colours or renames the window.

    Such characters are shown as pictures, such as ␛; carriage returns are left out.
    """
    return text.translate(_PICTURES)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    first, *others = widths
    lines = [
        f"| {cells[0]:<{first}} | {' | '.join(f'{c:>{w}}' for c, w in zip(cells[1:], others, strict=True))} |"
        for cells in (header, *rows)
    ]
    rule = f"|{'-' * (first + 2)}|{'|'.join('-' * (width + 1) + ':' for width in others)}|"
    return "\n".join([lines[0], rule, *lines[1:]])


def not_utf8(error: UnicodeDecodeError, at: int | None = None) -> str:
    """What is wrong with bytes that are no text, of which the bad one is `at` that offset, if that is known."""
    where = "" if at is None else f" at offset {at}"
    return f"not UTF-8 (byte {error.object[error.start]:#04x}{where})"


def one_line(message: object, limit: int | None = None) -> str:
    """A message, whoever wrote it, as one line that is safe to print, of at most `limit` characters."""
    line = visible(" ".join(str(message).split()))
    return line if limit is None or len(line) <= limit else line[: limit - 3] + "..."
