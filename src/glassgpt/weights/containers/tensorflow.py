"""Read TensorFlow V2 checkpoints, such as OpenAI's GPT-2 files, without TensorFlow.

A checkpoint named `model.ckpt` is one `model.ckpt.index` and some `model.ckpt.data-0000i-of-0000n`.
The index is a sorted string table: blocks of prefix-compressed (key, value) pairs, each block followed by
one byte for its compression and a checksum, then a footer that points to the block of blocks. The key
`""` holds a header, every other key is a variable's name and its value says which bytes of which data
file are the variable.

The format is defined by TensorFlow's `core/lib/io/format.cc`, `core/lib/io/block.cc`,
`core/protobuf/tensor_bundle.proto` and `core/util/tensor_bundle/tensor_bundle.cc`; the table is LevelDB's
(https://github.com/google/leveldb/blob/main/doc/table_format.md), the values are protocol buffers
(https://protobuf.dev/programming-guides/encoding/).
"""

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.packages import require

_TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER_BYTES = 48
_BLOCK_TRAILER_BYTES = 5  # one byte of compression type, four of checksum

# GPT-2 1.5B with Adam's moments has 1,740 variables in an index of 60 kB; nothing near these limits is a
# model.
_MAX_INDEX_BYTES = 8 * 2**20
_MAX_VARIABLES = 100_000
_MAX_NAME_BYTES = 1024
_MAX_STATE_BYTES = 2**20
_MAX_RANK = 32
_MAX_PADDING_BYTES = 2**16

# TensorFlow's DataType numbers (core/framework/types.proto). NumPy has no bfloat16: its 16 bits are read as
# such.
_NUMPY_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    14: np.dtype("<u2"),
    19: np.dtype("<f2"),
}
_BFLOAT16 = 14
_SLICE_KEY = b"\0"  # how the keys start that hold the parts of partitioned variables
_UNREADABLE_DTYPES = {7: "string", 20: "resource", 21: "variant"}


