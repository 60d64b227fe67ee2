"""HTTP as a download needs it: redirects that stay safe, and every fault in one line that says if a retry may help."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

_MAX_REDIRECTS = 10


class MirrorError(Exception):
    """This source does not yield the file; the next one may. `status` is the server's answer, if that is why."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class PassingError(MirrorError):
    """A fault that may be gone at the next try, `wait` seconds from now if the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class StalePartError(MirrorError):
    """What lies in `.part` and what the server sends do not belong together."""


@contextmanager
def answer(client: httpx.Client, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """The answer at the end of the redirects, its body unread; the redirects' own bodies are never read.

    Its status is 200, or 206 if `headers` ask for a range. Every other status, and every error of the network,
    also one while the body is read, is raised as a `MirrorError` or one of its kinds.
    """
    with _network_errors():
        request = client.build_request("GET", url, headers=dict(headers))
        for _ in range(_MAX_REDIRECTS + 1):
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                if response.next_request is None:
                    _check_status(response, ranged="Range" in headers)
                    yield response
                    return
                target = response.next_request.url.scheme
                if target not in ("http", "https") or (request.url.scheme, target) == ("https", "http"):
                    raise MirrorError(f"redirects from {request.url.scheme} to {target[:20]!r}, which is not safe")
                request = response.next_request
            finally:
                response.close()
        raise MirrorError(f"redirects more than {_MAX_REDIRECTS} times")


def _check_status(response: httpx.Response, *, ranged: bool) -> None:
    status = response.status_code
    if status == HTTPStatus.OK or (status == HTTPStatus.PARTIAL_CONTENT and ranged):
        return
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and ranged:
        raise StalePartError("has nothing after the partial file's end (416)")
    name = str(status)
    with suppress(ValueError):
        name += f" {HTTPStatus(status).phrase}"
    if status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        raise PassingError(name, wait=_retry_after(response.headers.get("Retry-After", "")))
    raise MirrorError(name, status=status)


def _retry_after(value: str) -> float | None:
    """Seconds, from a number of seconds or a date (RFC 9110, 10.2.3); None if it is neither."""
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


@contextmanager
def _network_errors() -> Iterator[None]:
    """httpx's errors as ours."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        what = "connection" if isinstance(error, httpx.ConnectTimeout) else "data"
        raise PassingError(f"no {what} in time") from error
    except (httpx.ProxyError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise MirrorError(one_line(error)) from error
    except httpx.TransportError as error:
        if reason := network_reason(error):
            raise MirrorError(reason) from error
        raise PassingError(one_line(error) or "connection lost") from error


def network_reason(error: BaseException) -> str | None:
    """What is wrong between here and the server, where trying again would not help, else None."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({one_line(cause.verify_message)}); "
                "behind a proxy that opens TLS, set SSL_CERT_FILE to the proxy's CA file"
            )
        if isinstance(cause, socket.gaierror) or getattr(cause, "errno", None) == errno.ENETUNREACH:
            return "no network, or no such host"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def check_url(url: str) -> None:
    """`ValueError` unless it is an http or https URL with a host."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return
    raise ValueError(f"{one_line(url)!r} is not an http or https URL")


def shown_url(url: str) -> str:
    """The URL without what may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def one_line(text: object) -> str:
    """A stranger's text, fit for a terminal: one line, printable, not long."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())[:200]
