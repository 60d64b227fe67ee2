from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile_server import (
    Act,
    HostileServer,
    close,
    cut,
    flip,
    gzipped,
    hang,
    html,
    ignore_range,
    lie_about_bytes,
    lie_about_range,
    no_length,
    redirect,
    reset,
    say_length,
    serve,
    slow,
    status,
    unused_port,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt.weights.download import file as module
from glassgpt.weights.download.errors import DownloadError, OfflineError, network_reason
from glassgpt.weights.download.file import download_file

pytestmark = pytest.mark.usefixtures("plain_environment")

DATA = random.Random(1).randbytes(100_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
FACTS: dict[str, dict[str, Any]] = {
    "nothing known": {},
    "size known": {"size": len(DATA)},
    "sha256 known": {"sha256": SHA256},
    "both known": {"size": len(DATA), "sha256": SHA256},
}
SRC = Path(__file__).parents[3] / "src"


def fetch(urls: str | list[str], to: Path, **options: Any) -> Path:
    quick = {"connect_timeout": 5.0, "read_timeout": 5.0, "retries": 2, "backoff": 0.0}
    return download_file(urls, to, **(quick | options))


def assert_refused(urls: str | list[str], to: Path, *words: str, **options: Any) -> None:
    """The download fails in one line that holds `words`, and its final name stays free."""
    with pytest.raises(DownloadError) as caught:
        fetch(urls, to, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    assert not to.exists()


# --- A healthy server ---


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_a_file_arrives_whole_with_its_progress_and_nothing_left_beside(server, tmp_path, facts):
    url = server.put("/w", DATA)
    told: list[tuple[int, int | None]] = []
    path = fetch(url, tmp_path / "deep" / "er" / "w", progress=lambda *now: told.append(now), **facts)
    assert path.read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {p.name for p in path.parent.iterdir()} == {"w"}
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_a_download_that_fails_leaves_neither_lock_nor_folder(server, tmp_path):
    url = server.put("/w", DATA, status(404))
    assert_refused(url, tmp_path / "deep" / "er" / "w", "404 Not Found")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    assert_refused(url, tmp_path / "mine" / "w", "404 Not Found")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_right_file_is_not_fetched_again_and_an_empty_one_is(server, tmp_path):
    url, path = server.put("/w", DATA), tmp_path / "w"
    path.write_bytes(DATA)
    fetch(url, path, size=len(DATA), sha256=SHA256)
    assert server.seen == []
    path.write_bytes(b"")  # nothing to lose
    assert fetch(url, path).read_bytes() == DATA
    assert len(server.seen) == 1


@pytest.mark.parametrize("mine", [b"mine", b"x" * len(DATA)])
def test_another_file_under_its_name_stays_as_it_is(server, tmp_path, mine):
    path, url = tmp_path / "w", server.put("/w", DATA)
    path.write_bytes(mine)
    with pytest.raises(DownloadError, match=r"w has .*, so it is not the published file: move it away"):
        fetch(url, path, size=len(DATA), sha256=SHA256)
    assert path.read_bytes() == mine
    assert server.seen == []


def test_a_large_file_is_hashed_once_until_it_changes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_STAMP_BYTES", 1000)
    url = server.put("/w", DATA)
    path = fetch(url, tmp_path / "w", sha256=SHA256)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sha256_of", lambda path: pytest.fail(f"{path} was hashed again"))
        fetch(url, path, sha256=SHA256)
    path.write_bytes(b"x" * len(DATA))
    with pytest.raises(DownloadError, match=f"has a sha256 other than {SHA256}"):
        fetch(url, path, sha256=SHA256)


# --- A hostile server: (acts, works in the end, words of the error) ---

TENTH = len(DATA) // 10
REFUSED: dict[str, tuple[Act, str]] = {
    "html": (html(body=b"Please log in"), "a proxy or login page instead of the file"),
    "gzip": (gzipped, "'gzip'"),
    "404": (status(404), "404 Not Found"),
    "403": (status(403), "403 Forbidden"),
    "206 unasked": (lambda handler, data: handler.answer(206, {"Content-Length": 5}, b"12345"), "206"),
    "503 for ever": (status(503), "503 Service Unavailable (3 times in a row)"),
    "closes at once": (close, "3 times in a row"),
    "hangs before the answer": (hang(None), "no data in time"),
    "hangs in the middle": (hang(200), "no data in time"),
    "announces more than it has": (say_length(+10), "100"),
    "redirect to a file": (redirect("file:/etc/passwd"), "protocol"),
}


@pytest.mark.parametrize("facts", ["size known", "both known", "nothing known"])
@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_is_named_its_file_refused_and_the_second_try_completes(server, tmp_path, fault, facts):
    act, words = REFUSED[fault]
    url = server.put("/w", DATA, act)
    patience = 0.05 if fault.startswith("hangs") else 5.0
    assert_refused(url, tmp_path / "w", words, str(tmp_path / "w"), read_timeout=patience, **FACTS[facts])
    server.play("/w", serve)
    assert fetch(url, tmp_path / "w", **FACTS[facts]).read_bytes() == DATA


@pytest.mark.parametrize("stop", [cut, reset, hang])
@pytest.mark.parametrize("tenth", range(10))
def test_cut_off_at_every_tenth_then_resumed(server, tmp_path, tenth, stop):
    url = server.put("/w", DATA, stop(tenth * TENTH))
    patience = 0.05 if stop is hang else 5.0
    assert_refused(url, tmp_path / "w", "put the file at", retries=0, read_timeout=patience)
    server.play("/w", serve)
    assert fetch(url, tmp_path / "w").read_bytes() == DATA
    if stop is cut:  # a reset may lose what was under way
        assert server.ranges("/w")[1] == (f"bytes={tenth * TENTH}-" if tenth else None)


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_a_server_that_always_stops_early_is_outlasted(server, tmp_path, facts):
    url = server.put("/w", DATA, cut(2 * TENTH))
    assert fetch(url, tmp_path / "w", retries=1, **facts).read_bytes() == DATA
    assert len(server.seen) <= 8


def test_a_server_that_drips_is_given_up(server, tmp_path):
    url = server.put("/w", DATA, cut(TENTH), cut(200))
    assert_refused(url, tmp_path / "w", "3 times in a row")
    assert len(server.seen) <= 12


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize("liar", [ignore_range, lie_about_range, lie_about_bytes])
def test_a_lie_about_the_range_does_not_corrupt_the_file(server, tmp_path, liar, facts):
    if liar is lie_about_bytes:  # without a sha256 nothing can show it
        facts = facts | {"sha256": SHA256}
    url = server.put("/w", DATA, cut(5 * TENTH), liar)
    assert fetch(url, tmp_path / "w", **facts).read_bytes() == DATA


def test_a_server_that_sends_less_than_the_rest_is_asked_again(server, tmp_path):
    def some(handler: Any, data: bytes) -> None:
        body = data[handler.start() :][: 2 * TENTH]
        end = handler.start() + len(body) - 1
        headers = {"Content-Length": len(body), "Content-Range": f"bytes {handler.start()}-{end}/{len(data)}"}
        handler.answer(206, headers, body)

    url = server.put("/w", DATA, cut(5 * TENTH), some)
    assert fetch(url, tmp_path / "w").read_bytes() == DATA
    assert len(server.seen) == 4


def test_a_lie_about_the_range_is_seen_where_all_bytes_are_alike(server, tmp_path):
    url = server.put("/w", bytes(len(DATA)), cut(5 * TENTH), lie_about_range)
    assert fetch(url, tmp_path / "w").read_bytes() == bytes(len(DATA))


def test_a_liar_that_also_cuts_is_given_up_and_a_healthy_server_completes(server, tmp_path):
    def act(handler: Any, data: bytes) -> None:
        lie_about_bytes(handler, data[: len(data) // 2] if handler.start() else data)

    url = server.put("/w", DATA, cut(5 * TENTH), act, cut(5 * TENTH), act, cut(5 * TENTH), act)
    assert_refused(url, tmp_path / "w", sha256=SHA256)
    server.play("/w", serve)
    assert fetch(url, tmp_path / "w", sha256=SHA256).read_bytes() == DATA


def test_wrong_bytes_of_the_right_length_are_refused_with_both_digests(server, tmp_path):
    url = server.put("/w", DATA, flip(50_000))
    wrong = hashlib.sha256(DATA[:50_000] + bytes([DATA[50_000] ^ 1]) + DATA[50_001:]).hexdigest()
    assert_refused(url, tmp_path / "w", wrong, SHA256, sha256=SHA256)
    assert len(server.seen) == 1  # the same server would send the same bytes
    assert not (tmp_path / "w.part").exists()


def test_a_short_body_that_claims_to_be_whole_is_refused(server, tmp_path):
    url = server.put("/w", DATA, say_length(-10))
    assert_refused(url, tmp_path / "w", "offers 99,990 bytes, not 100,000", size=len(DATA))
    assert_refused(url, tmp_path / "w", "wrong checksum", sha256=SHA256)


def test_a_body_of_unknown_length_needs_a_size_or_a_sha256(server, tmp_path):
    url = server.put("/w", DATA, no_length)
    assert_refused(url, tmp_path / "w", "does not say how long")
    assert fetch(url, tmp_path / "a", size=len(DATA)).read_bytes() == DATA
    assert fetch(url, tmp_path / "b", sha256=SHA256).read_bytes() == DATA
    server.put("/w", DATA + b"more", no_length)
    assert_refused(url, tmp_path / "c", "sends more than the 100,000 bytes", size=len(DATA))


def test_passing_faults_pass(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(module, "sleep", waits.append)
    later = status(429, Retry_After=7)
    url = server.put("/w", DATA, status(503), status(503), later, status(429, Retry_After=9999), serve)
    assert fetch(url, tmp_path / "w", retries=4, backoff=0.5).read_bytes() == DATA
    assert waits == [0.5, 1.0, 7.0, 60.0]


@pytest.mark.parametrize("value", ["", "soon", "-1", "Wed, 99 Foo 2020 99:99:99 GMT"])
def test_a_retry_after_that_says_nothing(value):
    assert module._retry_after(value) is None


def test_a_retry_after_with_a_date():
    assert module._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert module._retry_after("Wed, 21 Oct 2165 07:28:00 GMT") > 1e9  # type: ignore[operator]


def test_redirects_are_followed_but_not_for_ever(server, tmp_path):
    server.put("/there", DATA)
    here = server.put("/here", b"", redirect("/there"))
    assert fetch(here, tmp_path / "w", sha256=SHA256).read_bytes() == DATA
    loop = server.put("/loop", b"", redirect("/loop"))
    assert_refused(loop, tmp_path / "v", "redirects more than 10 times")


def test_a_redirect_from_https_to_http_is_refused(tmp_path, monkeypatch):
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://host/w"})

    real = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: real(**options, transport=httpx.MockTransport(answer)))
    assert_refused("https://host/w", tmp_path / "w", "redirects from https to http, which is not safe")
    assert asked == ["https://host/w"]


SHORT = say_length(-1)
ACTS = st.sampled_from(
    [
        *(cut(n) for n in (0, 1, 4097, 30_000, 99_999)),
        *(reset(n) for n in (0, 50_000)),
        *(ignore_range, lie_about_range, lie_about_bytes, gzipped, html(), close, no_length),
        *(SHORT, say_length(1)),
        *(status(n) for n in (404, 416, 500, 206)),
    ]
)


@settings(max_examples=30, deadline=None)
@given(facts=st.sampled_from(sorted(FACTS)), acts=st.lists(ACTS, max_size=6), flips=st.booleans())
def test_whatever_a_server_does_the_file_is_right_or_absent(tmp_path_factory, facts, acts, flips):
    path = tmp_path_factory.mktemp("any") / "w"
    if "sha256" in FACTS[facts] and flips:  # without a sha256 nothing can show it
        acts.insert(len(acts) // 2, flip(40_000))
    if facts == "nothing known":  # nor a file that ends where its server says, one byte too early
        acts = [act for act in acts if act is not SHORT]
    if "sha256" not in FACTS[facts]:  # nor other bytes in a range that it says is the right one
        acts = [act for act in acts if act is not lie_about_bytes]
    with HostileServer() as server:
        url = server.put("/w", DATA, *acts, serve)
        for _ in range(len(acts) + 1):
            try:
                fetch(url, path, retries=1, **FACTS[facts])
            except DownloadError:
                assert not path.exists()
            else:
                break
        server.play("/w", serve)
        assert fetch(url, path, **FACTS[facts]).read_bytes() == DATA


# --- Mirrors ---


def test_the_next_mirror_serves_and_goes_on_from_the_part_of_the_first(server, tmp_path):
    first, second = server.put("/1", DATA, cut(8 * TENTH), status(404)), server.put("/2", DATA)
    path = fetch([first, second], tmp_path / "w", sha256=SHA256)
    assert path.read_bytes() == DATA
    assert server.ranges("/2") == [f"bytes={8 * TENTH}-"]


def test_without_a_sha256_the_part_of_another_mirror_is_not_trusted(server, tmp_path):
    other = bytes(len(DATA))
    first, second = server.put("/1", other, cut(8 * TENTH), status(404)), server.put("/2", DATA)
    assert fetch([first, second], tmp_path / "w").read_bytes() == DATA
    assert server.ranges("/2") == [None]


def test_every_mirror_is_named_with_its_reason_and_no_secret(server, tmp_path):
    nobody = f"http://user:secret@127.0.0.1:{unused_port()}/w?token=secret"
    urls = [server.put("/1", DATA, status(404)), server.put("/2", DATA, html()), nobody]
    assert_refused(urls, tmp_path / "w", "/1: 404 Not Found", "/2: a proxy or login page", "refused", retries=0)
    with pytest.raises(DownloadError) as caught:
        fetch(urls, tmp_path / "w", retries=0, size=5, sha256=SHA256)
    assert "secret" not in str(caught.value)
    assert "5 bytes" in str(caught.value)
    assert SHA256 in str(caught.value)


def test_mirrors_that_fail_alike_are_said_together(server, tmp_path):
    urls = [server.put("/1", DATA, status(404)), server.put("/2", DATA, status(404))]
    assert_refused(
        urls, tmp_path / "w", "could not download w from 127.0.0.1 or 127.0.0.1: 404 Not Found; put the file"
    )


# --- What lies there from before ---


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize(
    "part", [bytes(len(DATA)), DATA[:50_000] + bytes(10_000), DATA + b"more", DATA * 2, DATA[:5], b""]
)
def test_a_bad_part_does_no_harm(server, tmp_path, part, facts):
    url = server.put("/w", DATA)
    (tmp_path / "w.part").write_bytes(part)
    if "sha256" in facts:  # without, the note is believed
        (tmp_path / "w.part.etag").write_text(f'{url}\n"{hashlib.md5(DATA).hexdigest()}"', encoding="utf-8")
    assert fetch(url, tmp_path / "w", **facts).read_bytes() == DATA
    assert len(server.seen) <= 3


def test_a_whole_part_needs_no_byte_more(server, tmp_path):
    (tmp_path / "w.part").write_bytes(DATA)
    url = server.put("/w", DATA)
    assert fetch(url, tmp_path / "w", size=len(DATA), sha256=SHA256).read_bytes() == DATA
    assert server.seen == []


def test_416_without_end_ends(server, tmp_path):
    (tmp_path / "w.part").write_bytes(DATA[:50_000])
    url = server.put("/w", DATA, status(416))
    assert_refused(url, tmp_path / "w", "416", sha256=SHA256)
    assert server.ranges("/w") == ["bytes=50000-", None]


def test_a_part_of_an_older_version_is_not_gone_on_from(server, tmp_path):
    url = server.put("/w", bytes(len(DATA)), cut(5 * TENTH))
    assert_refused(url, tmp_path / "w", retries=0)
    server.put("/w", DATA)  # another ETag now
    assert fetch(url, tmp_path / "w").read_bytes() == DATA
    assert "if-range" in server.seen[-1].headers


def test_a_weak_validator_proves_no_equal_bytes(server, tmp_path):
    def weak(handler: Any, data: bytes) -> None:
        handler.answer(200, {"Content-Length": len(data), "ETag": 'W/"1"'}, data[: 5 * TENTH])

    url = server.put("/w", DATA, weak, serve)
    assert fetch(url, tmp_path / "w").read_bytes() == DATA
    assert server.ranges("/w") == [None, None]


def test_after_a_bad_part_the_steps_forward_count_from_the_start(server, tmp_path):
    (tmp_path / "w.part").write_bytes(bytes(9 * TENTH))
    url = server.put("/w", DATA, cut(2 * TENTH))
    assert fetch(url, tmp_path / "w", sha256=SHA256, retries=1).read_bytes() == DATA


def test_stopped_by_hand_it_resumes_later(server, tmp_path):
    def stop(done: int, total: int | None) -> None:
        if done > 40_000:
            raise KeyboardInterrupt

    url = server.put("/w", DATA, slow(10_000, 0.001), serve)
    with pytest.raises(KeyboardInterrupt):
        fetch(url, tmp_path / "w", progress=stop)
    assert not (tmp_path / "w").exists()
    assert fetch(url, tmp_path / "w").read_bytes() == DATA
    assert server.ranges("/w")[1] is not None


# --- This machine ---


def test_two_processes_fetch_it_once(server, tmp_path):
    url = server.put("/w", DATA, slow(5_000, 0.03))
    code = f"""if True:
        from pathlib import Path
        from glassgpt.weights.download.file import download_file
        download_file({url!r}, Path({str(tmp_path / "w")!r}), sha256={SHA256!r})
    """
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=30) for process in processes] == [0, 0]
    assert (tmp_path / "w").read_bytes() == DATA
    assert len(server.seen) == 1


def test_a_disk_without_room_is_found_before_it_is_full(server, tmp_path, monkeypatch):
    url = server.put("/w", DATA)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5})())
        assert_refused(url, tmp_path / "w", "no room", "100,000", "5 are free")
    assert fetch(url, tmp_path / "w").read_bytes() == DATA


def test_a_part_that_is_given_up_makes_room(server, tmp_path, monkeypatch):
    part = tmp_path / "w.part"
    part.write_bytes(bytes(9 * TENTH))

    def usage(_: Path) -> Any:
        return type("Usage", (), {"free": 12 * TENTH - (part.stat().st_size if part.exists() else 0)})()

    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    url = server.put("/w", DATA, ignore_range)
    assert fetch(url, tmp_path / "w", sha256=SHA256).read_bytes() == DATA


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EFBIG, "large"), (errno.EROFS, "Read-only")]
)
def test_a_disk_that_refuses_in_the_middle(server, tmp_path, monkeypatch, number, words):
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 50_000:
                raise OSError(number, os.strerror(number))
            return super().write(data)

    def opened(path: Path, mode: str = "r", **options: Any) -> Any:
        full = path.suffix == ".part" and mode in ("ab", "wb")
        return Full(path, mode) if full else io.open(path, mode, **options)  # noqa: UP020

    url = server.put("/w", DATA, slow(10_000, 0.001), serve)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        assert_refused(url, tmp_path / "w", words, str(tmp_path / "w"))
    assert len(server.seen) == 1  # another try would fill it again
    assert fetch(url, tmp_path / "w").read_bytes() == DATA


