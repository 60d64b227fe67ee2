"""Memory that stays with the process between two steps, where the C library can be told so."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


@contextlib.contextmanager
def heap_kept() -> Iterator[None]:
    """Within it, what PyTorch frees on a CPU is used again instead of going back to the system.

    glibc gives large blocks back one by one, and the system hands out the next ones page by page, each filled with
    zeros: a third of a training step at 6 layers x 384, a fifth at 124M parameters. Afterwards all limits are
    glibc's defaults again (its adaptive threshold stays off), and what is free goes back. Does
    nothing where there is no glibc.
    """
    library = _library()
    if library is None:
        yield
        return
    for option, value in _KEPT.items():
        library.mallopt(option, value)
    try:
        yield
    finally:
        give_back()


def give_back() -> None:
    """What is free goes back to the system, now and from now on, also within `heap_kept`.

    For a sharded model, whose weights come and go: glibc before 2.38 does not use aligned blocks again, and its heap
    would grow by each block of the model that was gathered.
    """
    library = _library()
    if library is not None:
        for option, value in _USUAL.items():
            library.mallopt(option, value)
    trim()


def trim() -> None:
    """What is free now goes back to the system."""
    if (library := _library()) is not None:
        library.malloc_trim(0)


def _library() -> Any:
    """The C library, where it is glibc."""
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
