"""What becomes of a text that has outgrown the context."""

from __future__ import annotations

from glassgpt.generation.row import Row


def window(row: Row, context_length: int) -> list[int]:
    """The tokens that a row's next one is drawn after: the scheduler reads them when it begins and when it is full.

    They are all that it has, or once those are too many the last `context_length`: the row slides. GPT-2's positions
    are absolute, so when the window moves every key and value changes, and nothing that a decoder holds can be kept.
    """
    return row.ids[-context_length:]