def test_a_place_that_cannot_be_written_to(server, tmp_path):
    url = server.put("/w", DATA)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot write .*choose another directory"):
        fetch(url, tmp_path / "file" / "w")
    with pytest.raises(DownloadError, match="is a directory where a file should go"):
        fetch(url, tmp_path)
    assert server.seen == []


def test_no_network_and_nobody_there(tmp_path, monkeypatch):
    assert_refused(f"http://127.0.0.1:{unused_port()}/w", tmp_path / "w", "refused (3 times in a row)")

    def nowhere(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    assert_refused("http://weights.invalid/w", tmp_path / "w", "no network, or no such host;")


def test_a_certificate_that_is_not_trusted_says_what_to_set():
    error = httpx.ConnectError("failed")
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
    cause.verify_message = "self-signed certificate in certificate chain"
    error.__cause__ = cause
    reason = network_reason(error)
    assert reason is not None
    assert "self-signed" in reason
    assert "SSL_CERT_FILE" in reason


def test_the_environments_proxy_and_certificates_count(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.base)
    server.put("http://weights.invalid/w", DATA)
    assert fetch("http://weights.invalid/w", tmp_path / "w", sha256=SHA256).read_bytes() == DATA
    given: dict[str, Any] = {}
    real = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda **files: given.update(files) or real())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "w"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    fetch("http://weights.invalid/w", tmp_path / "v")
    assert given == {"cafile": str(tmp_path / "w"), "capath": str(tmp_path)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("SSL_CERT_FILE", "/no/file.pem"), ("SSL_CERT_DIR", "/no/dir"), ("HTTPS_PROXY", "gopher://proxy")],
)
def test_an_environment_that_cannot_be_used_is_named(server, tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert_refused(server.put("/w", DATA), tmp_path / "w", name, value)


def test_offline_names_what_is_missing(server, tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    url = server.put("/w", DATA)
    with pytest.raises(OfflineError) as caught:
        fetch(url, tmp_path / "w", size=len(DATA), sha256=SHA256)
    for word in (str(tmp_path / "w"), url, "GLASSGPT_OFFLINE=1", "100,000 bytes", SHA256):
        assert word in str(caught.value)
    (tmp_path / "w").write_bytes(DATA)
    fetch(url, tmp_path / "w", size=len(DATA), sha256=SHA256)
    assert server.seen == []


@pytest.mark.parametrize(
    ("urls", "options"),
    [
        ([], {}),
        ("ftp://host/w", {}),
        ("w", {}),
        ("http://[", {}),
        ("http:///w", {}),
        ("http://host/w", {"size": -1}),
        ("http://host/w", {"sha256": "abc"}),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, urls, options):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        download_file(urls, tmp_path / "w", **options)
