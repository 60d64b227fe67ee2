import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from glassgpt.generation.options import Sampling
from glassgpt.generation.sampling import UniformStream, UniqueIds, candidates, draw, logprobs_of

# distinct scores, so that every cut has one right answer; ties have tests of their own
SCORES = st.lists(st.integers(-400, 400), min_size=1, max_size=12, unique=True).map(lambda xs: [x / 16 for x in xs])
OPTIONS = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 0.5, 1.1, 2.0, 30.0]),
        "temperature": st.sampled_from([1.0, 0.1, 0.7, 1.5, 10.0]),
        "top_k": st.none() | st.integers(1, 15),
        "top_p": st.none() | st.floats(0.01, 1.0),
        "min_p": st.none() | st.floats(0.0, 1.0),
    }
)


def reference(
    scores: Sequence[float],
    history: Sequence[int],
    *,
    repetition_penalty: float,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
) -> tuple[dict[int, float], float]:
    """The probabilities of the kept ids, and how near the nearest token came to a cut."""
    x, margin = np.array(scores, dtype=np.float64), math.inf
    for i in set(history):
        x[i] = x[i] / repetition_penalty if x[i] > 0 else x[i] * repetition_penalty
    order = np.argsort(-x, kind="stable")[: top_k or len(x)]
    p = np.exp((x[order] - x[order[0]]) / temperature)
    p /= p.sum()
    if top_p is not None:
        before = np.concatenate([[0.0], p.cumsum()[:-1]])
        margin = min(margin, abs(before - top_p).min())
        order, p = order[before < top_p], p[before < top_p]
        p /= p.sum()
    if min_p is not None:
        margin = min(margin, abs(p[1:] - min_p * p[0]).min(initial=math.inf)) if min_p else margin
        keep = p >= min_p * p[0]
        order, p = order[keep], p[keep] / p[keep].sum()
    return {int(i): float(q) for i, q in zip(order, p, strict=True)}, margin


def kept(sampling: Sampling, scores: Any, history: Sequence[int] = ()) -> dict[int, float]:
    ids, probabilities = candidates(sampling, np.asarray(scores, dtype=np.float32), history)
    assert probabilities.dtype == np.float64
    assert len(set(ids.tolist())) == len(ids) == len(probabilities) >= 1
    assert (np.diff(probabilities) <= 0).all()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    return dict(zip(ids.tolist(), probabilities.tolist(), strict=True))


@given(scores=SCORES, options=OPTIONS, data=st.data())
def test_kept_ids_and_their_probabilities_are_the_references(
    scores: list[float], options: dict[str, Any], data: st.DataObject
) -> None:
    history = data.draw(st.lists(st.integers(0, len(scores) - 1), max_size=5))
    wanted, margin = reference(scores, history, **options)
    assume(margin > 1e-6)  # the scores are float32: at a cut itself, either side is right
    found = kept(Sampling(**options), scores, history)
    assert found.keys() == wanted.keys()
    assert all(found[i] == pytest.approx(wanted[i], rel=1e-4, abs=1e-12) for i in wanted)


BIASES = st.dictionaries(st.integers(0, 15), st.sampled_from([-100.0, -2.5, 0.5, 3.0]), max_size=4)
PENALTIES = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 2.0])


@given(scores=SCORES, options=OPTIONS, bias=BIASES, presence=PENALTIES, frequency=PENALTIES, data=st.data())
def test_biases_and_penalties_are_openais_formula(
    scores: list[float],
    options: dict[str, Any],
    bias: dict[int, float],
    presence: float,
    frequency: float,
    data: st.DataObject,
) -> None:
    """score[j] + bias[j], the repetition penalty of that, - count[j] * frequency - (count[j] > 0) * presence."""
    history = data.draw(st.lists(st.integers(0, len(scores) - 1), max_size=5), "history")
    drawn = Counter(history[data.draw(st.integers(0, len(history)), "prompt") :])
    x = np.array(scores)
    for token, b in bias.items():
        x[token : token + 1] += b
    for i in set(history):
        x[i] = x[i] / options["repetition_penalty"] if x[i] > 0 else x[i] * options["repetition_penalty"]
    for i, n in drawn.items():
        x[i] -= n * frequency + presence
    assume(len({round(float(y), 4) for y in x}) == len(x))  # equal ones go by their ids, up to rounding
    wanted, margin = reference(x.tolist(), [], **options)
    assume(margin > 1e-5)
    sampling = Sampling(**options, logit_bias=bias, presence_penalty=presence, frequency_penalty=frequency)
    given_scores = np.asarray(scores, dtype=np.float32)
    ids, probabilities = candidates(sampling, given_scores, history, (), drawn)
    found = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    assert found.keys() == wanted.keys()
    assert all(found[i] == pytest.approx(wanted[i], rel=1e-3, abs=1e-9) for i in wanted)
    assert draw(sampling, given_scores, history, 0.5, (), drawn) in wanted
    assert given_scores.tolist() == np.asarray(scores, dtype=np.float32).tolist()  # left as they were


