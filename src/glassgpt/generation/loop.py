"""The one loop that drives a decoder: under `generate`, `stream`, the command line and the samples of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from glassgpt.generation.decoder import Decoder
from glassgpt.generation.row import Row


def run(decoder: Decoder, rows: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """Generate until every row has finished; yields (row number, new text) for each token as it is drawn.

    The decoder's live rows must be none. A row that is full slides: it is dropped and its last `context_length` tokens
    are added as a new row. GPT-2's positions are absolute, so when the window moves every key and value changes, and
    nothing that a decoder has cached can be kept.
    """
    if not rows:
        return
    live = list(range(len(rows)))  # the row's number at each of the decoder's indices
    scores = decoder.add([row.ids[-decoder.context_length :] for row in rows])
    while True:
        for index, number in enumerate(live):
            yield number, rows[number].accept(rows[number].choose(scores[index]))
        sliding = []
        for index in reversed(range(len(live))):
            row = rows[live[index]]
            full = len(row.ids) > decoder.context_length
            if full and row.finish_reason is None:
                sliding.append(live[index])
            if full or row.finish_reason is not None:
                decoder.drop(index)
                live[index] = live[-1]  # as the decoder does
                live.pop()
        parts = []
        if live:
            parts.append(decoder.step([rows[number].ids[-1] for number in live]))
        if sliding:
            parts.append(decoder.add([rows[number].ids[-decoder.context_length :] for number in sliding]))
            live += sliding
        if not live:
            return
        scores = parts[0] if len(parts) == 1 else np.concatenate(parts)
