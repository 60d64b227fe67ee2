"""Read safetensors files, single or sharded, that somebody else wrote.

A file is the header's length in eight bytes, the header, which is JSON and says for each tensor its type,
its shape and where its bytes begin and end, and these bytes
(https://github.com/huggingface/safetensors#format). The header is read here and not by the `safetensors`
library because that maps a whole file at once: whoever copied its tensors one after the other would hold the
copies and the file.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from glassgpt.json_file import parse_json, read_json
from glassgpt.weights.mapped import check_bools, map_storage

SINGLE_NAME = "model.safetensors"
"""What Hugging Face calls the file when there is only one."""

INDEX_NAME = "model.safetensors.index.json"
"""What it calls the file that lists which shard holds which tensor."""

# GPT-2 1.5B needs 60 kB. The format itself allows 100 MB, which take gigabytes and seconds to parse.
_MAX_HEADER_BYTES = 8 * 2**20
_MAX_RANK = 64  # of a torch.Tensor

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class _Entry:
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size: int


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of one safetensors file, or of a directory of them, by name; read when touched.

    ``path`` is a ``.safetensors`` file, or a directory with ``model.safetensors`` or with shards and their
    ``model.safetensors.index.json``. Every tensor is a private map of the file: writing to it does not write
    to the file, and dropping it gives its pages back.

    Raises ``ValueError`` for a damaged, hostile or inconsistent file, ``OSError`` for a missing one,
    ``KeyError`` for a name it does not hold.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_dir():
            files = [path]
        elif (path / INDEX_NAME).is_file():
            files = sorted(set(resolve_shards(path).values()))
        else:
            files = [path / SINGLE_NAME]
        self._entries = {name: entry for file in files for name, entry in _read_header(file).items()}

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        storage = map_storage(entry.path, entry.offset, entry.size)
        if entry.dtype == torch.bool:
            try:
                check_bools(storage)
            except ValueError as error:
                raise ValueError(f"{entry.path}: tensor {name[:100]!r} holds {error}") from None
        return torch.empty(0, dtype=entry.dtype).set_(storage).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the type of a tensor without reading it."""
        return self._entries[name].dtype


def resolve_shards(directory: str | Path) -> dict[str, Path]:
    """Return which file holds which tensor, from the ``model.safetensors.index.json`` in ``directory``.

    Index and shards have to agree: each tensor is in exactly the shard that the index names. Raises
    ``ValueError`` when they do not, when a shard is missing, or when its name is not that of a file in the
    directory (a link may lead out of it only as in Hugging Face's cache, from a snapshot to its blobs).
    """
    directory = Path(directory)
    index = directory / INDEX_NAME
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: 'weight_map' has to be an object of tensor names and file names")
    names: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise ValueError(f"{index}: tensor {tensor[:100]!r} is not in a file but in a {type(shard).__name__}")
        names.setdefault(shard, set()).add(tensor)
    for shard, listed in names.items():
        path = _shard_path(directory, shard)
        held = set(_read_header(path))
        for wrong, problem in [(listed - held, "lacks"), (held - listed, "also holds")]:
            if wrong:
                raise ValueError(f"{path}: {problem} tensor {min(wrong)[:100]!r}, other than {index.name} says")
    return {tensor: directory / shard for tensor, shard in weight_map.items()}


def _shard_path(directory: Path, name: str) -> Path:
    index = directory / INDEX_NAME
    if not name.isprintable() or name in ("", ".", "..") or set(name) & set("/\\:"):
        raise ValueError(f"{index}: shard {name[:100]!r} is not the name of a file in this directory")
    path = directory / name
    if not path.is_file():
        raise ValueError(f"{index}: shard {name[:100]!r} is missing; fetch it again")
    home, target = directory.resolve(), path.resolve()
    in_cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    if target.parent != home and not in_cache:
        raise ValueError(f"{index}: shard {name[:100]!r} is a link to {target}, out of this directory")
    return path


def _read_header(path: Path) -> dict[str, _Entry]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(
                f"{path}: not safetensors, or cut short: a header of {length} bytes in a file of {size} "
                f"(at most {_MAX_HEADER_BYTES} are read)"
            )
        text = file.read(length)
    try:
        return _parse_header(path, text, size - 8 - length)
    except ValueError as error:
        raise ValueError(f"{path}: damaged safetensors header: {error}") from None


def _parse_header(path: Path, text: bytes, data_size: int) -> dict[str, _Entry]:
    header = parse_json(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not an object of strings")
    entries = {}
    for name, info in header.items():
        match info:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                pass
            case _:
                raise ValueError(f"tensor {name[:100]!r} has no type, shape and place")
        if dtype not in _DTYPES:
            raise ValueError(f"tensor {name[:100]!r} has type {dtype[:100]!r}; known are {', '.join(_DTYPES)}")
        if len(shape) > _MAX_RANK or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
            raise ValueError(f"tensor {name[:100]!r} has an impossible shape")
        size = math.prod(shape) * _DTYPES[dtype].itemsize
        if size != end - begin:
            raise ValueError(f"tensor {name[:100]!r} needs {size} bytes, {end - begin} are stored")
        entries[name] = _Entry(path, _DTYPES[dtype], tuple(shape), 8 + len(text) + begin, size)
    # Side by side from the first byte of the data to the last: no overlap, nothing hidden, nothing cut off.
    end = 8 + len(text)
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.size)):
        if entry.offset != end:
            raise ValueError(f"byte {end} should start a tensor, the next starts at {entry.offset}")
        end += entry.size
    if end != 8 + len(text) + data_size:
        raise ValueError(f"describes {end} bytes, the file has {8 + len(text) + data_size}; fetch it again")
    return entries
