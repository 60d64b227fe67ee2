"""Tiles: a few rows of activations times a few rows of weights, written in LLVM's language.

A loop that a compiler turns into vectors keeps one sum at a time; a tile keeps as many as there are registers, and
reads each weight once for all of its rows of activations. Weights are float32, bfloat16 (the upper half of a float32,
as uint16), int8 or int4 with a scale for each group of columns; the type of the array decides what is compiled.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if _WIDE else 8
"""Numbers in a vector register."""
ROWS = 6 if _WIDE else 3
"""Rows of activations in a tile: with `WEIGHT_ROWS` as many sums as leave a register for each of the other numbers."""
WEIGHT_ROWS = 4
GROUP = 32
"""Columns that share a scale."""
COLUMNS = 32
"""What numbers of columns are multiples of."""

_F32, _I8, _I16, _I32 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_STEPS = GROUP // LANES  # vectors in a group; without scales so many are unrolled


def tile(n_x: int, n_w: int) -> Any:
    """A compiled out[i, j] = sum over c of x[i, c] w[j, c], for `n_x` rows of x and `n_w` of w.

    Its arguments: the address of x, its stride; w, flat, where its first row begins, its stride; the scales likewise;
    the address of out, its stride; the number of columns, a multiple of `COLUMNS` above 0. Strides count numbers, but
    int4's of w count bytes.
    """

    @intrinsic
    def compute(
        typingctx, x, x_stride, w, w_at, w_stride, scales, scales_at, scales_stride, out, out_stride, n_columns
    ):  # fmt: skip
        arguments = (x, x_stride, w, w_at, w_stride, scales, scales_at, scales_stride, out, out_stride, n_columns)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            writer = _Writer(builder, str(w.dtype), n_x, n_w)
            arrays = [context.make_array(signature.args[n])(context, builder, values[n]).data for n in (2, 5)]
            w_at, w_stride, scales_at, scales_stride = (values[n] for n in (3, 4, 6, 7))
            writer.rows(values[0], values[1], arrays[0], w_at, w_stride, arrays[1], scales_at, scales_stride)
            writer.store(writer.sums(values[10]), values[8], values[9])
            return context.get_dummy_value()

        return types.void(*arguments), codegen

    return compute


class _Writer:
    """Writes one tile's code into a function."""

    def __init__(self, builder: Any, kind: str, n_x: int, n_w: int) -> None:
        self.b, self.kind, self.n_x, self.n_w = builder, kind, n_x, n_w
        self.grouped = kind in ("int8", "uint8")
        self.fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{LANES}f32"
        )

    def rows(
        self, x: Any, x_stride: Any, w: Any, w_at: Any, w_stride: Any, scales: Any, s_at: Any, s_stride: Any
    ) -> None:
        """Where each row begins."""
        b = self.b
        self.w, self.scales = w, scales
        floats = b.inttoptr(x, _F32.as_pointer())
        self.x_rows = [b.gep(floats, [self._times(x_stride, i)]) for i in range(self.n_x)]
        self.w_rows = [b.add(w_at, self._times(w_stride, j)) for j in range(self.n_w)]
        self.s_rows = [b.add(s_at, self._times(s_stride, j)) for j in range(self.n_w)]

    def sums(self, n_columns: Any) -> list[list[Any]]:
        """The loop over groups of columns: n_x x n_w vectors of partial sums."""
        b, zero = self.b, ir.Constant(_FLOATS, [0.0] * LANES)
        entry, body, done = b.block, b.append_basic_block("columns"), b.append_basic_block("done")
        b.branch(body)
        b.position_at_end(body)
        column = b.phi(n_columns.type)
        column.add_incoming(ir.Constant(n_columns.type, 0), entry)
        before = [[b.phi(_FLOATS) for _ in range(self.n_w)] for _ in range(self.n_x)]
        sums = [[zero if self.grouped else phi for phi in row] for row in before]
        weights = [self._weights(j, column) for j in range(self.n_w)]
        for step in range(_STEPS):
            for i in range(self.n_x):
                piece = self._load(self._at(self.x_rows[i], self._plus(column, step * LANES), _FLOATS))
                for j in range(self.n_w):
                    sums[i][j] = b.call(self.fma, [piece, weights[j](step), sums[i][j]])
        if self.grouped:
            group = b.udiv(column, ir.Constant(column.type, GROUP))
            factors = [self._spread(b.load(b.gep(self.scales, [b.add(row, group)]))) for row in self.s_rows]
            for i in range(self.n_x):
                for j in range(self.n_w):
                    sums[i][j] = b.call(self.fma, [sums[i][j], factors[j], before[i][j]])
        following = self._plus(column, GROUP)
        column.add_incoming(following, body)
        for phis, row in zip(before, sums, strict=True):
            for phi, value in zip(phis, row, strict=True):
                phi.add_incoming(zero, entry)
                phi.add_incoming(value, body)
        b.cbranch(b.icmp_signed("<", following, n_columns), body, done)
        b.position_at_end(done)
        return sums

    def store(self, sums: list[list[Any]], out: Any, stride: Any) -> None:
        """Add up each vector, halves onto each other, always in the same order."""
        b, floats = self.b, self.b.inttoptr(out, _F32.as_pointer())
        for i in range(self.n_x):
            for j in range(self.n_w):
                total, width = sums[i][j], LANES
                while width > 1:
                    width //= 2
                    low, high = (self._lanes(total, range(k, k + width)) for k in (0, width))
                    total = b.fadd(low, high)
                number = b.extract_element(total, ir.Constant(_I32, 0))
                b.store(number, b.gep(floats, [self._plus(self._times(stride, i), j)]))

    def _weights(self, j: int, column: Any) -> Any:
        """The weights of row j from `column` on: a function from a number of vectors to those, without their scale."""
        b = self.b
        read: dict[int, Any] = {}
        if self.kind == "uint8":  # a group is GROUP / 2 bytes, its first half in their low bits
            place = b.add(self.w_rows[j], b.lshr(column, ir.Constant(column.type, 1)))
            half = _STEPS // 2 or 1
            for step in range(_STEPS):
                byte = self._load(self._at(self.w, self._plus(place, step % half * LANES), ir.VectorType(_I8, LANES)))
                wide = b.zext(byte, _INTS)
                if step >= half:
                    four = b.lshr(wide, self._ints(4))
                else:
                    four = b.and_(wide, self._ints(15))
                read[step] = b.sitofp(b.sub(four, self._ints(8)), _FLOATS)
            return read.__getitem__

        def weights(step: int) -> Any:
            if step not in read:
                place = self._plus(b.add(self.w_rows[j], column), step * LANES)
                read[step] = self._as_floats(place)
            return read[step]

        return weights

    def _as_floats(self, place: Any) -> Any:
        b = self.b
        if self.kind == "float32":
            return self._load(self._at(self.w, place, _FLOATS))
        if self.kind == "uint16":
            upper = b.zext(self._load(self._at(self.w, place, ir.VectorType(_I16, LANES))), _INTS)
            return b.bitcast(b.shl(upper, self._ints(16)), _FLOATS)
        byte = self._load(self._at(self.w, place, ir.VectorType(_I8, LANES)))
        return b.sitofp(b.sext(byte, _INTS), _FLOATS)

    def _times(self, value: Any, n: int) -> Any:
        return self.b.mul(value, ir.Constant(value.type, n))

    def _plus(self, value: Any, n: int) -> Any:
        return self.b.add(value, ir.Constant(value.type, n))

    def _ints(self, n: int) -> Any:
        return ir.Constant(_INTS, [n] * LANES)

    def _at(self, base: Any, offset: Any, kind: Any) -> Any:
        return self.b.bitcast(self.b.gep(base, [offset]), kind.as_pointer())

    def _load(self, pointer: Any) -> Any:
        value = self.b.load(pointer)
        value.align = 1
        return value

    def _lanes(self, vector: Any, lanes: range) -> Any:
        mask = ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes))
        return self.b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)

    def _spread(self, number: Any) -> Any:
        one = self.b.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), self._ints(0))
