"""What `glassgpt quantize` writes, as the readable model: each weight is its small number times its group's scale."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from glassgpt.generation.cpu.numbers import StoredGroups
from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.weights.containers.mapped_arrays import Array
from glassgpt.weights.containers.quantized_file import is_quantized, read_quantized
from glassgpt.weights.containers.source import OnDemand
from glassgpt.weights.families.config_json import from_config_json
from glassgpt.weights.families.gpt2_names import from_gpt2_names
from glassgpt.weights.families.state import build_model
from glassgpt.weights.formats import Found


def matches(found: Found) -> bool:
    """Whether the `config.json` there is of a model that we quantised."""
    config = _directory(found) / "config.json"
    return config.is_file() and is_quantized(read_json(config))


def read(found: Found, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """The model with its weights as floats; `ValueError` for a damaged directory or one of another version."""
    directory = _directory(found)
    values = read_json(directory / "config.json")
    config = from_config_json(values, str(directory / "config.json"))
    stored, _ = read_quantized(directory, values)
    source = OnDemand(
        {name: (name, tensor) for name, tensor in stored.items()},
        lambda pair: _floats(*pair),
        lambda pair: _shape(*pair),
    )
    return build_model(config, from_gpt2_names(source, config, dtype=dtype, source=str(directory)))


def _directory(found: Found) -> Path:
    return found.path if found.value is None else found.path.parent


def _is_turned(name: str) -> bool:
    """Whether GPT-2's files have this matrix as (in, out), where groups are always (out, in)."""
    return name.removeprefix("transformer.").startswith("h.")


def _floats(name: str, tensor: Array | StoredGroups) -> Tensor:
    if not isinstance(tensor, StoredGroups):
        return torch.from_numpy(tensor)
    floats = torch.from_numpy(tensor.to_float32())
    return floats.T if _is_turned(name) else floats


def _shape(name: str, tensor: Array | StoredGroups) -> tuple[int, ...]:
    if not isinstance(tensor, StoredGroups):
        return tensor.shape
    return tensor.shape[::-1] if _is_turned(name) else tensor.shape
