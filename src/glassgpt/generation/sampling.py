"""Which token comes next: greedy, temperature, top-k, top-p, min-p, penalties, biases.

A token that was excluded, or whose probability is 0, cannot be drawn. Next to the model this costs nothing: filters are
thresholds on the scores, exponentials are float32 and of what the filters keep, and no more is sorted than the tokens
near a cut. `benchmarks/sampling.py` measures it.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.generation.decoder import Row
from glassgpt.generation.options import Sampling

Ids = npt.NDArray[np.intp]
Probabilities = npt.NDArray[np.float64]

_NOTHING: Mapping[int, int] = {}
_LARGEST = np.finfo(np.float32).max
_BLOCK = 128  # weights that are summed before anything looks at single ones
_BINS = 256  # of top-p, between the best token and the first that cannot be needed


class _Memory(threading.local):
    """Two arrays as long as a vocabulary, for each thread. New ones can cost more than all that is computed in them:
    the system may hand them out page by page, for each token again.
    """

    def __init__(self) -> None:
        self._arrays = np.empty((2, 0), dtype=np.float32)

    def like(self, scores: Row) -> tuple[Row, Row]:
        """Two arrays of the shape and type of `scores`, which hold anything."""
        if self._arrays.shape[1:] != scores.shape or self._arrays.dtype != scores.dtype:
            self._arrays = np.empty((2, *scores.shape), dtype=scores.dtype)
        return self._arrays[0], self._arrays[1]


_memory = _Memory()


class UniformStream:
    """Uniform float64 numbers from [0, 1) of one row. The same seed gives the same numbers in every NumPy release."""

    def __init__(self, seed: int | None) -> None:
        """`seed` from 0 to 2**64 - 1; None draws a fresh one."""
        # raw words, because NumPy promises their stream for all versions, but not that of its distributions
        self._random = np.random.Philox() if seed is None else np.random.Philox(key=seed)
        self._seen: deque[float] = deque()

    def draw(self) -> float:
        """The next number."""
        number = self.peek(0)
        self._seen.popleft()
        return number

    def peek(self, ahead: int) -> float:
        """The number that `draw` will give after so many others."""
        while len(self._seen) <= ahead:
            self._seen.append((int(self._random.random_raw()) >> 11) * 2.0**-53)
        return self._seen[ahead]


class UniqueIds:
    """The ids of a growing text, each once: what the repetition penalty looks at."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._known = set(ids)
        self._memory = np.fromiter(self._known, np.intp)

    def add(self, token: int) -> None:
        """The text goes on with `token`."""
        n = len(self._known)
        self._known.add(token)
        if len(self._known) > n:
            if n == len(self._memory):
                self._memory = np.resize(self._memory, 2 * n + 1)
            self._memory[n] = token

    @property
    def array(self) -> Ids:
        """All of them, in no order."""
        return self._memory[: len(self._known)]


def candidates(
    sampling: Sampling,
    scores: Row,
    history: Sequence[int] | Ids = (),
    excluded: Sequence[int] = (),
    drawn: Mapping[int, int] = _NOTHING,
) -> tuple[Ids, Probabilities]:
    """The kept token ids, most probable first, and their probabilities, which sum to 1.

    `scores` is (vocab_size,); `history` holds the ids already in the text, and `excluded` those that may not come.
    `drawn` says how often each token was drawn.
    Equal tokens come in the order of their ids. Raises `ValueError` for scores that are not finite: the model is
    broken, or its dtype too narrow.
    """
    ids, weights = _kept(sampling, scores, history, excluded, drawn)
    order = np.argsort(-weights, kind="stable")
    probabilities = weights[order].astype(np.float64)
    return order if ids is None else ids[order], probabilities / probabilities.sum()


def draw(
    sampling: Sampling,
    scores: Row,
    history: Sequence[int] | Ids,
    uniform: float,
    excluded: Sequence[int] = (),
    drawn: Mapping[int, int] = _NOTHING,
) -> int:
    """One token id: the cumulative distribution over the kept ids, inverted at `uniform` from [0, 1)."""
    if (sampling.temperature == 0 or sampling.top_k == 1) and not sampling.changes_scores:
        best = int(scores.argmax())  # without a copy, most times
        if best not in excluded and np.isfinite(scores[best]):
            return best
    ids, weights = _kept(sampling, scores, history, excluded, drawn)
    sums = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    block, rest = _invert(sums, uniform * sums.sum())
    start = block * _BLOCK
    index = start + _invert(weights[start : start + _BLOCK].astype(np.float64), rest)[0]
    return index if ids is None else int(ids[index])


