"""One file from the network, to be trusted: a wrong or a half one never reaches its final name.

`download_file` fetches it from ordered mirrors into `NAME.part`, resumes where an earlier try stopped, checks size and
sha256, and only then renames. Every error names the way out.

The environment: `GLASSGPT_OFFLINE=1` or `HF_HUB_OFFLINE=1` switches the network off; proxies, `SSL_CERT_FILE` and
`SSL_CERT_DIR` count.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from glassgpt.files import sync
from glassgpt.packages import require
from glassgpt.terminal_text import one_line
from glassgpt.weights.download.errors import DownloadError, OfflineError, network_reason

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in all, None while nobody knows them."""

_MAX_REDIRECTS = 10
_MAX_WAIT_S = 60.0  # however long a server asks us to wait
_STAMP_BYTES = 32 * 2**20  # below, hashing is as quick as reading a stamp


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

    An existing file is right if its size (bytes) and sha256 are, as far as they are known; a large one is hashed once
    and a stamp kept. Transient faults are retried up to `retries` times in a row without progress, after `backoff`,
    2 `backoff`, 4 `backoff` … seconds. With no sha256 the server's own length must be met. A second process that wants
    the same file waits for the first and finds it.

    Raises `ValueError` for arguments that make no sense, else `DownloadError`: also where `destination` holds another
    file, which stays as it is.
    """
    file = _File((urls,) if isinstance(urls, str) else tuple(urls), Path(destination), size, sha256)
    file.check_arguments()
    try:
        if file.is_right():
            return file.path
        if switch := offline_switch():
            raise OfflineError(f"{file.path} is not here and {switch} switches the network off", file.way_out())
        require("filelock", "httpx")
        with _alone(file.path):
            if not file.is_right():  # another process may have brought it meanwhile
                with _client(connect_timeout, read_timeout) as client:
                    _Transfer(file, client, progress, retries, backoff).run()
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"cannot write {file.path}: {_disk_reason(error)}") from error
    return file.path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No second process fetches `path` meanwhile. The lock and the folders made for it go again if nothing came."""
    import filelock

    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        with filelock.FileLock(lock):
            try:
                yield
            finally:
                # While it is held: who waits sees that what it opened has lost its name, and begins again.
                with suppress(OSError):  # Windows deletes no open file; there filelock does it afterwards
                    lock.unlink()
    finally:
        for folder in new:
            with suppress(OSError):  # not empty
                folder.rmdir()


class _SourceError(Exception):
    """This source does not yield the file; the next one may."""


