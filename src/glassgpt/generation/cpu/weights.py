"""The weights of a GPT-2 as the kernels read them: matrices as (out, in), columns filled up, in any number type.

They come from a model directory, whose file is mapped and not read, or from tensors under GPT-2's names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from glassgpt.config import GPTConfig
from glassgpt.generation.cpu import kernels
from glassgpt.generation.cpu.numbers import Groups
from glassgpt.generation.cpu.tiles import GROUP
from glassgpt.json_file import read_json
from glassgpt.weights.containers.quantized_file import bits_of, is_quantized, read_quantized
from glassgpt.weights.families.config_json import from_config_json

Array = npt.NDArray[Any]

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
"""Number types of the matrices: 32, 16, 9 and 5 bits a weight, the scales of the last two included."""


class Weights(NamedTuple):
    """Matrices are (..., out, in); `_scales` hold a factor for each group of columns, or nothing."""

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
    def n_bytes(self) -> int:
        """Memory of the weights; the file's own pages, where they are used as they are, included."""
        return sum(array.nbytes for array in {id(array): array for array in self.weights}.values())


def pack(config: GPTConfig, tensors: Mapping[str, Array | Groups], precision: str = "float32") -> Packed:
    """From float32 or float16 tensors under GPT-2's names; matrices may be `Groups`, (out, in), in their own precision.

    `ValueError` for one that is missing, unexpected, misshapen or not finite. Where float32 columns need no filling up,
    the token embedding is used as it is, without a copy.
    """
    d, source = config.emb_dim, _Source(config.n_layers, tensors, precision)
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
        source.vectors("attn.c_attn.bias", 3 * d),
        *projection,
        source.vectors("attn.c_proj.bias", d),
        source.vectors("ln_2.weight", d),
        source.vectors("ln_2.bias", d),
        *widen,
        source.vectors("mlp.c_fc.bias", 4 * d),
        *narrow,
        source.vectors("mlp.c_proj.bias", d),
        source.get("ln_f.weight", d),
        source.get("ln_f.bias", d),
        *head,
        np.zeros(config.vocab_size, np.float32),
    )
    if source.left.keys() - {"lm_head.weight"}:  # a tied head may be there twice
        raise ValueError(f"unexpected {min(source.left)[:100]}")
    return Packed(config, precision, weights)


