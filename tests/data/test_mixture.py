"""Mixtures by weight: exact shares, epochs of each source, ranks, and what does not fit."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.data.loader import BatchLoader
from glassgpt.data.mixture import PERIOD, Mixture, first_tokens
from glassgpt.data.shards import TokenSequence


def sources(*sizes: int) -> list[np.ndarray]:
    """Source i has the ids from 1,000,000 i on."""
    return [np.arange(size) + 1_000_000 * i for i, size in enumerate(sizes)]


def rows(loader: BatchLoader, steps: int) -> list[int]:
    return [int(first) for step in range(steps) for first in loader.batch(step)[0][:, 0]]


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 1), (5, 3, 2), (0.999, 0.001)])
def test_each_period_has_the_shares_exactly(weights: tuple[float, ...]) -> None:
    mixture = Mixture(sources(*[999] * len(weights)), weights)
    loader = BatchLoader(mixture, batch_size=1000, context_length=2, seed=3)
    for period in range(2):
        found = Counter(
            int(first) // 1_000_000
            for step in range(10 * period, 10 * (period + 1))
            for first in loader.batch(step)[0][:, 0]
        )
        for i, weight in enumerate(weights):
            assert abs(found[i] - PERIOD * weight / sum(weights)) < 1


def test_the_shares_are_spread_over_the_period() -> None:
    loader = BatchLoader(Mixture(sources(99, 99), (0.8, 0.2)), batch_size=100, context_length=2, seed=0)
    shares = [sum(first >= 1_000_000 for first in rows(loader, step + 1)[-100:]) for step in range(10)]
    assert min(shares) > 5 and max(shares) < 40


@given(st.integers(1, 4), st.integers(0, 99), st.integers(1, 5), st.integers(0, 400))
def test_each_source_has_its_own_epochs(remainder: int, seed: int, length: int, first_step: int) -> None:
    """Whatever the weights, a source's blocks come once in each of its epochs."""
    sizes = (7 * length + 1, 11 * length + 1 + remainder % length)
    loader = BatchLoader(Mixture(sources(*sizes), (0.6, 0.4)), batch_size=50, context_length=length, seed=seed)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for first in rows(loader, 10):
        seen[first // 1_000_000].append(first % 1_000_000)
    for i, n_blocks in ((0, 7), (1, 11)):
        for start in range(0, len(seen[i]) - n_blocks, n_blocks):
            epoch = sorted(seen[i][start : start + n_blocks])
            assert epoch == [epoch[0] + length * n for n in range(n_blocks)]
    again = BatchLoader(Mixture(sources(*sizes), (0.6, 0.4)), batch_size=50, context_length=length, seed=seed)
    for left, right in zip(again.batch(first_step), loader.batch(first_step), strict=True):
        assert torch.equal(left, right)


@given(st.sampled_from([1, 2, 4]), st.integers(0, 900))
def test_ranks_share_out_the_batch(world_size: int, step: int) -> None:
    mixture = Mixture(sources(100, 80), (0.5, 0.5))
    whole = BatchLoader(mixture, batch_size=12, context_length=9, seed=3).batch(step)[0]
    for rank in range(world_size):
        part = BatchLoader(mixture, batch_size=12, context_length=9, seed=3, rank=rank, world_size=world_size)
        assert torch.equal(part.batch(step)[0], whole[rank::world_size])


def test_a_run_gets_the_same_rows_from_every_version() -> None:
    """If this fails because the order was changed on purpose, runs begun before can't be resumed: say so."""
    loader = BatchLoader(Mixture(sources(40, 30), (0.7, 0.3)), batch_size=6, context_length=5, seed=12)
    assert [rows(loader, 1), loader.batch(5000)[0][:, 0].tolist()] == GOLDEN


GOLDEN = [[28, 13, 1000000, 1000015, 8, 23], [32, 2, 17, 22, 27, 1000004]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1, 0), "weight 0 must be above 0"),
        ((1, -1), "weight -1 must be above 0"),
        ((1, float("nan")), "weight nan must be above 0"),
        ((1, float("inf")), "weight inf must be above 0"),
        ((1, 1e-6), "of the whole is too small: at least 0.0001"),
    ],
)
def test_weights_out_of_range(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(sources(9, 9), weights)


def test_the_beginning_of_each_source_in_its_share() -> None:
    mixture = Mixture([TokenSequence([np.arange(70)]), np.arange(100, 190)], (0.7, 0.3))
    assert len(mixture) == 100
    assert mixture.shares() == [70, 30]
    assert first_tokens(mixture, 10).tolist() == [*range(7), *range(100, 103)]
    assert len(first_tokens(mixture, 10_000)) == 100
    assert first_tokens(np.arange(5), 3).tolist() == [0, 1, 2]


def test_a_source_shorter_than_a_block() -> None:
    with pytest.raises(ValueError, match="your text is 5 tokens, but a context length of 8 needs 9"):
        BatchLoader(Mixture(sources(100, 5), (1, 1)), batch_size=1, context_length=8, seed=0)
