"""What could have come at one place of a text: the candidates, their probabilities, and what each filter removed.

It says what `sampling` does, by asking it: a filter removed what `sampling.candidates` keeps without it and drops with
it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from glassgpt.generation.decoder import Row
from glassgpt.generation.options import Sampling
from glassgpt.generation.sampling import adjusted, candidates
from glassgpt.tokenizer import Tokenizer

FILTERS = ("temperature", "top_k", "top_p", "min_p")
"""What may remove a token, in the order in which they apply; a temperature does at 0."""

_BINS = 128


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A token that might have come."""

    id: int
    text: str
    rank: int
    """1 for the best, by `adjusted`."""
    score: float
    """The model's own."""
    adjusted: float
    """The score after the bias and the penalties."""
    probability: float
    """By the model alone: the softmax of its scores over the tokens there are."""
    final: float
    """The probability that it is drawn with, after penalties, temperature and filters; 0 where it was removed."""
    removed_by: str | None
    """One of `FILTERS`; None where it was kept."""


@dataclasses.dataclass(frozen=True)
class Removed:
    """What one filter took from what the one before it kept."""

    filter: str
    n_tokens: int
    probability: float
    """Of those tokens together, after the penalties and the temperature, before any filter."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One token's choice among all."""

    candidates: list[Candidate]
    """The best, best first."""
    removed: list[Removed]
    """For each filter that removed something."""
    n_tokens: int
    """How many tokens there were to choose from."""
    rest: list[tuple[float, int]]
    """What is not among the candidates, in bins: (score after bias and penalties, how many tokens), highest first.

    With it a softmax at any temperature can be computed without all scores; at 1 it is exact.
    """

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with scores to 5 decimals and probabilities to 6 digits."""
        result = dataclasses.asdict(self)
        for candidate in result["candidates"]:
            candidate |= {key: round(candidate[key], 5) for key in ("score", "adjusted")}
            candidate |= {key: float(f"{candidate[key]:.6g}") for key in ("probability", "final")}
        return result | {"rest": [(round(score, 5), n) for score, n in self.rest]}


def explain_choice(
    sampling: Sampling,
    scores: Row,
    tokenizer: Tokenizer,
    history: Sequence[int] = (),
    *,
    drawn: Mapping[int, int] | None = None,
    n: int = 50,
    also: Collection[int] = (),
) -> Choice:
    """How `sampling` chooses from the (vocab_size,) `scores` that follow the ids of `history`.

    `drawn` says how often each token was drawn, for the penalties that go by that. The result has the `n` best
    candidates, and those of `also`, which are ids. `ValueError` for scores that are not finite.
    """
    drawn = drawn or {}
    scores = scores[: tokenizer.n_vocab]
    before = np.array(adjusted(sampling, scores, history, drawn=drawn), dtype=np.float64)
    own = _softmax(scores.astype(np.float64))
    final = np.zeros(len(scores))
    ids, probabilities = candidates(sampling, scores, history, drawn=drawn)
    final[ids] = probabilities

    removed_by, removed = _removals(sampling, scores, history, drawn, ids)
    order = np.argsort(-before, kind="stable")
    ranks = np.empty_like(order)
    ranks[order] = np.arange(1, len(order) + 1)
    shown = sorted({*order[:n].tolist(), *(i for i in also if 0 <= i < len(scores))}, key=lambda i: int(ranks[i]))
    best = [
        Candidate(
            id=i,
            text=tokenizer.decode([i]),
            rank=int(ranks[i]),
            score=float(scores[i]),
            adjusted=float(before[i]),
            probability=float(own[i]),
            final=float(final[i]),
            removed_by=FILTERS[removed_by[i]] if removed_by[i] >= 0 else None,
        )
        for i in shown
    ]
    return Choice(best, removed, len(scores), _bins(np.delete(before, shown)))


def _removals(
    sampling: Sampling, scores: Row, history: Sequence[int], drawn: Mapping[int, int], kept: Any
) -> tuple[Any, list[Removed]]:
    """The number of the filter that removed each token, -1 for none, and what each removed in all."""
    # at a temperature of 0 nothing but the best is left: what it removed is told at 1
    so_far = sampling.replace(temperature=sampling.temperature or 1.0, top_k=None, top_p=None, min_p=None)
    ids, probabilities = candidates(so_far, scores, history, drawn=drawn)
    tempered = np.zeros(len(scores))
    tempered[ids] = probabilities

    removed_by, left = np.full(len(scores), -1), np.ones(len(scores), dtype=bool)
    removed = []
    for number, name in enumerate(FILTERS):
        if getattr(so_far, name) == getattr(sampling, name):
            continue
        so_far = so_far.replace(**{name: getattr(sampling, name)})
        ids = kept if so_far == sampling else candidates(so_far, scores, history, drawn=drawn)[0]
        now = np.zeros(len(scores), dtype=bool)
        now[ids] = True
        gone = left & ~now
        removed_by[gone] = number
        left &= now
        if gone.any():
            removed.append(Removed(name, int(gone.sum()), float(tempered[gone].sum())))
    return removed_by, removed


def _bins(scores: Any) -> list[tuple[float, int]]:
    """Equal steps from the highest score to the lowest; each bin's score is the one that all in it weigh alike with."""
    if not len(scores):
        return []
    high, low = float(scores.max()), float(scores.min())
    width = (high - low) / _BINS or 1.0
    bins = np.minimum(((high - scores) / width).astype(int), _BINS - 1)
    counts = np.bincount(bins)
    weights = np.bincount(bins, weights=np.exp(scores - (high - bins * width)))
    filled = np.flatnonzero(counts)
    means = high - filled * width + np.log(weights[filled] / counts[filled])
    return list(zip(means.tolist(), counts[filled].tolist(), strict=True))


def _softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()
