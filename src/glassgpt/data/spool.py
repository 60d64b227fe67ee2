"""Text that lies in no file of its own: what was unpacked, or taken out of records, kept on the disk."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

_BUFFER = 1 << 20


class Spool:
    """Bytes in a temporary file without a name, as large as the disk allows, gone with the last who refers to it.

    The system removes such a file when the process ends, whatever ends it. It is made when it is first needed, in
    `folder` (None: the system's temporary folder).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._waiting = bytearray()
        self._on_disk = 0

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self._on_disk + len(self._waiting)

    def append(self, data: bytes) -> None:
        """Add `data` at the end. Raises `OSError` where the disk is full."""
        self._waiting += data
        if len(self._waiting) >= _BUFFER:
            self._flush()

    def reader(self, start: int) -> Callable[[int], bytes]:
        """A function that reads so many bytes, or fewer, on from `start`; b"" at the end."""

        def read(n_bytes: int) -> bytes:
            nonlocal start
            self._flush()
            if start >= self._on_disk:
                return b""
            self._file.seek(start)
            data: bytes = self._file.read(min(n_bytes, self._on_disk - start))
            start += len(data)
            return data

        return read

    def rewind(self, size: int) -> None:
        """Forget all but the first `size` bytes."""
        self._flush()
        self._on_disk = min(size, self._on_disk)

    def _flush(self) -> None:
        if not self._waiting:
            return
        try:
            if not hasattr(self, "_file"):
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed just below
                weakref.finalize(self, self._file.close)
            self._file.seek(self._on_disk)
            with memoryview(self._waiting) as data:
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:])
        except OSError as error:
            raise OSError(
                f"{self._folder}: no room for the text that was unpacked ({error.strerror}): {self.size:,} bytes so far"
            ) from error
        self._on_disk += len(self._waiting)
        self._waiting.clear()
