"""How many threads a token wakes: measured once, remembered, and never seen in the scores."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glassgpt import GPTModel, Tokenizer, complete, load_decoder, save_model
from glassgpt.generation.cpu import decoder as decoder_module
from glassgpt.generation.cpu import load as load_module
from glassgpt.generation.cpu import tuning as module
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.cpu.team import Team
from glassgpt.generation.cpu.tuning import FEW, MEASURED_AHEAD, Seconds, Tuner, tuner_for
from glassgpt.generation.cpu.weights import PRECISIONS
from glassgpt.measured import cache_file

Make = Callable[..., GPTModel]


class Clockwork:
    """A team, a clock and a system that switches processes: a step takes what `costs` says."""

    def __init__(self, n_threads: int, costs: Callable[[int], float]) -> None:
        self.n_threads, self.costs = n_threads, costs
        self.now = 0.0
        self.switches = 0
        self.woken: list[int | None] = []

    def run(self, function: object, *arguments: object, threads: int | None = None) -> None:
        self.woken.append(threads)
        self.now += self.costs(threads or self.n_threads)


def be_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other work on this machine."""
    monkeypatch.setattr(module, "_switches", lambda: 0)
    monkeypatch.setattr(module, "_is_busy", lambda: False)


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clockwork]:
    def make(n_threads: int, costs: Callable[[int], float]) -> Clockwork:
        team = Clockwork(n_threads, costs)
        monkeypatch.setattr(module.time, "perf_counter", lambda: team.now)
        be_quiet(monkeypatch)
        monkeypatch.setattr(module, "_switches", lambda: team.switches)
        return team

    return make


def tuned(team: Clockwork, n_steps: int = 200) -> tuple[Tuner, list[tuple[Seconds, int]]]:
    found: list[tuple[Seconds, int]] = []
    tuner = Tuner(team, measured=lambda seconds, threads: found.append((seconds, threads)))  # type: ignore[arg-type]
    for _ in range(n_steps):
        tuner.run(1, lambda: 1, print)
    return tuner, found


@pytest.mark.parametrize(
    ("n", "costs", "best", "tried"),
    [
        (2, {1: 25.0, 2: 15.0}, 2, [1, 2]),
        (2, {1: 10.0, 2: 15.0}, 1, [1, 2]),
        (2, {1: 10.0, 2: 10.0}, 1, [1, 2]),  # alike: the fewer
        (16, {16: 9.0, 8: 5.0, 4: 4.0, 2: 7.0, 1: 13.0}, 4, [2, 4, 8, 16]),
        (16, {16: 9.0, 8: 9.5, 4: 4.0, 2: 3.0, 1: 4.0}, 2, [1, 2, 4, 8, 16]),  # over a small hill
        (3, {3: 2.0, 1: 4.0}, 3, [1, 3]),
    ],
)
def test_the_fastest_number_is_found_and_told_once(
    clockwork: Callable[..., Clockwork], n: int, costs: Seconds, best: int, tried: list[int]
) -> None:
    team = clockwork(n, costs.__getitem__)
    tuner, found = tuned(team)
    assert found == [({threads: costs[threads] for threads in tried}, best)]
    assert set(team.woken[-100:]) == {best}
    assert str(tuner).startswith(f"{best} thread{'s' * (best > 1)} (measured now: a token takes ")


def test_fewer_threads_are_no_longer_tried_once_they_are_slower(clockwork: Callable[..., Clockwork]) -> None:
    team = clockwork(64, lambda threads: 64 / threads)
    tuned(team)
    assert set(team.woken) == {64, 32}


def test_beside_other_work_all_threads_stay_and_nothing_is_told(clockwork: Callable[..., Clockwork]) -> None:
    team = clockwork(2, {1: 1.0, 2: 5.0}.__getitem__)

    def costs(threads: int) -> float:
        team.switches += 1
        return {1: 1.0, 2: 5.0}[threads]

    team.costs = costs
    tuner, found = tuned(team)
    assert found == []
    assert set(team.woken[-100:]) == {2}
    assert str(tuner) == "2 threads (one for each core; not measured, because other work is running)"


