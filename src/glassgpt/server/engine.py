"""A model at work: one thread that owns the decoder and its scheduler, and what others may ask of it."""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from glassgpt.generation.decoder import Decoder
from glassgpt.generation.row import Row
from glassgpt.generation.sampling import TokenLogprobs
from glassgpt.generation.scheduler import Request, Scheduler

_log = logging.getLogger(__name__)

CHUNK_SECONDS = 0.08
"""So long a piece of a prompt takes to be read: nobody can be cancelled, nor can a live row go on, meanwhile."""

SECONDS_PER_TOKEN = 0.02
"""Who asks for a token more gives so much of its place in the queue to those who come later."""

REST_SECONDS = 1.0
"""After so long without a text, memory for the rows of a fuller hour goes back."""

_PROMPT_TOKENS = 8  # are read in the time of one that is written
_MOST_FAILURES = 3


class QueueFullError(Exception):
    """As many texts wait as may."""


class BrokenError(Exception):
    """The engine fails at whatever it does, and takes nothing any more."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a text goes on with: tokens whose text is certain, and that text."""

    index: int
    """Of the text among those of its ask."""
    text: str
    ids: list[int]
    starts: list[int]
    """Where the text of each begins in all of this one's text, in characters."""
    logprobs: list[TokenLogprobs]
    """Of each, and after a scored prompt of the end of text, too."""
    finish_reason: str | None = None
    """With the last piece: "length", "stop" or "end_of_text"."""


Events = list[Piece] | Exception


@dataclasses.dataclass(eq=False)
class Ask:
    """Some texts that belong together; `deliver` is called in the engine's thread."""

    rows: Sequence[Row]
    deliver: Callable[[Events], None]
    began: float


@dataclasses.dataclass(eq=False)
class _Running:
    ask: Ask
    index: int
    n_sent: int = 0
    """Tokens that were delivered."""


