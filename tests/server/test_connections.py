"""Below HTTP: connections that say nothing, too many of them, and what is no HTTP at all."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from running import SECONDS, Load, Running, serving


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
