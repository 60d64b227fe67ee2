"""Tiles: a few rows of activations times one panel of weights, written in LLVM's language.

A *panel* is `PANEL` neighbouring rows of a weight matrix, column after column, so that a vector register holds one
column of several rows. A tile keeps its sums in registers, reads each weight once for all of its rows of activations,
and adds up each sum in the order of the columns: a result does not depend on the tile that it was computed in.

Weights are float32, bfloat16 (two columns side by side, so that one register gives two), or integers of 8 or 4 bits
with a scale for each row of a group of columns. Those are multiplied as integers, by activations that were rounded to
8 bits, and each group's sum, which is exact, is scaled and added up in float32.

Keys and values are float32, float16, or integers of 8 bits that are turned into float32 (see `cache`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glassgpt.generation.cpu.numbers import GROUP


class Machine(NamedTuple):
    """What a tile is written for."""

    lanes: int
    """Numbers of 32 bits in a vector register."""
    dot: str
    """How four products of bytes are added up: "vnni" in one instruction, "pairs" in two of 16 bits, or "plain"."""

    @property
    def vectors(self) -> int:
        """In a column of a panel: with six rows of activations as many sums as leave registers for the rest."""
        return 4 if self.lanes == 16 else 2


def this_machine() -> Machine:
    """By the instructions of this CPU, or of the one that `NUMBA_CPU_FEATURES` describes."""
    has = features()
    lanes = 16 if "avx512f" in has and "avx512bw" in has else 8
    vnni = ("avx512vnni" if lanes == 16 else "avxvnni") in has
    return Machine(lanes, "vnni" if vnni else "pairs" if "avx2" in has else "plain")


def features() -> frozenset[str]:
    """The names, as LLVM has them, of the instruction sets that Numba compiles for."""
    given = numba.config.CPU_FEATURES  # type: ignore[attr-defined]  # made when it is imported
    if given is None:
        return frozenset(name for name, there in llvmlite.binding.get_host_cpu_features().items() if there)
    return frozenset(name[1:] for name in given.split(",") if name.startswith("+"))


def has_float16() -> bool:
    """Whether this CPU turns float32 into float16 and back by itself."""
    return "f16c" in features() or "neon" in features()


HERE = this_machine()
LANES = HERE.lanes
PANEL = LANES * HERE.vectors
WORDS = GROUP // 4 if HERE.dot == "vnni" else GROUP // 2
"""Words of 32 bits that hold a group of activations: of four bytes, or of two numbers of 16 bits."""

_F32, _I16, _I32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)


def tile(n_x: int, n_vectors: int = HERE.vectors, machine: Machine = HERE) -> Any:
    """A compiled out[i, r] = init[i, r] + sum over c of x[i, c] w[r, c]: `n_x` rows of x, one panel of w.

    The arguments are those of `_Arguments`. The type of the array w decides what is compiled: float32, int16 for the
    bits of a float16, uint16 for those of a bfloat16, int8, or uint8 for 4 bits. The first two take any width of panel
    (`n_vectors`) and any stride from one column to the next; so does int8 where the scales are not bfloat16, which has
    none in here: its numbers have a sign. The others take whole panels without gaps.
    """

    @intrinsic
    def compute(
        typingctx, x, x_stride, words, words_stride, x_scales, x_zeros, groups, w, w_at, w_stride, scales, scales_at,
        init, init_stride, out, out_stride, n_columns,
    ):  # fmt: skip
        kinds = (
            x, x_stride, words, words_stride, x_scales, x_zeros, groups, w, w_at, w_stride, scales, scales_at,
            init, init_stride, out, out_stride, n_columns,
        )  # fmt: skip

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            values = list(values)
            for n in (7, 10):  # arrays, by their data
                values[n] = context.make_array(signature.args[n])(context, builder, values[n]).data
            kind = "signed" if w.dtype == types.int8 and scales.dtype != types.uint16 else str(w.dtype)
            _Writer(builder, machine, n_x, n_vectors, _Arguments(*values)).write(kind)
            return context.get_dummy_value()

        return types.void(*kinds), codegen

    return compute


class _Arguments(NamedTuple):
    """Addresses are whole numbers, strides and places count numbers (of w in 4 bits: bytes)."""

    x: Any
    """Address of float32 activations, and their stride."""
    x_stride: Any
    words: Any
    """Address of activations in 8 bits, for integer weights, and their stride; their scales, and what a group's sum
    begins with (weights are kept without a sign, so it is minus the offset times the sum of the activations)."""
    words_stride: Any
    x_scales: Any
    x_zeros: Any
    groups: Any
    """The stride of both."""
    w: Any
    w_at: Any
    w_stride: Any
    """From one column to the next, where it may be any."""
    scales: Any
    """As bfloat16, (groups, PANEL) from `scales_at` on."""
    scales_at: Any
    init: Any
    """Address of what the sums begin with, and its stride, which may be 0."""
    init_stride: Any
    out: Any
    out_stride: Any
    n_columns: Any
    """At least 1; of bfloat16 a multiple of 2, of integers a multiple of `GROUP`."""


class _Writer:
    """Writes one tile's code into a function."""

    def __init__(self, builder: Any, machine: Machine, n_x: int, n_vectors: int, given: _Arguments) -> None:
        self.b, self.machine, self.n_x, self.n_v, self.given = builder, machine, n_x, n_vectors, given
        self.lanes = machine.lanes
        self.floats, self.ints = ir.VectorType(_F32, self.lanes), ir.VectorType(_I32, self.lanes)
        self.panel = self.lanes * n_vectors

    def write(self, kind: str) -> None:
        """All of it: the sums begin with `init`, pass over the columns, and are stored."""
        given = self.given
        sums = self._rows_of_vectors(given.init, given.init_stride, self._read)
        if kind in ("float32", "int16", "signed"):
            steps = {"float32": self._float32, "int16": self._float16, "signed": self._signed}
            sums = self._loop(1, sums, steps[kind])
        elif kind == "uint16":
            sums = self._loop(2, sums, self._bfloat16)
        else:
            sums = self._loop(GROUP, sums, self._integers_of_8_bits if kind == "int8" else self._integers_of_4_bits)
        vectors = iter(sums)
        self._rows_of_vectors(given.out, given.out_stride, lambda place: self._store(next(vectors), place))

    # ---- one step over the columns, for each number type ----

    def _float32(self, column: Any, sums: list[Any]) -> list[Any]:
        """sums[i] += x[i, column] w[:, column]."""
        return self._multiplied(column, self._column(column, _F32), sums)

    def _float16(self, column: Any, sums: list[Any]) -> list[Any]:
        """The same; the CPU widens them."""
        weights = [self.b.fpext(half, self.floats) for half in self._column(column, ir.HalfType())]
        return self._multiplied(column, weights, sums)

    def _signed(self, column: Any, sums: list[Any]) -> list[Any]:
        """The same of integers of 8 bits."""
        weights = [self.b.sitofp(numbers, self.floats) for numbers in self._column(column, ir.IntType(8))]
        return self._multiplied(column, weights, sums)

    def _column(self, column: Any, kind: Any) -> list[Any]:
        """w[:, column], in vectors of numbers of some kind."""
        at = self.b.add(self.given.w_at, self.b.mul(column, self.given.w_stride))
        return [self._weights(at, v * self.lanes, ir.VectorType(kind, self.lanes)) for v in range(self.n_v)]

    def _bfloat16(self, column: Any, sums: list[Any]) -> list[Any]:
        """Two columns: the lower and the upper half of each word are the upper half of a float32."""
        at = self.b.add(self.given.w_at, self._times(column, self.panel))
        pairs = [self._weights(at, 2 * v * self.lanes, self.ints) for v in range(self.n_v)]
        lower = [self.b.bitcast(self.b.shl(pair, self._splat(16)), self.floats) for pair in pairs]
        upper = [self.b.bitcast(self.b.and_(pair, self._splat(-(2**16))), self.floats) for pair in pairs]
        return self._multiplied(self._plus(column, 1), upper, self._multiplied(column, lower, sums))

    def _multiplied(self, column: Any, weights: list[Any], sums: list[Any]) -> list[Any]:
        fma, result = self._function("llvm.fma.v{}f32", self.floats, 3), []
        for i in range(self.n_x):
            x = self._spread(self._number(self.given.x, self.given.x_stride, i, column, _F32))
            result += [self.b.call(fma, [x, weights[v], sums[i * self.n_v + v]]) for v in range(self.n_v)]
        return result

    def _integers_of_8_bits(self, column: Any, sums: list[Any]) -> list[Any]:
        """A group: eight times four columns."""
        at = self.b.add(self.given.w_at, self._times(column, self.panel))
        return self._group(
            column, sums, lambda four, v: self._weights(at, 4 * (four * self.panel + v * self.lanes), self.ints)
        )

    def _integers_of_4_bits(self, column: Any, sums: list[Any]) -> list[Any]:
        """A group: each byte holds a column in its low half, and the fourth after it in its high half."""
        at = self.b.add(self.given.w_at, self._times(self._halved(column), self.panel))
        read: dict[tuple[int, int], Any] = {}

        def weights(four: int, v: int) -> Any:
            key = (four // 2, v)
            if key not in read:
                read[key] = self._weights(at, 4 * (four // 2 * self.panel + v * self.lanes), self.ints)
            half = self.b.lshr(read[key], self._splat(4)) if four % 2 else read[key]
            return self.b.and_(half, self._splat(0x0F0F0F0F))

        return self._group(column, sums, weights)

    def _group(self, column: Any, sums: list[Any], weights: Any) -> list[Any]:
        """sums[i] += x's scale times w's scales times the exact sum of a group's products."""
        b, given = self.b, self.given
        group = b.udiv(column, ir.Constant(column.type, GROUP))
        totals = []
        for i in range(self.n_x):
            zero = self._spread(self._number(given.x_zeros, given.groups, i, group, _I32))
            totals += [zero] * self.n_v
        per_word = 1 if self.machine.dot == "vnni" else 2
        first = self._times(group, GROUP // 4 * per_word)
        for four in range(GROUP // 4):
            columns = [weights(four, v) for v in range(self.n_v)]
            for i in range(self.n_x):
                words = [
                    self._spread(
                        self._number(given.words, given.words_stride, i, self._plus(first, four * per_word + n), _I32)
                    )
                    for n in range(per_word)
                ]
                for v in range(self.n_v):
                    k = i * self.n_v + v
                    totals[k] = self._dot(totals[k], columns[v], words)
        fma, result, w_scales = self._function("llvm.fma.v{}f32", self.floats, 3), list(sums), []
        at = b.add(given.scales_at, self._times(group, self.panel))
        for v in range(self.n_v):
            upper = self._at(given.scales, self._plus(at, v * self.lanes), ir.VectorType(_I16, self.lanes))
            bits = b.shl(b.zext(self._read(upper), self.ints), self._splat(16))
            w_scales.append(b.bitcast(bits, self.floats))
        for i in range(self.n_x):
            x_scale = self._spread(self._number(given.x_scales, given.groups, i, group, _F32))
            for v in range(self.n_v):
                k = i * self.n_v + v
                scale = b.fmul(x_scale, w_scales[v])
                result[k] = b.call(fma, [b.sitofp(totals[k], self.floats), scale, sums[k]])
        return result

    def _dot(self, total: Any, weights: Any, words: list[Any]) -> Any:
        """total + the products of each lane's four bytes without a sign with those of a word of activations."""
        b, n = self.b, self.lanes
        if self.machine.dot == "vnni":
            bytes_ = ir.VectorType(ir.IntType(8), 4 * n)
            kinds = [bytes_, bytes_] if llvmlite.binding.llvm_version_info[0] >= 22 else [self.ints, self.ints]
            name = f"llvm.x86.avx512.vpdpbusd.{32 * n}"
            function = cgutils.get_or_insert_function(b.module, ir.FunctionType(self.ints, [self.ints, *kinds]), name)
            return b.call(function, [total, b.bitcast(weights, kinds[0]), b.bitcast(words[0], kinds[1])])
        # bytes 0 and 2, then 1 and 3, as two numbers of 16 bits
        for word, shift in zip(words, (0, 8), strict=True):
            pair = b.lshr(weights, self._splat(shift)) if shift else weights
            total = b.add(total, self._pairs(b.and_(pair, self._splat(0x00FF00FF)), word))
        return total

    def _pairs(self, left: Any, right: Any) -> Any:
        """The sum of each lane's two products of 16 bits."""
        b, n = self.b, self.lanes
        if self.machine.dot == "pairs":
            halves = ir.VectorType(_I16, 2 * n)
            name = "llvm.x86.avx512.pmaddw.d.512" if n == 16 else "llvm.x86.avx2.pmadd.wd"
            function = cgutils.get_or_insert_function(b.module, ir.FunctionType(self.ints, [halves, halves]), name)
            return b.call(function, [b.bitcast(left, halves), b.bitcast(right, halves)])
        sixteen = self._splat(16)
        low = b.mul(b.and_(left, self._splat(0xFFFF)), b.ashr(b.shl(right, sixteen), sixteen))
        return b.add(low, b.mul(b.lshr(left, sixteen), b.ashr(right, sixteen)))

    # ---- what the steps are made of ----

    def _loop(self, by: int, sums: list[Any], step: Any) -> list[Any]:
        """`step` for the columns 0, `by`, 2 `by` ..."""
        b, n_columns = self.b, self.given.n_columns
        entry, body, done = b.block, b.append_basic_block("columns"), b.append_basic_block("done")
        b.branch(body)
        b.position_at_end(body)
        column = b.phi(n_columns.type)
        phis = [b.phi(self.floats) for _ in sums]
        results = step(column, phis)
        following = self._plus(column, by)
        column.add_incoming(ir.Constant(n_columns.type, 0), entry)
        column.add_incoming(following, body)
        for phi, before, after in zip(phis, sums, results, strict=True):
            phi.add_incoming(before, entry)
            phi.add_incoming(after, body)
        b.cbranch(b.icmp_signed("<", following, n_columns), body, done)
        b.position_at_end(done)
        return results

    def _rows_of_vectors(self, address: Any, stride: Any, use: Any) -> list[Any]:
        """`use` of the place of each vector of each row of float32 numbers."""
        base = self.b.inttoptr(address, _F32.as_pointer())
        return [
            use(self._at(base, self._plus(self._times(stride, i), v * self.lanes), self.floats))
            for i in range(self.n_x)
            for v in range(self.n_v)
        ]

    def _number(self, address: Any, stride: Any, i: int, place: Any, kind: Any) -> Any:
        """Number `place` of row `i`."""
        row = self.b.gep(self.b.inttoptr(address, kind.as_pointer()), [self._times(stride, i)])
        return self.b.load(self.b.gep(row, [place]))

    def _weights(self, at: Any, further: int, kind: Any) -> Any:
        return self._read(self._at(self.given.w, self._plus(at, further), kind))

    def _function(self, name: str, kind: Any, n: int) -> Any:
        return cgutils.get_or_insert_function(self.b.module, ir.FunctionType(kind, [kind] * n), name.format(self.lanes))

    def _times(self, value: Any, n: int) -> Any:
        return self.b.mul(value, ir.Constant(value.type, n))

    def _plus(self, value: Any, n: int) -> Any:
        return self.b.add(value, ir.Constant(value.type, n))

    def _halved(self, value: Any) -> Any:
        return self.b.lshr(value, ir.Constant(value.type, 1))

    def _splat(self, n: int) -> Any:
        return ir.Constant(self.ints, [n] * self.lanes)

    def _at(self, base: Any, offset: Any, kind: Any) -> Any:
        return self.b.bitcast(self.b.gep(base, [offset]), kind.as_pointer())

    def _read(self, pointer: Any) -> Any:
        value = self.b.load(pointer)
        value.align = 1
        return value

    def _store(self, value: Any, pointer: Any) -> None:
        self.b.store(value, pointer).align = 1

    def _spread(self, number: Any) -> Any:
        kind = ir.VectorType(number.type, self.lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(_I32, 0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), self._splat(0))
