"""Text that is safe to print: no character in it is obeyed by a terminal."""

from __future__ import annotations

# C0, DEL and C1, which a terminal obeys; Unicode has pictures of the first two
_PICTURES: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd"), ord("\r"): None}


def visible(text: str) -> str:
    """`text` for a terminal: no character in it moves the cursor, changes colours or renames the window.

    Such characters are shown as pictures, such as ␛; carriage returns are left out.
    """
    return text.translate(_PICTURES)


def one_line(message: object, limit: int | None = None) -> str:
    """A message, whoever wrote it, as one line that is safe to print, of at most `limit` characters."""
    line = visible(" ".join(str(message).split()))
    return line if limit is None or len(line) <= limit else line[: limit - 3] + "..."
