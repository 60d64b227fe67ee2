import math
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.data import baselines
from glassgpt.data.baselines import corpus_baselines


def by_hand(train: list[int], validation: list[int], n_vocab: int) -> tuple[float, float]:
    """The two formulas of the docstring, word by word, with dictionaries."""
    n, n_context, n_pair = Counter(train), Counter(train[:-1]), Counter(pairwise(train))
    followers = {v: len({b for a, b in n_pair if a == v}) for v in range(n_vocab)}
    preceders = {w: len({a for a, b in n_pair if b == w}) for w in range(n_vocab)}
    seen = sum(count > 0 for count in preceders.values())
    unigram, bigram = 0.0, 0.0
    for v, w in pairwise(validation):
        unigram -= math.log((n[w] + 1) / (len(train) + n_vocab))
        p = (preceders[w] + seen * (1 / n_vocab)) / (len(n_pair) + seen)
        if n_context[v]:
            p = (n_pair[v, w] + followers[v] * p) / (n_context[v] + followers[v])
        bigram -= math.log(p)
    return unigram / (len(validation) - 1), bigram / (len(validation) - 1)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    n_vocab = draw(st.integers(1, 8))
    tokens = st.lists(st.integers(0, n_vocab - 1), min_size=2, max_size=40)
    return draw(tokens), draw(tokens), n_vocab


@given(texts())
def test_equals_the_formulas_by_hand(text: tuple[list[int], list[int], int]) -> None:
    train, validation, n_vocab = text
    result = corpus_baselines(np.array(train, np.uint16), np.array(validation, np.uint16), n_vocab)
    assert (result.unigram, result.bigram) == pytest.approx(by_hand(*text))
    assert result.uniform == math.log(n_vocab)


@given(texts(), st.integers(0, 7))
def test_probabilities_of_all_next_tokens_sum_to_one(text: tuple[list[int], list[int], int], v: int) -> None:
    train, _, n_vocab = text
    results = [corpus_baselines(np.array(train), np.array([v % n_vocab, w]), n_vocab) for w in range(n_vocab)]
    assert sum(math.exp(-r.unigram) for r in results) == pytest.approx(1)
    assert sum(math.exp(-r.bigram) for r in results) == pytest.approx(1)


def test_exact_values() -> None:
    # In 0 1 0 1 2 the pairs are 01 (twice), 10 and 12: each token comes after one other, so the lower order
    # gives each (1 + 3/3) / (3 + 3) = 1/3, and P(1 | 0) = (2 + 1 * 1/3) / (2 + 1).
    result = corpus_baselines(np.array([0, 1, 0, 1, 2]), np.array([0, 1]), 3)
    assert result.uniform == pytest.approx(math.log(3))
    assert result.unigram == pytest.approx(-math.log((2 + 1) / (5 + 3)))
    assert result.bigram == pytest.approx(-math.log(7 / 9))
    # The last token of the training text never was a context: only the lower order speaks.
    assert corpus_baselines(np.array([0, 1, 0, 1, 2]), np.array([2, 0]), 3).bigram == pytest.approx(math.log(3))


def test_a_markov_text_reaches_its_entropy() -> None:
    """On a text made by a bigram process the bigram must come near the entropy rate, the unigram must not."""
    rng = np.random.default_rng(0)
    table = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    steps = np.array([rng.random(20_000) < 0.1]).ravel()
    tokens = np.cumsum(steps) % 3
    entropy = -(table[table > 0] * np.log(table[table > 0])).sum() / 3
    result = corpus_baselines(tokens[:18_000], tokens[18_000:], 3)
    assert result.bigram == pytest.approx(entropy, abs=0.02)
    assert result.unigram == pytest.approx(math.log(3), abs=0.02)


def test_pairs_of_a_large_vocabulary_do_not_collide() -> None:
    n_vocab = 100_000
    train = np.array([99_999, 99_998] * 50, dtype=np.uint32)
    result = corpus_baselines(train, np.array([99_999, 99_998], dtype=np.uint32), n_vocab)
    expected = by_hand(train.tolist(), [99_999, 99_998], n_vocab)
    assert (result.unigram, result.bigram) == pytest.approx(expected)


def test_uses_the_first_tokens_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = np.arange(60) % 7, np.arange(60) % 5
    short = corpus_baselines(train[:20], validation[:20], 7)
    assert corpus_baselines(train, validation, 7) != short
    monkeypatch.setattr(baselines, "_MAX_TOKENS", 20)
    assert corpus_baselines(train, validation, 7) == short


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([0], [0, 1], "training text is 1 tokens"),
        ([0, 1], [0], "validation text is 1 tokens"),
        ([0, 4], [0, 1], "training text has tokens from 0 to 4, but the vocabulary has 4"),
        ([0, 1], [-1, 1], "validation text has tokens from -1 to 1"),
    ],
)
def test_errors(train: list[int], validation: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpus_baselines(np.array(train), np.array(validation), 4)


def test_a_million_tokens_take_less_than_two_seconds() -> None:
    tokens = (np.random.default_rng(0).zipf(1.3, 1_100_000) % 50257).astype(np.uint16)
    started = time.process_time()
    corpus_baselines(tokens[:1_000_000], tokens[1_000_000:], 50257)
    assert time.process_time() - started < 2
