"""Small numbers for weights: groups of integers that share a scale."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GROUP = 32
"""Columns of a row that share a scale."""


_LINE = 64  # bytes in a line of the cache


class Groups(NamedTuple):
    """A matrix whose rows are cut into groups of `GROUP` columns, the last of which may be shorter."""

    numbers: Array
    """(rows, columns) int8: from -127 to 127 of 8 bits, from -8 to 7 of 4."""
    scales: Array
    """(rows, groups) float32, each of which a bfloat16 holds exactly."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return self.numbers.shape

    def rows(self, rows: slice) -> Groups:
        """Some of the rows."""
        return Groups(self.numbers[rows], self.scales[rows])

    def to_float32(self) -> Array:
        """The matrix that this stands for."""
        return self.numbers * np.repeat(self.scales, GROUP, axis=1)[:, : self.numbers.shape[1]]


class StoredGroups(NamedTuple):
    """The same as a file has it, mapped: `rows` makes `Groups` of what is asked for, and no more is in memory."""

    numbers: Array
    """(rows, columns) int8, or what `to_nibbles` makes of 4 bits."""
    scales: Array
    """(rows, groups) uint16: the bits of a bfloat16."""
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.numbers), self.columns

    def rows(self, rows: slice) -> Groups:
        """Some of the rows."""
        numbers, scales = self.numbers[rows], (self.scales[rows].astype(np.uint32) << 16).view(np.float32)
        return Groups(numbers if numbers.dtype == np.int8 else from_nibbles(numbers, self.columns), scales)

    def to_float32(self) -> Array:
        """The matrix that this stands for."""
        return self.rows(slice(None)).to_float32()


def to_groups(matrix: Array, bits: int) -> Groups:
    """A float32 (rows, columns) matrix in 8 or 4 bits.

    Each group has its own scale, so a column that stands out costs its own group alone.
    """
    rows, columns = matrix.shape
    whole = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    whole[:, :columns] = matrix
    groups = whole.reshape(rows, -1, GROUP)
    if bits == 8:
        least, most = -127, 127
        scales = np.abs(groups).max(axis=2) / np.float32(127)
    else:  # the number that is largest without its sign becomes -8, of the numbers from -8 to 7
        least, most = -8, 7
        at = np.abs(groups).argmax(axis=2)
        scales = np.take_along_axis(groups, at[:, :, None], axis=2)[:, :, 0] / np.float32(-8)
    scales = _rounded_to_bfloat16(scales)
    safe = np.where(scales == 0, np.float32(1), scales)
    numbers = np.clip(np.rint(groups / safe[:, :, None]), least, most).astype(np.int8)
    return Groups(numbers.reshape(rows, -1)[:, :columns], scales)


def _rounded_to_bfloat16(numbers: Array) -> Array:
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def zeros(shape: tuple[int, ...], kind: Any) -> Array:
    """Zeros that begin at a line of the cache: a vector that lies across two is read at half the speed."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = np.zeros(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size].view(kind).reshape(shape)


def to_nibbles(numbers: Array) -> Array:
    """(rows, columns) from -8 to 7 as (rows, bytes) uint8, plus 8: even columns in the low half, odd in the high."""
    rows, columns = numbers.shape
    even = np.full((rows, columns + columns % 2), 8, np.uint8)
    even[:, :columns] = numbers + np.int8(8)
    return even[:, ::2] | (even[:, 1::2] << 4)


def from_nibbles(nibbles: Array, columns: int) -> Array:
    """What `to_nibbles` was given, int8."""
    numbers = np.empty((len(nibbles), 2 * nibbles.shape[1]), np.int8)
    numbers[:, ::2], numbers[:, 1::2] = nibbles & 15, nibbles >> 4
    return numbers[:, :columns] - np.int8(8)
