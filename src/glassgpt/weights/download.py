"""Weights from the network: a wrong file never reaches its final name, and an error names the way out.

`download_file` fetches one file from ordered mirrors into `NAME.part`, goes on where an earlier try stopped
(RFC 9110, section 14), checks size and sha256, and only then renames. On it stand `download_openai_gpt2`
(OpenAI's TensorFlow files) and `download_url` (a directory on any web server). `download_huggingface` goes
through `huggingface_hub`, whose cache, tokens and settings it keeps, and checks what that library does not.
`resolve_model` turns a name into a directory.

The environment: `GLASSGPT_WEIGHTS` names a directory of models, looked into first and downloaded to;
`GLASSGPT_OFFLINE=1` or `HF_HUB_OFFLINE=1` switches the network off; proxies, `SSL_CERT_FILE` and
`SSL_CERT_DIR` count.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from http import HTTPStatus
from itertools import chain, product
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from glassgpt.json_file import read_json

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]
"""Called with the bytes done and the bytes in all, None while nobody knows them."""

OPENAI_BASE_URLS = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",
)
"""OpenAI's own files, and the book's copy of them."""

OPENAI_SIZES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
"""OpenAI's names of the four GPT-2 models, and Hugging Face's."""

KNOWN_MODELS = {
    name: f"openai-community/{short}"
    for size, short in OPENAI_SIZES.items()
    for name in (short, size, f"openai-community/{short}")
}
"""Every known name of a model, and its repository on Hugging Face."""

# The commits whose files are listed below; a known name means this commit
_COMMITS = {
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
# sha256, bytes, file, in the order of fetching: the small ones first, so that what fails fails early. "-"
# is not published, and the checksums inside OpenAI's checkpoints prove the data when it is read. Sources:
# the book's own test (ch05/01_main-chapter-code/tests.py) for OpenAI's sizes, tiktoken for the vocabulary,
# and for the rest people who pin these files, each digest in two places but for 124M's index; those of
# 124M's two smallest files follow from their text. OpenAI's seventh, model.ckpt.meta, is TensorFlow's
# graph: nothing here reads it.
_PUBLISHED = """
dd1b025d2e155283f5e300ce95bf6d5b6bc0f7fe010db73daa6975eb896ab9cb 77 124M/checkpoint
d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318 90 124M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 124M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 124M/vocab.bpe
71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687 5215 124M/model.ckpt.index
2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118 497759232 124M/model.ckpt.data-00000-of-00001
- 77 355M/checkpoint
- 91 355M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 355M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 355M/vocab.bpe
- 10399 355M/model.ckpt.index
- 1419292672 355M/model.ckpt.data-00000-of-00001
- - 774M/checkpoint
- - 774M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 774M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 774M/vocab.bpe
- - 774M/model.ckpt.index
- - 774M/model.ckpt.data-00000-of-00001
- - 1558M/checkpoint
- - 1558M/hparams.json
196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 1042301 1558M/encoder.json
1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 456318 1558M/vocab.bpe
- - 1558M/model.ckpt.index
- - 1558M/model.ckpt.data-00000-of-00001
0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4 665 gpt2/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2/tokenizer.json
248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707 548105171 gpt2/model.safetensors
ef1a44d889ad1a0acc7731c78134f1b87d2d222f110e97dd10fd4117331caf22 718 gpt2-medium/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2-medium/tokenizer.json
fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd 1519984962 gpt2-medium/model.safetensors
- - gpt2-large/config.json
- - gpt2-large/tokenizer.json
- - gpt2-large/model.safetensors
be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a - gpt2-xl/config.json
8414cab924d8b9b33013f0d221c5862f365ee9be39c5c2bfae8a5a9e970478a6 1355256 gpt2-xl/tokenizer.json
0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a - gpt2-xl/model.safetensors
"""

_OVERLAP = 4096  # bytes of a .part that are fetched again: a server that lies about its range is caught by them
_HEAD = 512  # bytes looked at for HTML
_MAX_REDIRECTS = 10
_MAX_WAIT_S = 60.0  # however long a server asks us to wait
_STAMP_BYTES = 32 * 2**20  # below, hashing is as quick as reading a stamp


class DownloadError(OSError):
    """A file could not be had. One line: what failed, for each source why, and the way out."""


class MissingFileError(DownloadError):
    """Every source says that it has no such file (404, 410, or 403 as object stores say it)."""


class OfflineError(DownloadError):
    """The network is switched off by the environment and a file is not here."""


class FileToFetch(NamedTuple):
    """A file for people who fetch by browser: size in bytes and sha256 where they are published."""

    url: str
    size: int | None
    sha256: str | None
    path: str  # relative to the directory that holds the models


# --- One file ----------------------------------------------------------------------------------


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
        if switch := _offline():
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
            _check_url(url)
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
        return right and (self.sha256 is None or _has_sha256(self.path, self.sha256))

    def way_out(self) -> str:
        facts = [_shown(self.urls[0])]
        facts += [f"{self.size:,} bytes"] if self.size is not None else []
        facts += [f"sha256 {self.sha256}"] if self.sha256 is not None else []
        return f"put the file at {self.path} yourself ({', '.join(facts)}) and run again"


class _MirrorError(Exception):
    """This source does not yield the file; the next one may."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class _PassingError(_MirrorError):
    """A fault that may be gone at the next try, `wait` seconds from now if the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _StalePartError(_MirrorError):
    """What lies in `.part` and what the server sends do not belong together."""


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
        failures: list[tuple[str, _MirrorError]] = []
        for url in self.file.urls:
            try:
                self._fetch(url)
            except _MirrorError as error:
                failures.append((url, error))
                continue
            self.part.replace(self.file.path)
            _sync_directory(self.file.path.parent)
            self.note.unlink(missing_ok=True)
            if self.file.sha256 is not None:
                _stamp(self.file.path, self.file.sha256)
            return
        reasons = "; ".join(f"{_shown(url)}: {error}" for url, error in failures)
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
            except _StalePartError as error:
                self._drop()
                furthest = 0
                restarts += 1
                if restarts > 2:
                    raise
                reason = str(error)
            except _PassingError as error:
                reason, wait = str(error), error.wait
            # a smaller gain is no step forward, or a server that drips would never be given up
            step = min(2**20, max(1, (self.total or 2**27) // 100))
            if self._have() >= furthest + step:
                furthest, failures = self._have(), 0
            failures += 1
            if failures > self.retries:
                raise _MirrorError(f"{reason} ({failures} times in a row)")
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
        with _network_errors(), _answer(self.client, url, headers) as response:
            total = self._total(response, start)
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
            stream = response.iter_raw()
            known = self._tail(start) if resumed else b""
            head = _first(stream, len(known) or _HEAD)
            if not resumed and _is_html(head) and not self._wants_html():
                raise _MirrorError("a proxy or login page instead of weights")
            if self.file.size is not None and total != self.file.size:
                raise _MirrorError(f"offers {total:,} bytes, not {self.file.size:,}")
            if resumed:
                if head[: len(known)] != known[: len(head)] or (total is not None and have > total):
                    raise _StalePartError("its bytes do not go on where the partial file ends")
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
                        raise _MirrorError(f"sends more than the {total:,} bytes it announced")
                    part.write(chunk)
                    if self.progress is not None:
                        self.progress(done, total)
                part.flush()
                os.fsync(part.fileno())
        if total is not None and done < total:
            raise _PassingError(f"closed after {done:,} of {total:,} bytes")
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
            if note.get("url") == _shown(url) and isinstance(note.get("validator"), str):
                validator = note["validator"]
        return (have, validator) if validator or self.file.sha256 is not None else (0, None)

    def _total(self, response: httpx.Response, start: int) -> int | None:
        """The whole file's length, None if nobody says it; refuses what the headers show to be wrong."""
        _check_status(response, ranged=start > 0)
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise _MirrorError(f"sends it as {encoding[:20]!r} though plain bytes were asked for")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml") and not self._wants_html():
            raise _MirrorError("a proxy or login page instead of weights (its Content-Type is HTML)")
        total: int | None = None
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            text = response.headers.get("Content-Range", "")
            found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text)
            if found is None or int(found[1]) != start:
                raise _StalePartError(f"answers with another range than the asked one, from byte {start:,}")
            total = None if found[3] == "*" else int(found[3])
        elif re.fullmatch(r"\d{1,18}", text := response.headers.get("Content-Length", "")):
            total = int(text)
        total = self.file.size if total is None else total
        if total is None and self.file.sha256 is None:
            raise _MirrorError("does not say how long the file is, so nothing would show that it is whole")
        self.total = total
        return total

    def _check(self, *, resumed: bool) -> None:
        if self.file.sha256 is None or (digest := _sha256(self.part)) == self.file.sha256:
            return
        self._drop()
        # a resumed file may owe its fault to the part that was there: another try, from its first byte
        kind = _StalePartError if resumed else _MirrorError
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
        self.note.write_text(json.dumps({"url": _shown(url), "validator": validator}), encoding="utf-8")

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


