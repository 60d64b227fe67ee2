"""How weights lie in memory: in panels (see `tiles`), one layout for each number type.

A matrix is (panels, numbers). In a panel, by the type of the array, number (row, column) of `PANEL` rows is at

    float32                  column, row
    uint16, a bfloat16       column / 2, row, column % 2
    int8, plus 128           column / 4, row, column % 4
    uint8, plus 8, 4 bits    column / 8, row, column % 4, in the high half where column % 8 is 4 or more
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from glassgpt.generation.cpu.compiled import compiled
from glassgpt.generation.cpu.numbers import GROUP
from glassgpt.generation.cpu.tiles import PANEL

_F32, _I32 = ir.FloatType(), ir.IntType(32)


def filled(n: int, to: int = 64) -> int:
    """The number of columns in memory for `n` columns: those that are left over are 0."""
    return -(-n // to) * to


@intrinsic
def _from_bits(typingctx, bits):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.uint32), codegen


@intrinsic
def _bits(typingctx, number):
    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.uint32(types.float32), codegen


def number(w, scales, row, column):
    """One number of a matrix in panels, of any number type, as float32."""
    raise NotImplementedError("only in compiled code")


@overload(number, inline="always")
def _number(w, scales, row, column):
    if w.dtype == types.float32:
        return lambda w, scales, row, column: w[row // PANEL, column * PANEL + row % PANEL]
    if w.dtype == types.uint16:
        return lambda w, scales, row, column: _from_bfloat16(
            w[row // PANEL, (column // 2 * PANEL + row % PANEL) * 2 + column % 2]
        )

    def scaled_8(w, scales, row, column):
        byte = np.uint8(w[row // PANEL, (column // 4 * PANEL + row % PANEL) * 4 + column % 4])
        scale = _from_bfloat16(scales[row // PANEL, column // GROUP * PANEL + row % PANEL])
        return np.float32(np.int32(byte) - 128) * scale

    def scaled_4(w, scales, row, column):
        byte = w[row // PANEL, (column // 8 * PANEL + row % PANEL) * 4 + column % 4]
        four = byte >> 4 if column % 8 >= 4 else byte & 15
        scale = _from_bfloat16(scales[row // PANEL, column // GROUP * PANEL + row % PANEL])
        return np.float32(np.int32(four) - 8) * scale

    return scaled_8 if w.dtype == types.int8 else scaled_4


@compiled()
def pack(matrix, at, out):
    """Put a (rows, columns) matrix, of any strides, into the panels `out`, which are 0: float32, or small integers.

    Its first column becomes column `at` of the panels, a multiple of `GROUP`.
    """
    rows, columns = matrix.shape
    for p in range(len(out)):
        panel, first = out[p], p * PANEL
        for column in range(columns):
            for row in range(min(PANEL, max(0, rows - first))):
                _put(panel, row, at + column, matrix[first + row, column])


def _put(panel, row, column, x):
    """One number of a panel, rounded to its type."""
    raise NotImplementedError("only in compiled code")


@overload(_put, inline="always")
def _put_number(panel, row, column, x):
    if panel.dtype == types.float32:

        def put(panel, row, column, x):
            panel[column * PANEL + row] = x

    elif panel.dtype == types.uint16:

        def put(panel, row, column, x):
            panel[(column // 2 * PANEL + row) * 2 + column % 2] = _to_bfloat16(x)

    elif panel.dtype == types.int8:

        def put(panel, row, column, x):
            panel[(column // 4 * PANEL + row) * 4 + column % 4] = np.int8(x ^ -128)

    else:

        def put(panel, row, column, x):
            shift = np.uint8(4 if column % 8 >= 4 else 0)
            panel[(column // 8 * PANEL + row) * 4 + column % 4] |= np.uint8((x + 8) << shift)

    return put


@compiled()
def pack_scales(scales, out):
    """(rows, groups) float32 that are bfloat16 numbers -> (panels, groups x PANEL) of their upper halves."""
    rows, groups = scales.shape
    for p in range(len(out)):
        into = out[p].reshape(-1, PANEL)
        for r in range(min(PANEL, max(0, rows - p * PANEL))):
            for g in range(groups):
                into[g, r] = _to_bfloat16(scales[p * PANEL + r, g])


@compiled()
def pack_rounded(matrix, at, out, scales):
    """`pack` of a float32 matrix as the numbers and scales of `numbers.to_groups`, without an array in between."""
    rows, columns = matrix.shape
    for p in range(len(out)):
        panel, into, first = out[p], scales[p].reshape(-1, PANEL), p * PANEL
        for start in range(0, columns, GROUP):
            end = min(start + GROUP, columns)
            for row in range(min(PANEL, max(0, rows - first))):
                extreme = np.float32(0)
                for column in range(start, end):
                    x = matrix[first + row, column]
                    if abs(x) > abs(extreme):
                        extreme = x
                upper = _to_bfloat16(_scale(panel, extreme))
                into[(at + start) // GROUP, row] = upper
                scale = _from_bfloat16(upper)
                if scale == 0:
                    scale = np.float32(1)
                for column in range(start, end):
                    _put(panel, row, at + column, _rounded(panel, matrix[first + row, column] / scale))


def _scale(panel, extreme):
    """The scale of a group whose largest number without its sign is `extreme`."""
    raise NotImplementedError("only in compiled code")


@overload(_scale, inline="always")
def _scale_of(panel, extreme):
    if panel.dtype == types.int8:
        return lambda panel, extreme: abs(extreme) / np.float32(127)
    return lambda panel, extreme: extreme / np.float32(-8)


def _rounded(panel, x):
    """The nearest whole number that a panel holds."""
    raise NotImplementedError("only in compiled code")


@overload(_rounded, inline="always")
def _rounded_number(panel, x):
    least, most = (np.float32(-127), np.float32(127)) if panel.dtype == types.int8 else (np.float32(-8), np.float32(7))
    return lambda panel, x: np.int8(min(max(np.rint(x), least), most))


@compiled(fastmath={"contract", "reassoc"})
def total(numbers):
    """The sum of a flat array: not finite if one of its numbers is not, unless the finite ones are far too large."""
    result = np.float32(0)
    for i in range(len(numbers)):
        result += numbers[i]
    return result


@compiled()
def _from_bfloat16(upper):
    return _from_bits(np.uint32(upper) << np.uint32(16))  # type: ignore[call-arg]  # numba gives the first


@compiled()
def _to_bfloat16(x):
    b: Any = _bits(x)  # type: ignore[call-arg]
    return np.uint16((b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
