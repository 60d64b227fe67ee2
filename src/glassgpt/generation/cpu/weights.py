"""The weights of a GPT-2 as the kernels read them: matrices in panels (see `tiles`), in any number type.

They come from a model directory, whose file is mapped and not read, or from tensors under GPT-2's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glassgpt.config import GPTConfig
from glassgpt.generation.cpu import panels
from glassgpt.generation.cpu.numbers import GROUP, Array, Groups, StoredGroups, zeros
from glassgpt.generation.cpu.panels import filled
from glassgpt.generation.cpu.tiles import PANEL
from glassgpt.json_file import read_json
from glassgpt.weights.containers.mapped_arrays import map_arrays
from glassgpt.weights.containers.quantized_file import bits_of, is_quantized, read_quantized
from glassgpt.weights.families.config_json import from_config_json

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
"""Number types of the matrices: 32, 16, 8.5 and 4.5 bits a weight, the scales of the last two included."""


class Weights(NamedTuple):
    """Matrices are (layers, panels, numbers), biases filled up to whole panels; `_scales`: (layers, panels, groups x
    PANEL) as bfloat16, or nothing."""

    tokens: Array
    token_scales: Array
    positions: Array
    norm1_scale: Array
    norm1_shift: Array
    qkv: Array
    qkv_scales: Array
    qkv_bias: Array
    projection: Array
    projection_scales: Array
    projection_bias: Array
    norm2_scale: Array
    norm2_shift: Array
    widen: Array
    widen_scales: Array
    widen_bias: Array
    narrow: Array
    narrow_scales: Array
    narrow_bias: Array
    final_scale: Array
    final_shift: Array
    head: Array
    head_scales: Array
    head_bias: Array


class Packed(NamedTuple):
    """Weights and the shape that they belong to."""

    config: GPTConfig
    precision: str
    weights: Weights

    @property
    def offset(self) -> int:
        """What was added to integer weights, so that they have no sign; 0 for floats."""
        return _OFFSETS[self.precision]

    @property
    def n_bytes(self) -> int:
        """Memory of the weights; a head that is the token embedding counts once."""
        return sum(array.nbytes for array in {id(array): array for array in self.weights}.values())


def pack(
    config: GPTConfig,
    tensors: Mapping[str, Array | Groups | StoredGroups],
    precision: str = "float32",
    threads: int = 1,
    release: Callable[[], None] = lambda: None,
) -> Packed:
    """From float32 or float16 tensors under GPT-2's names, or matrices that are integers already; all are copied.

    `release` is called now and then: what has been read until then is not needed again. `ValueError` for a tensor that
    is missing, unexpected, misshapen or not finite.
    """
    with ThreadPoolExecutor(threads) as pool:
        return _packed(config, _Source(config.n_layers, tensors, precision, pool, release))


def _packed(config: GPTConfig, source: _Source) -> Packed:
    d = config.emb_dim
    tokens = source.rows("wte.weight", config.vocab_size, d)
    head = tokens if config.tie_embeddings else source.rows("lm_head.weight", config.vocab_size, d)
    qkv = source.matrices("attn.c_attn.weight", d, 3 * d)
    projection = source.matrices("attn.c_proj.weight", d, d)
    widen = source.matrices("mlp.c_fc.weight", d, 4 * d)
    narrow = source.matrices("mlp.c_proj.weight", 4 * d, d)
    weights = Weights(
        *tokens,
        source.get("wpe.weight", config.context_length, d),
        source.vectors("ln_1.weight", d),
        source.vectors("ln_1.bias", d),
        *qkv,
        source.biases("attn.c_attn.bias", 3 * d),
        *projection,
        source.biases("attn.c_proj.bias", d),
        source.vectors("ln_2.weight", d),
        source.vectors("ln_2.bias", d),
        *widen,
        source.biases("mlp.c_fc.bias", 4 * d),
        *narrow,
        source.biases("mlp.c_proj.bias", d),
        source.get("ln_f.weight", d),
        source.get("ln_f.bias", d),
        *head,
        np.zeros(filled(config.vocab_size), np.float32),
    )
    source.finish()
    if source.left.keys() - {"lm_head.weight"}:  # a tied head may be there twice
        raise ValueError(f"unexpected {min(source.left)[:100]}")
    return Packed(config, source.precision, weights)


_PIECE = 2**18
"""Numbers that are packed at once, about."""

_OFFSETS = {"float32": 0, "bfloat16": 0, "int8": 128, "int4": 8}


class _Source:
    """Tensors under GPT-2's names, each taken once; `left` are those that nobody has asked for.

    The work of packing goes to the `pool`; `finish` waits for it.
    """

    def __init__(
        self,
        n_layers: int,
        tensors: Mapping[str, Array | Groups | StoredGroups],
        precision: str,
        pool: ThreadPoolExecutor,
        release: Callable[[], None],
    ) -> None:
        self.left = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        self.precision = precision
        self._n_layers, self._pool, self._release = n_layers, pool, release
        self._work: list[Future[None]] = []

    def get(self, name: str, *shape: int) -> Array:
        """A float32 copy of a tensor."""
        if isinstance(self.left.get(name), Groups | StoredGroups):
            raise ValueError(f"{name} is quantised, which only matrices are")
        return np.array(self._floats(name, self._take(name, shape)), np.float32)

    def vectors(self, name: str, n: int) -> Array:
        """(n_layers, n): one vector of each layer."""
        return np.stack([self.get(f"h.{layer}.{name}", n) for layer in range(self._n_layers)])

    def biases(self, name: str, n: int) -> Array:
        """The same, filled up to whole panels."""
        return np.pad(self.vectors(name, n), ((0, 0), (0, filled(n) - n)))

    def rows(self, name: str, n_rows: int, n_columns: int) -> tuple[Array, Array]:
        """A matrix that is (out, in) already, in panels, and its scales."""
        data, scales = self._room(n_rows, n_columns)
        self._pack_rows(name, self._take(name, (n_rows, n_columns)), data, scales)
        return data, scales

    def matrices(self, name: str, n_in: int, n_out: int) -> tuple[Array, Array]:
        """One of each layer from (in, out) matrices, or groups, which are (out, in); and their scales."""
        data, scales = self._room(n_out, n_in, self._n_layers)
        for layer in range(self._n_layers):
            full = f"h.{layer}.{name}"
            matrix = self._take(full, (n_in, n_out))
            pack = self._pack_rows if isinstance(matrix, Groups | StoredGroups) else self._pack_turned
            pack(full, matrix, data[layer], scales[layer])
        return data, scales

    def finish(self) -> None:
        """Until all is packed."""
        for work in self._work:
            work.result()

    def _take(self, name: str, shape: tuple[int, ...]) -> Any:
        if (found := self.left.pop(name, None)) is None:
            raise ValueError(f"missing {name} {list(shape)}")
        if isinstance(found, Groups | StoredGroups):
            if name != "wte.weight" and name != "lm_head.weight":
                shape = shape[::-1]
            if found.shape != shape or found.scales.shape != (shape[0], -(-shape[1] // GROUP)):
                raise ValueError(f"{name} is {list(found.shape)} instead of {list(shape)}")
        elif found.shape != shape:
            raise ValueError(f"{name} is {list(found.shape)} instead of {list(shape)}")
        return found

    def _floats(self, name: str, found: Array) -> Array:
        """As float32, a view where it is that already; checked."""
        found = np.asarray(found, np.float32)
        if not np.isfinite(panels.total(found.ravel("K"))):
            raise ValueError(f"{name} holds NaN or infinite values")
        return found

    def _room(self, n_rows: int, n_columns: int, *before: int) -> tuple[Array, Array]:
        n_panels, columns = filled(n_rows) // PANEL, filled(n_columns)
        kind = dict(float32=np.float32, bfloat16=np.uint16, int8=np.int8, int4=np.uint8)[self.precision]
        numbers = columns * PANEL // (2 if self.precision == "int4" else 1)
        groups = columns // GROUP if _OFFSETS[self.precision] else 0
        return zeros((*before, n_panels, numbers), kind), zeros((*before, n_panels, groups * PANEL), np.uint16)

    def _pack_rows(self, name: str, found: Any, data: Array, scales: Array) -> None:
        """A matrix that is (out, in). In pieces: all threads have work, and little of a file is in memory at once."""
        n = max(1, _PIECE // data[0].size)
        for first in range(0, len(data), n):
            piece, rows = slice(first, first + n), slice(first * PANEL, (first + n) * PANEL)
            part = found[rows] if isinstance(found, np.ndarray) else (found, rows)
            self._work.append(self._pool.submit(self._pack_piece, name, part, 0, data[piece], scales[piece]))

    def _pack_turned(self, name: str, matrix: Array, data: Array, scales: Array) -> None:
        """One that is (in, out), the same."""
        n = max(1, _PIECE // (GROUP * matrix.shape[1])) * GROUP
        for first in range(0, len(matrix), n):
            self._work.append(
                self._pool.submit(self._pack_piece, name, matrix[first : first + n].T, first, data, scales)
            )

    def _pack_piece(self, name: str, part: Any, at: int, data: Array, scales: Array) -> None:
        if isinstance(part, tuple):
            groups, rows = part
            numbers = groups.rows(rows)
            panels.pack(numbers.numbers, at, data)
            panels.pack_scales(numbers.scales, scales)
        elif _OFFSETS[self.precision]:
            panels.pack_rounded(self._floats(name, part), at, data, scales)
        else:
            panels.pack(self._floats(name, part), at, data)
        self._release()


def load(directory: str | Path, precision: str | None = None, threads: int = 1) -> Packed:
    """From a model directory with one `model.safetensors` of float32 or float16 tensors, which is mapped.

    A quantised directory has its own precision, and no other; None is float32 for all else.

    `ValueError` where it is damaged, `FileNotFoundError` where it is not there, `UnsupportedError` for number types
    which only the readable model's readers take.
    """
    directory = Path(directory)
    values = read_json(directory / "config.json")
    config = from_config_json(values, str(directory / "config.json"))
    tensors: Mapping[str, Array | Groups | StoredGroups]
    if is_quantized(values):
        own = f"int{bits_of(values, str(directory / 'config.json'))}"
        if precision not in (None, own):
            raise ValueError(f"{directory} is quantised to {own} and has no {precision}: leave the precision out")
        tensors, release = read_quantized(directory, values)
    else:
        own, (tensors, release) = precision or "float32", _floats_of(directory / "model.safetensors")
    try:
        return pack(config, tensors, own, threads, release)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None


def _floats_of(path: Path) -> tuple[dict[str, Array], Callable[[], None]]:
    """The tensors of a file as mapped, all float32 or float16, and what releases them."""
    tensors, others, release = map_arrays(path)
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype in (np.float32, np.float16)}
    for name in (others.keys() | tensors.keys()) - floats.keys():
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # old files keep their causal masks
            raise UnsupportedError(f"{path}: {name} is neither float32 nor float16")
    return floats, release


class UnsupportedError(ValueError):
    """A sound file that the readable model takes and the CPU decoder does not."""