# --- HTTP --------------------------------------------------------------------------------------


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
        raise DownloadError(f"one of {settings} in the environment is wrong: {_one_line(error)}") from error


@cache  # reading the certificates takes longer than fetching a small file
def _trusted(cafile: str | None, capath: str | None) -> ssl.SSLContext:
    import httpx

    if cafile or capath:
        return ssl.create_default_context(cafile=cafile, capath=capath)
    return httpx.create_ssl_context()


@contextmanager
def _answer(client: httpx.Client, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
    """The answer at the end of the redirects, its body unread; the redirects' own bodies are never read."""
    request = client.build_request("GET", url, headers=dict(headers))
    for _ in range(_MAX_REDIRECTS + 1):
        response = client.send(request, stream=True, follow_redirects=False)
        try:
            if response.next_request is None:
                yield response
                return
            target = response.next_request.url.scheme
            if target not in ("http", "https") or (request.url.scheme, target) == ("https", "http"):
                raise _MirrorError(f"redirects from {request.url.scheme} to {target[:20]!r}, which is not safe")
            request = response.next_request
        finally:
            response.close()
    raise _MirrorError(f"redirects more than {_MAX_REDIRECTS} times")


def _check_status(response: httpx.Response, *, ranged: bool) -> None:
    status = response.status_code
    if status == HTTPStatus.OK or (status == HTTPStatus.PARTIAL_CONTENT and ranged):
        return
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and ranged:
        raise _StalePartError("has nothing after the partial file's end (416)")
    name = str(status)
    with suppress(ValueError):
        name += f" {HTTPStatus(status).phrase}"
    if status >= 500 or status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS):
        raise _PassingError(name, wait=_retry_after(response.headers.get("Retry-After", "")))
    raise _MirrorError(name, status=status)


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
        raise _PassingError(f"no {what} in time") from error
    except (httpx.ProxyError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise _MirrorError(_one_line(error)) from error
    except httpx.TransportError as error:
        if reason := _network_reason(error):
            raise _MirrorError(reason) from error
        raise _PassingError(_one_line(error) or "connection lost") from error


def _network_reason(error: BaseException) -> str | None:
    """What is wrong between here and the server, where trying again would not help, else None."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({_one_line(cause.verify_message)}); "
                "behind a proxy that opens TLS, set SSL_CERT_FILE to the proxy's CA file"
            )
        if isinstance(cause, socket.gaierror) or getattr(cause, "errno", None) == errno.ENETUNREACH:
            return "no network, or no such host"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


# --- OpenAI's files ----------------------------------------------------------------------------


def download_openai_gpt2(
    model_size: str,
    directory: Path,
    *,
    base_urls: Sequence[str] = OPENAI_BASE_URLS,
    progress: Progress | None = None,
) -> Path:
    """`directory / model_size`, with the six files of OpenAI's GPT-2 that reading it needs.

    `model_size` is "124M", "355M", "774M" or "1558M", or its name on Hugging Face. Each of `base_urls` holds
    `model_size/file`; they are tried in order for each file. `progress` counts over all files. Raises
    `ValueError` and `DownloadError`.
    """
    files = _published(_openai_size(model_size), OPENAI_BASE_URLS[0])
    before = 0
    for i, (_, size, sha256, path) in enumerate(files):
        urls = [f"{base.rstrip('/')}/{path}" for base in base_urls]
        after = [later.size for later in files[i + 1 :]]
        report = partial(_report, progress, before, after) if progress is not None else None
        file = download_file(urls, Path(directory) / path, size=size, sha256=sha256, progress=report)
        before += file.stat().st_size
    return file.parent


def _report(progress: Progress, before: int, after: Sequence[int | None], done: int, total: int | None) -> None:
    rest = [size for size in after if size is not None]
    known = total is not None and len(rest) == len(after)
    progress(before + done, before + (total or 0) + sum(rest) if known else None)


def _openai_size(name: str) -> str:
    for size, short in OPENAI_SIZES.items():
        if name in (size, short, f"openai-community/{short}"):
            return size
    raise ValueError(f"OpenAI published no GPT-2 called {name!r}; choose one of {', '.join(OPENAI_SIZES)}")


# --- Hugging Face ------------------------------------------------------------------------------

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def download_huggingface(name: str, *, weights_dir: Path | None = None, revision: str | None = None) -> Path:
    """The directory of a GPT-2 from Hugging Face: a known name (`KNOWN_MODELS`) or any `owner/name`.

    It lies in huggingface_hub's cache, or under its name in `weights_dir` (or `GLASSGPT_WEIGHTS`). A known
    name without `revision` is a fixed commit whose sha256 are known here, and needs no network once it is
    there; others follow `main`. Weights are compared with the repository's sha256 (huggingface_hub compares
    lengths only), thrown away and fetched once more if they differ. `pytorch_model.bin` comes only where
    there is no safetensors.

    huggingface_hub shows its own progress, on stderr, and its environment variables count (`HF_TOKEN`,
    `HF_ENDPOINT`, `HF_HUB_DISABLE_PROGRESS_BARS`, …). Raises `ValueError` for what is no name,
    `OfflineError`, and `DownloadError` for all the rest.
    """
    repo = _Repository(name, revision, _weights_dir(weights_dir))
    switch = _offline()
    try:
        if (repo.fixed or switch) and (found := repo.cached(offline=switch is not None)) is not None:
            return found
        if switch:
            text = f"{repo.id} is not in {repo.place} and {switch} switches the network off: switch it on"
            raise OfflineError(f"{text}, {repo.way_out()}")
        for _ in range(2):
            folder = repo.fetch()
            wrong = [(path, _sha256(path), sha256) for path, sha256 in repo.wrong_files(folder)]
            if not wrong:
                break
            for path, _found, _wanted in wrong:
                if _in_cache(path):
                    path.resolve().unlink(missing_ok=True)  # two names may share it
                path.unlink(missing_ok=True)
        else:
            path, digest, wanted = wrong[0]
            raise DownloadError(f"{path.name} came wrong twice: sha256 {digest}, not {wanted}")
        if not _is_model(folder):
            raise DownloadError("it holds no config.json with model.safetensors or pytorch_model.bin")
        return folder
    except OfflineError:
        raise
    except Exception as error:  # of whichever of three HTTP libraries this huggingface_hub uses
        reason = str(error) if isinstance(error, DownloadError) else _hub_reason(error, repo)
        raise DownloadError(f"could not download {repo.id}: {reason}; {repo.way_out()}") from error


class _Repository:
    """One revision of a repository on Hugging Face, and where its files lie here."""

    def __init__(self, name: str, revision: str | None, root: Path | None) -> None:
        self.id = KNOWN_MODELS.get(name, name)
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.id, re.ASCII) or ".." in self.id:
            raise _unknown(name)
        self.short = self.id.removeprefix("openai-community/") if self.id in KNOWN_MODELS else self.id
        commit = _COMMITS.get(self.short)
        self.revision = revision or commit or "main"
        self.fixed = re.fullmatch("[0-9a-f]{40}", self.revision) is not None  # a commit does not change
        self.published = _published(self.short, "") if self.revision == commit else []
        apart = "" if revision is None else "@" + re.sub(r"[^\w.-]", "-", revision)
        self.folder = None if root is None else root / (self.short + apart)

    @property
    def place(self) -> str:
        from huggingface_hub import constants

        return str(self.folder or constants.HF_HUB_CACHE)

    def way_out(self) -> str:
        from huggingface_hub import constants

        facts = f"{constants.ENDPOINT}/{self.id}/tree/{self.revision}"
        for file in self.published:
            if file.path.endswith(".safetensors") and file.sha256 is not None:
                facts += f", sha256 {file.sha256}"
        folder = self.folder or f"MODELS/{self.short} and set GLASSGPT_WEIGHTS=MODELS"
        return f"or put config.json, tokenizer.json and model.safetensors ({facts}) into {folder}"

    def fetch(self) -> Path:
        return self._snapshot(self.id, self.revision)

    def cached(self, *, offline: bool) -> Path | None:
        """The directory if it is here and right; offline, any `main` will do, and so will no tokenizer."""
        ids = dict.fromkeys([self.id, self.short])  # transformers' users have it as plain "gpt2", too
        revisions = dict.fromkeys([self.revision, "main"] if offline and self.published else [self.revision])
        for repo_id, revision in product(ids, revisions):
            try:
                folder = self._snapshot(repo_id, revision, local_files_only=True)
            except FileNotFoundError as error:  # not in the cache, or not all of it
                folder = Path(getattr(error, "snapshot_path", os.devnull))
            whole = _is_model(folder) and (offline or _has_tokenizer(folder))
            if whole and not self.wrong_files(folder, offline=True):
                return folder
        return None

    def _snapshot(self, repo_id: str, revision: str, *, local_files_only: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        for weights in (_SAFETENSORS, _PICKLES):
            folder = snapshot_download(
                repo_id,
                revision=revision,
                local_dir=self.folder,
                allow_patterns=[*_SMALL_FILES, *weights],
                local_files_only=local_files_only,
            )
            if any(Path(folder).glob("*.safetensors")):
                break
        return Path(folder)

    def wrong_files(self, folder: Path, *, offline: bool = False) -> list[tuple[Path, str]]:
        """The files in `folder` that are not what the repository holds, and the sha256 they should have."""
        weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
        wanted = {path: path.resolve().name for path in weights if _in_cache(path)}
        for file in self.published:
            path = folder / Path(file.path).name
            # hand-copied small files may be of another commit, weights may not
            if file.sha256 and (folder.name == self.revision or (self.folder is not None and path in weights)):
                wanted[path] = file.sha256
        if not offline and any(path not in wanted for path in weights):
            wanted = self._listed_sha256(folder) | wanted
        here = {path: sha256 for path, sha256 in wanted.items() if path.exists()}
        return [(path, sha256) for path, sha256 in here.items() if not _has_sha256(path.resolve(), sha256)]

    def _listed_sha256(self, folder: Path) -> dict[Path, str]:
        from huggingface_hub import HfApi

        listed = HfApi().model_info(self.id, revision=self.revision, files_metadata=True).siblings or []
        return {folder / file.rfilename: file.lfs.sha256 for file in listed if file.lfs is not None}


def _in_cache(path: Path) -> bool:
    """Whether it is a link to a large file of huggingface_hub's cache, which names it after its sha256."""
    blob = path.resolve()
    return blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name) is not None


