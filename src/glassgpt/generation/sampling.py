"""Which token comes next: greedy, temperature, top-k, top-p, min-p, repetition penalty.

Probabilities are computed in float64 over the tokens that were kept, so a token that was excluded, or whose probability
is 0, cannot be drawn. Hardly anything is sorted: a vocabulary of 50,257 takes less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.generation.decoder import Row
from glassgpt.generation.options import Sampling

Ids = npt.NDArray[np.intp]
Probabilities = npt.NDArray[np.float64]


class UniformStream:
    """Uniform float64 numbers from [0, 1) of one row. The same seed gives the same numbers in every NumPy release."""

    def __init__(self, seed: int | None) -> None:
        """`seed` from 0 to 2**64 - 1; None draws a fresh one."""
        # raw words, because NumPy promises their stream for all versions, but not that of its distributions
        self._random = np.random.Philox() if seed is None else np.random.Philox(key=seed)

    def draw(self) -> float:
        """The next number."""
        return (int(self._random.random_raw()) >> 11) * 2.0**-53


def candidates(sampling: Sampling, scores: Row, history: Collection[int] = ()) -> tuple[Ids, Probabilities]:
    """The kept token ids, most probable first, and their probabilities, which sum to 1.

    `scores` is (vocab_size,); `history` holds the ids already in the text. Equal tokens come in the order of their ids.
    Raises `ValueError` for scores that are not finite: the model is broken, or its dtype too narrow.
    """
    ids, probabilities = _kept(sampling, scores, history)
    order = np.argsort(-probabilities, kind="stable")
    return ids[order], probabilities[order]


def draw(sampling: Sampling, scores: Row, history: Collection[int], uniform: float) -> int:
    """One token id: the cumulative distribution over the kept ids, inverted at `uniform` from [0, 1)."""
    ids, probabilities = _kept(sampling, scores, history)
    if len(ids) == 1:
        return int(ids[0])
    cumulative = probabilities.cumsum()
    # side="right": the first index strictly above, so a probability of 0 is never hit, not even by 0.0 itself
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(ids[min(index, int(np.flatnonzero(probabilities)[-1]))])


def _kept(sampling: Sampling, scores: Row, history: Collection[int]) -> tuple[Ids, Probabilities]:
    """As `candidates`, in the order of ids."""
    scores = _penalised(scores, history, sampling.repetition_penalty)
    best = scores.max()
    if not np.isfinite(best):  # a NaN anywhere makes the maximum NaN; single scores may be -inf: excluded
        raise ValueError("the model's scores are not finite: its weights are damaged or its dtype overflows")
    if sampling.temperature == 0 or sampling.top_k == 1:
        return np.array([scores.argmax()]), np.ones(1)
    ids = _largest(scores, sampling.top_k)
    with np.errstate(over="ignore"):  # a small temperature may send a score to -inf, whose exp is 0
        # shifted to a best score of 0 first, so that none overflows upwards
        weights = np.exp((scores[ids].astype(np.float64) - best) / sampling.temperature)
    probabilities = weights / weights.sum()
    if sampling.top_p is not None and sampling.top_p < 1:
        nucleus = _nucleus(probabilities, sampling.top_p)
        ids, probabilities = ids[nucleus], _normalised(probabilities[nucleus])
    if sampling.min_p:
        likely = probabilities >= sampling.min_p * probabilities.max()
        ids, probabilities = ids[likely], _normalised(probabilities[likely])
    return ids, probabilities


def _penalised(scores: Row, history: Collection[int], penalty: float) -> Row:
    """Scores of tokens already in the text divided by `penalty` if positive, multiplied by it if negative."""
    seen = [i for i in set(history) if i < len(scores)] if penalty != 1 else []
    if not seen:
        return scores
    scores, old = scores.copy(), scores[seen]
    scores[seen] = np.where(old > 0, old / np.float32(penalty), old * np.float32(penalty))
    return scores


def _largest(values: npt.NDArray[Any], k: int | None) -> Ids:
    """Indices of the `k` largest values in ascending order; of equal ones the first are taken."""
    if k is None or k >= len(values):
        return np.arange(len(values))
    smallest_kept = np.partition(values, len(values) - k)[len(values) - k]
    above, equal = np.flatnonzero(values > smallest_kept), np.flatnonzero(values == smallest_kept)
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))


def _nucleus(probabilities: Probabilities, p: float) -> Ids:
    """Indices, in ascending order, of the fewest most probable entries whose sum reaches `p`."""
    # Entries below this have less than 1 - p together, so none of them is needed: few are left to be sorted.
    needed = probabilities[probabilities >= (1 - p) / len(probabilities)]
    descending = np.sort(needed)[::-1]
    before = descending.cumsum() - descending
    return _largest(probabilities, max(1, int((before < p).sum())))


def _normalised(probabilities: Probabilities) -> Probabilities:
    return probabilities / probabilities.sum()
