"""Guesses at a row's next tokens, which the model checks in one pass: the same text in fewer passes.

The scheduler draws each token from the model's own scores, with the row's own random number, and a guess counts only
where it is the token that was drawn. So speculation changes no token, greedy or sampled (Leviathan et al. 2023 keep the
distribution; this keeps the draw, at the price of some guesses that their test would have taken).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from glassgpt.generation.decoder import Speculative
from glassgpt.generation.row import Row

MOST_GUESSES = 16
"""The most tokens that are proposed for a row in one step."""

_FIRST_GUESSES = 4
_LONGEST_REST = 32  # steps without a guess where none was right for long


@dataclasses.dataclass
class Tally:
    """What came of speculation."""

    n_proposed: int = 0
    n_accepted: int = 0
    n_drawn: int = 0
    """Tokens of the rows that speculate, guessed or not, but for the first of each."""

    def __str__(self) -> str:
        """One line for people."""
        guessed, drawn = 100 * self.n_accepted // max(1, self.n_proposed), 100 * self.n_accepted // max(1, self.n_drawn)
        return (
            f"speculation: {self.n_accepted} of {self.n_proposed} proposed tokens accepted ({guessed} %), "
            f"which is {drawn} % of the text"
        )


class Proposer(Protocol):
    """Guesses the next tokens of any number of rows."""

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        """For each row its guesses, in order; at most so many, and perhaps none."""

    def forget(self, row: Row) -> None:
        """The row is over or cancelled; one that was never seen is none of this proposer's."""


class Pace:
    """How many tokens to propose for one row: more while they are right, fewer and more seldom while they are not."""

    def __init__(self) -> None:
        self._n, self._rest, self._next_rest = _FIRST_GUESSES, 0, 1

    def wanted(self) -> int:
        """For the next step; 0 is a rest."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._n

    def heard(self, n_proposed: int, n_accepted: int) -> None:
        """What became of one or more guesses."""
        if n_accepted:
            grown = 2 * self._n if n_accepted == n_proposed else n_accepted + 1
            self._n, self._next_rest = min(MOST_GUESSES, grown), 1
        elif self._n > 1:
            self._n //= 2
        else:
            self._rest, self._next_rest = self._next_rest, min(_LONGEST_REST, 2 * self._next_rest)


class PromptLookup:
    """What followed the row's last few tokens where they stood before in its own text (Saxena 2023)."""

    def __init__(self, sizes: Sequence[int] = (4, 3, 2)) -> None:
        """`sizes`: how many last tokens to look for, the best first."""
        self._sizes = sizes
        self._known: dict[Row, tuple[dict[tuple[int, ...], int], int]] = {}

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        """See `Proposer`."""
        return [self._one(row, n) if n else [] for row, n in zip(rows, most, strict=True)]

    def _one(self, row: Row, most: int) -> list[int]:
        ids = row.ids
        ends, n_known = self._known.get(row, ({}, 0))
        for end in range(n_known + 1, len(ids)):  # before the last token: something follows
            for size in self._sizes:
                if size <= end:
                    ends[tuple(ids[end - size : end])] = end
        self._known[row] = ends, max(n_known, len(ids) - 1)
        for size in self._sizes:
            end = ends.get(tuple(ids[-size:]), 0) if size < len(ids) else 0
            if end:
                period = len(ids) - end  # what follows may run into the guesses themselves: then it is repeated
                return [ids[end + i % period] for i in range(most)]
        return []

    def forget(self, row: Row) -> None:
        """See `Proposer`."""
        self._known.pop(row, None)


@dataclasses.dataclass
class _Held:
    """A live row of the draft's decoder."""

    start: int
    """Tokens of the text before those it holds."""
    tokens: list[int]
    n_sure: int = 0
    """So many of them are text, not guesses."""


class DraftModel:
    """What a smaller model with the same tokenizer would write, drawn with the random numbers that the row will use.

    Where both models agree on the probabilities, so do their draws. Its context may be smaller than the model's: when
    it is full, it reads the last half of it again.
    """

    def __init__(self, decoder: Speculative) -> None:
        """`decoder`, whose rows can be cut, has no live rows and gets them from here alone."""
        self._decoder = decoder
        self._rows: list[Row] = []  # at the decoder's indices
        self._held: dict[Row, _Held] = {}

    def propose(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        """See `Proposer`."""
        guesses: dict[Row, list[int]] = {row: [] for row in rows}
        wanted = dict(zip(rows, most, strict=True))
        context = self._decoder.context_length
        new: dict[Row, list[int]] = {row: self._unread(row, n) for row, n in wanted.items() if n}
        while new:
            scores = iter(self._decoder.extend([new.get(row, []) for row in self._rows]))
            going: dict[Row, list[int]] = {}
            for row in self._rows:
                tokens, held = new.get(row, []), self._held[row]
                held.tokens += tokens
                last = [next(scores) for _ in tokens][-1:]
                for score in last:
                    guess = row.guess(score, len(guesses[row]))
                    guesses[row].append(guess)
                    if len(guesses[row]) < wanted[row] and len(held.tokens) < context:
                        going[row] = [guess]
            new = going
        return [guesses[row] for row in rows]

    def _unread(self, row: Row, n_wanted: int) -> list[int]:
        """The end of the row's text that its draft does not hold, at least one token; wrong guesses are cut off."""
        context = self._decoder.context_length
        held = self._held.get(row)
        if held is not None and len(row.ids) - held.start + n_wanted - 1 > context:
            self.forget(row)
            held = None
        if held is None:
            fits = len(row.ids) + n_wanted - 1 <= context
            start = 0 if fits else max(0, len(row.ids) - max(1, context // 2))
            text = row.ids[start:]
            prefix = self._decoder.read(text)
            held = self._held[row] = _Held(start, text, len(text))
            self._decoder.join(prefix)
            self._rows.append(row)
        text = row.ids[held.start :]
        n = min(held.n_sure, len(text) - 1)
        while n < min(len(held.tokens), len(text) - 1) and held.tokens[n] == text[n]:
            n += 1
        if n < len(held.tokens):
            self._decoder.cut(self._rows.index(row), n)
            del held.tokens[n:]
        held.n_sure = len(text)
        return text[n:]

    def forget(self, row: Row) -> None:
        """See `Proposer`."""
        self._held.pop(row, None)
        if row in self._rows:
            index = self._rows.index(row)
            self._decoder.drop(index)
            self._rows[index] = self._rows[-1]  # as the decoder does
            self._rows.pop()
