"""What could have come: it must say what `sampling` does, filter by filter."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import Tokenizer
from glassgpt.generation.candidates import FILTERS, Choice, explain_choice
from glassgpt.generation.options import Sampling
from glassgpt.generation.sampling import candidates

LETTERS = Tokenizer.characters(["abcdefghijklmnop"])  # 16 letters and an end of text
N = LETTERS.n_vocab
SCORES = st.lists(st.integers(-400, 400), min_size=N, max_size=N).map(lambda xs: np.array(xs, np.float32) / 16)
OPTIONS = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.3]),
        "temperature": st.sampled_from([1.0, 0.0, 0.3, 2.0]),
        "top_k": st.none() | st.integers(1, N + 2),
        "top_p": st.none() | st.floats(0.01, 1.0),
        "min_p": st.none() | st.floats(0.0, 1.0),
    }
)


@given(scores=SCORES, options=OPTIONS, history=st.lists(st.integers(0, N - 1), max_size=5))
def test_what_stays_and_with_what_probability_is_what_sampling_keeps(
    scores: Any, options: dict[str, Any], history: list[int]
) -> None:
    sampling = Sampling(**options)
    choice = explain_choice(sampling, scores, LETTERS, history, n=N)
    ids, probabilities = candidates(sampling, scores, history)
    assert {c.id: c.final for c in choice.candidates if c.removed_by is None} == dict(
        zip(ids.tolist(), probabilities.tolist(), strict=True)
    )
    assert all(c.final == 0 for c in choice.candidates if c.removed_by is not None)
    for removed in choice.removed:
        assert removed.n_tokens == sum(c.removed_by == removed.filter for c in choice.candidates)
    assert sum(removed.n_tokens for removed in choice.removed) + len(ids) == N
    assert [removed.filter for removed in choice.removed] == [
        name for name in FILTERS if any(c.removed_by == name for c in choice.candidates)
    ]


@given(scores=SCORES, options=OPTIONS)
def test_probabilities_are_the_models_softmax_whatever_the_options(scores: Any, options: dict[str, Any]) -> None:
    exact = np.exp(scores.astype(np.float64) - scores.max())
    choice = explain_choice(Sampling(**options), scores, LETTERS, [1, 2], n=N)
    assert {c.id: c.score for c in choice.candidates} == dict(enumerate(scores.tolist()))
    for c in choice.candidates:
        assert c.probability == pytest.approx(exact[c.id] / exact.sum(), rel=1e-12)
        assert c.text == LETTERS.decode([c.id])
    assert [c.rank for c in choice.candidates] == list(range(1, N + 1))
    adjusted = [c.adjusted for c in choice.candidates]
    assert adjusted == sorted(adjusted, reverse=True)


def letters(probabilities: list[float]) -> Any:
    """Scores that give a, b, c, ... these probabilities, and the others next to none."""
    scores = np.full(N, -50.0, np.float32)
    first = LETTERS.encode("a")[0]
    scores[first : first + len(probabilities)] = np.log(probabilities)
    return scores


def test_each_filter_is_told_what_it_removed_from_what_was_left() -> None:
    scores = letters([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    choice = explain_choice(Sampling(top_k=5, top_p=0.8, min_p=0.5), scores, LETTERS, n=6)
    # top-k leaves a to e; of their 0.96, a to c reach 0.8; c has less than half of a's
    assert [(c.text, c.removed_by) for c in choice.candidates] == [
        ("a", None), ("b", None), ("c", "min_p"), ("d", "top_p"), ("e", "top_p"), ("f", "top_k"),
    ]  # fmt: skip
    told = [(removed.filter, removed.n_tokens, round(removed.probability, 6)) for removed in choice.removed]
    assert told == [("top_k", N - 5, 0.04), ("top_p", 2, 0.16), ("min_p", 1, 0.15)]
    assert [c.final for c in choice.candidates][:2] == pytest.approx([0.4 / 0.65, 0.25 / 0.65], rel=1e-6)


def test_greedy_says_that_the_temperature_removed_the_others() -> None:
    choice = explain_choice(Sampling(temperature=0, top_k=3), letters([0.2, 0.5, 0.3]), LETTERS, n=3)
    assert [(c.text, c.final, c.removed_by) for c in choice.candidates] == [
        ("b", 1.0, None), ("c", 0.0, "temperature"), ("a", 0.0, "temperature"),
    ]  # fmt: skip
    (removed,) = choice.removed
    assert (removed.filter, removed.n_tokens) == ("temperature", N - 1)
    assert removed.probability == pytest.approx(0.5, rel=1e-6)


def test_a_repetition_penalty_shows_in_the_adjusted_score_alone() -> None:
    scores = letters([0.5, 0.3, 0.2]) + np.float32(3)
    choice = explain_choice(Sampling(repetition_penalty=2.0), scores, LETTERS, LETTERS.encode("a"), n=3)
    by_text = {c.text: c for c in choice.candidates}
    assert by_text["a"].adjusted == pytest.approx(by_text["a"].score / 2, rel=1e-6)
    assert by_text["a"].probability == pytest.approx(0.5, rel=1e-6)
    assert by_text["b"].adjusted == by_text["b"].score
    assert [c.text for c in choice.candidates] == ["b", "c", "a"]


def test_a_token_that_is_asked_for_is_there_with_its_rank() -> None:
    scores = letters([0.4, 0.3, 0.2, 0.06, 0.04])
    choice = explain_choice(Sampling(), scores, LETTERS, n=2, also=LETTERS.encode("e"))
    assert [(c.text, c.rank) for c in choice.candidates] == [("a", 1), ("b", 2), ("e", 5)]
    assert sum(n for _, n in choice.rest) == N - 3


def rebuilt(choice: Choice, temperature: float) -> dict[int, float]:
    """The softmax at a temperature, from the candidates and the bins of the rest."""
    entries = [(c.adjusted, 1, c.id) for c in choice.candidates] + [(s, n, -1) for s, n in choice.rest]
    weights = [n * math.exp((score - entries[0][0]) / temperature) for score, n, _ in entries]
    return {i: w / sum(weights) for w, (_, _, i) in zip(weights, entries, strict=True) if i >= 0}


@pytest.mark.parametrize(("temperature", "tolerance"), [(1.0, 1e-6), (0.5, 1e-2), (2.0, 1e-3)])
def test_the_rest_in_bins_gives_the_softmax_at_any_temperature(temperature: float, tolerance: float) -> None:
    tokenizer = Tokenizer.gpt2()
    scores = np.random.default_rng(0).normal(0, 3, tokenizer.n_vocab).astype(np.float32)
    choice = explain_choice(Sampling(), scores, tokenizer, n=20)
    assert sum(n for _, n in choice.rest) == tokenizer.n_vocab - 20
    ids, probabilities = candidates(Sampling(temperature=temperature), scores)
    wanted = dict(zip(ids[:20].tolist(), probabilities[:20].tolist(), strict=True))
    assert rebuilt(choice, temperature) == pytest.approx(wanted, rel=tolerance)


def test_scores_far_below_the_others_are_counted_too() -> None:
    scores = np.linspace(0, -5000, N).astype(np.float32)
    choice = explain_choice(Sampling(), scores, LETTERS, n=1)
    assert sum(n for _, n in choice.rest) == N - 1
    assert choice.rest[-1][0] == pytest.approx(-5000)


def test_ids_beyond_the_tokenizers_take_no_part() -> None:
    scores = np.zeros(N + 9, np.float32)
    scores[N:] = 50
    choice = explain_choice(Sampling(), scores, LETTERS, [N + 3], n=N)
    assert choice.n_tokens == N
    assert [c.final for c in choice.candidates] == pytest.approx([1 / N] * N)


def test_it_is_ready_for_json() -> None:
    choice = explain_choice(Sampling(top_k=2), letters([0.5, 0.3, 0.2]), LETTERS, n=3)
    told = json.loads(json.dumps(choice.to_dict(), allow_nan=False))
    assert told["candidates"][0] == {
        "id": LETTERS.encode("a")[0], "text": "a", "rank": 1, "score": -0.69315, "adjusted": -0.69315,
        "probability": 0.5, "final": 0.625, "removed_by": None,
    }  # fmt: skip
    assert told["removed"][0]["filter"] == "top_k"


def test_scores_that_are_no_numbers_are_refused() -> None:
    scores = np.full(N, np.nan, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        explain_choice(Sampling(), scores, LETTERS)