def _invert(weights: Probabilities, target: float) -> tuple[int, float]:
    """The index of the weight at which the running sum exceeds `target`, and what was left of it there.

    It is never the index of a weight of 0.
    """
    cumulative = weights.cumsum()
    # side="right": the first sum strictly above, which a weight of 0 cannot bring about, not even at a target of 0
    index = int(np.searchsorted(cumulative, target, side="right"))
    if index == len(weights):  # rounding put the target beyond the end
        index = int(np.flatnonzero(weights)[-1])
    return index, target - (float(cumulative[index - 1]) if index else 0.0)


class UnusableScoresError(ValueError):
    """There is nothing to draw from."""

    def __init__(self) -> None:
        super().__init__("the model's scores are not finite: its weights are damaged or its dtype overflows")


@dataclasses.dataclass(frozen=True)
class TokenLogprobs:
    """How probable a token was by the model's own scores, whatever options it was drawn with."""

    token: int
    logprob: float
    """Natural logarithm; -inf for a token that the model rules out."""
    top: list[tuple[int, float]]
    """The likeliest tokens and their log-probabilities, best first."""


def logprobs_of(scores: Row, token: int, k: int) -> TokenLogprobs:
    """Of a token after (vocab_size,) scores, and of the `k` likeliest; equal ones come in the order of their ids.

    `UnusableScoresError` where the largest is not finite.
    """
    logprobs = scores.astype(np.float64)
    if not np.isfinite(largest := logprobs.max()):
        raise UnusableScoresError
    logprobs -= largest
    logprobs -= math.log(np.exp(logprobs).sum())
    best = _largest(scores, min(k, len(scores))) if k else np.empty(0, np.intp)
    best = best[np.argsort(-scores[best], kind="stable")]
    return TokenLogprobs(token, float(logprobs[token]), [(int(i), float(logprobs[i])) for i in best])


def _kept(
    sampling: Sampling,
    scores: Row,
    history: Sequence[int] | Ids,
    excluded: Sequence[int],
    drawn: Mapping[int, int],
) -> tuple[Ids | None, npt.NDArray[Any]]:
    """The kept ids in ascending order, None for all of them, and their weights: probabilities up to a factor."""
    with np.errstate(over="ignore"):  # an extreme option may send a score to -inf, whose exp is 0
        scores = adjusted(sampling, scores, history, excluded, drawn)
        first = scores.argmax()  # of the best, or of what is no number
        best = scores[first]
        if not np.isfinite(best):  # single scores may be -inf: excluded
            raise UnusableScoresError
        if sampling.temperature == 0 or sampling.top_k == 1:
            return np.array([first]), np.ones(1, dtype=np.float32)
        logits, weights = _memory.like(scores)
        ids = None
        if sampling.top_k is not None and sampling.top_k < len(scores):
            ids = _largest(scores, sampling.top_k)
            logits, scores = logits[: len(ids)], scores[ids]
        np.subtract(scores, best, out=logits)  # at most 0, so that no exponential overflows
        if sampling.temperature != 1:
            logits /= float32(sampling.temperature)
    least = math.log(sampling.min_p) if sampling.min_p else -math.inf
    if sampling.top_p is not None and sampling.top_p < 1:
        kept = _nucleus(logits, weights[: len(logits)], sampling.top_p, least)
        ids, logits = _of(ids, kept), logits[kept]
    if sampling.min_p:
        kept = np.flatnonzero(logits >= least)
        ids, logits = _of(ids, kept), logits[kept]
    return ids, np.exp(logits, out=weights[: len(logits)])


