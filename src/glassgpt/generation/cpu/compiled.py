"""How the kernels are compiled: when first called, for this machine's instructions, and kept on the disk.

Where a kernel's part hangs on the number type, its name is a function that raises `NotImplementedError`, and Numba's
`overload` below it chooses what compiled code calls in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
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
    """Numba keeps compiled code in a folder of all these sources as they are: in the package, or in `NUMBA_CACHE_DIR`.

    By itself it looks at a function's own file only, and so would go on with what was compiled from older ones that the
    function calls. Where it cannot write there it does as ever.
    """
    settings: Any = numba.config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(Path(before or _HERE / "__pycache__") / f"numba-{_DIGEST}")
    try:
        yield
    finally:
        settings.CACHE_DIR = before


def _digest(folder: Path) -> str:
    """Of the sources in a folder."""
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


_HERE = Path(__file__).parent
_DIGEST = _digest(_HERE)