class Engine:
    """Takes asks from any thread; all that happens to the decoder happens in its own.

    Of those that wait, the one goes first whose place plus its length comes first: each text waits as long as its
    tokens would take at `SECONDS_PER_TOKEN`, those of its ask before it included. So a short one overtakes long ones
    and the many of one ask, and nobody starves, since time goes on.
    """

    def __init__(
        self, decoder: Decoder, *, max_rows: int | None = None, max_queue: int = 64, remembered_bytes: int = 0
    ) -> None:
        """`decoder` has no live rows. `remembered_bytes` of prompts are kept for those that begin with them."""
        token_bytes = max(1, decoder.row_bytes // decoder.context_length)
        self.decoder = decoder
        self._scheduler = Scheduler(
            decoder,
            max_rows,
            chunk_seconds=CHUNK_SECONDS,
            remembered=remembered_bytes // token_bytes,
            isolates=True,
        )
        self.max_open = self._scheduler.max_rows + max_queue
        """Texts that may be there at once."""
        self.error: str | None = None
        """Why it takes nothing any more."""
        self._inbox = queue.SimpleQueue[Callable[[], None]]()
        self._waiting: list[tuple[float, int, Ask, int]] = []  # a heap
        self._order = itertools.count()
        self._running: dict[Request, _Running] = {}
        self._open: dict[Ask, int] = {}
        """Texts of each ask that have not finished."""
        self._lock = threading.Lock()  # of `_open`, which both sides change
        self._closed = False
        self._n_failures = 0
        self._thread = threading.Thread(target=self._work, name="glassgpt-engine", daemon=True)
        self._thread.start()

    # ---- from any thread ----------------------------------------

    @property
    def n_open(self) -> int:
        """Texts that wait, are read or are written."""
        with self._lock:
            return sum(self._open.values())

    @property
    def n_live(self) -> int:
        """Texts that are read or written."""
        return self._scheduler.n_live

    def ask(self, rows: Sequence[Row], deliver: Callable[[Events], None]) -> Ask:
        """Have texts written. `deliver` hears pieces of them, each with its index, or one exception at the end.

        `QueueFullError` where they are too many, `BrokenError` for an engine that has failed.
        """
        ask = Ask(rows, deliver, time.monotonic())
        with self._lock:
            if self._closed or self.error is not None:
                raise BrokenError(self.error or "it has been stopped")
            n_open = sum(self._open.values())
            if n_open + len(rows) > self.max_open:
                raise QueueFullError(f"{n_open} texts wait or are written, of at most {self.max_open}")
            self._open[ask] = len(rows)
        self._inbox.put(lambda: self._begin(ask))
        return ask

    def cancel(self, ask: Ask) -> None:
        """End what has not finished of it, within a token; nothing of it is delivered once that is done."""
        self._inbox.put(lambda: self._cancel(ask))

    def close(self, seconds: float = 10.0) -> None:
        """End all texts and the thread, which is waited for so long; the first time, that is."""
        with self._lock:
            waits, self._closed = not self._closed, True
        self._inbox.put(lambda: None)
        self._thread.join(seconds if waits else 0)

    # ---- in its own thread ----------------------------------------

    def _work(self) -> None:
        while not self._closed:
            try:
                self._hear(wait=not self._running and not self._waiting)
                self._feed()
                if self._scheduler.busy:
                    self._hand_out(self._scheduler.step())
                    self._n_failures = 0
            except Exception as error:
                self._fail(error)
        self._end_all(BrokenError("the server is stopping"))

    def _hear(self, wait: bool) -> None:
        """What others have asked for meanwhile."""
        if wait:
            try:
                heard = self._inbox.get(timeout=REST_SECONDS)
            except queue.Empty:
                self.decoder.rest()
                heard = self._inbox.get()
            heard()
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                return

    def _begin(self, ask: Ask) -> None:
        if ask not in self._open:
            return  # cancelled before it began
        deadline = ask.began
        for index, row in enumerate(ask.rows):
            deadline += (row.n_prompt / _PROMPT_TOKENS + row.n_left) * SECONDS_PER_TOKEN
            heapq.heappush(self._waiting, (deadline, next(self._order), ask, index))

    def _feed(self) -> None:
        """To the scheduler goes what it can take in at once: its own queue knows no order but that of arrival."""
        while self._waiting and len(self._running) < self._scheduler.max_rows:
            _, _, ask, index = heapq.heappop(self._waiting)
            self._running[self._scheduler.submit(ask.rows[index])] = _Running(ask, index)

    def _hand_out(self, events: Sequence[tuple[Request, str]]) -> None:
        pieces: dict[Ask, list[Piece]] = {}
        failed: dict[Ask, Exception] = {}
        for request, text in events:
            running = self._running[request]
            if request.row.error is not None:
                failed[running.ask] = request.row.error
                del self._running[request]
                continue
            piece = _piece(running, request.row, text)
            if piece.text or piece.ids or piece.finish_reason:
                pieces.setdefault(running.ask, []).append(piece)
            if piece.finish_reason:
                del self._running[request]
                self._finished(running.ask)
        for ask, of_ask in pieces.items():
            if ask not in failed:
                ask.deliver(of_ask)
        for ask, error in failed.items():
            _log.error("a text of the model failed: %s", error)
            self._cancel(ask)
            ask.deliver(error)

    def _finished(self, ask: Ask) -> None:
        with self._lock:
            self._open[ask] -= 1
            if not self._open[ask]:
                del self._open[ask]

    def _cancel(self, ask: Ask) -> None:
        if ask not in self._open:
            return
        for request in [request for request, running in self._running.items() if running.ask is ask]:
            self._scheduler.cancel(request)
            del self._running[request]
        self._waiting = [entry for entry in self._waiting if entry[2] is not ask]
        heapq.heapify(self._waiting)
        with self._lock:
            del self._open[ask]

    def _fail(self, error: Exception) -> None:
        """Tell all whose text was being written; go on with an empty batch, unless it fails again and again."""
        _log.exception("the model's decoder failed")
        self._n_failures += 1
        try:
            self._scheduler.close()
        except Exception as worse:
            _log.exception("and its batch cannot be emptied")
            self._n_failures, error = _MOST_FAILURES, worse
        if self._n_failures >= _MOST_FAILURES:
            with self._lock:
                self.error = f"{type(error).__name__}: {error}"
        self._end_all(error)

    def _end_all(self, error: Exception) -> None:
        with self._lock:
            asks = list(self._open)
            self._open.clear()
        self._running.clear()
        self._waiting.clear()
        if self._closed:
            self._scheduler.close()
        for ask in asks:
            ask.deliver(error)


def _piece(running: _Running, row: Row, text: str) -> Piece:
    """With the tokens whose text is certain now; those of a stop text are left out, as it is."""
    n_certain = len(row.ends)
    if row.finish_reason is None:
        n_certain = bisect.bisect_right(row.ends, len(row.text))
    elif row.finish_reason == "stop":
        n_certain = min(n_certain, bisect.bisect_left(row.ends, len(row.text)) + 1) if row.text else 0
    begin, running.n_sent = running.n_sent, max(running.n_sent, n_certain)
    ids = row.ids[row.n_prompt + begin : row.n_prompt + running.n_sent]
    starts = [0, *row.ends][begin : running.n_sent]
    logprobs = row.logprobs[begin : running.n_sent]
    if row.end_logprobs is not None:
        starts.append(row.ends[-1] if row.ends else 0)
        logprobs.append(row.end_logprobs)
    return Piece(running.index, text, ids, starts, logprobs, row.finish_reason)
