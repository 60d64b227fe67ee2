"""The one loop that drives a decoder: under `generate`, `stream`, the command line and the samples of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from glassgpt.generation.decoder import Decoder
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


def run(decoder: Decoder, rows: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """Generate until every row has finished; yields (row number, new text) for each token as it is drawn.

    The decoder's live rows must be none. A row that is full is dropped, and its `window` is added as a new row.
    """
    if not rows:
        return
    live = list(range(len(rows)))  # the row's number at each of the decoder's indices
    windows = [window(row, decoder.context_length) for row in rows]
    held = [len(tokens) for tokens in windows]  # by the row's number
    scores = decoder.add(windows)
    while True:
        for index, number in enumerate(live):
            yield number, rows[number].accept(rows[number].choose(scores[index]))
        moving = []
        for index in reversed(range(len(live))):
            row, full = rows[live[index]], held[live[index]] == decoder.context_length
            if full and row.finish_reason is None:
                moving.append(live[index])
            if full or row.finish_reason is not None:
                decoder.drop(index)
                live[index] = live[-1]  # as the decoder does
                live.pop()
        parts = []
        if live:
            parts.append(decoder.step([rows[number].ids[-1] for number in live]))
            for number in live:
                held[number] += 1
        if moving:
            windows = [window(rows[number], decoder.context_length) for number in moving]
            parts.append(decoder.add(windows))
            for number, tokens in zip(moving, windows, strict=True):
                held[number] = len(tokens)
            live += moving
        if not live:
            return
        scores = parts[0] if len(parts) == 1 else np.concatenate(parts)
