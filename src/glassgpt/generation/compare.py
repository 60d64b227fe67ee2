"""Two decoders of one model on one text: what the second, in fewer bits, makes of it. Loads no torch."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glassgpt.generation.cpu.decoder import CPUDecoder


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Both predict each token of the text from those before it in its window."""

    n_tokens: int
    """How many were predicted."""
    perplexity: float
    reference_perplexity: float
    agreement: float
    """Part of the tokens before which both find the same one likeliest."""
    mean_divergence: float
    """Kullback-Leibler divergence from the reference's probabilities, in nats a token."""
    max_divergence: float
    score_error: float
    """Root of the mean squared difference of the scores, each token's mean difference taken off."""

    @property
    def rise(self) -> float:
        """How much higher the perplexity is, as a part of the reference's."""
        return self.perplexity / self.reference_perplexity - 1


def compare(
    reference: CPUDecoder,
    other: CPUDecoder,
    windows: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Let both read `windows`, each of at least two tokens and at most one more than the context holds."""
    total, done = sum(len(window) - 1 for window in windows), 0
    loss = other_loss = same = divergence = most = squares = 0.0
    for window in windows:
        read = window[:-1]
        for (start, mine), (_, its) in zip(reference.scores_of(read), other.scores_of(read), strict=True):
            targets = np.asarray(window[start + 1 : start + 1 + len(mine)])[:, None]
            scores = [found.astype(np.float64) for found in (mine, its)]
            p, q = (_log_softmax(found) for found in scores)
            loss -= float(np.take_along_axis(p, targets, 1).sum())
            other_loss -= float(np.take_along_axis(q, targets, 1).sum())
            each = (np.exp(p) * (p - q)).sum(axis=1)
            divergence, most = divergence + float(each.sum()), max(most, float(each.max()))
            same += float((p.argmax(1) == q.argmax(1)).sum())
            squares += float((scores[1] - scores[0]).var(axis=1).sum())
            done += len(mine)
            progress(done, total)
    return Comparison(
        total,
        math.exp(min(other_loss / total, 700)),
        math.exp(min(loss / total, 700)),
        same / total,
        divergence / total,
        most,
        math.sqrt(squares / total),
    )


def tokens_per_second(decoder: CPUDecoder, n_tokens: int = 48) -> float:
    """Of one row that begins with one token, by the clock; short, so other work on the machine shows."""
    n_tokens = min(n_tokens, decoder.context_length - 1)
    decoder.add([[0]])
    began = time.perf_counter()
    for _ in range(n_tokens):
        decoder.step([0])
    seconds = time.perf_counter() - began
    decoder.drop(0)
    return n_tokens / max(seconds, 1e-9)


def _log_softmax(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
