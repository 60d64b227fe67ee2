"""One file from the network, to be trusted: a wrong or a half one never reaches its final name.

`download_file` fetches it from ordered mirrors into `NAME.part`, goes on where an earlier try stopped (RFC 9110,
section 14), checks size and sha256, and only then renames. Every error names the way out.

The environment: `GLASSGPT_OFFLINE=1` or `HF_HUB_OFFLINE=1` switches the network off; proxies, `SSL_CERT_FILE` and
`SSL_CERT_DIR` count.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from glassgpt.files import sync
from glassgpt.json_file import read_json
from glassgpt.weights.http import MirrorError, PassingError, StalePartError, answer, check_url, one_line, shown_url

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in all, None while nobody knows them."""

_OVERLAP = 4096  # bytes of a .part that are fetched again: a server that lies about its range is caught by them
_HEAD = 512  # bytes looked at for HTML
_MAX_WAIT_S = 60.0  # however long a server asks us to wait
_STAMP_BYTES = 32 * 2**20  # below, hashing is as quick as reading a stamp


class DownloadError(OSError):
    """A file could not be had. One line: what failed, for each source why, and the way out."""


class MissingFileError(DownloadError):
    """Every source says that it has no such file (404, 410, or 403 as object stores say it)."""


class OfflineError(DownloadError):
    """The network is switched off by the environment and a file is not here."""


def download_file(
    urls: str | Sequence[str],
    destination: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    connect_timeout: float = 10.0,
    read_timeout: float = 30.0,
    retries: int = 4,
    backoff: float = 1.0,
) -> Path:
    """`destination`, fetched from the first of `urls` that yields the right file, unless it is there already.

    An existing file is right if its size (bytes) and sha256 are, as far as they are known; a large one is
    hashed once and a stamp kept. Passing faults are tried again up to `retries` times in a row without a
    step forward, after `backoff`, 2 `backoff`, 4 `backoff` … seconds. With no sha256, the server's own
    length must be met, and HTML is refused. A second process that wants the same file waits for the first
    and finds it.

    Raises `ValueError` for arguments that cannot be meant, else `DownloadError` or one of its kinds.
    """
    file = _File((urls,) if isinstance(urls, str) else tuple(urls), Path(destination), size, sha256)
    file.check_arguments()
    try:
        if file.is_right():
            return file.path
        if switch := offline_switch():
            raise OfflineError(f"{file.path} is not here and {switch} switches the network off: {file.way_out()}")
        import filelock

        file.path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(file.path.with_name(f".{file.path.name}.lock")):
            if not file.is_right():  # another process may have brought it meanwhile
                with _client(connect_timeout, read_timeout) as client:
                    _Transfer(file, client, progress, retries, backoff).run()
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {file.path}: {_disk_reason(error)}") from error
    return file.path


@dataclass(frozen=True)
class _File:
    """What is wanted."""

    urls: tuple[str, ...]
    path: Path
    size: int | None
    sha256: str | None

    def check_arguments(self) -> None:
        if not self.urls:
            raise ValueError(f"no URL to fetch {self.path.name} from")
        for url in self.urls:
            check_url(url)
        if self.size is not None and self.size < 0:
            raise ValueError(f"the size of {self.path.name} is {self.size}; it cannot be below 0")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.sha256!r} is no sha256: that is 64 digits 0-9 a-f")

    def is_right(self) -> bool:
        """Whether it is there already, as far as anything is known of it."""
        if self.path.is_dir():
            raise DownloadError(f"{self.path} is a directory where a file should go: move it away")
        try:
            found = self.path.stat().st_size
        except FileNotFoundError:
            return False
        right = found > 0 if self.size is None else found == self.size
        return right and (self.sha256 is None or has_sha256(self.path, self.sha256))

    def way_out(self) -> str:
        facts = [shown_url(self.urls[0])]
        facts += [f"{self.size:,} bytes"] if self.size is not None else []
        facts += [f"sha256 {self.sha256}"] if self.sha256 is not None else []
        return f"put the file at {self.path} yourself ({', '.join(facts)}) and run again"