class _Source:
    """Tensors under GPT-2's names, each taken once; `left` are those that nobody has asked for."""

    def __init__(self, n_layers: int, tensors: Mapping[str, Array | Groups], precision: str) -> None:
        self.left = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        self._n_layers, self._precision = n_layers, precision

    def get(self, name: str, *shape: int) -> Array:
        """A tensor as float32, a view where it is that already; checked."""
        if (found := self.left.pop(name, None)) is None:
            raise ValueError(f"missing {name} {list(shape)}")
        if isinstance(found, Groups):
            raise ValueError(f"{name} is quantised, which only matrices are")
        if found.shape != shape:
            raise ValueError(f"{name} is {list(found.shape)} instead of {list(shape)}")
        found = np.ascontiguousarray(found, np.float32)
        if not np.isfinite(kernels.total(found.reshape(-1))):
            raise ValueError(f"{name} holds NaN or infinite values")
        return found

    def vectors(self, name: str, n: int) -> Array:
        """(n_layers, n): one vector of each layer."""
        return np.stack([self.get(f"h.{layer}.{name}", n) for layer in range(self._n_layers)])

    def rows(self, name: str, n_rows: int, n_columns: int) -> tuple[Array, Array]:
        """A matrix that is (out, in) already, its columns filled up, and its scales."""
        if isinstance(self.left.get(name), Groups):
            return self._groups(name, n_rows, n_columns)
        matrix, columns = self.get(name, n_rows, n_columns), kernels.filled(n_columns)
        if columns != n_columns:
            wide = np.zeros((n_rows, columns), np.float32)
            wide[:, :n_columns] = matrix
            matrix = wide
        return to_precision(matrix, self._precision)

    def matrices(self, name: str, n_in: int, n_out: int) -> tuple[Array, Array]:
        """(n_layers, n_out, columns) from an (in, out) matrix of each layer, one at a time, and their scales."""
        whole = scales = None
        for layer in range(self._n_layers):
            if isinstance(self.left.get(f"h.{layer}.{name}"), Groups):
                data, factors = self._groups(f"h.{layer}.{name}", n_out, n_in)
            else:
                turned = np.zeros((n_out, kernels.filled(n_in)), np.float32)
                kernels.transpose(self.get(f"h.{layer}.{name}", n_in, n_out), turned)
                data, factors = to_precision(turned, self._precision)
            if whole is None or scales is None:
                whole = np.empty((self._n_layers, *data.shape), data.dtype)
                scales = np.empty((self._n_layers, *factors.shape), np.float32)
            whole[layer], scales[layer] = data, factors
        assert whole is not None and scales is not None
        return whole, scales

    def _groups(self, name: str, n_out: int, n_in: int) -> tuple[Array, Array]:
        """As `to_precision` gives them, from numbers that are small already."""
        numbers, scales = self.left.pop(name)
        if numbers.shape != (n_out, n_in):
            raise ValueError(f"{name} is {list(numbers.shape)} instead of {[n_out, n_in]}")
        columns = kernels.filled(n_in)
        wide, factors = np.zeros((n_out, columns), np.int8), np.zeros((n_out, columns // GROUP), np.float32)
        wide[:, :n_in], factors[:, : scales.shape[1]] = numbers, scales
        if self._precision == "int8":
            return wide, factors
        nibbles, half = (wide + np.int8(8)).view(np.uint8).reshape(n_out, -1, GROUP), GROUP // 2
        return (nibbles[:, :, :half] | (nibbles[:, :, half:] << 4)).reshape(n_out, -1), factors


def load(directory: str | Path, precision: str | None = None) -> Packed:
    """From a model directory with one `model.safetensors` of float32 or float16 tensors, which is mapped.

    A quantised directory has its own precision, and no other; None is float32 for all else.

    `ValueError` where it is damaged, `FileNotFoundError` where it is not there, `UnsupportedError` for number types
    which only the readable model's readers take.
    """
    directory = Path(directory)
    values = read_json(directory / "config.json")
    config = from_config_json(values, str(directory / "config.json"))
    if is_quantized(values):
        own = f"int{bits_of(values, str(directory / 'config.json'))}"
        if precision not in (None, own):
            raise ValueError(f"{directory} is quantised to {own} and has no {precision}: leave the precision out")
        tensors = read_quantized(directory, values)
        try:
            return pack(config, tensors, own)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None
    precision = precision or "float32"
    try:
        return pack(config, _mapped(directory / "model.safetensors"), precision)
    except UnsupportedError:
        raise
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None


def _mapped(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file as views of the mapped file, once the library has found it sound."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    bytes_ = np.memmap(path, np.uint8, "c")  # writable, or the kernels would be compiled once more for it
    start = 8 + int.from_bytes(bytes_[:8].tobytes(), "little")
    header = json.loads(bytes_[8:start].tobytes())
    header.pop("__metadata__", None)
    kinds: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
    tensors = {}
    for name, about in header.items():
        if about["dtype"] not in kinds:
            if name.endswith((".attn.bias", ".attn.masked_bias")):  # old files keep their causal masks
                continue
            raise UnsupportedError(f"{path.name}: {name} is {about['dtype']}")
        first, last = about["data_offsets"]
        tensor = bytes_[start + first : start + last].view(kinds[about["dtype"]]).reshape(about["shape"])
        tensors[name] = np.require(tensor, requirements="A")
    return tensors


class UnsupportedError(ValueError):
    """A sound file that the readable model takes and the CPU decoder does not."""


def to_precision(matrix: Array, precision: str) -> tuple[Array, Array]:
    """A float32 (rows, columns) matrix in a number type of `PRECISIONS`, and its scales, (rows, groups) or (1, 1).

    Each group of `GROUP` columns has its own scale, so a column that stands out costs its own group alone.
    """
    none = np.zeros((1, 1), np.float32)
    if precision == "float32":
        return matrix, none
    if precision == "bfloat16":
        return kernels.to_bfloat16(matrix.view(np.uint32)), none
    groups = matrix.reshape(len(matrix), -1, GROUP)
    if precision == "int8":
        scales = np.abs(groups).max(axis=2) / np.float32(127)
    else:  # the number that is largest without its sign becomes -8, of the numbers from -8 to 7
        at = np.abs(groups).argmax(axis=2)
        scales = np.take_along_axis(groups, at[:, :, None], axis=2)[:, :, 0] / np.float32(-8)
    safe = np.where(scales == 0, np.float32(1), scales)
    numbers = np.rint(groups / safe[:, :, None])
    if precision == "int8":
        return numbers.astype(np.int8).reshape(matrix.shape), scales.astype(np.float32)
    nibbles = (np.clip(numbers, -8, 7) + 8).astype(np.uint8)
    half = GROUP // 2
    packed = nibbles[:, :, :half] | (nibbles[:, :, half:] << 4)
    return packed.reshape(len(matrix), -1), scales.astype(np.float32)