@dataclass(frozen=True)
class _Entry:
    """Where one variable lies; `sliced` when it is stored in parts under other keys."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    sliced: bool


class TensorFlowCheckpoint(Mapping[str, npt.NDArray[Any]]):
    """The variables of a TensorFlow V2 checkpoint, by name; data is mapped, and read when asked for.

    `path` is a checkpoint prefix (`.../model.ckpt`), its `.index` file, or a directory that holds
    TensorFlow's `checkpoint` state file or exactly one `.index` file.

    Opening verifies the index (every block's checksum, and that nothing in the file lies outside a checked
    block) and that the data files have exactly the bytes the index describes. Indexing verifies the
    variable's own checksum and returns a read-only array over the mapped file; a bfloat16 variable comes as
    a float32 copy, which holds every bfloat16 exactly. Variables that are partitioned or hold strings or
    resources are listed, but not readable.

    Raises `ValueError` for a damaged or unsupported checkpoint, `OSError` for a missing file,
    `KeyError` for a name it does not hold.
    """

    def __init__(self, path: str | Path) -> None:
        require("google_crc32c")
        self._prefix = _find_prefix(Path(path))
        index = _beside(self._prefix, ".index")
        if not index.is_file():
            raise FileNotFoundError(f"no TensorFlow checkpoint index at {index}")
        try:
            self._entries, self._num_shards = _read_index(index)
        except ValueError as error:
            raise ValueError(f"{index}: {error}") from None
        self._shards = {
            shard: _map_shard(self._shard_path(shard), self._entries_of(shard))
            for shard in sorted({entry.shard for entry in self._entries.values() if not entry.sliced})
        }
        self._names = {key.decode(): entry for key, entry in self._entries.items() if not key.startswith(_SLICE_KEY)}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        entry = self._names[name]
        if entry.sliced:
            raise ValueError(f"{self._prefix}: variable {name!r} is partitioned; save it whole to read it here")
        if entry.dtype not in _NUMPY_DTYPES:
            raise ValueError(f"{self._prefix}: variable {name!r} has unsupported type {self.dtype(name)}")
        dtype = _NUMPY_DTYPES[entry.dtype]
        if not entry.size:
            return _read_only(np.empty(entry.shape, np.float32 if entry.dtype == _BFLOAT16 else dtype))
        data = self._shards[entry.shard]
        if hasattr(mmap, "MADV_DONTNEED"):
            # Give back the pages of what was read before: a caller that copies variable by variable then
            # holds its copies and one variable, not its copies and the whole file.
            data.madvise(mmap.MADV_DONTNEED)
        raw = np.frombuffer(data, np.uint8, entry.size, entry.offset)
        if masked_crc32c(raw) != entry.crc32c:
            shard = self._shard_path(entry.shard)
            raise ValueError(f"{shard}: wrong checksum for {name!r}; the file is damaged, fetch it again")
        if entry.dtype == _BFLOAT16:
            return _read_only((raw.view(dtype).astype(np.uint32) << 16).view(np.float32).reshape(entry.shape))
        if dtype == np.bool_ and raw.max() > 1:
            raise ValueError(f"{self._shard_path(entry.shard)}: {name!r} holds bytes that are neither true nor false")
        array = raw.view(dtype).reshape(entry.shape)
        return array if array.flags.aligned else _read_only(array.copy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a variable, which is not read for it."""
        return self._names[name].shape

    def dtype(self, name: str) -> str:
        """The stored type of a variable, such as `float32` or `bfloat16`."""
        number = self._names[name].dtype
        if number == _BFLOAT16:
            return "bfloat16"
        if number in _NUMPY_DTYPES:
            return str(_NUMPY_DTYPES[number])
        return _UNREADABLE_DTYPES.get(number, f"DataType {number}")

    def _shard_path(self, shard: int) -> Path:
        return _beside(self._prefix, f".data-{shard:05d}-of-{self._num_shards:05d}")

    def _entries_of(self, shard: int) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.shard == shard and not entry.sliced]


