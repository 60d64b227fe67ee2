"""The draw of `sampling.py` in compiled code, so that the decoder can go on without Python between two tokens.

It is no second definition: a token is drawn only where no rounding could make `sampling.draw` choose another one, else
none is, and that one decides. Its weights differ from NumPy's by a few units in the last place, because the
exponentials do; comparisons of scores with each other are the same operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glassgpt.generation.cpu.compiled import compiled
from glassgpt.generation.cpu.kernels import ELEMENTWISE, exponential
from glassgpt.generation.cpu.numbers import Array
from glassgpt.generation.cpu.team import finish, take, wait
from glassgpt.generation.decoder import Draw
from glassgpt.generation.sampling import float32

NONE = -1
"""No token: what comes next is too close to call."""

_BLOCK = 16  # scores whose maximum is found together
_SURE = 1e-6
"""Part of all weights by which a running sum must lie on one side of its target: twice what two exponentials, each
right to 2 or 3 units in the last place, can make of two such sums."""
_LEAST = -1000.0  # below what any filter asks for, and finite


class Draws(NamedTuple):
    """What M rows draw and have drawn; an option that is off has the value that changes nothing."""

    n_vocab: Array
    """(M,): only ids below it are drawn."""
    excluded: Array
    """(M, E): ids that are not, filled up with -1."""
    temperature: Array
    """(M,) float32, 0 for greedy."""
    top_k: Array
    top_p: Array
    least: Array
    """(M,) float32: the logarithm of min-p."""
    uniforms: Array
    """(steps, M)."""
    tokens: Array
    """(steps, M): the tokens, or `NONE`."""


def new_draws(draws: Sequence[Draw], vocab_size: int) -> Draws:
    """The same for rows that draw equally many tokens, of as many as have scores."""
    sizes = [min(draw.n_vocab, vocab_size) for draw in draws]
    n_excluded = max(len(draw.excluded) for draw in draws)
    uniforms = np.array([draw.uniforms for draw in draws]).T.copy()
    options = [draw.sampling for draw in draws]
    return Draws(
        np.array(sizes),
        np.array([[*draw.excluded, *[NONE] * (n_excluded - len(draw.excluded))] for draw in draws], np.int64),
        np.array([0 if o.top_k == 1 or o.temperature == 0 else float32(o.temperature) for o in options], np.float32),
        np.array([min(o.top_k or size, size) for o, size in zip(options, sizes, strict=True)]),
        np.array([1.0 if o.top_p is None else o.top_p for o in options]),
        np.array([math.log(o.min_p) if o.min_p else _LEAST for o in options], np.float32),
        uniforms,
        np.full(uniforms.shape, NONE),
    )


NO_DRAWS = Draws(
    np.zeros(0, np.int64),
    np.zeros((0, 0), np.int64),
    np.zeros(0, np.float32),
    np.zeros(0, np.int64),
    np.zeros(0),
    np.zeros(0, np.float32),
    np.zeros((0, 0)),
    np.zeros((0, 0), np.int64),
)
"""For a pass after which nothing is drawn."""


@compiled()
def draw(phases, phase, draws, step, scores):
    """The token of each row after its (at least `n_vocab`,) scores, each row an item."""
    n = len(scores)
    row = take(phases, phase, n)
    while row < n:
        draws.tokens[step, row] = _draw(
            scores[row, : draws.n_vocab[row]], draws.excluded[row], draws.temperature[row], draws.top_k[row],
            draws.top_p[row], draws.least[row], draws.uniforms[step, row],
        )  # fmt: skip
        finish(phases, phase)
        row = take(phases, phase, n)
    return wait(phases, phase, n)


@compiled()
def _draw(scores, excluded, temperature, top_k, top_p, least, uniform):
    if _zeros(scores) != 0:  # NaN: one is not finite
        return NONE
    scores = scores.copy() if len(excluded) else scores
    for i in excluded:
        if 0 <= i < len(scores):
            scores[i] = -np.inf
    maxima = np.empty((len(scores) + _BLOCK - 1) // _BLOCK, np.float32)
    for b in range(len(maxima)):
        maxima[b] = _largest(scores[b * _BLOCK : (b + 1) * _BLOCK])
    best = _largest(maxima)
    if best == -np.inf:
        return NONE
    if temperature == 0:
        return _first(scores, maxima, best)
    if top_k < len(scores):
        ids = _best(scores, maxima, top_k)
    else:
        ids = np.arange(len(scores))
    logits = np.empty(len(ids), np.float32)
    for i in range(len(ids)):
        logits[i] = max((scores[ids[i]] - best) / temperature, np.float32(_LEAST))
    if top_p < 1:
        cut = _nucleus(logits, top_p, least)
        if cut > 0:
            return NONE
        least = max(least, cut)
    return _invert(ids, logits, least, uniform)


@compiled(fastmath={"reassoc"})
def _zeros(row):
    """0, or NaN where a number is not finite."""
    total = np.float32(0)
    for i in range(len(row)):
        total += row[i] * np.float32(0)
    return total


@compiled(fastmath={"reassoc", "nnan", "nsz"})
def _largest(row):
    largest = row[0]
    for i in range(len(row)):
        largest = max(largest, row[i])
    return largest


@compiled()
def _first(scores, maxima, best):
    """The first place of the largest score."""
    b = 0
    while maxima[b] != best:
        b += 1
    i = b * _BLOCK
    while scores[i] != best:
        i += 1
    return i


@compiled()
def _best(scores, maxima, k):
    """Ids of the `k` largest in ascending order; of equal ones the first are taken."""
    bound = np.float32(-np.inf)
    if k <= len(maxima):  # as many scores as there are blocks reach the k-th largest of their maxima, and hardly more
        bound = _reach(maxima.copy(), np.ones(len(maxima), np.float32), k - 0.5)[0]
    near = np.empty(len(scores) + 1, np.int64)
    n = 0
    for b in range(len(maxima)):
        if maxima[b] >= bound:
            for i in range(b * _BLOCK, min((b + 1) * _BLOCK, len(scores))):
                near[n] = i
                n += int(scores[i] >= bound)  # no branch, which the processor could not foresee
    near = near[:n]
    smallest = _reach(scores[near], np.ones(n, np.float32), k - 0.5)[0]
    spare = k  # of those that equal the smallest
    for index in near:
        spare -= scores[index] > smallest
    kept = np.empty(n + 1, np.int64)
    n = 0
    for index in near:
        equal = scores[index] == smallest
        kept[n] = index
        n += int(scores[index] > smallest or (equal and spare > 0))
        spare -= equal
    return kept[:k]


@compiled()
def _reach(values, weights, target):
    """The value with which the weights, added up from the largest value down, exceed `target`; the sum before and with.

    The smallest value where they do not. Both arrays are reordered (Hoare's FIND, 1961).
    """
    low, high, above = 0, len(values) - 1, 0.0
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                weights[i], weights[j] = weights[j], weights[i]
                i += 1
                j -= 1
        # low..j are at least the pivot, what lies between j and i equals it, i..high are at most the pivot
        upper = above + _sum(weights[low : j + 1])
        if upper > target:
            high = j
            continue
        middle = upper + _sum(weights[j + 1 : i])
        if middle > target:
            return values[j + 1], upper, middle
        low, above = i, middle
    low = min(low, len(values) - 1)
    return values[low], above, above + weights[low]


@compiled()
def _nucleus(logits, p, least):
    """The smallest logit of the fewest best tokens that reach `p` of all weights; 1 where that is too close to call.

    Tokens below `least` may count as kept, as what comes next drops them.
    """
    weights = np.empty(len(logits), np.float32)
    _weigh(logits, np.float32(_LEAST), weights)
    total = _sum(weights)
    # tokens below the floor have less than 1 - p together, so none of them is needed
    floor = np.float32(math.log((1 - p) * total / len(logits)))
    needed = np.empty(len(logits) + 1, np.float32)
    n = 0
    for i in range(len(logits)):
        needed[n], weights[n] = logits[i], weights[i]
        n += logits[i] >= floor
    target, sure = p * total, _SURE * total
    cut, before, reached = _reach(needed[:n].copy(), weights[:n], target)
    near = 0  # equal weights, or weights that rounding may put in another order
    for i in range(n):
        near += abs(needed[i] - cut) < np.float32(1e-6)
    if near > 1 or target - before < sure or reached - target < sure:
        return np.float32(1)
    return cut


@compiled()
def _invert(ids, logits, least, uniform):
    """The id at which the running sum of the weights exceeds `uniform` of all; logits below `least` have none."""
    weights = np.empty(len(logits), np.float32)
    _weigh(logits, least, weights)
    n_blocks = (len(weights) + _BLOCK - 1) // _BLOCK
    sums = np.empty(n_blocks)
    for b in range(n_blocks):
        sums[b] = _sum(weights[b * _BLOCK : (b + 1) * _BLOCK])
    total = _sum(sums)
    target, sure, reached = uniform * total, _SURE * total, 0.0
    b = 0
    while b + 1 < n_blocks and reached + sums[b] <= target:
        reached += sums[b]
        b += 1
    for i in range(b * _BLOCK, len(weights)):
        before, reached = reached, reached + weights[i]
        if reached > target:
            is_sure = reached - target > sure and (before == 0 or target - before > sure)
            return ids[i] if is_sure else NONE
    return NONE


@compiled(fastmath=ELEMENTWISE)
def _weigh(logits, least, weights):
    for i in range(len(logits)):
        weights[i] = exponential(logits[i]) if logits[i] >= least else np.float32(0)


@compiled(fastmath={"reassoc"})
def _sum(row):
    total = 0.0
    for i in range(len(row)):
        total += row[i]
    return total
