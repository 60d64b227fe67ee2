"""What several prompts begin with is read once: which prompts are known, and what was read for more than one of them.

No tensors here: a prefix is whatever the decoder says it is.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict, deque

from glassgpt.generation.decoder import Prefix

WORTH = 16
"""A pass over the weights takes as long as reading about so many tokens more in one: shorter beginnings don't count."""

Tokens = tuple[int, ...]


class Prefixes:
    """Shared beginnings of prompts, the least recently used out first. `limit` bounds what is kept, in tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: list[Tokens] = []  # prompts that wait and `_recent` ones, sorted: the most alike are neighbours
        self._recent: deque[Tokens] = deque()  # prompts whose reading has begun, the oldest first
        self._kept: OrderedDict[Tokens, Prefix] = OrderedDict()

    def expect(self, prompt: Tokens) -> None:
        """A prompt that will be read."""
        bisect.insort(self._known, prompt)

    def forget(self, prompt: Tokens) -> None:
        """A prompt that will not be read after all."""
        del self._known[bisect.bisect_left(self._known, prompt)]

    def begin(self, prompt: Tokens) -> int:
        """An expected prompt is read now. How many of its first tokens another one has, too; 0 for too few."""
        here = bisect.bisect_left(self._known, prompt)
        neighbours = self._known[max(0, here - 1) : here] + self._known[here + 1 : here + 2]
        shared = max((_common(prompt, other) for other in neighbours), default=0)
        self._recent.append(prompt)
        while sum(map(len, self._recent)) > self._limit:
            self.forget(self._recent.popleft())
        return shared if shared >= WORTH and self.fits(shared) else 0

    def fits(self, n_tokens: int) -> bool:
        """Whether so many could be kept at all."""
        return n_tokens <= self._limit

    def keep(self, tokens: Tokens, prefix: Prefix) -> None:
        """`prefix` is what was read of `tokens`, with which several prompts begin, or may, unless it is too long."""
        if not self.fits(len(tokens)):
            return
        self._kept[tokens] = prefix
        while sum(map(len, self._kept)) > self._limit:
            self._kept.popitem(last=False)

    def longest(self, prompt: Tokens) -> Prefix | None:
        """The longest that was kept of what `prompt` begins with; all of it only where its scores are known."""
        fitting = [
            tokens
            for tokens, prefix in self._kept.items()
            if prompt[: len(tokens)] == tokens and (len(tokens) < len(prompt) or prefix.scores is not None)
        ]
        if not fitting:
            return None
        best = max(fitting, key=len)
        self._kept.move_to_end(best)
        return self._kept[best]


def _common(a: Tokens, b: Tokens) -> int:
    """Length of what both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
