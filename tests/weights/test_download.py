from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
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
    hub_file,
    ignore_range,
    lie_about_bytes,
    lie_about_range,
    no_length,
    put_repository,
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

from glassgpt.weights import download
from glassgpt.weights.download import (
    KNOWN_MODELS,
    DownloadError,
    MissingFileError,
    OfflineError,
    download_file,
    download_huggingface,
    download_openai_gpt2,
    download_url,
    files_to_fetch,
    resolve_model,
)

DATA = random.Random(1).randbytes(100_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
FACTS: dict[str, dict[str, Any]] = {
    "nothing known": {},
    "size known": {"size": len(DATA)},
    "sha256 known": {"sha256": SHA256},
    "both known": {"size": len(DATA), "sha256": SHA256},
}
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "GLASSGPT_", "SSL_CERT_", "TRANSFORMERS_")):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


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
    assert {p.name for p in path.parent.iterdir()} == {"w", ".w.lock"}
    assert server.seen[0].headers["accept-encoding"] == "identity"


def test_a_right_file_is_not_fetched_again_and_a_wrong_one_is(server, tmp_path):
    url, path = server.put("/w", DATA), tmp_path / "w"
    path.write_bytes(DATA)
    fetch(url, path, size=len(DATA), sha256=SHA256)
    assert server.seen == []
    path.write_bytes(b"x" * len(DATA))  # the right size alone is no proof
    assert fetch(url, path, size=len(DATA), sha256=SHA256).read_bytes() == DATA
    path.write_bytes(b"")
    assert fetch(url, path).read_bytes() == DATA
    assert len(server.seen) == 2


def test_a_wrong_file_that_cannot_be_replaced_stays_as_it_is(server, tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="404 Not Found"):
        fetch(server.base + "/nowhere", path, size=len(DATA))
    assert path.read_bytes() == b"mine"


def test_a_large_file_is_hashed_once_until_it_changes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_STAMP_BYTES", 1000)
    url = server.put("/w", DATA)
    path = fetch(url, tmp_path / "w", sha256=SHA256)
    with monkeypatch.context() as patch:
        patch.setattr(download, "_sha256", lambda path: pytest.fail(f"{path} was hashed again"))
        fetch(url, path, sha256=SHA256)
    path.write_bytes(b"x" * len(DATA))
    assert fetch(url, path, sha256=SHA256).read_bytes() == DATA


# --- A hostile server: (acts, works in the end, words of the error) ---

