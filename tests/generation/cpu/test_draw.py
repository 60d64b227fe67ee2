"""The compiled draw beside the one in NumPy: the same token, or none; and the decoder that goes on by it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTModel, Tokenizer, complete
from glassgpt.generation.cpu import draw as compiled
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.draw import NONE, new_draws
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.decoder import Decoder, Draw, Prefix, Row, Scores
from glassgpt.generation.options import Generation, Sampling
from glassgpt.generation.row import Row as TextRow
from glassgpt.generation.sampling import UniformStream, draw
from glassgpt.generation.scheduler import Scheduler

Make = Callable[..., GPTModel]

samplings = st.builds(
    Sampling,
    temperature=st.one_of(st.just(0.0), st.floats(1e-3, 50.0)),
    top_k=st.one_of(st.none(), st.integers(1, 400)),
    top_p=st.one_of(st.none(), st.floats(1e-3, 1.0)),
    min_p=st.one_of(st.none(), st.floats(0.0, 1.0)),
)


def drawn(sampling: Sampling, scores: Row, uniform: float, excluded: Sequence[int] = ()) -> int:
    draws = new_draws([Draw(sampling, len(scores), tuple(excluded), [uniform])], len(scores))
    row = [part[0] for part in (draws.excluded, draws.temperature, draws.top_k, draws.top_p, draws.least)]
    return compiled._draw(scores, *row, uniform)


@given(
    samplings,
    st.integers(1, 300),
    st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    st.sampled_from([None, 1.0, 0.25]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_the_token_is_the_same_or_none(
    sampling: Sampling, n: int, spread: float, grid: float | None, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    scores = (random.standard_normal(n) * spread).astype(np.float32)
    if grid:
        scores = (np.round(scores / grid) * grid).astype(np.float32)  # many that are equal
    excluded = data.draw(st.lists(st.integers(0, n - 1), max_size=min(3, n - 1)))
    uniform = data.draw(st.one_of(st.floats(0, 1, exclude_max=True), st.just(random.random())))
    before = scores.copy()
    token = drawn(sampling, scores, uniform, excluded)
    assert np.array_equal(scores, before)
    assert token in (NONE, draw(sampling, scores, (), uniform, excluded))


@pytest.mark.parametrize(
    "options",
    [
        dict(temperature=0),
        dict(temperature=0.8),
        dict(top_k=40),
        dict(top_p=0.9),
        dict(min_p=0.05),
        dict(top_k=50, top_p=0.95),
    ],
)
def test_hardly_any_draw_is_too_close_to_call(options: dict[str, Any]) -> None:
    """Measured: at most 1 in 150, without filters, where a third of the tokens have one part in a million each."""
    random = np.random.default_rng(0)
    sampling, found = Sampling(**options), []
    for _ in range(300):
        scores = (4 * random.standard_normal(5000)).astype(np.float32)
        uniform = random.random()
        token = drawn(sampling, scores, uniform)
        assert token in (NONE, draw(sampling, scores, (), uniform))
        found.append(token)
    assert found.count(NONE) <= 15


@pytest.mark.parametrize(
    "options", [dict(top_p=0.95, min_p=0.5), dict(top_p=0.5, min_p=0.01), dict(top_k=5, min_p=0.3)]
)
def test_of_two_filters_each_counts(options: dict[str, Any]) -> None:
    scores = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    for uniform in np.arange(0.005, 1, 0.01):
        assert drawn(Sampling(**options), scores, uniform) == draw(Sampling(**options), scores, (), uniform)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.nan])
def test_scores_that_are_not_finite_are_left_to_the_error(bad: float) -> None:
    for options in (dict(temperature=0), dict(temperature=1), dict(top_k=3)):
        scores = np.arange(100, dtype=np.float32)
        scores[17] = bad
        assert drawn(Sampling(**options), scores, 0.5) == NONE
    assert drawn(Sampling(temperature=0), np.zeros(3, np.float32), 0.5, [0, 1, 2]) == NONE


def test_a_weight_of_zero_is_never_drawn() -> None:
    scores = np.full(40, -200, np.float32)
    scores[7] = 0
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert drawn(Sampling(), scores, uniform) in (7, NONE)
    assert drawn(Sampling(), scores, 0.5) == 7


OPTIONS: list[dict[str, Any]] = [
    dict(temperature=0),
    dict(temperature=0.7, seed=1),
    dict(top_k=3, seed=2),
    dict(top_p=0.8, temperature=1.5, seed=3),
    dict(min_p=0.02, top_k=1, seed=4),
]
# what follows a token depends on it, or scores are changed, or told
CHANGING: list[dict[str, Any]] = [
    dict(repetition_penalty=1.3, seed=5),
    dict(ignore_eot=True, seed=6),
    dict(presence_penalty=1.0, seed=7),
    dict(frequency_penalty=0.5, temperature=0),
    dict(logit_bias={122: 3.0}, seed=8),
    dict(logprobs=1, seed=9),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_run_is_so_many_steps(tiny_model: Make, threads: int, precision: str) -> None:
    model = tiny_model(emb_dim=48, n_heads=3, n_layers=2, vocab_size=300, context_length=40)
    packed = pack_model(model, precision)
    ahead, plain = (CPUDecoder(packed, threads=threads) for _ in range(2))
    if threads > 1:
        ahead._per_token = 2**30  # so that they share the work of even this model
    prompts = [[5, 6, 7], [1], [250] * 9, [3, 4], [8]]
    streams, same = ([UniformStream(options.get("seed", 0)) for options in OPTIONS] for _ in range(2))
    samplings = [Sampling(**{k: v for k, v in options.items() if k != "seed"}) for options in OPTIONS]
    for decoder in (ahead, plain):
        decoder.add(prompts)
    tokens = [1, 2, 3, 4, 5]
    for n in (4, 1, 9, 12):
        draws = [
            Draw(sampling, 290, (2, 17), [stream.draw() for _ in range(n)])
            for sampling, stream in zip(samplings, streams, strict=True)
        ]
        found, scores = ahead.run(tokens, draws)
        assert {len(row) for row in found} == {n}
        for index in range(n + 1):
            expected = plain.step(tokens)
            if index < n:
                tokens = [
                    draw(sampling, row[:290], (), stream.draw(), (2, 17))
                    for sampling, row, stream in zip(samplings, expected, same, strict=True)
                ]
                assert tokens == [row[index] for row in found]
        assert np.array_equal(scores, expected)
        assert ahead._lengths == plain._lengths


def test_a_run_stops_where_a_draw_is_too_close_to_call(tiny_model: Make) -> None:
    model = tiny_model(vocab_size=8, context_length=16)
    for parameter in model.parameters():
        parameter.data.zero_()  # so that all tokens are equally likely
    decoder = CPUDecoder(pack_model(model))
    decoder.add([[1], [2]])
    sure, close = [0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.25, 0.3]
    found, scores = decoder.run([3, 4], [Draw(Sampling(), 8, (), uniforms) for uniforms in (sure, close)])
    assert found == [[2, 2], [2, 2]]
    assert scores.shape == (2, 8)
    assert decoder._lengths == [4, 4]
    decoder.step([1, 1])


def test_a_run_fits_the_context_or_changes_nothing(tiny_model: Make) -> None:
    decoder = CPUDecoder(pack_model(tiny_model(context_length=8)))
    decoder.add([[1] * 3])
    with pytest.raises(ValueError, match="a row of 9 tokens exceeds the 8 that it may hold"):
        decoder.run([1], [Draw(Sampling(), 20, (), [0.5] * 5)])
    assert decoder._lengths == [3]
    found, _ = decoder.run([1], [Draw(Sampling(temperature=0), 20, (), [0.5] * 4)])
    assert len(found[0]) == 4


class OneByOne(Decoder):
    """A decoder without what only the compiled one can do."""

    def __init__(self, decoder: CPUDecoder) -> None:
        self._decoder = decoder
        self.vocab_size, self.context_length = decoder.vocab_size, decoder.context_length

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> Prefix:
        return self._decoder.read(tokens, after)

    def join(self, prefix: Prefix) -> None:
        self._decoder.join(prefix)

    def step(self, tokens: Sequence[int]) -> Scores:
        return self._decoder.step(tokens)

    def drop(self, row: int) -> None:
        self._decoder.drop(row)


@pytest.mark.parametrize("options", [*OPTIONS, *CHANGING])
@pytest.mark.parametrize("overflow", ["shift", "slide"])
def test_texts_are_the_same_as_one_by_one(tiny_model: Make, options: dict[str, Any], overflow: str) -> None:
    """Rows that end at different places, by the end of text or a stop text in the midst of a run."""
    tokenizer = Tokenizer.bytes_()
    packed = pack_model(tiny_model(vocab_size=257, context_length=24, emb_dim=16, n_heads=2))
    prompts = [[72, 105], [65] * 20, [1], [2, 3]]
    given = dict(options, overflow=overflow, max_new_tokens=120, stop=("\x1e", "ab", "z"))
    expected = complete(OneByOne(CPUDecoder(packed)), tokenizer, prompts, **given)
    decoder = CPUDecoder(packed)
    assert complete(decoder, tokenizer, prompts, **given) == expected
    assert not decoder._lengths


def test_the_decoder_runs_ahead_while_nobody_can_join(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """More prompts than rows: those that wait could not join anyhow."""
    decoder = CPUDecoder(pack_model(tiny_model(vocab_size=257, context_length=64)))
    calls: list[int] = []
    real = decoder.run
    monkeypatch.setattr(decoder, "run", lambda *given: (calls.append(scheduler.n_waiting), real(*given))[1])
    scheduler = Scheduler(decoder, max_rows=2)
    generation = Generation(temperature=0, max_new_tokens=30, ignore_eot=True)
    for token in range(5):
        scheduler.submit(TextRow([token], Tokenizer.bytes_(), generation))
    for _ in scheduler.run():
        pass
    assert max(calls) == 3
