"""The one loop that drives a decoder: under `generate`, `stream`, the command line and the samples of training.

Requests wait in a queue, and rows join and leave at every step. It holds no tensors. (The idea is nano-vllm's.)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import deque
from collections.abc import Collection, Iterator

from glassgpt.generation.decoder import Decoder, Draw, Leaves, Prefix, ReadsAll, RunsAhead, Speculative
from glassgpt.generation.decoder import Row as ScoreRow
from glassgpt.generation.loop import window
from glassgpt.generation.prefixes import WORTH, Prefixes, Tokens
from glassgpt.generation.row import Row
from glassgpt.generation.sampling import UnusableScoresError
from glassgpt.generation.speculation import Pace, Proposer, Tally
from glassgpt.options import check_int

CHUNK = 256
"""The most tokens of prompts that are read between two steps of the live rows."""

MOST_ROWS = 64
"""More live rows than this hardly speed up a CPU."""

MOST_BYTES = 2**31
"""Where `MOST_ROWS` would take more memory than this, in bytes, there are fewer."""

MOST_AHEAD = 64
"""The most tokens of a row that are decoded in one call: fewer where it would take longer than `AHEAD_SECONDS`."""

AHEAD_SECONDS = 0.02
"""So long a text does not go on for anybody to see, and a request is not cancelled."""

_FIRST_CHUNK = 64
"""Tokens of the first chunk of all, when nobody knows how long it takes."""

_SCORED = 64
"""Tokens of a prompt whose scores are held at once, where all are wanted."""

Event = tuple["Request", str]


@dataclasses.dataclass(eq=False)
class Request:
    """A row on its way: it waits, its prompt is read, it is live, it has finished (`row.finish_reason`)."""

    row: Row
    tokens: Tokens
    """What is to be read before the row's next token can be drawn."""
    prefix: Prefix | None = None
    """The part of `tokens` that has been read."""
    shared: int = 0
    """So many of `tokens` are the beginning of another prompt, too."""
    number: int = 0
    """The order in which requests were admitted."""
    n_held: int = 0
    """Tokens that the decoder's live row holds."""
    proposer: Proposer | None = None
    """Who guesses the row's next tokens."""
    pace: Pace = dataclasses.field(default_factory=Pace)

    @property
    def n_read(self) -> int:
        """How many of `tokens` have been read."""
        return 0 if self.prefix is None else self.prefix.n_tokens