TENTH = len(DATA) // 10
REFUSED: dict[str, tuple[Act, str]] = {
    "html": (html(body=b"Please log in"), "a proxy or login page instead of weights"),
    "html said to be bytes": (html("application/octet-stream"), "instead of"),
    "gzip": (gzipped, "'gzip'"),
    "404": (status(404), "404 Not Found"),
    "403": (status(403), "403 Forbidden"),
    "206 unasked": (lambda handler, data: handler.answer(206, {"Content-Length": 5}, b"12345"), "206"),
    "503 for ever": (status(503), "503 Service Unavailable (3 times in a row)"),
    "closes at once": (close, "3 times in a row"),
    "hangs before the answer": (hang(None), "no data in time"),
    "hangs in the middle": (hang(4200), "no data in time"),
    "announces more than it has": (say_length(+10), "100"),
    "redirect to a file": (redirect("file:///etc/passwd"), "not safe"),
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
        assert server.ranges("/w")[1] == (f"bytes={tenth * TENTH - 4096}-" if tenth else None)


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_a_server_that_always_stops_early_is_outlasted(server, tmp_path, facts):
    url = server.put("/w", DATA, cut(2 * TENTH))
    assert fetch(url, tmp_path / "w", retries=1, **facts).read_bytes() == DATA
    assert len(server.seen) <= 8


def test_a_server_that_drips_is_given_up(server, tmp_path):
    url = server.put("/w", DATA, cut(TENTH), cut(4096 + 200))
    assert_refused(url, tmp_path / "w", "3 times in a row")
    assert len(server.seen) <= 12


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize("liar", [ignore_range, lie_about_range, lie_about_bytes])
def test_a_lie_about_the_range_does_not_corrupt_the_file(server, tmp_path, liar, facts):
    url = server.put("/w", DATA, cut(5 * TENTH), liar)
    assert fetch(url, tmp_path / "w", **facts).read_bytes() == DATA


def test_a_server_that_sends_less_than_the_rest_is_asked_again(server, tmp_path):
    def some(handler: Any, data: bytes) -> None:
        start = handler.start()
        headers = {
            "Content-Length": 2 * TENTH,
            "Content-Range": f"bytes {start}-{start + 2 * TENTH - 1}/{len(data)}",
        }
        handler.answer(206, headers, data[start : start + 2 * TENTH])

    url = server.put("/w", DATA, cut(5 * TENTH), some, some, some, serve)
    assert fetch(url, tmp_path / "w").read_bytes() == DATA
    assert len(server.seen) == 5


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
    monkeypatch.setattr(download, "sleep", waits.append)
    later = status(429, Retry_After=7)
    url = server.put("/w", DATA, status(503), status(503), later, status(429, Retry_After=9999), serve)
    assert fetch(url, tmp_path / "w", retries=4, backoff=0.5).read_bytes() == DATA
    assert waits == [0.5, 1.0, 7.0, 60.0]


@pytest.mark.parametrize("value", ["", "soon", "-1", "Wed, 99 Foo 2020 99:99:99 GMT"])
def test_a_retry_after_that_says_nothing(value):
    assert download._retry_after(value) is None


def test_a_retry_after_with_a_date():
    assert download._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert download._retry_after("Wed, 21 Oct 2165 07:28:00 GMT") > 1e9  # type: ignore[operator]


def test_redirects_are_followed_but_not_for_ever(server, tmp_path):
    server.put("/there", DATA)
    here = server.put("/here", b"", redirect("/there"))
    assert fetch(here, tmp_path / "w", sha256=SHA256).read_bytes() == DATA
    loop = server.put("/loop", b"", redirect("/loop"))
    assert_refused(loop, tmp_path / "v", "redirects more than 10 times")


def test_a_redirect_from_https_to_http_is_refused():
    moved = httpx.MockTransport(lambda _: httpx.Response(302, headers={"Location": "http://host/w"}))
    with (
        httpx.Client(transport=moved) as client,
        pytest.raises(download._MirrorError, match="from https to 'http'"),
        download._answer(client, "https://host/w", {}),
    ):
        pass


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
    assert server.ranges("/2") == [f"bytes={8 * TENTH - 4096}-"]


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


def test_missing_everywhere_is_an_error_of_its_own(server, tmp_path):
    urls = [server.base + "/1", server.put("/2", b"", status(403))]
    with pytest.raises(MissingFileError):
        fetch(urls, tmp_path / "w")
    with pytest.raises(DownloadError) as caught:
        fetch([*urls, server.put("/3", b"", html())], tmp_path / "w")
    assert not isinstance(caught.value, MissingFileError)


# --- What lies there from before ---


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
@pytest.mark.parametrize(
    "part", [bytes(len(DATA)), DATA[:50_000] + bytes(10_000), DATA + b"more", DATA * 2, DATA[:5], b""]
)
def test_a_bad_part_does_no_harm(server, tmp_path, part, facts):
    url = server.put("/w", DATA)
    (tmp_path / "w.part").write_bytes(part)
    note = {"url": url, "validator": f'"{hashlib.md5(DATA).hexdigest()}"'}
    (tmp_path / "w.part.json").write_text(json.dumps(note), encoding="utf-8")
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
    assert server.ranges("/w") == ["bytes=45904-", None]


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


def test_stopped_by_hand_it_goes_on_later(server, tmp_path):
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
        from glassgpt.weights.download import download_file
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
        patch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5})())
        assert_refused(url, tmp_path / "w", "no room", "100,000", "5 are free")
    assert fetch(url, tmp_path / "w").read_bytes() == DATA


def test_a_part_that_is_given_up_makes_room(server, tmp_path, monkeypatch):
    part = tmp_path / "w.part"
    part.write_bytes(bytes(9 * TENTH))

    def usage(_: Path) -> Any:
        return type("Usage", (), {"free": 12 * TENTH - (part.stat().st_size if part.exists() else 0)})()

    monkeypatch.setattr(download.shutil, "disk_usage", usage)
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
    reason = download._network_reason(error)
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
def test_arguments_that_cannot_be_meant(tmp_path, urls, options):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        download_file(urls, tmp_path / "w", **options)


