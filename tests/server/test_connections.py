"""Below HTTP: connections that say nothing, too many of them, and what is no HTTP at all."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import pytest
from running import SECONDS, Load, Running, serving

from glassgpt.server import connections


@pytest.fixture(scope="module")
def hurried(load_tiny: Load) -> Iterator[Running]:
    with serving({"tiny": load_tiny()}, receive_seconds=0.3, max_connections=3) as running:
        yield running


def connect(running: Running) -> socket.socket:
    host, port = running.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


def told(connection: socket.socket) -> tuple[int, str]:
    """(status, message) of the answer, after which the connection is closed."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 408),
        (b"GET /hea", 408),
        (HEAD, 408),
        (HEAD + b"content-length: 50\r\n\r\n{", 408),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /he", None),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 400),
        (HEAD + b"content-length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_half_requests_and_other_noise(hurried: Running, sent: bytes, status: int | None) -> None:
    with connect(hurried) as connection:
        connection.sendall(sent)
        if status is None:  # the first request is answered, and the half one after it is not waited for
            data = b""
            while piece := connection.recv(65536):
                data += piece
            assert data.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in data
        else:
            assert told(connection)[0] == status


def test_one_connection_too_many(hurried: Running) -> None:
    with connect(hurried), connect(hurried), connect(hurried), connect(hurried) as fourth:
        assert told(fourth) == (503, "more than 3 connections: try again later")


@pytest.mark.parametrize("reads", [0, 2**21])
def test_who_reads_nothing_does_not_keep_its_place(monkeypatch: pytest.MonkeyPatch, reads: int) -> None:
    """A transport that is closed waits for its peer to read the rest: as long as it goes on reading."""
    monkeypatch.setattr(connections, "CLOSE_SECONDS", 0.3)
    lost = asyncio.Event()

    class Serving(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            ending = connections._Ending(transport, asyncio.get_running_loop())
            ending.write(b"x" * 2**25)
            ending.close()
            ending.close()

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Serving, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()[:2]) as peer:
            peer.setblocking(False)
            n_read = 0
            while reads and n_read < 2**25:
                await asyncio.sleep(0.05)
                n_read += len(await asyncio.get_running_loop().sock_recv(peer, reads))
            await asyncio.wait_for(lost.wait(), SECONDS)
        assert n_read in (0, 2**25)
        server.close()

    asyncio.run(main())
