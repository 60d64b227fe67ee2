"""From an engine's thread to a client: pieces of text in an event loop, and answers that know when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from glassgpt.generation.row import Row
from glassgpt.server.engine import BrokenError, Engine, Events, Piece, QueueFullError
from glassgpt.server.errors import ApiError, dumps
from glassgpt.server.metrics import Metrics

_log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Texts:
    """The texts of one request while they are written: pieces of them, in the event loop."""

    def __init__(self, engine: Engine, rows: Sequence[Row], name: str, metrics: Metrics) -> None:
        """`ApiError` where the engine takes no more."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Events] = asyncio.Queue()
        self._engine, self._n_left = engine, len(rows)
        self._metrics, self._name = metrics, name
        self._began = time.monotonic()
        self._last: dict[int, float] = {}
        self.n_tokens = 0
        """New tokens so far."""
        self.seconds_to_first: float | None = None
        try:
            self._ask = engine.ask(rows, self._deliver)
        except QueueFullError as error:
            raise ApiError(
                429, f"too many requests: {error}; try again later", code="queue_full", headers={"retry-after": "1"}
            ) from None
        except BrokenError as error:
            raise ApiError(503, f"the model cannot answer: {error}", code="unavailable") from None

    def _deliver(self, events: Events) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody hears it
            self._loop.call_soon_threadsafe(self._events.put_nowait, events)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """As they come, until every text has ended. `ApiError` where the engine fails or stops."""
        while self._n_left:
            events = await self._events.get()
            if isinstance(events, BrokenError):
                raise ApiError(503, f"the answer was broken off: {events}", code="unavailable")
            if isinstance(events, Exception):
                raise ApiError(500, "the model failed while it wrote this answer", code="engine_failed")
            self._count(events)
            yield events

    def cancel(self) -> None:
        """Whatever has not ended is not written any further."""
        if self._n_left:
            self._engine.cancel(self._ask)

    def _count(self, pieces: list[Piece]) -> None:
        now = time.monotonic()
        if self.seconds_to_first is None:
            self.seconds_to_first = now - self._began
            self._metrics.first_token.labels(self._name).observe(self.seconds_to_first)
        for piece in pieces:
            self._n_left -= piece.finish_reason is not None
            self.n_tokens += len(piece.ids)
            self._metrics.new_tokens.labels(self._name).inc(len(piece.ids))
            if piece.ids and piece.index in self._last:
                each = (now - self._last[piece.index]) / len(piece.ids)
                for _ in piece.ids:
                    self._metrics.next_token.labels(self._name).observe(each)
            self._last[piece.index] = now


@contextlib.contextmanager
def cancelling(texts: Texts) -> Iterator[Texts]:
    """Inside, texts may be written; who leaves early ends them."""
    try:
        yield texts
    finally:
        texts.cancel()


async def listening(work: Awaitable[Any], receive: Receive, seconds: float) -> Any:
    """The result of `work`; it is cancelled when the client leaves (`ClientGoneError`) or time is up (`ApiError`)."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if gone.done():
            raise ClientGoneError
        raise ApiError(
            408,
            "the answer took longer than this server allows: ask for fewer tokens",
            code="timeout",
            headers={"x-should-retry": "false"},  # OpenAI's clients would have it written twice more
        )
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events: each chunk as JSON, an error as one, and [DONE] at the end.

    It begins when its first chunk is there, so that what fails before has a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncIterator[dict[str, Any]], texts: Texts, seconds: float, headers: Mapping[str, str]
    ) -> None:
        """`texts` are cancelled when it ends, however it does."""
        super().__init__(headers={"cache-control": "no-store", **headers})
        self._chunks, self._texts, self._seconds = chunks, texts, seconds
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await listening(self._send_all(send), receive, self._seconds)
        except ClientGoneError:
            scope.setdefault("glassgpt", {})["gone"] = True
        except ApiError as error:
            _log.warning("a stream ended with an error: %s", error)
            scope.setdefault("glassgpt", {})["error"] = error.code
            await _within(send(_body(_event(error.body()), more=False)))
        finally:
            self._texts.cancel()

    async def _send_all(self, send: Send) -> None:
        async for chunk in self._chunks:
            await send(_body(_event(chunk)))
        await send(_body(b"data: [DONE]\n\n", more=False))


async def _within(sending: Awaitable[None], seconds: float = 1.0) -> None:
    """For who reads too slowly to hear of it, too."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await sending


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + dumps(chunk) + b"\n\n"


def _body(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