class _Transfer:
    """One file on its way: `.part` grows, `.part.json` says where it comes from."""

    def __init__(
        self, file: _File, client: httpx.Client, progress: Progress | None, retries: int, backoff: float
    ) -> None:
        self.file = file
        self.client = client
        self.progress = progress
        self.retries = retries
        self.backoff = backoff
        self.part = file.path.with_name(file.path.name + ".part")
        self.note = file.path.with_name(file.path.name + ".part.json")
        self.total = file.size

    def run(self) -> None:
        """Rename a right `.part` to its final name, or raise `DownloadError` with every source's reason."""
        failures: list[tuple[str, MirrorError]] = []
        for url in self.file.urls:
            try:
                self._fetch(url)
            except MirrorError as error:
                failures.append((url, error))
                continue
            self.part.replace(self.file.path)
            sync(self.file.path.parent)
            self.note.unlink(missing_ok=True)
            if self.file.sha256 is not None:
                _stamp(self.file.path, self.file.sha256)
            return
        reasons = "; ".join(f"{shown_url(url)}: {error}" for url, error in failures)
        text = f"could not download {self.file.path.name}: {reasons}; {self.file.way_out()}"
        missing = all(error.status in (403, 404, 410) for _, error in failures)
        raise (MissingFileError if missing else DownloadError)(text)

    def _fetch(self, url: str) -> None:
        """Bring `.part` to the right content from one source, in as many requests as it takes."""
        furthest = self._have()
        failures = restarts = 0
        while True:
            wait = None
            try:
                self._check(resumed=self._receive(url))
                return
            except StalePartError as error:
                self._drop()
                furthest = 0
                restarts += 1
                if restarts > 2:
                    raise
                reason = str(error)
            except PassingError as error:
                reason, wait = str(error), error.wait
            # a smaller gain is no step forward, or a server that drips would never be given up
            step = min(2**20, max(1, (self.total or 2**27) // 100))
            if self._have() >= furthest + step:
                furthest, failures = self._have(), 0
            failures += 1
            if failures > self.retries:
                raise MirrorError(f"{reason} ({failures} times in a row)")
            sleep(min(_MAX_WAIT_S, self.backoff * 2 ** (failures - 1) if wait is None else wait))

    def _receive(self, url: str) -> bool:
        """One request that ends with a `.part` of full length; whether some of it was there before."""
        have, validator = self._resumable(url)
        if self.file.sha256 is not None and 0 < have == self.file.size:
            return True
        start = max(0, have - _OVERLAP)
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and validator:
            headers["If-Range"] = validator
        with answer(self.client, url, headers) as response:
            total = self._total(response, start)
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
            stream = response.iter_raw()
            known = self._tail(start) if resumed else b""
            head = _first(stream, len(known) or _HEAD)
            if not resumed and _is_html(head) and not self._wants_html():
                raise MirrorError("a proxy or login page instead of weights")
            if self.file.size is not None and total != self.file.size:
                raise MirrorError(f"offers {total:,} bytes, not {self.file.size:,}")
            if resumed:
                if head[: len(known)] != known[: len(head)] or (total is not None and have > total):
                    raise StalePartError("its bytes do not go on where the partial file ends")
                head, done = head[len(known) :], have
            else:
                self._drop()
                self._write_note(url, response)
                done = 0
            if total is not None:
                self._check_room(total - done)
            with self.part.open("ab" if resumed else "wb") as part:
                for chunk in chain([head], stream):
                    done += len(chunk)
                    if total is not None and done > total:
                        self._drop()
                        raise MirrorError(f"sends more than the {total:,} bytes it announced")
                    part.write(chunk)
                    if self.progress is not None:
                        self.progress(done, total)
                part.flush()
                os.fsync(part.fileno())
        if total is not None and done < total:
            raise PassingError(f"closed after {done:,} of {total:,} bytes")
        return resumed

    def _resumable(self, url: str) -> tuple[int, str | None]:
        """Bytes of `.part` that may be gone on from, and the validator (RFC 9110, 8.8) they came with.

        Without either a validator of this very URL or a sha256 nothing would show that the file has changed.
        """
        have = self._have()
        if have <= _OVERLAP or (self.file.size is not None and have > self.file.size):
            return 0, None
        validator = None
        with suppress(OSError, ValueError):
            note = read_json(self.note)
            if note.get("url") == shown_url(url) and isinstance(note.get("validator"), str):
                validator = note["validator"]
        return (have, validator) if validator or self.file.sha256 is not None else (0, None)

    def _total(self, response: httpx.Response, start: int) -> int | None:
        """The whole file's length, None if nobody says it; refuses what the headers show to be wrong."""
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise MirrorError(f"sends it as {encoding[:20]!r} though plain bytes were asked for")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml") and not self._wants_html():
            raise MirrorError("a proxy or login page instead of weights (its Content-Type is HTML)")
        total: int | None = None
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            text = response.headers.get("Content-Range", "")
            found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text)
            if found is None or int(found[1]) != start:
                raise StalePartError(f"answers with another range than the asked one, from byte {start:,}")
            total = None if found[3] == "*" else int(found[3])
        elif re.fullmatch(r"\d{1,18}", text := response.headers.get("Content-Length", "")):
            total = int(text)
        total = self.file.size if total is None else total
        if total is None and self.file.sha256 is None:
            raise MirrorError("does not say how long the file is, so nothing would show that it is whole")
        self.total = total
        return total

    def _check(self, *, resumed: bool) -> None:
        if self.file.sha256 is None or (digest := sha256_of(self.part)) == self.file.sha256:
            return
        self._drop()
        # a resumed file may owe its fault to the part that was there: another try, from its first byte
        kind = StalePartError if resumed else MirrorError
        raise kind(f"wrong checksum: sha256 {digest}, not {self.file.sha256}")

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if missing > free:
            raise DownloadError(
                f"no room for {self.file.path}: {missing:,} bytes are to come and {free:,} are free; "
                "make room or choose another directory"
            )

    def _write_note(self, url: str, response: httpx.Response) -> None:
        etag = response.headers.get("ETag", "")
        strong = etag.startswith('"')  # W/"…" is a weak one, which proves no equal bytes
        validator = etag if strong else response.headers.get("Last-Modified")
        self.note.write_text(json.dumps({"url": shown_url(url), "validator": validator}), encoding="utf-8")

    def _wants_html(self) -> bool:
        return self.file.path.suffix in (".html", ".htm")

    def _have(self) -> int:
        with suppress(FileNotFoundError):
            return self.part.stat().st_size
        return 0

    def _tail(self, start: int) -> bytes:
        with self.part.open("rb") as part:
            part.seek(start)
            return part.read()

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _client(connect_timeout: float, read_timeout: float) -> httpx.Client:
    import httpx

    certificates = {name: os.environ.get(name) or None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
    for name, value in certificates.items():
        if value and not Path(value).exists():
            raise DownloadError(f"the environment says {name}={value}, which does not exist: correct or unset it")
    try:
        return httpx.Client(
            verify=_trusted(*certificates.values()),
            timeout=httpx.Timeout(read_timeout, connect=connect_timeout),
            headers={"Accept-Encoding": "identity", "User-Agent": "glassgpt"},
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        settings = f"{', '.join(certificates)}, HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
        raise DownloadError(f"one of {settings} in the environment is wrong: {one_line(error)}") from error


@cache  # reading the certificates takes longer than fetching a small file
def _trusted(cafile: str | None, capath: str | None) -> ssl.SSLContext:
    import httpx

    if cafile or capath:
        return ssl.create_default_context(cafile=cafile, capath=capath)
    return httpx.create_ssl_context()


def offline_switch() -> str | None:
    """The environment variable that switches the network off, if one does."""
    for name in ("GLASSGPT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").strip().lower() in ("1", "on", "yes", "true"):
            return f"{name}={os.environ[name]}"
    return None


def _disk_reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room and run again, which goes on where it stopped"
    if error.errno == errno.EFBIG:
        return "this file system takes no file that large; choose another directory"
    return f"{error.strerror or one_line(error)}; choose another directory"


def _first(stream: Iterator[bytes], n: int) -> bytes:
    """The first chunks of `stream`, together at least `n` bytes if there are so many."""
    head = b""
    while len(head) < n and (chunk := next(stream, None)) is not None:
        head += chunk
    return head


def _is_html(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html"))


def sha256_of(path: Path) -> str:
    """The file's digest, 64 digits 0-9 a-f."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether the file has this digest; a large one is hashed once and a stamp kept beside it."""
    if path.stat().st_size >= _STAMP_BYTES:
        with suppress(OSError, ValueError):
            if _stamp_path(path).read_text(encoding="utf-8") == _stamp_text(path, sha256):
                return True
    if sha256_of(path) != sha256:
        return False
    _stamp(path, sha256)
    return True


def _stamp(path: Path, sha256: str) -> None:
    if path.stat().st_size >= _STAMP_BYTES:
        with suppress(OSError):  # a directory that cannot be written to is hashed every time
            _stamp_path(path).write_text(_stamp_text(path, sha256), encoding="utf-8")


def _stamp_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _stamp_text(path: Path, sha256: str) -> str:
    stat = path.stat()
    return f"{sha256} {stat.st_size} {stat.st_mtime_ns}\n"
