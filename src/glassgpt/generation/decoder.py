"""The narrow interface between the scheduler of texts and the ways to compute its next scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from glassgpt.generation.options import Sampling

Scores = np.ndarray[Any, np.dtype[np.float32]]
"""(rows, vocab_size) float32: a score (logit) of each token to come next, for each row."""

Row = npt.NDArray[np.float32]
"""(vocab_size,): one row of `Scores`."""


class Prefix(Protocol):
    """Tokens that a decoder has read outside its batch: its own keys and values, which never change again."""

    @property
    def n_tokens(self) -> int:
        """How many they are, at least 1."""

    @property
    def scores(self) -> Row | None:
        """(vocab_size,) scores after the last of them; None for what a live row has left, until more is read."""


@runtime_checkable
class Decoder(Protocol):
    """A batch of live rows side by side, with indices from 0: `add` rows, `step` them all, `drop` one.

    What is read need not be a live row yet: `read` takes a prompt in pieces of any size, and `join` makes a live row of
    what was read, as often as one likes. A row may hold at most `context_length` tokens. What comes after that is the
    scheduler's business, not the decoder's.
    """

    vocab_size: int
    """Number of token ids that have a score."""
    context_length: int
    """The most tokens that a row may hold."""
    row_bytes: int = 0
    """Memory that a live row takes, in bytes; 0 where it is not worth counting."""

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> Prefix:
        """Read one or more tokens that follow `after`, or begin a text; the live rows and `after` stay as they are.

        `after` is one of this decoder's own. `ValueError` for no tokens, or for more than `context_length` in all.
        """

    def join(self, prefix: Prefix) -> None:
        """A new row after the live ones that holds a copy of `prefix`, which may join again."""

    def add(self, prompts: Sequence[Sequence[int]]) -> Scores:
        """`read` one or more prompts and let them `join`; scores after each. Nothing has joined where one is refused.

        A class that inherits `Decoder` has this method from it.
        """
        prefixes = [self.read(prompt) for prompt in prompts]
        for prefix in prefixes:
            self.join(prefix)
        return np.stack([prefix.scores for prefix in prefixes if prefix.scores is not None])

    def step(self, tokens: Sequence[int]) -> Scores:
        """Append one token to each live row; scores after them. `ValueError` where a row is full."""

    def drop(self, row: int) -> None:
        """Remove a live row; the last live row takes its index."""

    def rest(self) -> None:
        """Give back memory that is kept for live rows, where there are none for a while.

        A class that inherits `Decoder` has this method from it, which does nothing.
        """
        return


@runtime_checkable
class Speculative(Decoder, Protocol):
    """A decoder that can check guesses: append several tokens to a live row at once, and take the last ones back."""

    can_cut: bool
    """Whether tokens can be taken back; not where a sliding window's memory has dropped what they pushed out."""

    def extend(self, tokens: Sequence[Sequence[int]]) -> Scores:
        """Append any number of tokens, none too, to each live row; scores after every one, row by row.

        Shape (number of tokens in all, vocab_size). `ValueError` where they do not fit, with nothing changed.
        """

    def cut(self, row: int, n_tokens: int) -> None:
        """Keep the first tokens of a live row, as many as it holds or fewer; only where `can_cut`."""


@runtime_checkable
class ReadsAll(Decoder, Protocol):
    """A decoder that can tell the scores after each token that it reads, not only after the last."""

    def read_all(self, tokens: Sequence[int], after: Prefix | None = None) -> tuple[Prefix, Scores]:
        """`read`, and the scores after each of `tokens`, (n, vocab_size)."""


@runtime_checkable
class Leaves(Decoder, Protocol):
    """A decoder whose live rows can leave what they hold for those that begin with it."""

    def left_by(self, row: int, n_tokens: int) -> Prefix:
        """A copy of the first tokens of a live row, as many as it holds or fewer, without scores."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """How a live row draws its next tokens, as `sampling.draw` does where no option changes scores."""

    sampling: Sampling
    n_vocab: int
    """Only ids below it are drawn."""
    excluded: tuple[int, ...]
    """Ids that are not."""
    uniforms: Sequence[float]
    """The random number of each token."""


@runtime_checkable
class RunsAhead(Decoder, Protocol):
    """A decoder that can draw tokens itself, so that several steps are one call."""

    def run(self, tokens: Sequence[int], draws: Sequence[Draw]) -> tuple[list[list[int]], Scores]:
        """Append a token to each live row, then those that it draws; the drawn ones, and scores after the last.

        Each row draws as many tokens as it has random numbers, all rows equally many, or all of them fewer: where it is
        not certain that `sampling.draw` would draw the same token, nothing is drawn any more.
        """
