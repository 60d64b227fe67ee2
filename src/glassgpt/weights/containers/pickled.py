"""Read PyTorch's pickled files (`.pt`, `.pth`, `.bin`) without running anything they contain.

A pickle is a program for a small stack machine, and two of its instructions, "import this name" and "call
it", make unpickling a stranger's file the same as running it. This module is a machine of its own with
neither: it knows the few instructions that build plain data, and a closed list of names (`_CONSTRUCTORS`,
`_STORAGES`, `_DTYPES`), each of which stands for something written here. Nothing is imported, looked up or
called by a name that came from the file. Every size is checked before memory is taken for it.

Two containers hold such pickles:

- since PyTorch 1.6 a zip archive, uncompressed: `NAME/data.pkl`, and the raw bytes of storage `K` in
  `NAME/data/K`, with the zip format's checksums (`torch/serialization.py`; PKWARE's APPNOTE.TXT);
- before that, five pickles after each other (a magic number, a version, facts about the machine, the data,
  the order of the storages), then per storage its element count in eight bytes and its raw bytes, without
  checksums.
"""

import math
import pickletools
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from glassgpt.weights.containers.mapped import check_bools, map_storage

# GPT-2 1.5B with Adam's moments takes 0.5 MB of pickle, 80,000 instructions and 1,740 storages.
_MAX_PICKLE_BYTES = 16 * 2**20
_MAX_INSTRUCTIONS = 500_000
_MAX_VALUES = 500_000
_MAX_DIRECTORY_BYTES = 8 * 2**20
_MAX_DEPTH = 32
_MAX_RANK = 64  # of a torch.Tensor
_CHUNK_BYTES = 2**20


class UnsafePickleError(ValueError):
    """A pickle asks for something other than tensors and plain containers; it was not done."""


def load_pickled(path: str | Path) -> Any:
    """What `torch.save` wrote to `path`: plain containers, numbers, strings and CPU tensors.

    Admitted are `dict`, `OrderedDict`, `list`, `tuple`, `str`, `bytes`, `int`, `float`,
    `bool`, `None`, `torch.Size` (as a tuple), `torch.dtype` and tensors of torch's real dtypes down
    to 16 bits. A `Parameter` comes as a plain tensor; `requires_grad`, the device and attributes such as
    a state dict's `_metadata` are dropped. Tensors that shared memory when saved share it again. Their
    memory is a private map of the file: pages are read when touched, writing to a tensor does not write to
    the file, and dropping a tensor gives its pages back.

    Raises `UnsafePickleError` (a `ValueError`) when the file asks for anything else, `ValueError` when it
    is damaged or not such a file, `OSError` when it cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == b"PK\3\4"
            root, locations = _read_zip(file) if is_zip else _read_legacy(file)
            return _Builder(path, file, locations).build(root)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_plain_pickle(path: str | Path) -> Any:
    """What `pickle.dump` of protocol 2 or later wrote to `path`: plain containers, numbers and strings, no tensors.

    Raises as `load_pickled` does.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PICKLE_BYTES + 1)
            if not data.startswith(b"\x80"):
                raise ValueError("not a pickle of protocol 2 or later")
            if len(data) > _MAX_PICKLE_BYTES:
                raise ValueError(f"larger than the {_MAX_PICKLE_BYTES} bytes allowed for a pickle")
            program = BytesIO(data)
            root = _run_pickle(program, {})
            if program.read(1):
                raise ValueError("damaged: something follows the pickle")
            return _Builder(path, file, {}).build(root)
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# What the names that a file may use stand for.


@dataclass(frozen=True)
class _Name:
    """A name that the pickle pushed, such as `torch.FloatStorage`: a string, never the thing itself."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A claim about the memory of some tensors, not yet believed."""

    key: str
    dtype: torch.dtype
    size: int  # elements


