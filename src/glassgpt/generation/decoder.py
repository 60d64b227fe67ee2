"""The narrow interface between the loop that generates text and the ways to compute its next scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Scores = np.ndarray[Any, np.dtype[np.float32]]
"""(rows, vocab_size) float32: a score (logit) of each token to come next, for each row."""

Row = npt.NDArray[np.float32]
"""(vocab_size,): one row of `Scores`."""


@runtime_checkable
class Decoder(Protocol):
    """A batch of live rows side by side, with indices from 0: `add` rows, `step` them all, `drop` one.

    A row may hold at most `context_length` tokens. What comes after that is the loop's business, not the decoder's.
    """

    @property
    def vocab_size(self) -> int:
        """Number of token ids that have a score."""

    @property
    def context_length(self) -> int:
        """The most tokens that a row may hold."""

    def add(self, prompts: Sequence[Sequence[int]]) -> Scores:
        """Read one or more prompts as new rows after the live ones; scores after each of them.

        `ValueError` for an empty prompt or one longer than `context_length`.
        """

    def step(self, tokens: Sequence[int]) -> Scores:
        """Append one token to each live row; scores after them. `ValueError` where a row is full."""

    def drop(self, row: int) -> None:
        """Remove a live row; the last live row takes its index."""