@pytest.mark.parametrize("given", [{3: 1.5, 1: -2}, [(3, 1.5), (1, -2)], ["3=1.5", "1=-2"], [[1, -2], [3, 1.5]]])
def test_biases_are_given_in_several_ways(given: Any) -> None:
    sampling = Sampling(logit_bias=given)
    assert sampling.logit_bias == ((1, -2.0), (3, 1.5))
    assert Sampling.from_dict(sampling.to_dict()) == sampling


@given(size=st.integers(1, 300), k=st.integers(0, 20), seed=st.integers(0, 99))
def test_logprobs_are_the_log_softmax(size: int, k: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 5, size).astype(np.float32)
    scores[seed % size] = -np.inf if size > 1 else 0
    found = logprobs_of(scores, size // 2, k)
    wanted = scores - np.log(np.exp(scores.astype(np.float64)).sum())
    order = np.argsort(-scores, kind="stable")[:k]
    assert (found.token, [i for i, _ in found.top]) == (size // 2, order.tolist())
    assert found.logprob == pytest.approx(wanted[size // 2], abs=1e-9)
    assert [value for _, value in found.top] == pytest.approx(wanted[order].tolist(), abs=1e-9)


@given(scores=SCORES, options=OPTIONS, data=st.data())
@example(scores=[3.0, 1.0, 2.0], options={"temperature": 1.0, "top_k": 2, "top_p": 0.9, "min_p": 0.5}, data=None)
def test_kept_ids_are_those_of_transformers(
    scores: list[float], options: dict[str, Any], data: st.DataObject | None
) -> None:
    from transformers.generation import logits_process as theirs

    history = data.draw(st.lists(st.integers(0, len(scores) - 1), max_size=5)) if data else []
    plain = {
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "min_p": None,
    } | options
    assume(reference(scores, history, **plain)[1] > 1e-6)
    options = {name: value for name, value in plain.items() if value is not None}
    ids, x = torch.tensor([history], dtype=torch.int64), torch.tensor([scores])
    steps = [theirs.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])] if history else []
    steps += [theirs.TemperatureLogitsWarper(options["temperature"])]
    steps += [theirs.TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
    steps += [theirs.TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    steps += [theirs.MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
    for step in steps:
        x = step(ids, x)
    wanted = x[0].softmax(-1)
    found = kept(Sampling(**options), scores, history)
    assert found.keys() == set(x[0].isfinite().nonzero()[:, 0].tolist())
    assert all(found[i] == pytest.approx(float(wanted[i]), rel=1e-3, abs=1e-9) for i in found)


@given(size=st.integers(1, 3000), options=OPTIONS, seed=st.integers(0, 99))
def test_a_large_vocabulary_keeps_what_the_reference_keeps(size: int, options: dict[str, Any], seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    wanted, margin = reference(scores.tolist(), [], **options)
    assume(margin > 1e-6)
    found = kept(Sampling(**options), scores)
    assert found.keys() == wanted.keys()
    assert all(found[i] == pytest.approx(wanted[i], rel=1e-4, abs=1e-12) for i in wanted)


@given(size=st.integers(1, 3000), options=OPTIONS, seed=st.integers(0, 99), data=st.data())
def test_of_equal_scores_the_first_are_kept(size: int, options: dict[str, Any], seed: int, data: st.DataObject) -> None:
    """Steps of 1/2, so that every cut goes through a crowd."""
    scores = (np.random.default_rng(seed).normal(0, 6, size).round() / 2).astype(np.float32)
    history = data.draw(st.lists(st.integers(0, size - 1), max_size=50))
    wanted, margin = reference(scores.tolist(), history, **options)
    assume(margin > 1e-6)
    assert kept(Sampling(**options), scores, history).keys() == wanted.keys()


@given(
    size=st.integers(1, 3000),
    options=OPTIONS,
    seed=st.integers(0, 99),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_inverts_the_cumulative_distribution(
    size: int, options: dict[str, Any], seed: int, uniform: float
) -> None:
    """In the order of ids, up to float32's rounding."""
    scores = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    token = draw(Sampling(**options), scores, [], uniform)
    probabilities = kept(Sampling(**options), scores)
    assert probabilities[token] > 0
    before = math.fsum(p for i, p in probabilities.items() if i < token)
    assert before - 1e-6 <= uniform <= before + probabilities[token] + 1e-6


def test_a_seed_gives_the_same_numbers_for_ever() -> None:
    stream = UniformStream(7)
    assert [stream.draw() for _ in range(3)] == [0.8720734548204873, 0.29536538151378355, 0.4200976785072422]
    assert UniformStream(2**64 - 1).draw() != UniformStream(0).draw()
    assert UniformStream(None).draw() != UniformStream(None).draw()
    numbers = [stream.draw() for _ in range(10_000)]
    assert 0 <= min(numbers) < 0.001 < 0.999 < max(numbers) < 1
    assert abs(float(np.mean(numbers)) - 0.5) < 0.01


# ---- edges ----------------------------------------


@given(scores=SCORES)
def test_greedy_is_argmax_by_any_name(scores: list[float]) -> None:
    best = max(range(len(scores)), key=scores.__getitem__)
    for options in (
        {"temperature": 0.0},
        {"temperature": 0},
        {"temperature": 0.0, "top_k": 5, "top_p": 0.1, "min_p": 0.3},
        {"top_k": 1},
        {"top_k": 1, "temperature": 50.0},
        {"temperature": 1e-30},
        {"temperature": 5e-324},
        {"top_p": 1e-300},
        {"min_p": 1.0},
    ):
        found = kept(Sampling(**options), scores)
        assert {i for i, p in found.items() if p} == {best}
        assert draw(Sampling(**options), np.array(scores, dtype=np.float32), [], 0.999) == best


def test_an_extreme_temperature_neither_overflows_nor_forgets_what_is_excluded() -> None:
    scores = np.array([300.0, -300.0, -np.inf, 299.0])
    assert kept(Sampling(temperature=1e308), scores) == pytest.approx({0: 1 / 3, 3: 1 / 3, 1: 1 / 3, 2: 0.0})
    for temperature in (1e-30, 5e-324):
        assert kept(Sampling(temperature=temperature), scores) == {0: 1.0, 3: 0.0, 1: 0.0, 2: 0.0}


def test_filters_that_keep_everything() -> None:
    scores = np.random.default_rng(0).normal(size=9)
    plain = kept(Sampling(), scores)
    assert len(plain) == 9
    for options in (
        {"top_k": 9},
        {"top_k": 10**30},
        {"top_p": 1.0},
        {"top_p": 1},
        {"min_p": 0.0},
        {"min_p": 0},
    ):
        assert kept(Sampling(**options), scores) == pytest.approx(plain, rel=1e-12)


def test_ties() -> None:
    two = kept(Sampling(top_k=2), [1.0, 1.0, 1.0, 0.0])
    assert len(two) == 2
    assert two.keys() < {0, 1, 2}
    assert kept(Sampling(top_p=0.5), [0.0] * 4) == {0: 0.5, 1: 0.5}  # exactly half is reached by two of four
    assert kept(Sampling(top_p=0.51), [0.0] * 4).keys() == {0, 1, 2}
    assert kept(Sampling(min_p=1.0), [2.0, 1.0, 2.0]) == {0: 0.5, 2: 0.5}
    assert kept(Sampling(temperature=5e-324), [2.0, 1.0, 2.0]) == {0: 0.5, 2: 0.5, 1: 0.0}
    assert kept(Sampling(temperature=0), [1.0, 2.0, 2.0]) == {1: 1.0}  # the first, as argmax


def test_a_long_tail_counts_as_far_as_top_p_needs_it() -> None:
    """The best has two thirds, 100,000 equal ones the rest: 0.9 takes seven tenths of them."""
    found = kept(Sampling(top_p=0.9), [math.log(200_000)] + [0.0] * 100_000)
    assert found.keys() == set(range(len(found)))
    assert len(found) == pytest.approx(70_000, abs=5)  # sums of float32 weights


@pytest.mark.parametrize("order", [1, -1])
def test_of_scores_that_are_almost_equal_the_best_is_kept(order: int) -> None:
    """Their weights are equal, and only one of the two has any chance under min-p 1."""
    scores = np.full(10, -5, np.float32)
    near = np.float32(0.1)
    scores[2], scores[6] = (near, np.nextafter(near, np.float32(1)))[::order]
    best = int(scores.argmax())
    for p in (0.1, 0.4, 0.6):
        assert candidates(Sampling(top_p=p, min_p=1.0), scores)[0].tolist() == [best]
        assert draw(Sampling(top_p=p, min_p=1.0), scores, [], 0.99) == best


def test_one_token_alone() -> None:
    for options in ({}, {"top_k": 5}, {"top_p": 0.1}, {"min_p": 1.0}, {"temperature": 0}):
        assert kept(Sampling(**options), [-7.0]) == {0: 1.0}


def test_the_penalty_counts_each_token_once_and_lowers_either_sign() -> None:
    scores = [2.0, -1.0, 0.0, 1.0]
    once, twice = (kept(Sampling(repetition_penalty=2.0), scores, history) for history in ([0, 1, 2], [0, 0, 1, 1, 2]))
    assert once == twice
    wanted = np.exp([1.0, -2.0, 0.0, 1.0]) / np.exp([1.0, -2.0, 0.0, 1.0]).sum()
    assert [once[i] for i in range(4)] == pytest.approx(list(wanted), rel=1e-6)
    assert kept(Sampling(repetition_penalty=2.0, temperature=0), [2.0, 1.5], [0]) == {1: 1.0}


def test_the_penalty_ignores_ids_that_cannot_be_drawn() -> None:
    """A prompt may hold ids that a padded model has and its tokenizer does not."""
    assert kept(Sampling(repetition_penalty=2.0, temperature=0), [2.0, 1.5], [9, 0]) == {1: 1.0}
    assert kept(Sampling(repetition_penalty=2.0, temperature=0), [2.0, 1.5], [9]) == {0: 1.0}


def test_the_scores_are_left_as_they_were() -> None:
    scores = np.array([2.0, 1.0], dtype=np.float32)
    for options in ({"top_k": 1}, {"temperature": 0.5}, {"top_p": 0.5}):
        for excluded in ([], [1]):
            draw(Sampling(repetition_penalty=3.0, **options), scores, [0, 1], 0.5, excluded)
            assert scores.tolist() == [2.0, 1.0]


@given(ids=st.lists(st.integers(0, 9), max_size=30), n_prompt=st.integers(0, 30))
def test_the_ids_of_a_growing_text(ids: list[int], n_prompt: int) -> None:
    seen = UniqueIds(ids[:n_prompt])
    for token in ids[n_prompt:]:
        seen.add(token)
    assert sorted(seen.array.tolist()) == sorted(set(ids))


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 2}, {"top_p": 0.99}, {"min_p": 0.01}])
def test_an_excluded_id_is_as_one_without_a_chance(options: dict[str, Any]) -> None:
    scores, without = np.array([1.0, 9.0, 2.0, 3.0], dtype=np.float32), [1.0, -np.inf, 2.0, -np.inf]
    ids, probabilities = candidates(Sampling(**options), scores, excluded=(1, 3))
    found = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    assert found == kept(Sampling(**options), without)
    assert {draw(Sampling(**options), scores, (), u / 50, excluded=(1, 3)) for u in range(50)} <= {0, 2}
    with pytest.raises(ValueError, match="not finite"):
        draw(Sampling(**options), scores, (), 0.5, excluded=range(4))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_scores_of_another_type(dtype: Any) -> None:
    scores = np.array([3, -2, 5, 4] * 100, dtype=dtype)
    for options in ({"temperature": 0}, {"temperature": 0.7}, {"top_k": 150, "top_p": 0.9}, {"repetition_penalty": 2}):
        wanted, found = (candidates(Sampling(**options), s, [2]) for s in (scores.astype(np.float32), scores))
        assert wanted[0].tolist() == found[0].tolist()
        assert found[1].dtype == np.float64
        np.testing.assert_allclose(wanted[1], found[1], rtol=1e-6)
        drawn = [draw(Sampling(**options), s, [2], 0.3) for s in (scores.astype(np.float32), scores)]
        assert drawn[0] == drawn[1]


def test_threads_do_not_share_what_they_compute_in() -> None:
    scores = np.random.default_rng(0).normal(0, 3, (200, 5000)).astype(np.float32)
    sampling = Sampling(top_p=0.9, temperature=1.3)
    wanted = [draw(sampling, row, (), 0.6) for row in scores]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda row: draw(sampling, row, (), 0.6), scores)) == wanted


# ---- draws ----------------------------------------


def test_1e5_draws_stay_in_the_kept_set_with_the_right_frequencies() -> None:
    scores = np.array([3.0, -np.inf, 2.5, 2.0, -9.0, 1.0, 0.5, -60000.0], dtype=np.float32)
    sampling, uniform, n = Sampling(temperature=2.0, top_k=4), UniformStream(1), 100_000
    wanted = kept(sampling, scores)
    assert wanted.keys() == {0, 2, 3, 5}
    counts = Counter(draw(sampling, scores, (), uniform.draw()) for _ in range(n))
    assert counts.keys() == wanted.keys()
    chi_square = sum((counts[i] - n * p) ** 2 / (n * p) for i, p in wanted.items())
    assert chi_square < 16.27  # three degrees of freedom: passed by one seed in a thousand, and this one is fixed


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 0.25, 0.5, 0.75, 1 - 2**-53])
@pytest.mark.parametrize(
    ("scores", "options"),
    [
        ([0.0, -math.inf, 0.0, -math.inf], {}),
        ([0.0, -1e5, 0.0, -1e5], {}),  # probability 0 by underflow
        ([-math.inf, 0.0, 0.0, 0.0, 0.0], {"top_k": 4}),
        ([0.0] * 7 + [-math.inf] * 3, {"top_p": 0.999999}),
        ([1.0, -math.inf], {"top_k": 2}),
        ([-math.inf] * 500 + [0.0, -math.inf, 1.0] + [-math.inf] * 500, {}),  # whole blocks of nothing
        ([-1e5] * 128 + [0.0] * 128 + [-1e5] * 128, {}),
        ([0.0] + [-1e5] * 400, {"repetition_penalty": 1.5}),
    ],
)
def test_no_uniform_number_hits_a_probability_of_zero(
    uniform: float, scores: list[float], options: dict[str, Any]
) -> None:
    """Not even the borders: 0 itself, the largest number below 1, and the sums of the probabilities."""
    assert scores[draw(Sampling(**options), np.array(scores, dtype=np.float32), [], uniform)] > -100


