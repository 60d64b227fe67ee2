"""What stands before every route: who may ask, how much, how often and how fast. Plain ASGI, so it sees bytes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glassgpt.server.errors import ApiError, error_response
from glassgpt.server.metrics import Metrics
from glassgpt.server.settings import ServerOptions, is_local
from glassgpt.server.stream import ClientGoneError

_log = logging.getLogger("glassgpt.server.access")

OPEN = ("/", "/health")
"""Paths that need no key; with them all below `PAGE`."""
PAGE = "/page/"

_CLOSE = {"connection": "close"}
_LISTEN_SECONDS = 1.0
_CLIENTS = 10_000  # whose requests are counted


class Guard:
    """Lets through what may ask, and tells the others why not, in OpenAI's form; logs a line for each request."""

    def __init__(self, app: ASGIApp, options: ServerOptions, metrics: Metrics, routes: Sequence[str]) -> None:
        """`routes` are the paths that metrics name; others are "other"."""
        self._app, self._options, self._metrics = app, options, metrics
        self._routes = frozenset(routes)
        self._rate = Rate(options.requests_per_minute)
        self._n_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # what nginx calls a client that has left
        scope["glassgpt"] = {}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-content-type-options", b"nosniff"))
            await send(message)

        try:
            try:
                self._check(scope)
                body = await self._body(scope, receive)
                await self._app(scope, _replaying(body, receive), sending)
            except ApiError as error:
                await error_response(error)(scope, receive, sending)
        except ClientGoneError:
            pass
        finally:
            self._end(scope, status, time.monotonic() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        local = is_local(self._options.host)
        if local and not (is_local(_name(host)) or _name(host) in self._options.allow_host):
            # a page of elsewhere whose name was made to point here would have its own name there
            raise ApiError(403, f"no server for the host {host[:100]!r} here", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host and origin not in self._options.cors:
            raise ApiError(403, f"pages of {origin[:100]} may not ask this server", code="origin_not_allowed")
        client = (scope.get("client") or ("?",))[0]
        if self._options.api_key and not (scope["path"] in OPEN or scope["path"].startswith(PAGE)):
            try:
                client = self._key(headers)
            except ApiError:
                self._rate.count(client)  # guesses, too
                raise
        self._rate.count(client)

    def _key(self, headers: Headers) -> str:
        """The one that a request carries, as a digest; `ApiError` (401) for none of ours."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        # all are compared, each in constant time
        known = [hmac.compare_digest(given, ours.encode()) for ours in self._options.api_key]
        if not any(known):
            message = "this server wants an API key: send 'Authorization: Bearer KEY'" if not given else "wrong API key"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return hashlib.sha256(given).hexdigest()

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """All of it, bounded in size and time."""
        headers = Headers(scope=scope)
        length, most = headers.get("content-length", "0"), self._options.max_body
        has_body = length != "0" or "transfer-encoding" in headers
        if scope["method"] in ("POST", "PUT", "PATCH"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, "send JSON, with the header Content-Type: application/json")
        if length.isdecimal() and int(length[:20]) > most:
            await self._refuse_body(receive)
        body = b""
        try:
            async with asyncio.timeout(self._options.receive_seconds):
                while has_body:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    body += message.get("body", b"")
                    if len(body) > most:
                        await self._refuse_body(receive)
                    has_body = message.get("more_body", False)
        except TimeoutError:
            seconds = self._options.receive_seconds
            raise ApiError(
                408, f"the request did not arrive within {seconds:g} s", code="timeout", headers=_CLOSE
            ) from None
        return body

    async def _refuse_body(self, receive: Receive) -> NoReturn:
        """After a while of reading on: who is still sending when the connection closes never sees the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LISTEN_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        raise ApiError(413, f"the request is larger than the {self._options.max_body} bytes allowed", headers=_CLOSE)

    def _end(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self._routes else "other"
        self._metrics.requests.labels(route, str(status)).inc()
        self._n_requests += 1
        facts: dict[str, Any] = scope["glassgpt"]
        texts = facts.pop("texts", None)
        rows = facts.pop("rows", ())
        line = {
            "request": self._n_requests,
            "client": (scope.get("client") or ("?",))[0],
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "seconds": round(seconds, 4),
            **facts,
        }
        if texts is not None:
            line["n_new"] = texts.n_tokens
            if texts.seconds_to_first is not None:
                line["seconds_to_first"] = round(texts.seconds_to_first, 4)
        if rows:
            line["texts"] = [row.text for row in rows]
        _log.info("%s", json.dumps(line), extra={"facts": line})


class Rate:
    """At most so many requests of a client in a minute: a bucket that fills evenly."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when

    def count(self, client: str) -> None:
        """`ApiError` (429) for one too many."""
        if self._per_minute is None:
            return
        now = time.monotonic()
        left, when = self._left.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - when) * self._per_minute / 60)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            wait = (1 - left) * 60 / self._per_minute
            raise ApiError(
                429,
                f"more than {self._per_minute} requests in a minute: wait {wait:.1f} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(int(wait) + 1)},
            )


def _name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body which was read already, and then what comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
