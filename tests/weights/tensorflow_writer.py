"""A writer of TensorFlow V2 checkpoints, for tests: plain enough to be bent into writing wrong ones."""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
FLOAT, STRING, BFLOAT16 = 1, 7, 14
DATA_TYPES = {
    "float32": FLOAT,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int8": 6,
    "int64": 9,
    "bool": 10,
    "uint16": BFLOAT16,  # NumPy has no bfloat16; tests write its bits
    "float16": 19,
}


def masked_crc32c(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def header(num_shards: int = 1, *, endianness: int = 0, min_consumer: int = 0) -> bytes:
    version = field(1, 1) + field(2, min_consumer)
    return field(1, num_shards) + field(2, endianness) + field(3, version)


def entry(
    data: bytes,
    *,
    dtype: int = FLOAT,
    shape: Sequence[int] = (),
    shard: int = 0,
    offset: int = 0,
    size: int | None = None,
    slices: bytes | None = None,
) -> bytes:
    dims = b"".join(field(2, field(1, n)) for n in shape)
    message = field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset)
    message += field(5, len(data) if size is None else size)
    message += varint(6 << 3 | 5) + struct.pack("<I", masked_crc32c(data))
    return message if slices is None else message + field(7, slices)


def block(pairs: Iterable[tuple[bytes, bytes]], restart_interval: int) -> bytes:
    out, restarts, previous = bytearray(), [0], b""
    for count, (key, value) in enumerate(pairs):
        shared = 0
        if count and count % restart_interval == 0:
            restarts.append(len(out))
        elif count:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(
    pairs: Mapping[bytes, bytes],
    *,
    pairs_per_block: int = 1000,
    compression: int = 0,
    spoil: Callable[[bytes], bytes] = bytes,
    gap: bytes = b"",
) -> bytes:
    """An index; ``spoil`` may change a block before its checksum is made, ``gap`` goes before every block."""
    out = bytearray()

    def put(content: bytes) -> bytes:
        content = spoil(content)
        out.extend(gap)
        handle = varint(len(out)) + varint(len(content))
        checked = content + bytes([compression])
        out.extend(checked + struct.pack("<I", masked_crc32c(checked)))
        return handle

    keys = sorted(pairs)
    index = []
    for start in range(0, len(keys), pairs_per_block):
        chunk = keys[start : start + pairs_per_block]
        index.append((chunk[-1], put(block([(key, pairs[key]) for key in chunk], 16))))
    handles = put(block([], 1)) + put(block(index, 1))
    return bytes(out) + handles.ljust(40, b"\0") + MAGIC


def write_checkpoint(
    prefix: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    num_shards: int = 1,
    alignment: int = 1,
    pairs_per_block: int = 1000,
) -> None:
    """Write ``tensors``, one after the other into ``num_shards`` data files."""
    shards = [bytearray() for _ in range(num_shards)]
    pairs = {b"": header(num_shards)}
    for count, (name, array) in enumerate(tensors.items()):
        number = count % num_shards
        shard, data = shards[number], array.tobytes()
        pairs[name.encode()] = entry(
            data, dtype=DATA_TYPES[array.dtype.name], shape=array.shape, shard=number, offset=len(shard)
        )
        shard += data
        shard += bytes(-len(shard) % alignment)
    write_files(prefix, table(pairs, pairs_per_block=pairs_per_block), *shards)


def write_files(prefix: Path, index: bytes, *shards: bytes) -> None:
    prefix.with_name(prefix.name + ".index").write_bytes(index)
    for number, shard in enumerate(shards):
        name = f"{prefix.name}.data-{number:05d}-of-{len(shards):05d}"
        prefix.with_name(name).write_bytes(shard)
