"""How fast a model is, said before anybody asks."""

from __future__ import annotations

import queue
import time

from glassgpt.generation.options import Generation
from glassgpt.generation.row import Row
from glassgpt.server.engine import Events
from glassgpt.server.served import Served


def tokens_per_second(served: Served, prompt: str, n_tokens: int) -> float:
    """Of one text, through the engine, after a first one that warms it up. Errors are the engine's."""
    try:
        ids = served.check(served.encode(prompt))
    except Exception:  # a vocabulary without these letters
        ids = [0]
    n_tokens = min(n_tokens, served.context_length - len(ids))
    rate = 0.0
    for _ in range(2):
        row = Row(ids, served.tokenizer, Generation(max_new_tokens=n_tokens, temperature=0, ignore_eot=True))
        heard: queue.SimpleQueue[Events] = queue.SimpleQueue()
        began = time.perf_counter()
        served.engine.ask([row], heard.put)
        while row.finish_reason is None or not heard.empty():
            events = heard.get()
            if isinstance(events, Exception):
                raise events
        rate = row.n_drawn / (time.perf_counter() - began)
    return rate