def _beside(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _find_prefix(path: Path) -> Path:
    if not path.is_dir():
        return path.with_suffix("") if path.suffix == ".index" else path
    state = path / "checkpoint"
    if state.is_file():
        with state.open("rb") as file:
            text = file.read(_MAX_STATE_BYTES).decode("utf-8", "replace")
        found = re.search(r'^\s*model_checkpoint_path:\s*"([^"\r\n]*)"', text, re.MULTILINE)
        if not found:
            raise ValueError(f"{state}: no model_checkpoint_path; name the checkpoint's .index file instead")
        name = found[1]
        # Only a plain name can be trusted to stay in this directory.
        if not name.isprintable() or name in ("", ".", "..") or set(name) & set("/\\:"):
            raise ValueError(
                f"{state}: model_checkpoint_path {name[:100]!r} is not a plain file name; "
                f"name the checkpoint's .index file instead"
            )
        return path / name
    indexes = sorted(path.glob("*.index"))
    if len(indexes) != 1:
        raise FileNotFoundError(
            f"{path}: no 'checkpoint' file and {len(indexes)} .index files; name the .index file itself"
        )
    return indexes[0].with_suffix("")


def _map_shard(path: Path, entries: list[_Entry]) -> mmap.mmap:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        expected = max(entry.offset + entry.size for entry in entries)
        if size < expected:
            raise ValueError(f"{path}: has {size} bytes, its index describes {expected}; fetch it again")
        # A map cannot be empty, and a data file may be.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else mmap.mmap(-1, 1)
    # What belongs to no variable can only be the zeros that align the next: every byte is accounted for.
    end = 0
    ranges = sorted((entry.offset, entry.offset + entry.size) for entry in entries)
    for start, following in [*ranges, (size, size)]:
        if start < min(end, following):
            raise ValueError(f"{path}: variables overlap at byte {start}; the file is damaged")
        if start - end > _MAX_PADDING_BYTES or any(data[end:start]):
            raise ValueError(f"{path}: bytes {end} to {start} belong to no variable; the file is damaged")
        end = max(end, following)
    return data


def _read_index(path: Path) -> tuple[dict[bytes, _Entry], int]:
    """The entry of every key, and the number of data files."""
    with path.open("rb") as file:
        table = file.read(_MAX_INDEX_BYTES + 1)
    if len(table) > _MAX_INDEX_BYTES:
        raise ValueError(f"larger than the {_MAX_INDEX_BYTES} bytes allowed for a checkpoint index")
    pairs = _read_table(table)
    if b"" not in pairs:
        raise ValueError("no header; not an index of a TensorFlow checkpoint")
    num_shards = _read_header(pairs.pop(b""))
    entries = {}
    for key, value in pairs.items():
        try:
            if not key.startswith(_SLICE_KEY):
                key.decode()
            entries[key] = _read_entry(value, num_shards)
        except ValueError as error:
            raise ValueError(f"entry {key[:100]!r}: {error}") from None
    return entries, num_shards


# The table: footer, index block, data blocks.


def _read_table(table: bytes) -> dict[bytes, bytes]:
    footer = table[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or not footer.endswith(_TABLE_MAGIC):
        raise ValueError("not an index of a TensorFlow checkpoint, or cut short; fetch it again")
    meta_handle, position = _read_handle(footer, 0)
    index_handle, position = _read_handle(footer, position)
    if any(footer[position : -len(_TABLE_MAGIC)]):
        raise ValueError("damaged footer; fetch it again")
    pairs: dict[bytes, bytes] = {}
    end = 0
    for _, handle in _pairs(_read_block(table, index_handle)):
        data_handle, _ = _read_handle(handle, 0)
        end = _follow(end, data_handle)
        for key, value in _pairs(_read_block(table, data_handle)):
            if pairs and key <= next(reversed(pairs)):
                raise ValueError("keys are out of order")
            pairs[key] = value
            if len(pairs) > _MAX_VARIABLES:
                raise ValueError(f"more than {_MAX_VARIABLES} variables")
    _read_block(table, meta_handle)  # empty in this format, but its checksum has to hold
    end = _follow(_follow(end, meta_handle), index_handle)
    if end != len(table) - _FOOTER_BYTES:
        raise ValueError(f"the last block ends at byte {end}, not at the footer; the file is damaged")
    return pairs


def _follow(end: int, handle: tuple[int, int]) -> int:
    """Where a block ends; blocks lie side by side, so that no byte of the file escapes the checksums."""
    offset, size = handle
    if offset != end:
        raise ValueError(f"a block starts at byte {offset} instead of {end}; the file is damaged")
    return offset + size + _BLOCK_TRAILER_BYTES


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _read_varint(data, position)
    size, position = _read_varint(data, position)
    return (offset, size), position


def _read_block(table: bytes, handle: tuple[int, int]) -> bytes:
    offset, size = handle
    end = offset + size
    if end + _BLOCK_TRAILER_BYTES > len(table) - _FOOTER_BYTES:
        raise ValueError(f"a block reaches to byte {end}, beyond the file's {len(table)}")
    # The checksum covers the block and its compression type.
    if masked_crc32c(table[offset : end + 1]) != int.from_bytes(table[end + 1 : end + 5], "little"):
        raise ValueError("wrong checksum; the file is damaged, fetch it again")
    if table[end] != 0:
        raise ValueError("compressed, which TensorFlow does not do to an index; save the checkpoint again")
    return table[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    # After the pairs come the offsets of those with a whole key, for binary search, and the number of offsets.
    num_restarts = int.from_bytes(block[-4:], "little")
    limit = len(block) - 4 - 4 * num_restarts
    if limit < 0:
        raise ValueError("damaged block: more restart points than bytes")
    key, position = b"", 0
    while position < limit:
        shared, position = _read_varint(block, position)
        unshared, position = _read_varint(block, position)
        value_size, position = _read_varint(block, position)
        end = position + unshared + value_size
        if shared > len(key) or shared + unshared > _MAX_NAME_BYTES or end > limit:
            raise ValueError("damaged block: a key or value outside its bounds")
        key = key[:shared] + block[position : position + unshared]
        yield key, block[position + unshared : end]
        position = end


def masked_crc32c(data: bytes | npt.NDArray[Any]) -> int:
    """The checksum of TensorFlow's tables and records."""
    import google_crc32c

    # Masked, because checksums of data that holds checksums are weak (core/lib/hash/crc32c.h).
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Protocol buffers: fields of (number, wire type), and the three messages of tensor_bundle.proto.

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[position : position + 10], 1):
        value |= (byte & 0x7F) << 7 * (count - 1)
        if byte < 0x80:
            # One number, one spelling: else a flipped bit could hide in the footer, which has no checksum.
            if (byte == 0 and count > 1) or value >= 2**64:
                break
            return value, position + count
    raise ValueError("damaged number")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        value: int | bytes
        if wire_type == _VARINT:
            value, position = _read_varint(message, position)
        else:
            if wire_type == _BYTES:
                size, position = _read_varint(message, position)
            elif wire_type in (_FIXED32, _FIXED64):
                size = 4 if wire_type == _FIXED32 else 8
            else:
                raise ValueError(f"field {number} has wire type {wire_type}")
            value = message[position : position + size]
            if len(value) < size:
                raise ValueError(f"field {number} is cut short")
            position += size
        yield number, value


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number was expected")
    if value >= 2**63:  # how a negative number is spelled; no field here may be negative
        raise ValueError(f"negative number {value - 2**64}")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _read_header(message: bytes) -> int:
    num_shards = 0
    for number, value in _fields(message):
        if number == 1:
            num_shards = _number(value)
        elif number == 2 and _number(value) != 0:
            raise ValueError("written on a big-endian machine, which is not supported")
        elif number == 3:
            for version_number, version in _fields(_message(value)):
                if version_number == 2 and _number(version) > 1:  # min_consumer
                    raise ValueError(f"asks for a reader of bundle version {version!r}; this one knows version 1")
    if not 1 <= num_shards <= 99_999:
        raise ValueError(f"says it has {num_shards} data files")
    return num_shards


def _read_entry(message: bytes, num_shards: int) -> _Entry:
    dtype = shard = offset = size = crc32c = 0
    shape: tuple[int, ...] = ()
    sliced = False
    for number, value in _fields(message):
        if number == 1:
            dtype = _number(value)
        elif number == 2:
            shape = _read_shape(_message(value))
        elif number == 3:
            shard = _number(value)
        elif number == 4:
            offset = _number(value)
        elif number == 5:
            size = _number(value)
        elif number == 6:
            crc32c = int.from_bytes(_message(value), "little")
        elif number == 7:
            sliced = True
    if not sliced and shard >= num_shards:
        raise ValueError(f"lies in data file {shard}, but there are {num_shards}")
    if not sliced and dtype in _NUMPY_DTYPES:
        expected = math.prod(shape) * _NUMPY_DTYPES[dtype].itemsize
        if size != expected:
            raise ValueError(f"shape {list(shape)} needs {expected} bytes, {size} are stored")
    return _Entry(dtype, shape, shard, offset, size, crc32c, sliced)


def _read_shape(message: bytes) -> tuple[int, ...]:
    shape = []
    for number, value in _fields(message):
        if number == 2:
            shape.append(sum(_number(size) for field, size in _fields(_message(value)) if field == 1))
        elif number == 3 and _number(value):
            raise ValueError("unknown rank")
    # A product of the sizes that are not 0, so that an empty variable cannot have an impossible shape either.
    if len(shape) > _MAX_RANK or math.prod(size for size in shape if size) >= 2**48:
        raise ValueError(f"shape with {len(shape)} dimensions {shape[:_MAX_RANK]} is not possible")
    return tuple(shape)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array
