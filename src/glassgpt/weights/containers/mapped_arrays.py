"""The tensors of a safetensors file as NumPy views of the mapped file. Loads no torch."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# by the format's names; bfloat16 by its bits
_KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "i1", "U8": "u1"}


class Mapped(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Array]
    others: dict[str, str]
    """Tensors of number types that have no place here, and what the file calls these."""
    release: Callable[[], None]
    """Gives the memory of what was read back to the system, which may read it again."""


def map_arrays(path: Path) -> Mapped:
    """Map a file, once the library has found it sound; `ValueError` where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    with path.open("rb") as file:  # a private copy, writable: the kernels would be compiled once more for another
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = np.frombuffer(mapped, np.uint8)
    start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    header = json.loads(whole[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors, others = {}, {}
    for name, about in header.items():
        if about["dtype"] in _KINDS:
            first, last = about["data_offsets"]
            tensor = whole[start + first : start + last].view(_KINDS[about["dtype"]]).reshape(about["shape"])
            tensors[name] = np.require(tensor, requirements="A")
        else:
            others[name] = about["dtype"]

    def release() -> None:
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)

    return Mapped(tensors, others, release)
