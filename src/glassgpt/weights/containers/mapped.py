"""Map a part of a weights file as the memory of a tensor."""

from pathlib import Path

import torch


def map_storage(path: Path, offset: int, size: int) -> torch.UntypedStorage:
    """Bytes `offset` to `offset + size` of a file as the memory of tensors.

    The map is private: pages are read when touched, and writing to a tensor does not write to the file.
    Each call makes a map of its own, so that dropping its tensors gives their pages back; with one map for
    the whole file, the file would stay in memory beside what is made from it. At an offset that is not a
    multiple of 8 the result is a copy, because torch expects numbers at multiples of their size.

    The caller has checked that the file is long enough. Raises `OSError` when the machine cannot map it.
    """
    try:
        whole = torch.UntypedStorage.from_file(str(path), False, offset + size)
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be mapped into memory: {str(error).splitlines()[0]}") from None
    part: torch.UntypedStorage = whole[offset : offset + size]
    return part if offset % 8 == 0 else torch.empty(0, dtype=torch.uint8).set_(part).clone().untyped_storage()


def check_bools(storage: torch.UntypedStorage) -> None:
    """`ValueError` unless every byte is 0 or 1: what torch does with other booleans is undefined."""
    if storage.nbytes() and torch.empty(0, dtype=torch.uint8).set_(storage).max() > 1:
        raise ValueError("booleans that are neither 0 nor 1")