# --- OpenAI's files ---

SMALL = {name: f"{name} of 124M".encode() for name in ("checkpoint", "hparams.json", "model.ckpt.index")}
SMALL["model.ckpt.data-00000-of-00001"] = DATA


@pytest.fixture
def small_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-2 of OpenAI's whose files are small."""
    rows = [f"{hashlib.sha256(d).hexdigest()} {len(d)} 124M/{name}\n" for name, d in SMALL.items()]
    monkeypatch.setattr(download, "_PUBLISHED", "".join(rows))


def test_openais_files_from_the_second_source(server, tmp_path, small_gpt2):
    for name, data in SMALL.items():
        server.put(f"/two/124M/{name}", data)
    server.put("/one/124M/hparams.json", SMALL["hparams.json"])
    told: list[tuple[int, int | None]] = []
    bases = [server.base + "/one/", server.base + "/two"]
    folder = download_openai_gpt2("gpt2", tmp_path, base_urls=bases, progress=lambda *now: told.append(now))
    assert folder == tmp_path / "124M"
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"} == SMALL
    total = sum(map(len, SMALL.values()))
    assert told[-1] == (total, total)
    assert {all_ for _, all_ in told} == {total}
    assert resolve_model("124M", weights_dir=tmp_path) == folder
    assert resolve_model("gpt2", weights_dir=tmp_path) == folder
    seen = len(server.seen)
    download_openai_gpt2("124M", tmp_path, base_urls=bases)
    assert len(server.seen) == seen


def test_openais_file_with_a_wrong_byte_is_refused(server, tmp_path, small_gpt2):
    for name, data in SMALL.items():
        server.put(f"/124M/{name}", data)
    server.play("/124M/model.ckpt.index", flip(3))
    with pytest.raises(DownloadError, match="wrong checksum"):
        download_openai_gpt2("124M", tmp_path, base_urls=[server.base])
    assert not (tmp_path / "124M" / "model.ckpt.index").exists()


def test_a_size_that_openai_never_published(tmp_path):
    with pytest.raises(ValueError, match="'117M'; choose one of 124M, 355M, 774M, 1558M"):
        download_openai_gpt2("117M", tmp_path)


def test_the_published_facts_agree_with_what_is_known_otherwise():
    shapes = {"124M": (768, 12, 12), "355M": (1024, 24, 16), "774M": (1280, 36, 20), "1558M": (1600, 48, 25)}
    for name, (d, n_layer, n_head) in shapes.items():
        files = {Path(file.path).name: file for file in files_to_fetch(name, source="openai")}
        assert list(files)[-1] == "model.ckpt.data-00000-of-00001"
        parameters = (50257 + 1024) * d + n_layer * (12 * d * d + 13 * d) + 2 * d
        assert files["model.ckpt.data-00000-of-00001"].size in (None, 4 * parameters)
        hparams = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": d, "n_head": n_head, "n_layer": n_layer}
        text = (json.dumps(hparams, indent=2) + "\n").encode()
        assert files["hparams.json"].size in (None, len(text))
        assert files["hparams.json"].sha256 in (None, hashlib.sha256(text).hexdigest())
        assert files["checkpoint"].size in (None, 77)
    assert files_to_fetch("124M", source="openai")[0].url == (
        "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/checkpoint"
    )


# --- Hugging Face ---

REPO = "someone/tiny-gpt2"
COMMIT = "a" * 40
TINY = {
    "config.json": b'{"model_type": "gpt2"}',
    "tokenizer.json": b"{}",
    "model.safetensors": DATA,
    "onnx/config.json": b"no",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"no",
}
WEIGHTS = f"/{REPO}/resolve/{COMMIT}/model.safetensors"


