"""Compressed files, read as if they were not: gzip, and zstd where Python or an extra has it."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, cast

_BUFFER = 1 << 20
_ENDINGS = (".gz", ".gzip", ".zst", ".zstd")


class Watched(io.FileIO):
    """A file that tells `watch` how many of its bytes have been read."""

    def __init__(self, path: Path, watch: Callable[[int], None]) -> None:
        super().__init__(path)
        self._watch = watch

    def readinto(self, buffer: Any) -> int | None:
        """See `io.FileIO`."""
        n = super().readinto(buffer)
        self._watch(self.tell())
        return n


def unpacked(path: str | Path, file: io.BufferedReader[Any]) -> tuple[str, io.BufferedReader[Any]]:
    """("gzip", "zstd" or "", the bytes in it) of a file, by its first bytes; `file` itself where it is neither.

    No more is unpacked at once than is asked for. Reading raises `ValueError` where the file is damaged; this
    raises `ImportError` where nothing here unpacks zstd.
    """
    head = file.peek(4)
    if head.startswith(b"\x1f\x8b"):
        raw = _Unpacked(path, "gzip", gzip.GzipFile(fileobj=file), (EOFError, gzip.BadGzipFile, zlib.error))
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        zstd = _zstd(path)
        raw = _Unpacked(path, "zstd", zstd.ZstdFile(file), (EOFError, zstd.ZstdError))
    else:
        return "", file
    return raw.packing, io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER)


def inner_suffix(path: str | Path) -> str:
    """How the name of what is in the file ends, in small letters: ".jsonl" of `texts.JSONL.gz`."""
    name = PurePath(path)
    return (name.with_suffix("") if name.suffix.lower() in _ENDINGS else name).suffix.lower()


class _Unpacked(io.RawIOBase):
    def __init__(self, path: str | Path, packing: str, file: Any, errors: tuple[type[Exception], ...]) -> None:
        self._path, self.packing, self._file, self._errors = path, packing, file, errors

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            n: int = self._file.readinto(buffer)
        except self._errors as error:
            reason = "it ends too soon" if isinstance(error, EOFError) else str(error)
            raise ValueError(f"{self._path}: damaged {self.packing} file: {reason}; fetch or pack it again") from None
        return n


def _zstd(path: str | Path) -> Any:
    """Python's module from 3.14 on, or the same one for older Pythons."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise ImportError(
        f"{path}: zstd needs Python 3.14 or the extra: pip install 'glassgpt[zstd]' (or unpack it: unzstd '{path}')"
    )