@dataclass(frozen=True)
class _Tensor:
    """A claim about a tensor, not yet believed."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[Any, ...]
    stride: tuple[Any, ...]


_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
_DTYPES_WITHOUT_STORAGE = [torch.uint16, torch.uint32, torch.uint64]
_DTYPES = {str(dtype): dtype for dtype in [*_STORAGES.values(), *_DTYPES_WITHOUT_STORAGE]}


def _tensor(args: Any) -> _Tensor:
    match args:
        # The two that are ignored are requires_grad and hooks, which always are an empty dictionary.
        case (_Storage() as storage, int(offset), tuple(shape), tuple(stride), bool(), dict()):
            return _Tensor(storage, storage.dtype, offset, shape, stride)
    raise ValueError("damaged pickle: a tensor with impossible arguments")


def _tensor_of_dtype(args: Any) -> _Tensor:
    match args:
        case (_Storage() as storage, int(offset), tuple(shape), tuple(stride), bool(), dict(), dtype) if (
            dtype in _DTYPES_WITHOUT_STORAGE
        ):
            return _Tensor(storage, dtype, offset, shape, stride)
    raise ValueError("damaged pickle: a tensor with impossible arguments")


def _parameter(args: Any) -> _Tensor:
    match args:
        case (_Tensor() as tensor, bool(), dict()):
            return tensor
    raise ValueError("damaged pickle: a parameter with impossible arguments")


def _ordered_dict(args: Any) -> OrderedDict[Any, Any]:
    if args != ():
        raise ValueError("damaged pickle: an OrderedDict with arguments")
    return OrderedDict()


def _size(args: Any) -> tuple[Any, ...]:
    match args:
        case (tuple(shape),):
            return shape
    raise ValueError("damaged pickle: a torch.Size with impossible arguments")


def _bytes(args: Any) -> bytes:
    match args:
        case ():
            return b""
        case (str(text), "latin1"):  # how protocol 2, which is torch's, spells bytes
            return text.encode("latin1")
    raise ValueError("damaged pickle: bytes with impossible arguments")


_CONSTRUCTORS: dict[str, Callable[[Any], Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _bytes,
    "__builtin__.bytes": _bytes,
}


def _find_name(module: Any, name: Any) -> Any:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("damaged pickle: a name that is not a string")
    full = f"{module}.{name}"
    if full in _DTYPES:
        return _DTYPES[full]
    if full in _CONSTRUCTORS or full in _STORAGES:
        return _Name(full)
    raise UnsafePickleError(
        f"refused: the pickle asks for {full[:100]!r}, neither a tensor nor plain data; nothing was run. "
        f"If you trust the file, save only its state_dict where it was made"
    )


# The machine.

# The standard library's disassembler: it knows how each instruction's argument is spelled, and runs none.
_INSTRUCTIONS = {info.code.encode("latin1"): info for info in pickletools.opcodes}


def _run_pickle(program: BinaryIO, storages: dict[str, _Storage]) -> Any:
    """Run one pickle up to its STOP: plain data with `_Tensor` in the place of tensors.

    The storages it mentions are added to `storages`.
    """
    machine = _Machine(storages)
    for _ in range(_MAX_INSTRUCTIONS):
        code = program.read(1)
        if not code:
            raise ValueError(f"the pickle is cut short, or longer than {_MAX_PICKLE_BYTES} bytes")
        if code not in _INSTRUCTIONS:
            raise ValueError(f"damaged pickle: {code!r} is not an instruction")
        instruction = _INSTRUCTIONS[code]
        if instruction.name == "STOP":
            return machine.pop()
        if instruction.name not in _OPERATIONS:
            raise UnsafePickleError(f"refused: pickle instruction {instruction.name}, which plain data does not need")
        argument = None if instruction.arg is None else instruction.arg.reader(program)
        _OPERATIONS[instruction.name](machine, argument)
    raise ValueError(f"more than {_MAX_INSTRUCTIONS} pickle instructions")


class _Machine:
    """What the instructions work on: a stack, the stacks below its marks, and values kept to be used again."""

    def __init__(self, storages: dict[str, _Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("damaged pickle: it takes more values than it has made")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"damaged pickle: no {kind.__name__} where it needs one")
        return self.stack[-1]

    def mark(self) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self.below_marks:
            raise ValueError("damaged pickle: it goes back to a mark it has not set")
        values, self.stack = self.stack, self.below_marks.pop()
        return values

    def push_tuple(self, size: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(size)])))

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        container = self.top(dict)
        if len(values) % 2:
            raise ValueError("damaged pickle: a dictionary key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Not tuples: hashing those can take time exponential in the size of the file.
            if not isinstance(key, str | bytes | int | float | None):
                raise ValueError(f"a dictionary key of type {type(key).__name__}; only plain values can be keys")
            container[key] = value

    def store(self, number: int) -> None:
        self.memo[number] = self.top(object)

    def recall(self, number: int) -> None:
        if number not in self.memo:
            raise ValueError(f"damaged pickle: it recalls value {number}, which it has not stored")
        self.push(self.memo[number])

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or function.name not in _CONSTRUCTORS:
            raise UnsafePickleError("refused: the pickle calls something that makes no plain data")
        self.push(_CONSTRUCTORS[function.name](arguments))

    def drop_attributes(self) -> None:
        # those of a state dict (its _metadata) are not data
        if not isinstance(self.pop(), dict) or not self.stack or not isinstance(self.stack[-1], OrderedDict):
            raise UnsafePickleError("refused: the pickle sets the state of an object")

    def push_storage(self) -> None:
        storage = _read_storage(self.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"damaged pickle: two descriptions of storage {storage.key[:100]!r}")
        self.push(storage)


# What each instruction does to the machine `m` with its argument `a`; there are no others.
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, a: None),
    "MARK": lambda m, a: m.mark(),
    # plain values
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    # containers
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "TUPLE1": lambda m, a: m.push_tuple(1),
    "TUPLE2": lambda m, a: m.push_tuple(2),
    "TUPLE3": lambda m, a: m.push_tuple(3),
    "TUPLE": lambda m, a: m.push(tuple(m.pop_to_mark())),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "APPEND": lambda m, a: m.extend([m.pop()]),
    "APPENDS": lambda m, a: m.extend(m.pop_to_mark()),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "SETITEM": lambda m, a: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, a: m.set_items(m.pop_to_mark()),
    # values used again
    "BINPUT": _Machine.store,
    "LONG_BINPUT": _Machine.store,
    "MEMOIZE": lambda m, a: m.store(len(m.memo)),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    # names, and calls of what is in this file
    "GLOBAL": lambda m, a: m.push(_find_name(*a.split(" ", 1))),
    "STACK_GLOBAL": lambda m, a: m.push(_find_name(*[m.pop(), m.pop()][::-1])),
    "REDUCE": lambda m, a: m.call(),
    "BUILD": lambda m, a: m.drop_attributes(),
    "BINPERSID": lambda m, a: m.push_storage(),
}


def _read_storage(identity: Any) -> _Storage:
    match identity:
        # The location ("cpu", "cuda:0") is ignored; the last is a view of another storage, unused since 2017.
        case ("storage", _Name(kind), str(key), str(), int(size), *rest) if (
            kind in _STORAGES and size >= 0 and rest in ([], [None])
        ):
            return _Storage(key, _STORAGES[kind], size)
    raise ValueError("damaged pickle: the description of a storage is impossible")


# The containers.


@dataclass(frozen=True)
class _Location:
    """Bytes of the file; `crc32` is 0 where the container has none."""

    offset: int
    size: int
    crc32: int = 0


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, _Location]]:
    entries = _read_zip_entries(file)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"a zip archive, but not of torch.save: it has {len(pickles)} data.pkl instead of one")
    folder = pickles[0].removesuffix("data.pkl")

    def content(name: str, limit: int) -> bytes:
        location = entries[folder + name]
        if location.size > limit:
            raise ValueError(f"{name} has {location.size} bytes, more than the {limit} allowed")
        file.seek(location.offset)
        data = file.read(location.size)
        if location.crc32 not in (0, zlib.crc32(data)):
            raise ValueError(f"wrong checksum for {name}; the file is damaged, fetch it again")
        return data

    if folder + "byteorder" in entries and content("byteorder", 16) != b"little":
        raise ValueError("written on a big-endian machine, which is not supported")
    root = _run_pickle(BytesIO(content("data.pkl", _MAX_PICKLE_BYTES)), {})
    start = folder + "data/"
    return root, {name.removeprefix(start): entries[name] for name in entries if name.startswith(start)}


def _read_zip_entries(file: BinaryIO) -> dict[str, _Location]:
    """Where each entry's content lies; `ValueError` for archives of a kind that torch.save does not write."""
    damaged = ValueError("the zip archive is damaged or cut short; fetch it again")

    file_size = file.seek(0, 2)

    def read(form: str, offset: int) -> tuple[Any, ...]:
        if not 0 <= offset <= file_size - struct.calcsize(form):
            raise damaged
        file.seek(offset)
        return struct.unpack(form, file.read(struct.calcsize(form)))

    # The file ends with the end record, before it perhaps one with wider numbers, before it the directory.
    directory_end = file_size - 22
    signature, *_, count, directory_size, directory_offset, _ = read("<4s4H2IH", directory_end)
    if signature != b"PK\5\6":
        raise damaged
    if directory_end >= 20:
        signature, _, wide_offset, _ = read("<4sIQI", directory_end - 20)
        if signature == b"PK\6\7":
            directory_end = wide_offset
            signature, *_, count, directory_size, directory_offset = read("<4sQ2H2I4Q", wide_offset)
            if signature != b"PK\6\6":
                raise damaged
    if directory_offset + directory_size != directory_end or directory_size > _MAX_DIRECTORY_BYTES:
        raise damaged
    file.seek(directory_offset)
    directory = BytesIO(file.read(directory_size))

    entries: dict[str, _Location] = {}
    ranges = []
    for _ in range(count):
        header = directory.read(46)
        if len(header) < 46 or header[:4] != b"PK\1\2":
            raise damaged
        flags, method, crc32, stored, size, name_size, extra_size, comment_size, start = struct.unpack(
            "<8x2H4x3I3H8xI", header
        )
        raw_name, extra = directory.read(name_size), directory.read(extra_size)
        directory.seek(comment_size, 1)
        size, stored, start = _wide_numbers(extra, size, stored, start)
        name = raw_name.decode()
        # Names are only compared, never used as paths; but a name that looks like a path trick is one.
        if name in entries or not name.isprintable() or "\\" in name or ".." in name or name.startswith("/"):
            raise ValueError(f"zip entry {name[:100]!r} is there twice, or its name is not one that torch.save writes")
        # Bit 3 says that the sizes follow the content, bit 11 that names are UTF-8; others encrypt.
        if method != 0 or flags & ~0x808 or stored != size:
            raise ValueError(f"zip entry {name[:100]!r} is compressed or encrypted, which torch.save never does")
        signature, local_name_size, local_extra_size = read("<4s22x2H", start)
        content = start + 30 + local_name_size + local_extra_size
        if signature != b"PK\3\4" or file.read(local_name_size) != raw_name:
            raise damaged
        entries[name] = _Location(content, size, crc32)
        ranges.append((start, content + size))
    if directory.tell() != directory_size:
        raise damaged
    ranges.sort()
    ends = [0, *(end for _, end in ranges)]
    if any(start < end for (start, _), end in zip(ranges, ends, strict=False)) or ends[-1] > directory_offset:
        raise ValueError("zip entries overlap or lie outside the archive")
    return entries


