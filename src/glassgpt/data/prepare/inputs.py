"""What there is to prepare: files, here or behind a URL, and the tasks that they are cut into."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassgpt.data.columnar import row_groups
from glassgpt.data.corpus import files_at, tell_of_models, tell_of_skipped
from glassgpt.data.kinds import NotTextError
from glassgpt.data.records import RecordError
from glassgpt.data.text_file import RECORD_KINDS, file_kind
from glassgpt.data.unpack import Watched, unpacked
from glassgpt.terminal_text import one_line

_log = logging.getLogger(__name__)

_BUFFER = 1 << 20
PLAIN = "text"


@dataclass(frozen=True)
class InputFile:
    """A file of text, as it was when it was listed."""

    name: str
    """Its path or URL."""
    size: int
    """Bytes."""
    stamp: str
    """What the disk or store says of its last change."""
    kind: str
    """One of `RECORD_KINDS`, or "text"."""
    packing: str
    """ "gzip", "zstd" or ""."""


@dataclass(frozen=True)
class Span:
    """A part of a file: bytes of text and of JSON lines, row groups of Parquet, the whole of any other."""

    file: int
    """Its place in the list of files."""
    start: int
    stop: int
    size: int
    """Bytes of the file that it stands for."""


def list_inputs(paths: Sequence[str | Path]) -> list[InputFile]:
    """The files named by `paths`, and those in the folders named by it, in the order given; nothing is read but heads.

    A path with `://` is a URL of `fsspec`: a file, a folder, or a pattern with `*`. Folders are read as `read_corpus`
    does: sorted, without hidden files, what is no text left out and counted in a warning; a file met twice counts once.

    Raises ValueError for a path that does not exist, that is no text, or a folder without text; ImportError where a
    package is missing.
    """
    found: dict[str, InputFile] = {}
    for path in map(str, paths):
        names, is_folder = _names(path)
        skipped: list[NotTextError] = []
        for name in names:
            try:
                if (key := _identity(name)) not in found:
                    found[key] = _input_file(name)
            except NotTextError as error:
                if not is_folder:
                    raise
                skipped.append(error)
        tell_of_skipped(path, len(names), skipped)
    return list(found.values())


def tasks_of(files: Sequence[InputFile], task_bytes: int) -> list[list[Span]]:
    """The work on `files` in tasks of about `task_bytes`, in order: it depends on nothing else.

    Text and JSON lines are cut anywhere, Parquet between row groups, other files not at all. Small files share a task.
    """
    tasks: list[list[Span]] = [[]]
    room = task_bytes
    for number, file in enumerate(files):
        for span in _spans(number, file, task_bytes):
            if room <= 0:
                tasks.append([])
                room = task_bytes
            tasks[-1].append(span)
            room -= span.size
    return tasks


def _spans(number: int, file: InputFile, most: int) -> Iterator[Span]:
    if file.kind in (PLAIN, "JSONL") and not file.packing:
        for start in range(0, file.size, most):
            stop = min(start + most, file.size)
            yield Span(number, start, stop, stop - start)
    elif file.kind == "Parquet":
        with open_input(file.name) as stream:
            try:
                sizes = row_groups(file.name, stream)
            except RecordError as error:
                raise damaged(file, error) from None
        for group, size in enumerate(sizes):
            yield Span(number, group, group + 1, size)
    else:
        yield Span(number, 0, file.size, file.size)


def changes(before: Sequence[InputFile], now: Sequence[InputFile]) -> list[str]:
    """How the files now are not those of before, in words; the first three."""
    old, new = {file.name: file for file in before}, {file.name: file for file in now}
    said = [f"{name} was not there" for name in new if name not in old]
    said += [f"{name} is gone" for name in old if name not in new]
    for name in old.keys() & new.keys():
        if old[name].size != new[name].size:
            said.append(f"{name} was {old[name].size:,} bytes, now {new[name].size:,}")
        elif old[name] != new[name]:
            said.append(f"{name} was changed")
    if not said and list(before) != list(now):
        said = ["the files are the same in another order"]
    return sorted(said)[:3] + [f"and {len(said) - 3:,} other files"] * (len(said) > 3)


@contextlib.contextmanager
def open_input(name: str, watch: Callable[[int], None] = lambda _: None) -> Iterator[io.BufferedReader[Any]]:
    """The bytes of a file; `watch` hears how far it has been read."""
    if is_url(name):
        filesystem, path = _filesystem(name)
        with filesystem.open(path, "rb") as file, io.BufferedReader(_Remote(file, watch), _BUFFER) as stream:
            yield stream
    else:
        with io.BufferedReader(Watched(Path(name), watch), _BUFFER) as stream:
            yield stream


def is_url(name: str) -> bool:
    """Whether a path is for `fsspec`."""
    return "://" in name


def _names(path: str) -> tuple[list[str], bool]:
    """The files to look at for a path, sorted, and whether it is a folder or a pattern."""
    if is_url(path):
        filesystem, inner = _filesystem(path)
        if "*" in inner:
            names = [name for name in filesystem.glob(inner) if filesystem.isfile(name)]
        elif filesystem.isdir(inner):
            names = [name for name in filesystem.find(inner) if not _is_hidden(name, inner)]
        elif filesystem.exists(inner):
            return [path], False
        else:
            raise ValueError(f"{path}: no such file")
        return sorted(str(filesystem.unstrip_protocol(name)) for name in names), True
    names, models = files_at(Path(path))
    tell_of_models(path, models)
    return list(map(str, names)), Path(path).is_dir()


def _is_hidden(name: str, folder: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(folder.rstrip("/")).split("/"))


def _identity(name: str) -> str:
    return name if is_url(name) else str(Path(name).resolve())


def _input_file(name: str) -> InputFile:
    size, stamp = _size_and_stamp(name)
    with open_input(name) as file:
        packing, stream = unpacked(name, file)
        if not stream.peek(1):
            raise NotTextError(f"{name}: the file is empty; add text to it", "empty")
        kind = file_kind(name, packing, stream)
    return InputFile(name, size, stamp, kind if kind in RECORD_KINDS else PLAIN, packing)


def _size_and_stamp(name: str) -> tuple[int, str]:
    if is_url(name):
        filesystem, path = _filesystem(name)
        if (size := filesystem.info(path)["size"]) is None:
            raise ValueError(f"{name}: its server does not tell its size: download it first")
        return int(size), str(filesystem.ukey(path))
    status = Path(name).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{name}: not a regular file")
    return status.st_size, str(status.st_mtime_ns)


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    try:
        fsspec = importlib.import_module("fsspec.core")
    except ImportError:
        raise ImportError(f"{url}: paths with :// need the extra: pip install 'glassgpt[remote]'") from None
    try:
        filesystem, path = fsspec.url_to_fs(url)
    except ImportError as error:  # says which package has the protocol
        raise ImportError(f"{url}: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"{url}: {one_line(error)}") from None
    return filesystem, path


class _Remote(io.RawIOBase):
    """A file of fsspec's, as `io.BufferedReader` wants it."""

    def __init__(self, file: Any, watch: Callable[[int], None]) -> None:
        self._file, self._watch = file, watch

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._watch(self.tell())
        return len(data)


def damaged(file: InputFile, error: RecordError, start: int = 0) -> ValueError:
    """The error of a record in a file, whose line counts from the first one that begins at or after byte `start`."""
    line = error.line
    if start:
        line += 1  # the one that the byte before `start` belongs to
        with open_input(file.name) as stream:
            while start > 1 and (data := stream.read(min(_BUFFER, start - 1))):
                line += data.count(b"\n")
                start -= len(data)
    return ValueError(f"{file.name}:{line}: {error.problem}")
