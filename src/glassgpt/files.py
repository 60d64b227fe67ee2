"""Files that are whole or not there: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.glassgpt-tmp")
_DISK_FAILED = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same directory; renames it to `path` if the body works, else deletes it.

    The rename replaces an older file or, where `path` is a directory that does not exist yet, moves the whole
    directory in place. A crash at any moment leaves the old content or the new, never a mixture; what a kill leaves
    has a name that `remove_leftovers` knows.
    """
    with temporary(path) as new:
        yield new
        sync_tree(new)
        new.replace(path)
        sync(path.parent)


@contextlib.contextmanager
def creating(path: Path) -> Iterator[Path]:
    """As `replacing`, but for a file that is new: `FileExistsError`, with nothing changed, where `path` exists."""
    with temporary(path) as new:
        if os.path.lexists(path):  # before the work, and once more without a gap after it
            raise FileExistsError(f"{path} exists: choose a new name")
        yield new
        sync_tree(new)
        try:
            os.link(new, path)
        except FileExistsError:
            raise FileExistsError(f"{path} exists: choose a new name") from None
        except OSError:  # a disk without hard links
            if os.path.lexists(path):
                raise FileExistsError(f"{path} exists: choose a new name") from None
            new.rename(path)
        sync(path.parent)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Gives a path next to `path` whose name `is_leftover` knows; what is there when the body ends is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.glassgpt-tmp")
    try:
        yield scratch
    finally:
        _remove(scratch)


def is_leftover(name: str) -> bool:
    """Whether `replacing` or `creating` may have given this name to a file that a kill left unfinished."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(directory: Path) -> list[Path]:
    """Delete what killed processes left unfinished in `directory`; the caller knows that none is at work there."""
    found = [path for path in directory.iterdir() if is_leftover(path.name)] if directory.is_dir() else []
    for path in found:
        _remove(path)
    return found


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(source: Path, path: Path) -> None:
    """`path` becomes a hard link to `source`, or a copy on a disk without them; an older file is replaced."""
    with replacing(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def create_text(path: Path, text: str) -> None:
    """As `write_text`, for a file that is new: `FileExistsError`, with nothing changed, where `path` exists."""
    with creating(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def read_bounded(path: Path, max_bytes: int, what: str) -> bytes:
    """The content of a file, without a byte order mark; `ValueError` where it is larger than `what` may be."""
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path}: larger than the {max_bytes} bytes allowed for {what}")
    return content.removeprefix(b"\xef\xbb\xbf")  # Windows editors put this mark before UTF-8


def sync_tree(path: Path) -> None:
    """Flush a file, or a directory and all that is in it, to the disk."""
    for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
        sync(file)


def sync(path: Path) -> None:
    """Flush a file or directory to the disk; what a platform cannot flush (directories on Windows) is left.

    `OSError` where the disk failed or is full: some systems tell it only now.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in _DISK_FAILED:
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)
