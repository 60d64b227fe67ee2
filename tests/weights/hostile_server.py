"""A web server on loopback that serves some bytes and misbehaves as told: what a download must survive."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote

Act = Callable[["Handler", bytes], None]
"""Answers one request for these bytes, rightly or not."""


class Seen(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]


class HostileServer(ThreadingHTTPServer):
    """`put` gives it a file; `play` says what it does at the next requests for it, the last act for ever."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.acts: dict[str, list[Act]] = {}
        self.seen: list[Seen] = []
        self.end = threading.Event()  # lets the hanging acts go
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()

    def __enter__(self) -> HostileServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.shutdown()
        self.server_close()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, path: str, data: bytes, *acts: Act) -> str:
        self.files[path] = data
        self.play(path, *acts)
        return self.base + path

    def play(self, path: str, *acts: Act) -> None:
        self.acts[path] = list(acts or (serve,))

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each GET for `path` so far."""
        return [s.headers.get("range") for s in self.seen if s.path == path and s.method == "GET"]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up is part of the play


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HostileServer

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.seen.append(Seen(self.command, path, headers))
        acts = self.server.acts.get(path, [status(404)])
        act = acts.pop(0) if len(acts) > 1 else acts[0]
        self.close_connection = True
        act(self, self.server.files.get(path, b""))

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, code: int, headers: Mapping[str, object], body: bytes = b"") -> None:
        self.send_response(code)
        for key, value in {"Connection": "close", **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def start(self) -> int:
        """The first byte asked for."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found else 0

    def log_message(self, format: str, *args: object) -> None:
        pass


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def serve(handler: Handler, data: bytes) -> None:
    """A healthy server: ranges, If-Range, 416."""
    _ranged(handler, data, data)


def _ranged(handler: Handler, data: bytes, body: bytes, *, limit: int | None = None, shift: int = 0) -> None:
    """Answers as for `data`, with bytes of `body`: at most `limit` of them, `shift` from where it says."""
    start = handler.start()
    if handler.headers.get("If-Range") not in (None, etag(data)):
        start = 0
    if start >= len(data) > 0:
        handler.answer(416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": 0})
        return
    headers = {"Content-Length": len(data) - start, "ETag": etag(data), "Accept-Ranges": "bytes"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
    body = (body[start + shift :] + body)[: len(data) - start]
    handler.answer(206 if start else 200, headers, body[:limit])


def cut(after: int) -> Act:
    """Closes after so many bytes."""
    return lambda handler, data: _ranged(handler, data, data, limit=after)


def reset(after: int) -> Act:
    """Resets the connection after so many bytes."""

    def act(handler: Handler, data: bytes) -> None:
        _ranged(handler, data, data, limit=after)
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return act


def flip(at: int) -> Act:
    """Right length, right headers, one wrong byte."""

    def act(handler: Handler, data: bytes) -> None:
        _ranged(handler, data, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])

    return act


def lie_about_bytes(handler: Handler, data: bytes) -> None:
    """The asked range in the headers, other bytes in the body."""
    _ranged(handler, data, data, shift=-handler.start())


def lie_about_range(handler: Handler, data: bytes) -> None:
    """206, from the first byte, whatever was asked."""
    headers = {"Content-Length": len(data), "Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"}
    handler.answer(206 if handler.start() else 200, headers, data)


def ignore_range(handler: Handler, data: bytes) -> None:
    handler.answer(200, {"Content-Length": len(data), "ETag": etag(data)}, data)


def say_length(change: int) -> Act:
    """A Content-Length that is wrong by so much, and the body that goes with it or not."""
    return lambda handler, data: handler.answer(200, {"Content-Length": len(data) + change}, data)


def no_length(handler: Handler, data: bytes) -> None:
    """No Content-Length and no chunks: the end of the body is the end of the connection."""
    handler.answer(200, {}, data)


def gzipped(handler: Handler, data: bytes) -> None:
    body = gzip.compress(data, 1)
    handler.answer(200, {"Content-Length": len(body), "Content-Encoding": "gzip"}, body)


LOGIN = b"\n <!DOCTYPE html><html><body>Please log in</body></html>"


def html(kind: str = "text/html; charset=utf-8", body: bytes = LOGIN) -> Act:
    return lambda handler, _: handler.answer(200, {"Content-Length": len(body), "Content-Type": kind}, body)


def status(code: int, **headers: object) -> Act:
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler, _: handler.answer(code, {"Content-Length": 5, **fields}, b"sorry")


def redirect(to: str) -> Act:
    """With a body that never ends, which nobody may wait for."""

    def act(handler: Handler, _: bytes) -> None:
        handler.answer(302, {"Location": to, "Content-Length": 10**9}, b"moved")
        handler.server.end.wait(20)

    return act


def hang(after: int | None) -> Act:
    """Stops for ever after so many bytes, or before the first word of the answer."""

    def act(handler: Handler, data: bytes) -> None:
        if after is not None:
            _ranged(handler, data, data, limit=after)
        handler.server.end.wait(20)

    return act


def slow(chunk: int, pause_s: float) -> Act:
    def act(handler: Handler, data: bytes) -> None:
        handler.answer(200, {"Content-Length": len(data), "ETag": etag(data)})
        for i in range(0, len(data), chunk):
            handler.wfile.write(data[i : i + chunk])
            handler.server.end.wait(pause_s)

    return act


def close(handler: Handler, _: bytes) -> None:
    """Hangs up without a word."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def unused_port() -> int:
    """Where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def put_repository(server: HostileServer, repo_id: str, files: Mapping[str, bytes], commit: str = "a" * 40) -> None:
    """A repository as Hugging Face serves it to `huggingface_hub`; weights are its large files."""
    siblings, tree = [], []
    for name, data in files.items():
        sha256, oid = hashlib.sha256(data).hexdigest(), hashlib.sha1(data, usedforsecurity=False).hexdigest()
        large = name.endswith((".safetensors", ".bin"))
        lfs = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 100}
        facts = {"size": len(data)} | ({"lfs": lfs} if large else {})
        siblings.append({"rfilename": name, "blobId": oid, **facts})
        tree.append({"type": "file", "path": name, "oid": oid, **facts})
        for revision in ("main", commit):
            tag = sha256 if large else oid
            server.put(f"/{repo_id}/resolve/{revision}/{name}", data, hub_file(commit, tag))
    info = json.dumps({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings}).encode()
    for revision in ("", "/revision/main", f"/revision/{commit}"):
        server.put(f"/api/models/{repo_id}{revision}", info)
    server.put(f"/api/models/{repo_id}/tree/{commit}", json.dumps(tree).encode())


def hub_file(commit: str, tag: str, *, flipped: bool = False) -> Act:
    """A file's answer with what `huggingface_hub` needs; `flipped` sends one wrong byte."""

    def act(handler: Handler, data: bytes) -> None:
        headers = {"Content-Length": len(data), "ETag": f'"{tag}"', "X-Repo-Commit": commit}
        handler.answer(200, headers, bytes([data[0] ^ 1]) + data[1:] if flipped else data)

    return act
