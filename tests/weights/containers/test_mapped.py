"""Storages that are maps of a part of a file."""

from pathlib import Path

import pytest
import torch

from glassgpt.weights.containers.mapped import check_bools, map_storage


def content(storage: torch.UntypedStorage) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()


def test_every_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    data = bytes(range(64))
    path.write_bytes(data)
    for offset in range(8, 33):
        for size in (0, 1, 8, 31):
            storage = map_storage(path, offset, size)
            assert content(storage) == data[offset : offset + size]
            assert storage.nbytes() == size
            assert size == 0 or storage.data_ptr() % 8 == 0


@pytest.mark.parametrize("offset", [8, 9])
def test_writing_does_not_reach_the_file(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(32))
    storage = map_storage(path, offset, 16)
    storage.fill_(7)
    assert content(storage) == b"\7" * 16
    assert path.read_bytes() == bytes(32)


def test_a_file_that_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent: cannot be mapped into memory: ") as error:
        map_storage(tmp_path / "absent", 8, 8)
    assert "\n" not in str(error.value)


def test_booleans(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(8) + b"\0\1\1\0\2")
    check_bools(map_storage(path, 8, 0))
    check_bools(map_storage(path, 8, 4))
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        check_bools(map_storage(path, 8, 5))