@given(n=st.integers(1, 2000), uniform=st.floats(0, 1, exclude_max=True))
def test_a_uniform_number_picks_its_token(n: int, uniform: float) -> None:
    assert abs(draw(Sampling(), np.zeros(n, dtype=np.float32), [], uniform) - uniform * n) <= 1 + 1e-6


# ---- errors ----------------------------------------


@pytest.mark.parametrize(
    "scores",
    [[math.nan, 1.0], [1.0, math.inf], [math.nan] * 3, [-math.inf] * 3, [math.inf, -math.inf]],
)
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 1}, {"repetition_penalty": 1.3}])
def test_scores_that_are_no_numbers(scores: list[float], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="^the model's scores are not finite: ") as caught:
        draw(Sampling(**options), np.array(scores, dtype=np.float32), [0], 0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("repetition_penalty", [0, 0.0, -1.0, math.nan, math.inf]),
        ("temperature", [-1, -1e-9, math.nan, math.inf]),
        ("top_k", [0, -1, 1.5, 2.0, True, math.nan, "5"]),
        ("top_p", [0, 0.0, -0.1, 1.0001, math.nan, math.inf]),
        ("min_p", [-0.1, 1.0001, math.nan, -math.inf]),
    ],
)
def test_a_bad_value_names_its_field(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} {value!r} must be ") as caught:
            Sampling(**{field: value})
        assert "\n" not in str(caught.value)


def test_an_unknown_field() -> None:
    with pytest.raises(TypeError, match="top_kk"):
        Sampling(top_kk=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1.0])
def test_an_extreme_penalty_leaves_the_scores_finite(temperature: float) -> None:
    """Else a request could say that the model is damaged; a damaged one still says so."""
    scores = np.array([60.0, -60.0, 1.0], np.float32)
    sampling = Sampling(temperature=temperature, repetition_penalty=1e-37, logit_bias={0: 100.0})
    assert draw(sampling, scores, [0, 1], 0.5) == 0
    for damaged in (np.nan, np.inf):
        with pytest.raises(ValueError, match="scores are not finite"):
            draw(sampling, np.array([damaged, 1.0, 1.0], np.float32), [0], 0.5)