class _TransientError(_SourceError):
    """A fault that may be gone at the next try, `wait` seconds from now if the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _StalePartError(_SourceError):
    """What lies in `.part` and what the server sends do not belong together."""


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
            _check_url(url)
        if self.size is not None and self.size < 0:
            raise ValueError(f"the size of {self.path.name} is {self.size}; it cannot be below 0")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.sha256!r} is not a sha256: that is 64 digits 0-9 a-f")

    def is_right(self) -> bool:
        """Whether it is there already, as far as anything is known of it; `DownloadError` where another file is."""
        if self.path.is_dir():
            raise DownloadError(f"{self.path} is a directory where a file should go: move it away")
        try:
            found = self.path.stat().st_size
        except FileNotFoundError:
            return False
        if found == 0 != self.size:
            return False  # nothing to lose
        if self.size not in (None, found):
            wrong = f"{found:,} bytes instead of {self.size:,}"
        elif self.sha256 is not None and not has_sha256(self.path, self.sha256):
            wrong = f"a sha256 other than {self.sha256}"
        else:
            return True
        # half a file of a tool that writes under the final name, or something of the user's: nobody can tell
        raise DownloadError(f"{self.path} has {wrong}, so it is not the published file: move it away and run again")

    def way_out(self) -> str:
        facts = [_shown_url(self.urls[0])]
        facts += [f"{self.size:,} bytes"] if self.size is not None else []
        facts += [f"sha256 {self.sha256}"] if self.sha256 is not None else []
        return f"put the file at {self.path} yourself ({', '.join(facts)}) and run again"


class _Transfer:
    """One file on its way: `.part` grows; `.part.etag` says of which URL and version it is."""

    def __init__(
        self, file: _File, client: httpx.Client, progress: Progress | None, retries: int, backoff: float
    ) -> None:
        self.file = file
        self.client = client
        self.progress = progress
        self.retries = retries
        self.backoff = backoff
        self.part = file.path.with_name(file.path.name + ".part")
        self.note = file.path.with_name(file.path.name + ".part.etag")
        self.total = file.size

    def run(self) -> None:
        """Rename a right `.part` to its final name, or raise `DownloadError` with every source's reason."""
        failures: dict[str, str] = {}
        for url in self.file.urls:
            try:
                self._fetch(url)
            except _SourceError as error:
                failures[_shown_url(url)] = str(error)
                continue
            self.part.replace(self.file.path)
            sync(self.file.path.parent)
            self.note.unlink(missing_ok=True)
            if self.file.sha256 is not None:
                _stamp(self.file.path, self.file.sha256)
            return
        name = self.file.path.name
        if len(failures) > 1 and len(set(failures.values())) == 1:
            hosts = " or ".join(str(urlsplit(url).hostname) for url in failures)
            reason = f"could not download {name} from {hosts}: {failures.popitem()[1]}"
        else:
            reason = f"could not download {name}: {'; '.join(': '.join(failure) for failure in failures.items())}"
        raise DownloadError(reason, self.file.way_out())

    def _fetch(self, url: str) -> None:
        """Bring `.part` to the right content from one source, in as many requests as it takes."""
        furthest = self._have()
        failures = restarts = 0
        while True:
            wait = None
            try:
                self._check(resumed=self._receive(url))
                return
            except _StalePartError as error:
                self._drop()
                furthest = 0
                restarts += 1
                if restarts > 2:
                    raise
                reason = str(error)
            except _TransientError as error:
                reason, wait = str(error), error.wait
            # a smaller gain is no progress, or a server that drips would never be given up
            step = min(2**20, max(1, (self.total or 2**27) // 100))
            if self._have() >= furthest + step:
                furthest, failures = self._have(), 0
            failures += 1
            if failures > self.retries:
                raise _SourceError(f"{reason} ({failures} times in a row)")
            sleep(min(_MAX_WAIT_S, self.backoff * 2 ** (failures - 1) if wait is None else wait))

    def _receive(self, url: str) -> bool:
        """One request that ends with a `.part` of full length; whether some of it was there before."""
        have, etag = self._resumable(url)
        if self.file.sha256 is not None and 0 < have == self.file.size:
            return True
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and etag:
            headers["If-Range"] = etag
        with _answer(self.client, url, headers) as response:
            self.total = total = self._total(response, have)
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
            done = have if resumed else 0
            if not resumed:
                self._drop()
                if (etag := response.headers.get("ETag", "")).startswith('"'):  # W/"…" proves no equal bytes
                    self.note.write_text(f"{_shown_url(url)}\n{etag}", encoding="utf-8")
            self._check_room(0 if total is None else total - done)
            with self.part.open("ab" if resumed else "wb") as part:
                for chunk in response.iter_raw():
                    done += len(chunk)
                    if total is not None and done > total:
                        self._drop()
                        raise _SourceError(f"sends more than the {total:,} bytes it announced")
                    part.write(chunk)
                    if self.progress is not None:
                        self.progress(done, total)
                part.flush()
                os.fsync(part.fileno())
        if total is not None and done < total:
            raise _TransientError(f"closed after {done:,} of {total:,} bytes")
        return resumed

    def _resumable(self, url: str) -> tuple[int, str | None]:
        """Bytes of `.part` to resume after, and the ETag they came with.

        Without either the ETag of this very URL or a sha256 nothing would show that the file has changed.
        """
        have = self._have()
        if self.file.size is not None and have > self.file.size:
            return 0, None
        etag = None
        with suppress(OSError, ValueError):
            noted, _, text = self.note.read_text(encoding="utf-8").partition("\n")
            etag = text if noted == _shown_url(url) else None
        return (have, etag) if etag or self.file.sha256 is not None else (0, None)

    def _total(self, response: httpx.Response, start: int) -> int | None:
        """The whole file's length, None if nobody says it; refuses what the headers show to be wrong."""
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise _SourceError(f"sends it as {encoding[:20]!r} though plain bytes were asked for")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise _SourceError("a proxy or login page instead of the file (its Content-Type is HTML)")
        total = self.file.size
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            text = response.headers.get("Content-Range", "")
            found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", text)
            if found is None or int(found[1]) != start:
                raise _StalePartError(f"answers with another range than the asked one, from byte {start:,}")
            if found[2] != "*":
                total = int(found[2])
        elif re.fullmatch(r"\d{1,18}", text := response.headers.get("Content-Length", "")):
            total = int(text)
        if total is None and self.file.sha256 is None:
            raise _SourceError("does not say how long the file is, so nothing would show that it is whole")
        if self.file.size not in (None, total):
            raise _SourceError(f"offers {total:,} bytes, not {self.file.size:,}")
        return total

    def _check(self, *, resumed: bool) -> None:
        if self.file.sha256 is None or (digest := sha256_of(self.part)) == self.file.sha256:
            return
        self._drop()
        # a resumed file may owe its fault to the part that was there: another try, from its first byte
        kind = _StalePartError if resumed else _SourceError
        raise kind(f"wrong checksum: sha256 {digest}, not {self.file.sha256}")

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if missing > free:
            raise DownloadError(
                f"no room for {self.file.path}: {missing:,} bytes are to come and {free:,} are free; "
                "make room or choose another directory"
            )

    def _have(self) -> int:
        with suppress(FileNotFoundError):
            return self.part.stat().st_size
        return 0

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


# ---- HTTP: every fault in one line that says if a retry may help ----------


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


@contextmanager
def _answer(client: httpx.Client, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """The answer at the end of the redirects, its body unread: 200, or 206 if `headers` ask for a range.

    httpx would follow redirects itself, but from https to http too, and only once it had read each one's body.
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
                if (request.url.scheme, response.next_request.url.scheme) == ("https", "http"):
                    raise _SourceError("redirects from https to http, which is not safe")
                request = response.next_request
            finally:
                response.close()
        raise _SourceError(f"redirects more than {_MAX_REDIRECTS} times")


def _check_status(response: httpx.Response, *, ranged: bool) -> None:
    status = response.status_code
    if status == HTTPStatus.OK or (status == HTTPStatus.PARTIAL_CONTENT and ranged):
        return
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and ranged:
        raise _StalePartError("has nothing after the partial file's end (416)")
    name = f"{status} {response.reason_phrase}".strip()[:100]
    if status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        raise _TransientError(name, wait=_retry_after(response.headers.get("Retry-After", "")))
    raise _SourceError(name)


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
        raise _TransientError(f"no {what} in time") from error
    except (httpx.ProxyError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise _SourceError(one_line(error)) from error
    except httpx.TransportError as error:
        if reason := network_reason(error):
            raise _SourceError(reason) from error
        raise _TransientError(one_line(error) or "connection lost") from error


def offline_switch() -> str | None:
    """The environment variable that switches the network off, if one does."""
    for name in ("GLASSGPT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").strip().lower() in ("1", "on", "yes", "true"):
            return f"{name}={os.environ[name]}"
    return None


def _check_url(url: str) -> None:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return
    raise ValueError(f"{one_line(url)!r} is not an http or https URL")


def _shown_url(url: str) -> str:
    """The URL without what may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


# ---- The disk ----------


def _disk_reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room and run again, which resumes where it stopped"
    if error.errno == errno.EFBIG:
        return "this file system takes no file that large; choose another directory"
    return f"{error.strerror or one_line(error)}; choose another directory"


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