class Scheduler:
    """First come, first served, while at most `max_rows` are read or live; one `step` at a time.

    A step appends a token to every live row, and as many more as its proposer guessed right, and then reads at most
    `chunk` tokens of prompts, so a long prompt holds up the live rows for no longer than that. The prompts being read
    take turns, so a short one does not wait for the end of a long one. What several prompts begin with is read once. A
    row's tokens depend on its own prompt and seed alone, up to rounding: where two are all but equally likely, the sums
    of another batch may choose the other. It is for one thread.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_rows: int | None = None,
        chunk: int = CHUNK,
        tally: Tally | None = None,
        chunk_seconds: float | None = None,
        remembered: int | None = None,
        isolates: bool = False,
    ) -> None:
        """`decoder` has no live rows; None for `max_rows` goes by `Decoder.row_bytes`. `ValueError` below 1.

        `tally` is told what came of speculation. With `chunk_seconds` a step reads no more than takes about so long,
        also where nobody waits for it. Of prompts that were read, and of texts that have ended, up to so many tokens
        are `remembered` for those that begin with them; None keeps what prompts share that wait at the same time.
        Where a row's scores are not finite, `step` raises that; if it `isolates`, that row has failed, and no other.
        """
        if max_rows is None:
            max_rows = max(1, min(MOST_ROWS, MOST_BYTES // max(1, decoder.row_bytes)))
        check_int("max_rows", max_rows, at_least=1)
        check_int("chunk", chunk, at_least=1)
        self.max_rows = max_rows
        self._decoder, self._chunk = decoder, chunk
        self._tally = tally or Tally()
        self._waiting: deque[Request] = deque()
        self._reading: deque[Request] = deque()  # the next turn is the first one's
        self._live: list[Request] = []  # at the decoder's indices
        self._step_seconds = math.inf  # of the last one
        self._numbers = itertools.count()
        self._prefixes = Prefixes(2 * decoder.context_length if remembered is None else remembered)
        self._remembers, self._chunk_seconds, self._isolates = bool(remembered), chunk_seconds, isolates
        self._reading_rate = _FIRST_CHUNK / chunk_seconds if chunk_seconds else math.inf  # tokens per second

    @property
    def n_waiting(self) -> int:
        """Requests that no work has been done for yet."""
        return len(self._waiting)

    @property
    def n_live(self) -> int:
        """Requests that are read or live."""
        return len(self._reading) + len(self._live)

    @property
    def busy(self) -> bool:
        """Whether any request has not finished."""
        return bool(self._waiting or self._reading or self._live)

    def submit(self, row: Row, proposer: Proposer | None = None) -> Request:
        """Queue a row. `proposer` guesses for it.

        `ValueError` where the decoder cannot take tokens back for that, or cannot score a prompt that is to be scored.
        """
        if proposer is not None:
            check_speculates(self._decoder)
        if row.prompt_logprobs is not None and not isinstance(self._decoder, ReadsAll):
            raise ValueError("this decoder cannot score a prompt: use the cached or the compiled one")
        request = Request(row, tuple(window(row, self._decoder.context_length)), proposer=proposer)
        self._prefixes.expect(request.tokens)
        self._waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a request between two steps, wherever it is; its row keeps the text so far. A finished one stays so."""
        if request.row.finish_reason is not None:
            return
        request.row.finish_reason = "cancelled"
        if request.proposer:
            request.proposer.forget(request.row)
        if request in self._live:
            self._leave(request)
        elif request in self._reading:
            self._reading.remove(request)
        else:
            self._waiting.remove(request)
            self._prefixes.forget(request.tokens)

    def close(self) -> None:
        """Cancel all requests, also after a step that Ctrl-C has broken off; the decoder has no live rows then."""
        for request in (*self._live, *self._reading, *self._waiting):
            request.row.finish_reason = request.row.finish_reason or "cancelled"
            if request.proposer:
                request.proposer.forget(request.row)
        for request in list(self._live):
            self._leave(request)
        for request in self._waiting:
            self._prefixes.forget(request.tokens)
        self._reading.clear()
        self._waiting.clear()

    def run(self) -> Iterator[Event]:
        """`step` until every request has finished, those that are submitted meanwhile included."""
        while self.busy:
            yield from self.step()

    def step(self) -> list[Event]:
        """A token for every live row, then for each whose prompt is now read: (request, new text), which may be "".

        A live row gets several where they were guessed right, or where the decoder ran ahead. No request has two events
        in one step, and a full row that slides is read again from the next step on.
        """
        events: list[Event] = []
        if self._live:
            live = list(self._live)
            events += self._speculate(live, proposed) if any(proposed := self._proposed(live)) else self._append(live)
            for request in reversed(live):
                if request.row.finish_reason is not None or request.n_held == self._decoder.context_length:
                    self._keep(request)
                    self._leave(request)
                    self._go_on(request)
        self._admit()
        alone = not self._live and len(self._reading) == 1  # nobody waits for the end of a chunk
        budget = self._decoder.context_length if alone else self._chunk
        if self._chunk_seconds:
            budget = min(budget, max(WORTH, int(self._chunk_seconds * self._reading_rate)))
        least = min(WORTH, budget)  # what a turn costs, however few its tokens
        while budget >= least and (reader := self._next({request for request, _ in events})):
            budget -= max(least, self._read(reader, budget))
            if reader.row.error is not None:
                self._reading.remove(reader)
                events.append((reader, ""))
                self._go_on(reader)
                self._admit()
            elif reader.n_read == len(reader.tokens):
                assert reader.prefix is not None and reader.prefix.scores is not None
                self._reading.remove(reader)
                first = not reader.row.n_drawn
                events.append(self._draw(reader, reader.prefix.scores))
                if self._remembers and first and reader.n_read >= WORTH and reader.row.error is None:
                    self._prefixes.keep(reader.tokens, reader.prefix)
                self._go_on(reader)
                self._admit()
        return events

    def _append(self, live: list[Request]) -> list[Event]:
        """One token for each live row, or several where nobody can join and the decoder draws them itself."""
        tokens = [request.row.ids[-1] for request in live]
        draws = self._draws(live)
        start = time.perf_counter()
        if draws:
            assert isinstance(self._decoder, RunsAhead)
            drawn, scores = self._decoder.run(tokens, draws)
        else:
            drawn, scores = [[] for _ in live], self._decoder.step(tokens)
        self._step_seconds = (time.perf_counter() - start) / (len(drawn[0]) + 1)
        events = []
        for request, ahead, score in zip(live, drawn, scores, strict=True):
            row, text = request.row, ""
            request.n_held += 1 + len(ahead)
            self._tally.n_drawn += request.proposer is not None
            for token in ahead:
                if row.finish_reason is None:
                    text += row.take(token)
            if row.finish_reason is None:
                text += self._write(row, score)[1]
            events.append((request, text))
        return events

    def _write(self, row: Row, scores: ScoreRow) -> tuple[int, str]:
        """The row's next token, -1 where it fails, and the text that is certain by it."""
        try:
            token = row.choose(scores)
        except UnusableScoresError as error:
            self._fail(row, error)
            return -1, ""
        return token, row.accept(token)

    def _fail(self, row: Row, error: UnusableScoresError) -> None:
        """Where rows are isolated, what is wrong with the scores of one ends it."""
        if not self._isolates:
            raise error
        row.fail(error)

    def _draws(self, live: list[Request]) -> list[Draw]:
        """What each row draws in one call of the decoder, besides the token after it; nothing where it cannot be."""
        may_join = self._reading or (self._waiting and len(live) < self.max_rows)
        if not isinstance(self._decoder, RunsAhead) or may_join:
            return []
        room = min(min(request.row.n_left, self._decoder.context_length - request.n_held) for request in live)
        n = min(room, MOST_AHEAD, int(AHEAD_SECONDS / self._step_seconds)) - 1
        if n < 1 or any(request.proposer for request in live):
            return []
        draws = [draw for request in live if (draw := request.row.ahead(n))]
        return draws if len(draws) == len(live) else []

    def _proposed(self, live: list[Request]) -> list[list[int]]:
        """For each live row the guesses at what follows its next token, within what it may have and hold."""
        proposed: dict[Request, list[int]] = {}
        for proposer in {request.proposer for request in live if request.proposer}:
            asked = [request for request in live if request.proposer is proposer]
            most = [
                min(request.pace.wanted(), request.row.n_left - 1, self._decoder.context_length - request.n_held - 1)
                for request in asked
            ]
            proposed |= zip(asked, proposer.propose([request.row for request in asked], most), strict=True)
        return [proposed.get(request, []) for request in live]

    def _speculate(self, live: list[Request], proposed: list[list[int]]) -> list[Event]:
        """One token for each live row, and one more for each guess that is what the row draws."""
        assert isinstance(self._decoder, Speculative)
        tokens = [[request.row.ids[-1], *guesses] for request, guesses in zip(live, proposed, strict=True)]
        scores = iter(self._decoder.extend(tokens))
        events = []
        for index, (request, guesses) in enumerate(zip(live, proposed, strict=True)):
            text, n_right, going_on, n_before = "", 0, True, request.row.n_drawn
            for score, guess in zip([next(scores) for _ in tokens[index]], [*guesses, None], strict=True):
                if going_on:
                    token, new = self._write(request.row, score)
                    text += new
                    request.n_held += 1
                    going_on = token == guess and request.row.finish_reason is None
                    n_right += token == guess
            if n_right < len(guesses):
                self._decoder.cut(index, request.n_held)
            if guesses:
                request.pace.heard(len(guesses), n_right)
                self._tally.n_proposed += len(guesses)
                self._tally.n_accepted += n_right
            if request.proposer:
                self._tally.n_drawn += request.row.n_drawn - n_before
            events.append((request, text))
        return events

    def _admit(self) -> None:
        while self._waiting and len(self._reading) + len(self._live) < self.max_rows:
            request = self._waiting.popleft()
            request.number = next(self._numbers)
            request.shared = self._prefixes.begin(request.tokens)
            self._reading.append(request)

    def _next(self, served: Collection[Request]) -> Request | None:
        """Whose turn it is. Who finds another one at work on the beginning of its own prompt lets it finish that."""
        for request in self._reading:
            if request not in served and not any(_waits_for(request, other) for other in self._reading):
                self._reading.remove(request)
                self._reading.append(request)
                return request
        return None

    def _read(self, request: Request, most: int) -> int:
        """One piece of a prompt, of at most so many tokens; how many they were."""
        scored = request.row.prompt_logprobs is not None
        if scored:
            most = min(most, _SCORED)
        elif request.prefix is None:
            request.prefix = self._prefixes.longest(request.tokens)
        start = request.n_read
        goal = request.shared if start < request.shared else len(request.tokens)
        end = min(goal, start + most)
        if start < end:
            began = time.perf_counter()
            if scored:
                assert isinstance(self._decoder, ReadsAll)
                request.prefix, scores = self._decoder.read_all(request.tokens[start:end], request.prefix)
                try:
                    request.row.read(scores)
                except UnusableScoresError as error:
                    self._fail(request.row, error)
            else:
                request.prefix = self._decoder.read(request.tokens[start:end], request.prefix)
            self._reading_rate = (end - start) / max(time.perf_counter() - began, 1e-9)
            if end == request.shared:
                self._prefixes.keep(request.tokens[:end], request.prefix)
        return end - start

    def _draw(self, request: Request, scores: ScoreRow) -> Event:
        if not request.row.n_left:  # only its prompt was to be read
            request.row.finish_reason = "length"
            return request, ""
        return request, self._write(request.row, scores)[1]

    def _keep(self, request: Request) -> None:
        """What a row holds at its end is for the next turn of its talk, which begins with it."""
        row, decoder = request.row, self._decoder
        n_tokens = min(request.n_held, len(row.ids))
        if (
            self._remembers
            and row.error is None
            and isinstance(decoder, Leaves)
            and n_tokens >= WORTH
            and self._prefixes.fits(n_tokens)
            and len(row.ids) <= decoder.context_length  # else it holds a later part of its text
        ):
            self._prefixes.keep(tuple(row.ids[:n_tokens]), decoder.left_by(self._live.index(request), n_tokens))

    def _leave(self, request: Request) -> None:
        index = self._live.index(request)
        self._decoder.drop(index)
        self._live[index] = self._live[-1]  # as the decoder does
        self._live.pop()

    def _go_on(self, request: Request) -> None:
        """After a token was drawn for a row that is not live: it is over, joins, or is full and read again."""
        prefix, request.prefix = request.prefix, None
        if request.row.finish_reason is not None:
            if request.proposer:
                request.proposer.forget(request.row)
            return
        if prefix is not None and prefix.n_tokens < self._decoder.context_length:
            self._decoder.join(prefix)
            request.n_held = prefix.n_tokens
            self._live.append(request)
        else:
            request.tokens, request.shared = tuple(window(request.row, self._decoder.context_length)), 0
            self._reading.append(request)


def check_speculates(decoder: Decoder, name: str = "the model") -> None:
    """`ValueError` for a decoder that cannot take tokens back."""
    if not isinstance(decoder, Speculative) or not decoder.can_cut:
        raise ValueError(
            f"{name} cannot speculate: its decoder cannot take tokens back, as with a sliding window in its cache; "
            "generate without speculation, or use the compiled decoder"
        )


def _waits_for(request: Request, other: Request) -> bool:
    """Whether `other`, admitted before `request`, is still to read what both begin with."""
    return (
        other.number < request.number
        and max(request.n_read, other.n_read) < other.shared
        and request.tokens[: other.shared] == other.tokens[: other.shared]
    )