@pytest.fixture
def hub(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostileServer:
    """`huggingface_hub`, which reads its environment once, turned to loopback and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.base)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.base)
    template = server.base + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"), raising=False)
    return server


def hub_error(name: str = REPO, **options: Any) -> str:
    with pytest.raises(DownloadError) as caught:
        download_huggingface(name, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "and model.safetensors" in text  # the way out
    return text


def names_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts}


def test_a_repository_arrives_without_what_is_not_needed(hub):
    put_repository(hub, REPO, TINY)
    folder = download_huggingface(REPO)
    assert names_in(folder) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == DATA
    assert resolve_model(f"{hub.base}/{REPO}/tree/main") == folder


def test_a_pickle_comes_only_where_there_is_nothing_better(hub):
    put_repository(hub, REPO, {name: data for name, data in TINY.items() if name != "model.safetensors"})
    assert names_in(download_huggingface(REPO)) == {"config.json", "tokenizer.json", "pytorch_model.bin"}


def test_shards_arrive_together(hub):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"wte.weight": shards[0], "wpe.weight": shards[1]}}).encode()
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        shards[0]: DATA,
        shards[1]: DATA[::-1],
    }
    put_repository(hub, REPO, files)
    assert names_in(download_huggingface(REPO)) == set(files)


@pytest.mark.parametrize("in_weights_dir", [False, True])
def test_wrong_bytes_from_the_hub_are_thrown_away(hub, tmp_path, in_weights_dir):
    put_repository(hub, REPO, TINY)
    where = {"weights_dir": tmp_path / "models"} if in_weights_dir else {}
    hub.play(WEIGHTS, hub_file(COMMIT, SHA256, flipped=True))
    text = hub_error(**where)
    wrong = hashlib.sha256(bytes([DATA[0] ^ 1]) + DATA[1:]).hexdigest()
    assert f"model.safetensors came wrong twice: sha256 {wrong}, not {SHA256}" in text
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size == len(DATA)]
    good, bad = hub_file(COMMIT, SHA256), hub_file(COMMIT, SHA256, flipped=True)
    hub.play(WEIGHTS, bad, bad, good)  # HEAD, GET; then HEAD, GET again
    folder = download_huggingface(REPO, **where)
    assert (folder / "model.safetensors").read_bytes() == DATA


def test_two_wrong_files_may_be_one_in_the_cache(hub):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": dict(enumerate(shards))}).encode()
    files = {"config.json": b"{}", "model.safetensors.index.json": index, shards[0]: DATA, shards[1]: DATA}
    put_repository(hub, REPO, files)
    (download_huggingface(REPO) / shards[0]).resolve().write_bytes(bytes(len(DATA)))
    folder = download_huggingface(REPO)
    assert [(folder / shard).read_bytes() for shard in shards] == [DATA, DATA]


def test_a_file_that_went_bad_in_the_cache_is_fetched_again(hub):
    put_repository(hub, REPO, TINY)
    weights = (download_huggingface(REPO) / "model.safetensors").resolve()
    weights.write_bytes(bytes(len(DATA)))
    assert (download_huggingface(REPO) / "model.safetensors").read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(404, X_Error_Code="RepoNotFound"), "has no such repository, or it is private"),
        (status(401), "has no such repository, or it is private"),
        (status(403, X_Error_Code="GatedRepo"), "it is gated: accept its terms"),
        (status(403), "answers 403: log in"),
        (status(404, X_Error_Code="RevisionNotFound"), "it has no revision 'main'"),
        (status(410), "answers 410"),
        (html(), "a proxy or login page"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(hub, answer, words):
    hub.put(f"/api/models/{REPO}/revision/main", b"", answer)
    assert words in hub_error()


def test_a_hub_that_is_not_there(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert "no connection" in hub_error()
    put_repository(hub, REPO, TINY)
    monkeypatch.setattr(constants, "ENDPOINT", hub.base)
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written to" in hub_error(weights_dir=tmp_path / "file")


def test_a_repository_without_a_model(hub):
    put_repository(hub, REPO, {"README.md": b"hello", "config.json": b"{}"})
    assert "it holds no config.json with model.safetensors" in hub_error()


@pytest.mark.parametrize("switch", ["GLASSGPT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_a_repository_comes_from_the_cache_or_not_at_all(hub, monkeypatch, switch):
    put_repository(hub, REPO, TINY)
    with monkeypatch.context() as patch:
        patch.setenv(switch, "1")
        with pytest.raises(OfflineError, match=f"{switch}=1") as caught:
            download_huggingface(REPO)
        assert f"{hub.base}/{REPO}/tree/main" in str(caught.value)
    folder = download_huggingface(REPO)
    monkeypatch.setenv(switch, "1")
    hub.seen.clear()
    assert download_huggingface(REPO) == folder
    assert resolve_model(REPO) == folder
    (folder / "model.safetensors").resolve().write_bytes(bytes(len(DATA)))
    with pytest.raises(OfflineError):
        download_huggingface(REPO)
    assert hub.seen == []


@pytest.fixture
def known(hub: HostileServer, monkeypatch: pytest.MonkeyPatch) -> HostileServer:
    """The name gpt2, for a small repository of a fixed commit with published digests."""
    files = {name: TINY[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    put_repository(hub, "openai-community/gpt2", files)
    rows = [f"{hashlib.sha256(d).hexdigest()} {len(d)} gpt2/{name}\n" for name, d in files.items()]
    monkeypatch.setattr(download, "_PUBLISHED", "".join(rows))
    monkeypatch.setattr(download, "_COMMITS", {"gpt2": COMMIT})
    return hub


@pytest.mark.parametrize("name", ["gpt2", "124M", "openai-community/gpt2"])
def test_a_known_name_needs_no_network_once_it_is_there(known, name):
    folder = download_huggingface(name)
    assert folder.name == COMMIT
    known.seen.clear()
    assert resolve_model(name) == folder
    assert known.seen == []


def test_a_known_name_is_held_against_the_published_digests(known, tmp_path):
    put_repository(known, "openai-community/gpt2", {**TINY, "model.safetensors": DATA[::-1]})
    assert SHA256 in hub_error("gpt2")  # though the repository's own sha256 fits
    assert SHA256 in hub_error("gpt2", weights_dir=tmp_path / "models")


def test_a_known_name_is_found_where_transformers_left_it(known, monkeypatch):
    put_repository(known, "gpt2", TINY)
    from huggingface_hub import snapshot_download

    theirs = Path(snapshot_download("gpt2", revision=COMMIT))
    known.seen.clear()
    assert download_huggingface("gpt2") == theirs
    assert known.seen == []


def test_a_known_name_in_a_directory_of_models(known, tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_WEIGHTS", str(tmp_path / "models"))
    folder = resolve_model("124M")
    assert folder == tmp_path / "models" / "gpt2"
    known.seen.clear()
    assert resolve_model("gpt2") == folder
    assert known.seen == []
    assert resolve_model("gpt2", revision="main") == tmp_path / "models" / "gpt2@main"


def test_the_environment_counts_when_the_process_starts(hub, tmp_path):
    put_repository(hub, REPO, TINY)
    code = f"from glassgpt.weights.download import resolve_model as r; print(r({REPO!r}), end='')"
    mine = {"PYTHONPATH": str(SRC), "HF_ENDPOINT": hub.base, "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run([sys.executable, "-c", code], env={**os.environ, **mine}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout).is_relative_to(tmp_path / "home")
    assert (Path(run.stdout) / "model.safetensors").read_bytes() == DATA


# --- By URL, by name, by hand ---


def put_directory(server: HostileServer, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        server.put(f"/models/tiny/{name}", data)
    return server.base + "/models/tiny"


def test_a_directory_on_a_web_server(server, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": DATA, "vocab.json": b"{}", "merges.txt": b"#"}
    url = put_directory(server, files)
    told: list[int] = []
    folder = resolve_model(url, weights_dir=tmp_path, progress=lambda done, _: told.append(done))
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".lock"} == files
    assert told[-1] == len(DATA)
    assert folder.parent == tmp_path
    assert download_url(url + "/", weights_dir=tmp_path) == folder


def test_one_file_on_a_web_server_under_any_name_and_with_a_token(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put_directory(server, {"config.json": b"{}", "mine.safetensors": DATA})
    folder = download_url(f"{server.base}/models/tiny/mine.safetensors?download=true")
    assert (folder / "model.safetensors").read_bytes() == DATA
    assert folder.parent == tmp_path / "glassgpt"
    put_directory(server, {"other.safetensors": DATA[::-1]})
    other = download_url(f"{server.base}/models/tiny/other.safetensors")
    assert (other / "model.safetensors").read_bytes() == DATA[::-1]


def test_shards_on_a_web_server_and_an_index_that_leads_elsewhere(server, tmp_path):
    def index(name: str) -> bytes:
        return json.dumps({"weight_map": {"wte.weight": name}}).encode()

    name = "model.safetensors.index.json"
    url = put_directory(server, {"config.json": b"{}", name: index("a.safetensors"), "a.safetensors": DATA})
    assert (download_url(url, weights_dir=tmp_path / "1") / "a.safetensors").read_bytes() == DATA
    for i, bad in enumerate(("../a.safetensors", "/etc/a.safetensors", "a\\b.safetensors", "..", "a.py", "")):
        server.put(f"/models/tiny/{name}", index(bad))
        with pytest.raises(ValueError, match="no index of weights"):
            download_url(url, weights_dir=tmp_path / f"bad{i}")


def test_a_web_server_without_a_model(server, tmp_path):
    with pytest.raises(MissingFileError, match=r"could not download config\.json"):
        download_url(server.base + "/nothing/", weights_dir=tmp_path)
    server.put("/alone/config.json", b"{}")
    with pytest.raises(MissingFileError, match=r"model\.safetensors\.index\.json"):
        download_url(server.base + "/alone/", weights_dir=tmp_path)
    with pytest.raises(MissingFileError, match=r"model\.safetensors:"):
        download_url(server.base + "/alone/x.safetensors", weights_dir=tmp_path)


def test_a_path_comes_first_but_the_books_directory_of_models_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    Path("gpt2/124M").mkdir(parents=True)
    assert resolve_model("gpt2/124M") == Path("gpt2/124M")
    with pytest.raises(OfflineError):
        resolve_model("gpt2")
    for name in ("config.json", "model.safetensors"):
        Path("gpt2", name).write_bytes(b"{}")
    assert resolve_model("gpt2") == Path("gpt2")


def test_hand_copied_files_are_found_under_any_of_the_models_names(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    folder = tmp_path / "openai-community" / "gpt2-xl"
    folder.mkdir(parents=True)
    index = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "a.safetensors").write_bytes(b"")
    with pytest.raises(OfflineError):  # half a model is none
        resolve_model("1558M", weights_dir=tmp_path)
    (folder / "b.safetensors").write_bytes(b"")
    assert resolve_model("1558M", weights_dir=tmp_path) == folder


@pytest.mark.parametrize("name", ["gpt3", "", "a/b/c", "../etc", "./demo", "/no/such", "~/x", "a\n/b", "x/..y"])
def test_a_name_of_nothing_is_the_users_fault(name):
    with pytest.raises(ValueError, match=r"^no model [^\n]*gpt2-xl, 124M[^\n]*$"):
        resolve_model(name)


def test_a_near_name_is_offered():
    with pytest.raises(ValueError, match="did you mean 'gpt2-medium'"):
        resolve_model("gpt2-mediun")


def test_a_wrong_path_that_looks_like_a_repository_says_so(hub):
    hub.put("/api/models/runs/demo/revision/main", b"", status(404, X_Error_Code="RepoNotFound"))
    with pytest.raises(DownloadError, match="no directory runs/demo here, and as a name of Hugging Face: "):
        resolve_model("runs/demo")


def test_what_to_fetch_by_hand_is_what_is_found_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("GLASSGPT_OFFLINE", "1")
    for i, name in enumerate([*KNOWN_MODELS, REPO, "openai-community/openai-gpt"]):
        for source in ("huggingface", "openai") if name in KNOWN_MODELS else ("huggingface",):
            root = tmp_path / f"{i}{source}"
            files = files_to_fetch(name, source=source)
            for file in files:
                assert file.url.startswith("https://")
                assert file.url.endswith("/" + Path(file.path).name)
                (root / file.path).parent.mkdir(parents=True, exist_ok=True)
                (root / file.path).write_bytes(b"x")
            assert resolve_model(name, weights_dir=root) == (root / files[0].path).parent
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror/")
    assert files_to_fetch(REPO)[0].url == f"https://mirror/{REPO}/resolve/main/config.json"
    with pytest.raises(ValueError, match="choose 'huggingface' or 'openai'"):
        files_to_fetch("gpt2", source="ollama")
