"""How the kernels are compiled: when first called, for this machine's instructions, and kept on the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile when first called, and keep it on the disk where that can be: in the package, or in the user's cache."""

    def decorate(function: Callable[..., Any]) -> Any:
        options.update(nogil=True, error_model="numpy")  # a division by 0 is infinite, not an exception in each loop
        try:
            with _own_folder():
                return njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to write
            return njit(**options)(function)

    return decorate


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """Numba keeps compiled code in a folder of all these sources as they are, where the package can be written to.

    By itself it looks at a function's own file only, and so would go on with what was compiled from older ones that the
    function calls.
    """
    settings: Any = numba.config
    before = settings.CACHE_DIR
    if not before and _FOLDER is not None:
        settings.CACHE_DIR = str(_FOLDER)
    try:
        yield
    finally:
        settings.CACHE_DIR = before


def _folder() -> Path | None:
    """Named by a digest of the sources; None where it cannot be made."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(here.glob("*.py")):
        digest.update(source.read_bytes())
    folder = here / "__pycache__" / f"numba-{digest.hexdigest()[:16]}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return None


_FOLDER = _folder()
