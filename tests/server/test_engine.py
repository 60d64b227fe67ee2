"""The engine's thread, with a decoder that waits where a test wants it to."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from running import SECONDS, Gate

from glassgpt import Tokenizer, complete
from glassgpt.generation.options import Generation
from glassgpt.generation.row import Row
from glassgpt.generation.sampling import UnusableScoresError, draw
from glassgpt.server import engine as engine_module
from glassgpt.server.engine import Ask, BrokenError, Engine, Events, Piece, QueueFullError
from glassgpt.server.shapes import joined

Make = Callable[..., Engine]


class Heard:
    """What an ask delivers."""

    def __init__(self, engine: Engine, *rows: Row) -> None:
        self.events: queue.SimpleQueue[Events] = queue.SimpleQueue()
        self.rows = rows
        self.pieces: dict[int, list[Piece]] = {}
        self.done_at = 0.0
        self.ask: Ask = engine.ask(rows, self._deliver)

    def _deliver(self, events: Events) -> None:
        if not isinstance(events, Exception) and any(piece.finish_reason for piece in events):
            self.done_at = time.monotonic()
        self.events.put(events)

    def wait(self) -> list[Piece]:
        """The texts, each as one piece; raises what the ask was told."""
        n_left = len(self.rows) - sum(of[-1].finish_reason is not None for of in self.pieces.values())
        while n_left:
            events = self.events.get(timeout=SECONDS)
            if isinstance(events, Exception):
                raise events
            for piece in events:
                self.pieces.setdefault(piece.index, []).append(piece)
                n_left -= piece.finish_reason is not None
        return [joined(self.pieces[index]) for index in range(len(self.rows))]


def row(tokenizer: Tokenizer, prompt: str, n_new: int = 8, **options: Any) -> Row:
    generation = Generation(**{"max_new_tokens": n_new, "temperature": 0, "ignore_eot": True, **options})
    return Row(tokenizer.encode(prompt), tokenizer, generation)


def wait_until(fulfilled: Callable[[], bool]) -> None:
    """For what no event tells of."""
    end = time.monotonic() + SECONDS
    while not fulfilled():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_texts_are_those_of_the_library(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "ignore_eot": True, "logprobs": 1}
    prompts = ["one", "two and more", "x", "four " * 5]
    engine = make_engine(max_rows=3)
    heard = [Heard(engine, *(row(letters, prompt, 9, **options) for prompt in prompts)) for _ in range(3)]
    found = [one.wait() for one in heard]
    engine.close()
    wanted = complete(gate, letters, prompts, max_new_tokens=9, **options)
    for of_ask in found:
        assert [(piece.text, piece.ids, piece.logprobs, piece.finish_reason) for piece in of_ask] == [
            (one.text, one.ids, one.logprobs, one.finish_reason) for one in wanted
        ]


@pytest.mark.parametrize("stop", ["", "a", "ab", "e\n", "9Z"])
def test_the_tokens_of_a_piece_are_those_of_its_text(make_engine: Make, letters: Tokenizer, stop: str) -> None:
    """Held back as it is, and left out where a stop text ends it."""
    engine = make_engine()
    for seed in range(6):
        whole = Heard(engine, row(letters, "x", 40, temperature=2.0, seed=seed)).wait()[0].text
        stops = (stop, whole[10:12]) if stop else ()
        heard = Heard(engine, row(letters, "x", 40, temperature=2.0, seed=seed, stop=stops))
        (piece,) = heard.wait()
        assert piece.text == whole[: min([whole.find(s) for s in stops if s in whole], default=40)]
        for part in heard.pieces[0]:
            assert letters.decode(part.ids) == part.text  # each token is a letter


def test_a_short_text_overtakes_long_ones(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine(max_rows=1)
    with gate.closed():
        running = Heard(engine, row(letters, "a", 4))
        assert gate.entered.wait(SECONDS)
        long, short = Heard(engine, row(letters, "b", 60)), Heard(engine, row(letters, "c", 2))
    for heard in (running, long, short):
        heard.wait()
    assert running.done_at < short.done_at < long.done_at


def test_the_many_texts_of_one_do_not_hold_up_another(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine(max_rows=1)
    with gate.closed():
        many = Heard(engine, *(row(letters, "many", 20) for _ in range(6)))
        assert gate.entered.wait(SECONDS)
        one = Heard(engine, row(letters, "one", 20))
    many.wait(), one.wait()
    assert one.done_at < many.done_at


def test_too_many_are_refused_and_places_come_free_again(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine(max_rows=2, max_queue=1)
    with gate.closed():
        heard = [Heard(engine, row(letters, "a"), row(letters, "b"))]
        with pytest.raises(QueueFullError, match="^2 texts wait or are written, of at most 3$"):
            Heard(engine, row(letters, "a"), row(letters, "b"))
        heard.append(Heard(engine, row(letters, "a")))
        with pytest.raises(QueueFullError):
            Heard(engine, row(letters, "a"))
        assert engine.n_open == 3
    for one in heard:
        one.wait()
    wait_until(lambda: engine.n_open == 0)
    Heard(engine, *(row(letters, "a") for _ in range(3))).wait()


@pytest.mark.parametrize("phase", ["queued", "prefill", "live"])
def test_cancelled_in_any_phase(gate: Gate, make_engine: Make, letters: Tokenizer, phase: str) -> None:
    """Nothing of it is left, and nothing more is heard of it, while others go on."""
    engine = make_engine(max_rows=1 if phase == "queued" else 2)
    other = Heard(engine, row(letters, "other", 4))
    if phase != "queued":
        other.wait()
    with gate.closed():
        if phase == "queued":
            assert gate.entered.wait(SECONDS)
            heard = Heard(engine, row(letters, "a", 80), row(letters, "b", 80))
        elif phase == "prefill":
            heard = Heard(engine, row(letters, "a" * 90, 4))  # longer than a first chunk
            assert gate.entered.wait(SECONDS)
        else:
            gate.closing_in = 3
            gate.opened.set()
            heard = Heard(engine, row(letters, "a", 90, logprobs=0))  # token by token
            heard.events.get(timeout=SECONDS)
            wait_until(lambda: not gate.opened.is_set())
        engine.cancel(heard.ask)
        engine.cancel(heard.ask)
    other.wait()
    wait_until(lambda: engine.n_open == 0)
    assert (gate.n_live, engine.n_live) == (0, 0)
    assert all(one.finish_reason in ("cancelled", None) for one in heard.rows)
    n_heard = heard.events.qsize()
    assert Heard(engine, row(letters, "after")).wait()[0].finish_reason == "length"
    assert heard.events.qsize() == n_heard


def test_a_next_turn_reads_what_is_new(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine(remembered_bytes=2**20)
    first = "You: what is the time?\nGPT:"
    text = Heard(engine, row(letters, first)).wait()[0].text
    gate.n_read.clear()
    next_turn = f"{first}{text}\nYou: and now?\nGPT:"
    found = Heard(engine, row(letters, next_turn)).wait()[0].text
    assert sum(gate.n_read) == len(next_turn) - len(first + text) + 1  # the last token was drawn, and not yet read
    engine.close()
    assert found == complete(gate, letters, next_turn, max_new_tokens=8, temperature=0, ignore_eot=True).text


def test_with_nothing_to_remember_everything_is_read(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine(remembered_bytes=0)
    same = "the beginning of both, and of all that"
    gate.n_read.clear()
    texts = [one.text for one in Heard(engine, *(row(letters, same + end) for end in ("", " 1", " 2"))).wait()]
    assert sum(gate.n_read) == 3 * len(same) + 4 and not engine._scheduler._prefixes._kept
    engine.close()
    wanted = [
        complete(gate, letters, same + end, max_new_tokens=8, temperature=0, ignore_eot=True) for end in ("", " 1")
    ]
    assert texts[:2] == [one.text for one in wanted]


def test_at_rest_the_memory_of_rows_goes_back(
    gate: Gate, make_engine: Make, letters: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "REST_SECONDS", 0.05)
    engine = make_engine()
    texts = [Heard(engine, row(letters, "a")).wait()[0].text for _ in range(2) if not time.sleep(0.2)]
    wait_until(lambda: gate.cache_bytes == 0)
    assert texts[0] == texts[1]


def test_what_is_remembered_has_a_bound(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine(remembered_bytes=gate.row_bytes)
    for n in range(12):
        Heard(engine, row(letters, f"{n}" * 50)).wait()
    kept = engine._scheduler._prefixes._kept
    assert kept and sum(map(len, kept)) <= gate.context_length


def test_a_failure_is_told_and_the_next_text_is_right(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine()
    text = Heard(engine, row(letters, "a")).wait()[0].text
    gate.failing = RuntimeError("out of order")
    with pytest.raises(RuntimeError, match="out of order"):
        Heard(engine, row(letters, "a"), row(letters, "b")).wait()
    gate.failing = None
    assert Heard(engine, row(letters, "a")).wait()[0].text == text
    assert (engine.n_open, gate.n_live, engine.error) == (0, 0, None)


def test_a_text_whose_scores_fail_takes_no_other_with_it(
    gate: Gate, make_engine: Make, letters: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often that comes; of its own ask all end, with the reason."""
    engine = make_engine()
    wanted = Heard(engine, row(letters, "a", 30)).wait()[0].text
    for _ in range(5):
        bad = row(letters, "b", 30)
        monkeypatch.setattr(bad, "choose", lambda _: draw(Generation(), np.full(5, np.nan, np.float32), [], 0.5))
        with gate.closed():
            beside = Heard(engine, row(letters, "a", 30))
            together = Heard(engine, row(letters, "a", 30), bad)
        with pytest.raises(UnusableScoresError, match="scores are not finite"):
            together.wait()
        assert beside.wait()[0].text == wanted
    wait_until(lambda: engine.n_open == 0)
    assert (gate.n_live, engine.error) == (0, None)


def test_one_that_fails_always_takes_nothing_more(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine()
    gate.failing = RuntimeError("out of order")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of order"):
            Heard(engine, row(letters, "a")).wait()
    wait_until(lambda: engine.error is not None)
    with pytest.raises(BrokenError, match="RuntimeError: out of order"):
        Heard(engine, row(letters, "a"))


def test_closing_ends_what_is_there(gate: Gate, make_engine: Make, letters: Tokenizer) -> None:
    engine = make_engine(max_rows=1)
    with gate.closed():
        heard = Heard(engine, row(letters, "a", 50), row(letters, "b", 50))
        assert gate.entered.wait(SECONDS)
        engine._closed = True
    with pytest.raises(BrokenError, match="the server is stopping"):
        heard.wait()
    engine.close()
    assert gate.n_live == 0
    with pytest.raises(BrokenError):
        Heard(engine, row(letters, "a"))
