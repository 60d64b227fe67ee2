"""Read safetensors files, single or sharded, that somebody else wrote.

Through the `safetensors` library, which checks that the tensors lie side by side and fill the file. It is told to read
them one at a time: by default it maps the whole file, and whoever copied its tensors one after the other would hold
the copies and the file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassgpt.json_file import read_json
from glassgpt.packages import require
from glassgpt.weights.containers.source import TensorSource

SINGLE_NAME = "model.safetensors"
"""What Hugging Face calls the file when there is only one."""

INDEX_NAME = "model.safetensors.index.json"
"""What it calls the file that lists which shard holds which tensor."""

# GPT-2 1.5B needs 60 kB. The format itself allows 100 MB, which take gigabytes and seconds to parse.
_MAX_HEADER_BYTES = 8 * 2**20
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
}
"""The number types that PyTorch computes with, and their names in the format, which knows more."""


class SafetensorsWeights(TensorSource):
    """The tensors of one safetensors file, or of a directory of them, by name; read when touched.

    `path` is a `.safetensors` file, or a directory with `model.safetensors` or with shards and their
    `model.safetensors.index.json`. Each access reads the tensor anew, into memory of its own.

    Raises `ValueError` for a damaged, hostile or inconsistent file, `OSError` for a missing one, `KeyError` for a name
    it does not hold.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_dir():
            files = [path]
        elif (path / INDEX_NAME).is_file():
            files = sorted(set(resolve_shards(path).values()))
        else:
            files = [path / SINGLE_NAME]
        opened = {file: _open(file) for file in files}
        self._files = {name: (path, file) for path, file in opened.items() for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import SafetensorError

        path, file = self._files[name]
        if (dtype := file.get_slice(name).get_dtype()) not in DTYPES.values():
            known = ", ".join(DTYPES.values())
            raise ValueError(f"{path}: tensor {name[:100]!r} has type {dtype}; known are {known}")
        try:
            tensor: Tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path}: {error}") from None
        if dtype == "BOOL" and tensor.numel() and tensor.view(torch.uint8).max() > 1:
            raise ValueError(f"{path}: tensor {name[:100]!r} holds booleans that are neither 0 nor 1")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""
        return tuple(self._files[name][1].get_slice(name).get_shape())


def resolve_shards(directory: str | Path) -> dict[str, Path]:
    """Which file holds which tensor, from the `model.safetensors.index.json` in `directory`.

    Index and shards have to agree: each tensor is in exactly the shard that the index names. Raises
    `ValueError` when they do not, when a shard is missing, or when its name is not that of a file in the
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
        held = set(_open(path).keys())
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


def _open(path: Path) -> Any:
    require("safetensors")
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(
            f"{path}: not safetensors, or damaged: a header of {length} bytes (at most {_MAX_HEADER_BYTES} are read)"
        )
    try:
        return safe_open(path, "pt", backend="pread")
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, cut short or not safetensors ({error}): fetch it again") from None
