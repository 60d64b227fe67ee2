"""The scheduler over a decoder whose next token is a hash of a row's tokens, so that any slip is another text."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTModel, Tokenizer, complete
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.decoder import Decoder, Prefix, Scores
from glassgpt.generation.options import Generation
from glassgpt.generation.prefixes import WORTH, Prefixes
from glassgpt.generation.row import Row
from glassgpt.generation.sampling import UnusableScoresError
from glassgpt.generation.scheduler import MOST_BYTES, MOST_ROWS, Request, Scheduler
from glassgpt.generation.speculation import PromptLookup
from glassgpt.generation.torch_decoder import CachedDecoder

CONTEXT = 64
A, B, C = ([letter] * CONTEXT for letter in b"ABC")


@dataclasses.dataclass(frozen=True)
class Held:
    tokens: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def scores(self) -> np.ndarray:
        return np.eye(257, dtype=np.float32)[97 + zlib.crc32(repr(self.tokens).encode()) % 26]


class Counting(Decoder):
    vocab_size, context_length = 257, CONTEXT

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.read_tokens: list[int] = []
        """Number of tokens of each call of `read`, and 0 for each call of `step`."""

    def read(self, tokens: Sequence[int], after: Prefix | None = None) -> Held:
        before = after.tokens if isinstance(after, Held) else ()
        assert 1 <= len(tokens) <= CONTEXT - len(before)
        self.read_tokens.append(len(tokens))
        return Held((*before, *tokens))

    def join(self, prefix: Prefix) -> None:
        assert isinstance(prefix, Held)
        self.rows.append(prefix.tokens)

    def step(self, tokens: Sequence[int]) -> Scores:
        self.read_tokens.append(0)
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens, strict=True)]
        assert max(map(len, self.rows)) <= CONTEXT
        return np.stack([Held(row).scores for row in self.rows])

    def drop(self, row: int) -> None:
        self.rows[row] = self.rows[-1]
        self.rows.pop()


def row_of(prompt: Sequence[int], tokenizer: Tokenizer, n_new: int = 5) -> Row:
    return Row(prompt, tokenizer, Generation(max_new_tokens=n_new, temperature=0, overflow="slide"))


def alone(prompt: Sequence[int], n_new: int) -> str:
    """The rule: each token is the hash of the last ones that fit."""
    ids = list(prompt)
    for _ in range(n_new):
        ids.append(int(Held(tuple(ids[-CONTEXT:])).scores.argmax()))
    return bytes(ids[len(prompt) :]).decode()


def steps(scheduler: Scheduler) -> list[dict[Request, str]]:
    """Who wrote what in each step, to the end."""
    done = []
    while scheduler.busy:
        events = scheduler.step()
        assert len(dict(events)) == len(events)
        done.append(dict(events))
    return done


@given(data=st.data())
def test_whoever_joins_leaves_or_is_cancelled_each_text_is_its_own(
    tiny_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    decoder = Counting()
    max_rows, chunk = data.draw(st.integers(1, 5), "max_rows"), data.draw(st.integers(1, 80), "chunk")
    scheduler = Scheduler(decoder, max_rows, chunk)
    # beginnings in common of 0 to 100 tokens, beyond the context, too
    prompt = st.builds(
        lambda letter, n, end: letter[:n] * 2 + end,
        st.sampled_from([A, B]),
        st.integers(0, 50),
        st.lists(st.sampled_from(b"xy"), min_size=1, max_size=20),
    )
    asked: dict[Request, tuple[list[int], int]] = {}
    written: dict[Request, str] = {}
    for _ in range(data.draw(st.integers(1, 20), "moves")):
        move = data.draw(st.sampled_from(["submit", "submit", "step", "cancel"]), "move")
        if move == "submit":
            new, n_new = data.draw(prompt, "prompt"), data.draw(st.integers(1, 30), "n_new")
            asked[scheduler.submit(row_of(new, tiny_tokenizer, n_new))] = (new, n_new)
        elif move == "step":
            for request, text in scheduler.step():
                written[request] = written.get(request, "") + text
        elif asked:
            scheduler.cancel(data.draw(st.sampled_from(list(asked)), "request"))
        assert len(decoder.rows) <= max_rows
    for request, text in scheduler.run():
        written[request] = written.get(request, "") + text
    assert (decoder.rows, scheduler.n_waiting, scheduler.busy) == ([], 0, False)
    for request, (ids, n_new) in asked.items():
        text = alone(ids, n_new)
        assert request.row.text == written.get(request, "")
        if request.row.finish_reason == "cancelled":
            assert text.startswith(request.row.text)
        else:
            assert (request.row.text, request.row.finish_reason) == (text, "length")


def test_a_long_prompt_holds_up_live_rows_for_one_chunk(tiny_tokenizer: Tokenizer) -> None:
    decoder = Counting()
    scheduler = Scheduler(decoder, max_rows=4, chunk=20)
    live = scheduler.submit(row_of(b"l", tiny_tokenizer, 30))
    scheduler.step()
    long = scheduler.submit(row_of(A[:50], tiny_tokenizer))
    written = steps(scheduler)
    assert all(live in step for step in written[:29])
    assert [long in step for step in written[:5]] == [False, False, True, True, True]
    assert decoder.read_tokens[:9] == [1, 0, 20, 0, 20, 0, 10, 0, 0]


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one(tiny_tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(Counting(), max_rows=4, chunk=20)
    first, second, short = (scheduler.submit(row_of(prompt, tiny_tokenizer, 1)) for prompt in (A, B, b"short"))
    written = steps(scheduler)
    when = [next(n for n, step in enumerate(written) if r in step) for r in (first, second, short)]
    assert when[2] == 2  # after one turn of each of the two
    assert max(when) <= 8  # and those are 128 tokens, in steps of 20 or, in one's turn after the short one, fewer


def test_a_full_row_that_slides_holds_up_the_others_for_one_chunk(tiny_tokenizer: Tokenizer) -> None:
    decoder = Counting()
    scheduler = Scheduler(decoder, max_rows=2, chunk=32)
    sliding, live = (scheduler.submit(row_of(prompt, tiny_tokenizer, 20)) for prompt in (A, b"l"))
    written = steps(scheduler)
    assert (sliding.row.text, live.row.text) == (alone(A, 20), alone(b"l", 20))
    begun = next(n for n, step in enumerate(written) if live in step)
    assert all(live in step for step in written[begun : begun + 20])


def test_a_request_has_one_token_in_a_step(tiny_tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(Counting(), chunk=10 * CONTEXT)
    for prompt in (A, B):
        scheduler.submit(row_of(prompt, tiny_tokenizer, 7))
    assert [len(step) for step in steps(scheduler)] == [2] * 7


def test_nobody_is_kept_waiting_then_a_prompt_is_read_whole(tiny_tokenizer: Tokenizer) -> None:
    decoder = Counting()
    scheduler = Scheduler(decoder, chunk=20)
    scheduler.submit(row_of(A, tiny_tokenizer, 1))
    assert len(steps(scheduler)) == 1
    assert decoder.read_tokens == [CONTEXT]


def test_first_come_first_served(tiny_tokenizer: Tokenizer) -> None:
    scheduler = Scheduler(Counting(), max_rows=2)
    requests = [scheduler.submit(row_of(bytes([97 + n]), tiny_tokenizer)) for n in range(7)]
    assert scheduler.n_waiting == 7
    order: list[Request] = []
    for step in steps(scheduler):
        order += [request for request in step if request not in order]
    assert order == requests


# ---- what prompts begin with ----------------------------------------


def tokens_read(tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], **options: Any) -> int:
    decoder = Counting()
    scheduler = Scheduler(decoder, **options)
    rows = [row_of(prompt, tokenizer, 3) for prompt in prompts]
    for row in rows:
        scheduler.submit(row)
    steps(scheduler)
    assert [row.text for row in rows] == [alone(prompt, 3) for prompt in prompts]
    return sum(decoder.read_tokens)


@pytest.mark.parametrize("options", [{}, {"max_rows": 1}, {"max_rows": 3, "chunk": 7}, {"chunk": 16}])
def test_a_shared_beginning_is_read_once(tiny_tokenizer: Tokenizer, options: dict[str, int]) -> None:
    prompts = [A[:40] + [*b"one"], A[:40] + [*b"two, longer"], [*b"other"], A[:40] + [*b"three"]]
    assert tokens_read(tiny_tokenizer, prompts, **options) == 40 + 3 + 11 + 5 + 5 - 1  # two and three share a "t"
    assert tokens_read(tiny_tokenizer, [A[:30]] * 6, **options) == 30
    assert tokens_read(tiny_tokenizer, [A[: WORTH - 1]] * 3, **options) == 3 * (WORTH - 1)  # more passes than it saves


def test_the_beginning_of_a_prompt_long_gone_is_known(tiny_tokenizer: Tokenizer) -> None:
    decoder = Counting()
    scheduler = Scheduler(decoder)
    for end in range(4):
        scheduler.submit(row_of([*A[:30], end], tiny_tokenizer))
        steps(scheduler)
    # the second one shows that the first's beginning is worth keeping
    assert [n for n in decoder.read_tokens if n] == [31, 30, 1, 1, 1]


def test_who_waits_for_a_beginning_goes_on_when_its_reader_is_cancelled(tiny_tokenizer: Tokenizer) -> None:
    decoder = Counting()
    scheduler = Scheduler(decoder, max_rows=2, chunk=16)
    first, second = (scheduler.submit(row_of([*A[:40], end], tiny_tokenizer)) for end in (1, 2))
    scheduler.step()
    assert decoder.read_tokens == [16]
    scheduler.cancel(first)
    steps(scheduler)
    assert second.row.text == alone([*A[:40], 2], 5)


def test_what_is_too_long_drives_out_nothing() -> None:
    prefixes = Prefixes(100)
    for n in (40, 101, 60):
        prefixes.keep(tuple(range(n)), Held(tuple(range(n))))
    assert sorted(map(len, prefixes._kept)) == [40, 60]
    assert prefixes.fits(100) and not prefixes.fits(101)


def test_what_is_kept_has_a_bound_and_the_least_recently_used_goes_first() -> None:
    prefixes = Prefixes(100)
    a, b, c = (tuple(letter[:40]) for letter in (A, B, C))
    for tokens in (a, b):
        prefixes.keep(tokens, Held(tokens))
    assert prefixes.longest((*a, 1)) == Held(a)
    prefixes.keep(c, Held(c))
    assert [prefixes.longest(tokens) for tokens in (a, b, c)] == [Held(a), None, Held(c)]
    prefixes.keep(a[:20], Held(a[:20]))
    assert prefixes.longest(a) == Held(a)
    assert prefixes.longest(a[:30]) == Held(a[:20])


def test_prompts_of_long_ago_are_forgotten() -> None:
    prefixes = Prefixes(100)
    for letter in (A, B, C):
        prefixes.expect(tuple(letter[:40]))
        assert prefixes.begin(tuple(letter[:40])) == 0
    for letter, shared in ((A, 0), (C, 40)):
        prefixes.expect(tuple(letter[:40]))
        assert prefixes.begin(tuple(letter[:40])) == shared


def test_a_remembered_prompt_is_not_read_again_by_the_next_turn(tiny_tokenizer: Tokenizer) -> None:
    """Unlike a beginning that is only kept where it is known to be shared: here the first turn is over before."""
    for remembered, n_read in ((0, 51), (100, 51 - 30)):
        decoder = Counting()
        scheduler = Scheduler(decoder, remembered=remembered)
        first = scheduler.submit(row_of(A[:30], tiny_tokenizer))
        steps(scheduler)
        decoder.read_tokens.clear()
        turn = [*first.row.ids, *b"And the next?!!!"]
        second = scheduler.submit(row_of(turn, tiny_tokenizer))
        steps(scheduler)
        assert second.row.text == alone(turn, 5)
        assert sum(decoder.read_tokens) == n_read


def test_a_chunk_is_as_long_as_its_time(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a first chunk of 64, or what there is, come pieces of 20, which is what fits in the time here."""
    now = 0.0

    class Slow(Counting):
        context_length = 400

        def read(self, tokens: Sequence[int], after: Prefix | None = None) -> Held:
            nonlocal now
            now += len(tokens) / 1024
            self.read_tokens.append(len(tokens))
            return Held((*(after.tokens if isinstance(after, Held) else ()), *tokens))

    monkeypatch.setattr("glassgpt.generation.scheduler.time.perf_counter", lambda: now)
    decoder = Slow()
    scheduler = Scheduler(decoder, chunk_seconds=20 / 1024)
    scheduler.submit(row_of([65] * 200, tiny_tokenizer, 1))
    steps(scheduler)
    assert decoder.read_tokens[:3] == [64, 20, 20] and sum(decoder.read_tokens) == 200


