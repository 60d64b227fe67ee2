"""What becomes of a text that has outgrown the context."""

from __future__ import annotations

from glassgpt.generation.row import Row


def window_start(overflow: str, n_tokens: int, context_length: int) -> int:
    """How many of a text's first tokens are not seen when the one after `n_tokens` is computed; 0 while all fit.

    "slide": all but the last `context_length`. "shift": whenever one more token would not fit, the older half of those
    that are seen goes, rounded up, so that from `context_length // 2 + 1` to `context_length` are seen; llama.cpp calls
    it a context shift. Either way what is seen depends on the text alone, and not on where its prompt ended.
    """
    stride = (context_length + 1) // 2 if overflow == "shift" else 1
    beyond = max(0, n_tokens - context_length)
    return -(-beyond // stride) * stride


def window(row: Row, context_length: int) -> list[int]:
    """The tokens that a row's next one is computed from: to be read when the row begins, and again when it was full.

    GPT-2's positions are absolute, so when the window moves every key and value changes, and nothing that a decoder has
    cached can be kept.
    """
    start = window_start(row.overflow, len(row.ids), context_length)
    if start:
        row.outgrow(context_length)
    return row.ids[start:]