def adjusted(
    sampling: Sampling,
    scores: Row,
    history: Sequence[int] | Ids = (),
    excluded: Sequence[int] = (),
    drawn: Mapping[int, int] = _NOTHING,
) -> Row:
    """Float32 or wider. Biases are added; scores of `history` are divided by the repetition penalty if positive, else
    multiplied, and stay finite above; those of `drawn` are lowered by OpenAI's two; `excluded` are at -inf.
    """
    scores = scores.astype(np.result_type(scores, np.float32), copy=False)
    if sampling.changes_scores or excluded:
        scores = scores.copy()
    if sampling.logit_bias:
        for token, bias in sampling.logit_bias:
            if token < len(scores):
                scores[token] += np.float32(bias)
    if sampling.repetition_penalty != 1 and len(history) > 0:
        seen = np.asarray(history, dtype=np.intp)
        seen = seen[seen < len(scores)]  # a padded model's prompt may hold ids that its tokenizer lacks
        old, factor = scores[seen], float32(sampling.repetition_penalty)
        new = np.where(old > 0, old / factor, old * factor)
        scores[seen] = np.where(np.isfinite(old), np.minimum(new, _LARGEST), new)
    if drawn and (sampling.presence_penalty or sampling.frequency_penalty):
        ids = np.fromiter(drawn.keys(), np.intp, len(drawn))
        counts = np.fromiter(drawn.values(), np.float32, len(drawn))
        scores[ids] -= np.float32(sampling.frequency_penalty) * counts + np.float32(sampling.presence_penalty)
    if excluded:
        scores[list(excluded)] = -np.inf
    return scores


def _largest(scores: npt.NDArray[Any], k: int) -> Ids:
    """Indices of the `k` largest in ascending order; of equal ones the first are taken."""
    near, rows = None, min(64, len(scores) // (2 * k))
    if rows > 1:
        # as many scores reach the k-th largest of the columns' maxima, and hardly more: only those are looked at
        columns = len(scores) // rows
        maxima = scores[: rows * columns].reshape(rows, columns).max(axis=0)
        near = np.flatnonzero(scores >= _kth(maxima, k))
        scores = scores[near]
    smallest = _kth(scores, k)
    kept = scores > smallest
    kept[np.flatnonzero(scores == smallest)[: k - np.count_nonzero(kept)]] = True
    return _of(near, np.flatnonzero(kept))


def _kth(values: npt.NDArray[Any], k: int) -> Any:
    """The `k`-th largest."""
    return np.partition(values, len(values) - k)[len(values) - k]


def _nucleus(logits: npt.NDArray[Any], memory: npt.NDArray[Any], p: float, least: float) -> Ids:
    """Indices, in ascending order, of the fewest most probable tokens whose probabilities reach `p`.

    `logits` has 0 as its maximum; tokens below `least` may be left out, as what comes next drops them. Of equal tokens
    the first are taken. A histogram finds the bin in which `p` is reached, and only that bin is sorted.
    """
    total = float(np.exp(logits, out=memory).sum(dtype=np.float64))
    # tokens below the floor have less than 1 - p together, so none of them is needed
    floor = min(max(math.log((1 - p) * total / len(logits)), least), -1.0)
    needed = np.flatnonzero(logits >= floor)
    logits = logits[needed]
    weights = np.exp(logits)
    bins = (logits * ((_BINS - 1) / floor)).astype(np.int32)  # the best token's is 0
    mass = np.bincount(bins, weights=weights).astype(np.float64)
    cut, rest = _reach(mass, p * total)
    edge = np.flatnonzero(bins == cut)
    edge = edge[np.argsort(-logits[edge], kind="stable")]  # weights of scores that are almost equal are equal
    last, _ = _reach(weights[edge].astype(np.float64), rest)
    kept = bins < cut
    kept[edge[: last + 1]] = True
    return needed[np.flatnonzero(kept)]  # faster than by a mask that the processor cannot foresee


def _reach(weights: Probabilities, target: float) -> tuple[int, float]:
    """The index of the weight with which the running sum reaches `target`, and what was left of it there."""
    cumulative = weights.cumsum()
    index = min(int(np.searchsorted(cumulative, target)), len(weights) - 1)
    return index, target - (float(cumulative[index - 1]) if index else 0.0)


def _of(ids: Ids | None, index: Ids) -> Ids:
    """`ids` at `index`, where None is every id."""
    return index if ids is None else ids[index]


def float32(value: float) -> np.float32:
    """The nearest one above 0 and below infinity."""
    limits = np.finfo(np.float32)
    return np.float32(min(max(value, float(limits.tiny)), float(limits.max)))
