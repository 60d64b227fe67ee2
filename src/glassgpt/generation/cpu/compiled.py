"""How the kernels are compiled: when first called, for this machine's instructions, and kept on the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile when first called, and keep it on the disk where that can be: in the package, or in the user's cache."""

    def decorate(function: Callable[..., Any]) -> Any:
        options.update(nogil=True, error_model="numpy")  # a division by 0 is infinite, not an exception in each loop
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere to write
            return njit(**options)(function)

    return decorate
