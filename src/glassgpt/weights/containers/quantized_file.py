"""A quantised model directory: what its files hold, checked. Loads no torch.

`config.json` says how under `quantization_config`. In `model.safetensors` each matrix of GPT-2's names is two tensors:
`NAME.numbers`, (out, in) int8 or (out, in / 2) bytes of two 4-bit numbers, and `NAME.scales`, (out, groups) bfloat16.
All else is float32 under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glassgpt.generation.cpu.numbers import GROUP, StoredGroups
from glassgpt.weights.containers.mapped_arrays import Array, map_arrays

METHOD = "glassgpt"
"""What `quant_method` says in `config.json`."""
VERSION = 1
"""Of the layout; a directory of another one is refused."""
KEY = "quantization_config"

_INFINITE = np.uint16(0x7F80)  # the exponent of a bfloat16 that is infinite or NaN


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of ours."""
    about = config.get(KEY)
    return isinstance(about, Mapping) and about.get("quant_method") == METHOD


def bits_of(config: Mapping[str, Any], source: str) -> int:
    """8 or 4. `ValueError` where the layout is not the one that this version knows."""
    about = config[KEY]
    if about.get("version") != VERSION or about.get("group_size") != GROUP or about.get("bits") not in (8, 4):
        found = {key: about.get(key) for key in ("version", "group_size", "bits")}
        raise ValueError(
            f"{source}: {KEY} says {found}; this glassgpt reads version {VERSION}, groups of {GROUP}, 8 or 4 bits: "
            "quantize the model again"
        )
    return int(about["bits"])


def read_quantized(
    directory: Path, config: Mapping[str, Any]
) -> tuple[dict[str, Array | StoredGroups], Callable[[], None]]:
    """The tensors of a directory whose `config.json` is `config`, matrices (out, in) under GPT-2's names.

    They are views of the mapped file, whose memory the function beside them gives back.

    `ValueError` in one line where the file is damaged or of another layout, `FileNotFoundError` where there is none.
    """
    path = directory / "model.safetensors"
    bits = bits_of(config, str(directory / "config.json"))
    stored, others, release = map_arrays(path)
    if others:
        name, kind = min(others.items())
        raise ValueError(f"{path} is damaged: {name[:100]} is {kind}")
    tensors: dict[str, Array | StoredGroups] = {}
    for name in list(stored):
        if name.endswith(".numbers"):
            matrix = name.removesuffix(".numbers")
            tensors[matrix] = _groups(
                path, matrix, stored.pop(name), stored.pop(f"{matrix}.scales", None), bits, config
            )
            release()  # it has been looked through
    for name, tensor in stored.items():
        if tensor.dtype != np.float32:
            raise ValueError(f"{path} is damaged: {name[:100]} is {tensor.dtype} and belongs to no matrix")
        tensors[name] = tensor
    return tensors, release


def _groups(
    path: Path, name: str, numbers: Array, scales: Array | None, bits: int, config: Mapping[str, Any]
) -> StoredGroups:
    columns = config["n_embd"] * (4 if name.endswith("mlp.c_proj.weight") else 1)
    name = name[:100]
    if scales is None or scales.ndim != 2 or numbers.ndim != 2 or len(scales) != len(numbers):
        raise ValueError(f"{path} is damaged: {name} has numbers and scales that do not fit each other")
    if scales.dtype != np.uint16 or numbers.dtype != (np.int8 if bits == 8 else np.uint8):
        raise ValueError(f"{path} is damaged: {name} is {numbers.dtype} where {bits} bits are said")
    if (scales & _INFINITE == _INFINITE).any():
        raise ValueError(f"{path} is damaged: {name} has scales that are NaN or infinite")
    if bits == 8 and numbers.size and numbers.min() == -128:
        raise ValueError(f"{path} is damaged: {name} holds -128, and its numbers are from -127 to 127")
    if numbers.shape[1] != (columns if bits == 8 else -(-columns // 2)) or scales.shape[1] != -(-columns // GROUP):
        raise ValueError(
            f"{path} is damaged: {name} is {list(numbers.shape)} with scales {list(scales.shape)}, not of {columns} "
            "columns"
        )
    return StoredGroups(numbers, scales, columns)