def _hub_reason(error: Exception, repo: _Repository) -> str:
    """One line for whatever huggingface_hub raised, found by the names of the errors and their causes."""
    from huggingface_hub import constants

    host = constants.ENDPOINT
    causes = list(_causes(error))
    names = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
    numbers = {getattr(cause, "errno", None) for cause in causes}
    responses = [getattr(cause, "response", None) for cause in causes]
    status = next((response.status_code for response in responses if response is not None), None)
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if "GatedRepoError" in names:
        return f"it is gated: accept its terms at {host}/{repo.id} and {log_in}"
    if "RevisionNotFoundError" in names:
        return f"it has no revision {repo.revision!r}"
    if "RepositoryNotFoundError" in names or status == 401:
        return f"{host} has no such repository, or it is private: check the name, or {log_in}"
    if status == 403:
        return f"{host} answers 403: {log_in}, with a token that may read it"
    if status is not None and status >= 400:
        return f"{host} answers {status}"
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk of {repo.place} is full: make room, or choose another directory"
    if numbers & {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
        return f"{repo.place} cannot be written to: choose another directory"
    if reason := _network_reason(error):
        return f"{host}: {reason}"
    if names & {"TimeoutException", "Timeout"}:
        return f"{host}: no answer in time"
    if names & {"TransportError", "ConnectionError"}:
        return f"{host}: no connection ({_one_line(causes[-1])})"
    if names & {"JSONDecodeError", "FileMetadataError"}:
        return f"{host} does not answer like a Hugging Face Hub: a proxy or login page, or a wrong HF_ENDPOINT"
    return f"{type(error).__name__}: {_one_line(error)}"


# --- By URL, by name, by hand ------------------------------------------------------------------


def download_url(url: str, *, weights_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """The directory of a model from `https://host/path/` or `https://host/path/NAME.safetensors`.

    Beside the weights (one file, or an index and its shards) lies `config.json`; `tokenizer.json`, or
    `vocab.json` with `merges.txt`, come too if they are there. A page of a Hugging Face repository counts
    as its name. Goes to `weights_dir`, `GLASSGPT_WEIGHTS` or the user's cache directory. Raises
    `ValueError` and `DownloadError`.
    """
    _check_url(url)
    parts = urlsplit(url)
    page = re.match(r"/([^/]+/[^/]+)(?:/(?:tree|resolve|blob)/([^/]+))?(?:/|$)", parts.path)
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").netloc
    if parts.netloc in ("huggingface.co", hub) and page is not None:
        revision = None if page[2] == "main" else page[2]
        return download_huggingface(page[1], weights_dir=weights_dir, revision=revision)
    one_file = parts.path.endswith(".safetensors")
    path = parts.path.rpartition("/")[0] if one_file else parts.path.rstrip("/")
    base = parts._replace(path=path + "/", query="", fragment="").geturl()
    root = _weights_dir(weights_dir)
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glassgpt"
    model = _shown(url if one_file else base)
    short = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{parts.hostname}{path}")[:80]
    folder = root / f"{short}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"

    def fetch(name: str, source: str | None = None) -> Path:
        report = progress if name.endswith(".safetensors") else None
        return download_file(source or base + name, folder / name, progress=report)

    fetch("config.json")
    try:
        fetch("model.safetensors", url if one_file else None)
    except MissingFileError:
        if one_file:
            raise
        for shard in _shards(fetch("model.safetensors.index.json")):
            fetch(shard)
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer_config.json",)):
        with suppress(MissingFileError):
            for name in names:
                fetch(name)
    return folder


def resolve_model(
    name: str | Path,
    *,
    weights_dir: Path | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The directory (or file) of a model, downloaded if need be.

    `name` is a path, a known name (`KNOWN_MODELS`), an `owner/name` on Hugging Face or a URL. A model
    `name` in `weights_dir` (or `GLASSGPT_WEIGHTS`) comes before any network; its files are taken as they
    are. `progress` is told of URLs; huggingface_hub shows its own. Raises `ValueError` for what is none of
    these, and what the downloads raise.
    """
    path, name = Path(name), str(name)
    # the book's gpt2/ is no model, it only holds them
    if name and path.exists() and (name not in KNOWN_MODELS or _is_model(path)):
        return path
    if re.match(r"https?://", name):
        return download_url(name, weights_dir=weights_dir, progress=progress)
    root = _weights_dir(weights_dir)
    if root is not None and revision is None:
        same = [other for other, repo_id in KNOWN_MODELS.items() if repo_id == KNOWN_MODELS.get(name)]
        for candidate in (name, *same):
            if _is_model(root / candidate):
                return root / candidate
    try:
        return download_huggingface(name, weights_dir=weights_dir, revision=revision)
    except DownloadError as error:
        if name in KNOWN_MODELS:
            raise
        raise type(error)(f"no directory {name} here, and as a name of Hugging Face: {error}") from error


def files_to_fetch(name: str, source: str = "huggingface") -> list[FileToFetch]:
    """What to bring by hand for a known name or an `owner/name`: URLs, sizes, sha256, paths.

    `source` is "huggingface" or "openai" (the four GPT-2 only). Put under their paths into the directory of
    models (`weights_dir`), the files are found by `resolve_model`. Raises `ValueError`.
    """
    if source == "openai":
        return _published(_openai_size(name), OPENAI_BASE_URLS[0])
    if source != "huggingface":
        raise ValueError(f"source is {source!r}; choose 'huggingface' or 'openai'")
    repo = _Repository(name, None, None)
    host = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    base = f"{host}/{repo.id}/resolve/{repo.revision}"
    files = repo.published or [
        FileToFetch("", None, None, f"{repo.id}/{file}")
        for file in ("config.json", "tokenizer.json", "model.safetensors")
    ]
    return [file._replace(url=f"{base}/{file.path.rpartition('/')[2]}") for file in files]


def _published(folder: str, base: str) -> list[FileToFetch]:
    """The files of `folder` in `_PUBLISHED`, their URLs below `base`."""
    rows = [line.split() for line in _PUBLISHED.split("\n") if line]
    return [
        FileToFetch(f"{base}/{path}", None if size == "-" else int(size), None if sha256 == "-" else sha256, path)
        for sha256, size, path in rows
        if path.startswith(folder + "/")
    ]


def _unknown(name: str) -> ValueError:
    near = difflib.get_close_matches(name, KNOWN_MODELS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    ways = f"a directory, one of {', '.join([*_COMMITS, *OPENAI_SIZES])}, an owner/name of Hugging Face or a URL"
    return ValueError(f"no model {_one_line(name)!r}: give {ways}{hint}")


def _weights_dir(weights_dir: Path | None) -> Path | None:
    given = weights_dir if weights_dir is not None else os.environ.get("GLASSGPT_WEIGHTS")
    return Path(given) if given else None


def _is_model(folder: Path) -> bool:
    """Whether a directory holds all of a model's weights, in Hugging Face's or OpenAI's form."""
    if (folder / "hparams.json").is_file() and (folder / "model.ckpt.index").is_file():
        return any(folder.glob("model.ckpt.data-*"))
    if not (folder / "config.json").is_file():
        return False
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return True
        with suppress(OSError, ValueError):
            return all((folder / shard).is_file() for shard in _shards(folder / f"{name}.index.json"))
    return False


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all((folder / n).is_file() for n in ("vocab.json", "merges.txt"))


def _shards(index: Path) -> list[str]:
    """The files an index names; `ValueError` for a name that could lead out of its directory."""
    weight_map = read_json(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names or not all(re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", name) for name in names):
        raise ValueError(f"{index} is no index of weights: its weight_map names {_one_line(names[:3])}")
    return names


# --- Small things ------------------------------------------------------------------------------


def _offline() -> str | None:
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
    raise ValueError(f"{_one_line(url)!r} is not an http or https URL")


def _shown(url: str) -> str:
    """The URL without what may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _one_line(error: object) -> str:
    """A stranger's text, fit for a terminal: one line, printable, not long."""
    text = " ".join(str(error).split())
    return "".join(c for c in text if c.isprintable())[:200]


def _disk_reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room and run again, which goes on where it stopped"
    if error.errno == errno.EFBIG:
        return "this file system takes no file that large; choose another directory"
    return f"{error.strerror or _one_line(error)}; choose another directory"


def _first(stream: Iterator[bytes], n: int) -> bytes:
    """The first chunks of `stream`, together at least `n` bytes if there are so many."""
    head = b""
    while len(head) < n and (chunk := next(stream, None)) is not None:
        head += chunk
    return head


def _is_html(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_sha256(path: Path, sha256: str) -> bool:
    """Whether the file has this digest; a large one is hashed once and a stamp kept beside it."""
    if path.stat().st_size >= _STAMP_BYTES:
        with suppress(OSError, ValueError):
            if _stamp_path(path).read_text(encoding="utf-8") == _stamp_text(path, sha256):
                return True
    if _sha256(path) != sha256:
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


def _sync_directory(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)