def _wide_numbers(extra: bytes, *numbers: int) -> list[int]:
    """Replace the 32-bit numbers that are full by those of the zip64 extra field."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            field = BytesIO(extra[position + 4 : position + 4 + size])
            return [int.from_bytes(field.read(8), "little") if n == 0xFFFFFFFF else n for n in numbers]
        position += 4 + size
    return list(numbers)


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, _Location]]:
    size = file.seek(0, 2)
    file.seek(0)
    program = BytesIO(file.read(_MAX_PICKLE_BYTES))
    storages: dict[str, _Storage] = {}
    if program.read(2)[:1] != b"\x80" or _run_pickle(program, {}) != _LEGACY_MAGIC:
        raise ValueError("not a file of torch.save")
    version, machine = _run_pickle(program, {}), _run_pickle(program, {})
    if version != _LEGACY_VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("written by an unknown version of torch.save or on a big-endian machine")
    root = _run_pickle(program, storages)
    order = _run_pickle(program, {})
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order):
        raise ValueError("damaged: the order of the storages is not a list of names")
    if set(order) != set(storages) or len(order) != len(storages):
        raise ValueError("damaged: the storages in the file are not those the pickle describes")
    locations = {}
    offset = program.tell()
    for key in order:
        if offset > size:
            raise ValueError(f"has {size} bytes where more than {offset} are described; fetch it again")
        file.seek(offset)
        if int.from_bytes(file.read(8), "little") != storages[key].size:
            raise ValueError(f"damaged: storage {key[:100]!r} has another size than described")
        locations[key] = _Location(offset + 8, storages[key].size * storages[key].dtype.itemsize)
        offset += 8 + locations[key].size
    if offset != size:
        raise ValueError(f"has {size} bytes where {offset} are described; fetch it again")
    return root, locations


# From claims to tensors.


class _Builder:
    def __init__(self, path: Path, file: BinaryIO, locations: dict[str, _Location]) -> None:
        self._path = path
        self._file = file
        self._locations = locations
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._tensors: dict[int, Tensor] = {}  # by the id of their claim
        self._count = 0

    def build(self, value: Any, depth: int = 0) -> Any:
        """Copy plain data, with tensors in the place of `_Tensor`; refuse what is not plain, or too much."""
        # A few bytes that nest references to each other can stand for more values than atoms exist.
        self._count += 1
        if self._count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_VALUES} values, or nested deeper than {_MAX_DEPTH} levels")
        match value:
            case _Tensor():
                if id(value) not in self._tensors:
                    self._tensors[id(value)] = self._tensor(value)
                return self._tensors[id(value)]
            case dict():
                return type(value)((key, self.build(item, depth + 1)) for key, item in value.items())
            case list() | tuple():
                return type(value)(self.build(item, depth + 1) for item in value)
            case None | bool() | int() | float() | str() | bytes() | torch.dtype():
                return value
        raise UnsafePickleError(f"refused: the pickle holds a bare {type(value).__name__.strip('_').lower()}")

    def _tensor(self, claim: _Tensor) -> Tensor:
        shape, stride = claim.shape, claim.stride
        possible = len(shape) == len(stride) <= _MAX_RANK
        if not possible or any(type(n) is not int or n < 0 for n in (claim.offset, *shape, *stride)):
            raise ValueError("damaged pickle: a tensor with an impossible shape, stride or offset")
        storage = self._storage(claim.storage)
        available = storage.nbytes() // claim.dtype.itemsize
        if 0 in shape:
            if math.prod(n for n in shape if n) >= 2**48:
                raise ValueError("damaged pickle: an empty tensor with an impossible shape")
            return torch.empty(shape, dtype=claim.dtype)
        last = claim.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if last >= available:
            raise ValueError(f"a tensor reads element {last} of a storage of {available} elements")
        if math.prod(shape) > available:
            # A stride of 0 makes one element a tensor of any size; a copy of it would fill the memory.
            raise ValueError(f"a tensor of {math.prod(shape)} elements in a storage of {available}; save a clone of it")
        return torch.empty(0, dtype=claim.dtype).set_(storage, claim.offset, shape, stride)

    def _storage(self, claim: _Storage) -> torch.UntypedStorage:
        if claim.key in self._storages:
            return self._storages[claim.key]
        location = self._locations.get(claim.key)
        size = claim.size * claim.dtype.itemsize
        if location is None or location.size != size:
            raise ValueError(f"storage {claim.key[:100]!r} of {size} bytes is missing or has another size")
        if location.crc32 and self._crc32(location) != location.crc32:
            raise ValueError(f"wrong checksum for storage {claim.key[:100]!r}; the file is damaged, fetch it again")
        storage = map_storage(self._path, location.offset, size)
        if claim.dtype == torch.bool:
            check_bools(storage)
        self._storages[claim.key] = storage
        return storage

    def _crc32(self, location: _Location) -> int:
        # Read, not mapped: pages that are only checked must not stay in memory.
        self._file.seek(location.offset)
        crc32, left = 0, location.size
        while left:
            chunk = self._file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ValueError("cut short")
            crc32 = zlib.crc32(chunk, crc32)
            left -= len(chunk)
        return crc32
