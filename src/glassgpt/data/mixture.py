"""Several token sequences read by weight: which one each row of a run comes from, decided ahead of time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

PERIOD = 10_000
"""Rows in which each source has exactly its share: weights count to four digits."""
_SALT = 0x6D69785F726F7773  # other random numbers than those that order the blocks of an epoch


class Tokens(Protocol):
    """A 1-D array of token ids, or what stands for one: a memory map, a `TokenSequence`."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> npt.NDArray[Any]: ...


class Mixture:
    """Token sequences with weights, of which each row of a batch takes one.

    In every `PERIOD` rows each source comes its exact number of times, in an order that depends on seed and period
    alone. `ValueError` for weights that are not positive, or too small to come at all.
    """

    def __init__(self, sources: Sequence[Tokens], weights: Sequence[float]) -> None:
        self.sources = list(sources)
        self.weights = normalised(weights)
        parts = [weight * PERIOD for weight in self.weights]
        self.rows = [math.floor(part) for part in parts]  # of each source in a period
        for i in sorted(range(len(parts)), key=lambda i: self.rows[i] - parts[i])[: PERIOD - sum(self.rows)]:
            self.rows[i] += 1
        if min(self.rows) == 0:
            raise ValueError(f"weight {min(self.weights):g} of the whole is too small: at least {1 / PERIOD:g}")

    def __len__(self) -> int:
        """Tokens of a run in which the source that is read most often is read once."""
        return self._whole_of(math.inf)

    def head(self, n: float = math.inf) -> list[npt.NDArray[Any]]:
        """Of each source its beginning, in the shares of the weights, `n` tokens in all or as many as there are."""
        return [source[:count] for source, count in zip(self.sources, self.shares(n), strict=True)]

    def shares(self, n: float = math.inf) -> list[int]:
        """How many tokens of each source `head` takes."""
        whole = self._whole_of(n)
        return [int(weight * whole) for weight in self.weights]

    def _whole_of(self, n: float) -> int:
        pairs = zip(self.sources, self.weights, strict=True)
        return int(min(n, *(len(source) / weight for source, weight in pairs)))

    def period(self, seed: int, number: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """(source, which of that source's rows, from 0) of each row of a period."""
        random = np.random.Philox(key=np.array([seed ^ _SALT, number], dtype=np.uint64)).random_raw(PERIOD)
        source = np.repeat(np.arange(len(self.rows)), self.rows)[np.argsort(random, kind="stable")]
        row = np.zeros(PERIOD, np.int64)
        for i, n in enumerate(self.rows):
            row[source == i] = number * n + np.arange(n)
        return source, row


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights as parts of the whole; `ValueError` unless each is above 0 and finite."""
    for weight in weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"weight {weight:g} must be above 0")
    total = sum(weights)
    return [weight / total for weight in weights]


def first_tokens(tokens: Tokens | Mixture, n: int) -> npt.NDArray[Any]:
    """At most `n` tokens from the beginning; of a mixture from the beginning of each source."""
    if isinstance(tokens, Mixture):
        return np.concatenate(tokens.head(n))
    return tokens[:n]
