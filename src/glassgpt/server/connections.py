"""Connections themselves: how many there may be, how long one may say nothing, and errors below HTTP's in one form."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from glassgpt.server.errors import ApiError, dumps

CLOSE_SECONDS = 5.0
"""So long a peer may read nothing of the rest once its connection is closed."""


class _Ending:
    """A transport whose `close` ends it: what nobody reads would keep its place among the connections for ever."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()
            self._watch()

    def _watch(self, before: float = math.inf) -> None:
        left = self._transport.get_write_buffer_size()  # 0 once the connection is gone
        if left >= before:
            self._transport.abort()
        elif left:
            self._loop.call_later(CLOSE_SECONDS, self._watch, left)


def limited_protocol(most: int, seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol for at most `most` connections, each with its first request within `seconds`."""

    class Limited(H11Protocol):
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(_Ending(transport, self.loop))  # type: ignore[arg-type]
            if len(self.connections) > most:
                self._refuse(
                    ApiError(503, f"more than {most} connections: try again later", code="too_many_connections")
                )
            else:
                self._keep_time()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            self._keep_time()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0]:  # of a next request, which came early and is not whole
                self._unset_keepalive_if_required()
                self._keep_time()

        def send_400_response(self, msg: str) -> None:
            self._refuse(ApiError(400, msg))

        def _keep_time(self) -> None:
            """From when something is waited for until a request is there; between requests uvicorn keeps it."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_clock()
            elif self._clock is None and self.timeout_keep_alive_task is None:
                self._clock = self.loop.call_later(seconds, self._late)

        def _late(self) -> None:
            self._refuse(ApiError(408, f"no request came within {seconds:g} s", code="timeout"))

        def _stop_clock(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _refuse(self, error: ApiError) -> None:
            """Written as bytes: there is no request that it would be the answer to."""
            body = dumps(error.body())
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode("ascii") + body)
            self.transport.close()

    return Limited