def test_a_machine_that_was_busy_a_moment_ago_is_not_measured(
    clockwork: Callable[..., Clockwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = module._is_busy
    team = clockwork(2, {1: 1.0, 2: 5.0}.__getitem__)
    monkeypatch.setattr(module, "_is_busy", busy)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(module.os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    assert tuned(team)[1] == []
    monkeypatch.setattr(module.os, "getloadavg", lambda: (0.5, 9.0, 9.0), raising=False)
    assert len(tuned(team)[1]) == 1


def test_a_disturbance_of_some_steps_does_not_decide(clockwork: Callable[..., Clockwork]) -> None:
    team = clockwork(2, lambda threads: {1: 25.0, 2: 15.0}[threads])
    steps = iter(range(1000))
    team.costs = lambda threads: {1: 25.0, 2: 15.0}[threads] * (4 if next(steps) in (2, 6) else 1)
    assert tuned(team)[1] == [({1: 25.0, 2: 15.0}, 2)]


def test_larger_steps_have_all_threads_and_are_not_timed(clockwork: Callable[..., Clockwork]) -> None:
    team = clockwork(4, {4: 9.0, 2: 5.0, 1: 6.0}.__getitem__)
    tuner = Tuner(team)  # type: ignore[arg-type]
    for n in (FEW + 1, 64):
        tuner.run(n, lambda: 1, print)
    assert team.woken == [None, None]
    assert str(tuner) == "4 threads (one for each core; too few tokens so far to measure that)"
    for _ in range(100):
        tuner.run(1, lambda: 1, print)
    tuner.run(FEW, lambda: 1, print)
    tuner.run(FEW + 1, lambda: 1, print)
    assert team.woken[-2:] == [2, None]


def test_the_number_that_was_asked_for_is_kept(clockwork: Callable[..., Clockwork]) -> None:
    team = clockwork(2, {1: 1.0, 2: 5.0}.__getitem__)
    tuner = Tuner(team, 2)  # type: ignore[arg-type]
    for _ in range(50):
        tuner.run(1, lambda: 1, print)
    assert set(team.woken) == {2}
    assert str(tuner) == "2 threads (as asked)"


# ---- in a decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_scores_are_the_same_bits_while_it_tries(
    tiny_model: Make, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "ALONE", 0)
    model = tiny_model(context_length=64)
    packed, ids = pack_model(model, precision), np.random.default_rng(0).integers(0, 97, 60).tolist()
    alone, several = CPUDecoder(packed), CPUDecoder(packed, threads=4)
    told: list[int] = []
    several.tuner = Tuner(several.team, measured=lambda seconds, threads: told.append(threads))
    be_quiet(monkeypatch)
    assert np.array_equal(alone.add([ids[:3]]), several.add([ids[:3]]))
    for token in ids[3:]:
        assert np.array_equal(alone.step([token]), several.step([token]))
    assert len(told) == 1


@pytest.fixture
def saved(tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that has to be measured, on a machine with four cores, with nothing remembered."""
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("glassgpt.cores.available_cores", lambda: 4)
    monkeypatch.setattr(decoder_module, "ALONE", 0)
    be_quiet(monkeypatch)
    save_model(tiny_model(vocab_size=257, context_length=64), Tokenizer.bytes_(), tmp_path / "model")
    return tmp_path / "model"


def write(decoder: CPUDecoder, n_tokens: int = 50) -> None:
    decoder.add([[1, 2]])
    for _ in range(n_tokens):
        decoder.step([3])
    decoder.drop(0)


def test_the_next_decoder_knows_what_the_first_has_measured(saved: Path) -> None:
    first, _ = load_decoder(saved)
    assert "too few tokens so far" in str(first.tuner)
    write(first)
    assert "(measured now: " in str(first.tuner)
    second, _ = load_decoder(saved)
    assert str(second.tuner).split(" (")[0] == str(first.tuner).split(" (")[0]
    assert "(measured on 2" in str(second.tuner)


@pytest.mark.parametrize("other", [dict(precision="int8"), dict(cache="float16")])
def test_other_number_types_are_measured_for_themselves(saved: Path, other: dict[str, Any]) -> None:
    write(load_decoder(saved)[0])
    assert "too few tokens so far" in str(load_decoder(saved, **other)[0].tuner)


def test_a_short_text_leaves_nothing(saved: Path) -> None:
    write(load_decoder(saved)[0], 5)
    assert not cache_file().exists()


def test_who_asks_for_threads_gets_them(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(load_decoder(saved, threads=3)[0].tuner) == "3 threads (as asked)"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert str(load_decoder(saved)[0].tuner) == "2 threads (as asked)"


def test_there_is_nothing_to_measure_with_one_core(tiny_model: Make) -> None:
    config = tiny_model().config
    assert str(tuner_for(Team(1), None, config, "float32", "float32")) == "1 thread (there is one core to use)"


def test_several_steps_in_one_call_are_measured_by_the_step(clockwork: Callable[..., Clockwork]) -> None:
    """However many they turn out to be: the times differ, a step's does not."""
    team, counts = clockwork(2, lambda _: 0.0), itertools.cycle([5, 1, 3])
    found: list[Seconds] = []
    tuner = Tuner(team, measured=lambda seconds, threads: found.append(seconds))  # type: ignore[arg-type]
    while tuner.measuring:
        n = next(counts)
        team.costs = lambda threads, n=n: n * {1: 25.0, 2: 15.0}[threads]  # type: ignore[misc]
        tuner.run(1, lambda n=n: n, print)  # type: ignore[misc]
    assert found == [{1: 25.0, 2: 15.0}]


def test_a_text_in_calls_of_several_steps_is_the_same_while_it_tries(
    tiny_model: Make, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the calls are short meanwhile, so that one text is enough."""
    monkeypatch.setattr(decoder_module, "ALONE", 0)
    be_quiet(monkeypatch)
    packed = pack_model(tiny_model(vocab_size=257, context_length=120))
    texts, lengths = [], []
    real = CPUDecoder._steps

    def steps(decoder: CPUDecoder, tokens: list[int], draws: Any) -> Any:
        lengths.append((decoder.tuner.measuring, len(draws.tokens)))
        return real(decoder, tokens, draws)

    monkeypatch.setattr(CPUDecoder, "_steps", steps)
    for tuned in (False, True):
        decoder = CPUDecoder(packed, threads=2)
        if tuned:
            decoder.tuner = Tuner(decoder.team)
        texts.append(complete(decoder, tiny_tokenizer, "ab", max_new_tokens=110, seed=3, ignore_eot=True).ids)
        assert not decoder.tuner.measuring
    assert texts[0] == texts[1]
    assert max(n for measuring, n in lengths if measuring) == MEASURED_AHEAD
    assert max(n for measuring, n in lengths if not measuring) > MEASURED_AHEAD


@pytest.mark.parametrize("threads", [400, 0, True, "2", None])
def test_a_number_that_cannot_be_is_measured_again(saved: Path, threads: object) -> None:
    edited(saved, threads=threads)
    assert "too few tokens so far" in str(load_decoder(saved)[0].tuner)


@pytest.mark.parametrize("seconds", [3, {}, {"x": 1}, {"1": [1]}, None])
def test_so_are_times_that_cannot_be(saved: Path, seconds: object) -> None:
    edited(saved, threads=2)
    assert str(load_decoder(saved)[0].tuner).startswith("2 threads (measured on ")
    edited(saved, seconds=seconds)
    assert "too few tokens so far" in str(load_decoder(saved)[0].tuner)


def edited(saved: Path, **found: object) -> None:
    """Measure, and change what was remembered."""
    write(load_decoder(saved)[0])
    content = json.loads(cache_file().read_text(encoding="utf-8"))
    content["measurements"][0]["found"] |= found
    cache_file().write_text(json.dumps(content), encoding="utf-8")


def test_a_model_in_memory_has_all_threads(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert str(load_module.compiled_decoder(tiny_model()).tuner) == "2 threads (as asked)"