# ---- with a model ----------------------------------------


@pytest.mark.parametrize("window", [None, 20])
def test_chunks_and_shared_beginnings_change_no_token(
    tiny_model: Callable[..., GPTModel], tiny_tokenizer: Tokenizer, window: int | None
) -> None:
    model = tiny_model(vocab_size=260, context_length=CONTEXT, sliding_window=window)
    prompts = [[*A[:n], *b"xyz"[:m]] for n in (1, 20, 50) for m in range(4)]
    scheduler = Scheduler(CachedDecoder(model), max_rows=5, chunk=7)
    rows = [row_of(prompt, tiny_tokenizer, 25) for prompt in prompts]
    for row in rows:
        scheduler.submit(row)
    steps(scheduler)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 25, "overflow": "slide"}
    for prompt, row in zip(prompts, rows, strict=True):
        assert row.completion() == complete(model, tiny_tokenizer, [prompt], **options)[0]


POISON = 7


@pytest.mark.parametrize("kind", ["cached", "compiled", "speculating"])
def test_a_row_that_fails_fails_alone(
    tiny_model: Callable[..., GPTModel], tiny_tokenizer: Tokenizer, kind: str
) -> None:
    """At its prompt, at any later token, or while its prompt is scored; nothing of it is left behind for others."""
    model = tiny_model(vocab_size=260, context_length=CONTEXT)
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 20}
    healthy = [[*A[:n], *b"xyz"[:m]] for n in (1, 9, 33) for m in range(3)]
    wanted = complete(model, tiny_tokenizer, healthy, **options)
    with torch.no_grad():  # all that reads the token is no number: a model with such weights would not load
        model.tok_emb.weight[POISON] = 12345.0
    packed = pack_model(model)
    packed.weights.tokens[packed.weights.tokens == 12345.0] = np.nan
    model.tok_emb.weight.data[POISON] = torch.nan
    decoder = CachedDecoder(model) if kind == "cached" else CPUDecoder(packed)
    proposer = PromptLookup() if kind == "speculating" else None
    draws_poison = Generation(**options, logit_bias={POISON: 100.0})
    for isolates in (True, False):
        scheduler = Scheduler(decoder, max_rows=4, chunk=8, remembered=4 * CONTEXT, isolates=isolates)
        rows = [Row(ids, tiny_tokenizer, Generation(**options)) for ids in healthy]
        bad = [Row([*A[:n], POISON, *B[:5]], tiny_tokenizer, Generation(**options)) for n in (0, 30)]
        bad += [Row(B[:n], tiny_tokenizer, draws_poison) for n in (1, 20)]
        bad.append(Row([*B[:12], POISON, *A[:12]], tiny_tokenizer, Generation(**options, logprobs=1), scored=True))
        for row in [row for pair in itertools.zip_longest(rows, bad) for row in pair if row]:
            scheduler.submit(row, proposer)
        if not isolates:
            with pytest.raises(UnusableScoresError, match="scores are not finite: its weights are damaged"):
                steps(scheduler)
            scheduler.close()
            break
        steps(scheduler)
        assert [row.completion() for row in rows] == wanted
        assert [(row.finish_reason, str(row.error)[:31]) for row in bad] == 5 * [
            ("failed", "the model's scores are not fini")
        ]
        assert not any(POISON in kept for kept in scheduler._prefixes._kept)


def test_as_many_rows_as_their_memory_allows() -> None:
    decoder = Counting()
    assert Scheduler(decoder).max_rows == MOST_ROWS
    for row_bytes, rows in ((MOST_BYTES // 5, 5), (2 * MOST_BYTES, 1)):
        decoder.row_bytes = row_bytes
        assert Scheduler(decoder).max_rows == rows
    for option in ("max_rows", "chunk"):
        with pytest.raises(ValueError, match=f"^{option} 0 must be a whole number, at least 1$"):
            Scheduler(decoder, **{option: 0})


def test_a_prompt_that_was_cancelled_in_the_queue_is_not_read_for(tiny_tokenizer: Tokenizer) -> None:
    decoder = Counting()
    scheduler = Scheduler(decoder)
    scheduler.submit(row_of([*A[:30], 1], tiny_tokenizer, 1))
    scheduler.cancel(scheduler.submit(row_of([*A[:30], 2], tiny_tokenizer, 1)))
    steps(scheduler)
    assert decoder.read_tokens == [31]
