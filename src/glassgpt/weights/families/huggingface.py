"""Hugging Face's GPT-2 directory: `config.json` and `model.safetensors`, as `transformers` and vLLM read them."""

from __future__ import annotations

from pathlib import Path

import torch

from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.weights.containers.pickled import load_pickled
from glassgpt.weights.containers.safetensors_file import (
    INDEX_NAME,
    SINGLE_NAME,
    SafetensorsWeights,
    resolve_shards,
)
from glassgpt.weights.containers.source import TensorSource
from glassgpt.weights.families.config_json import from_config_json
from glassgpt.weights.families.gpt2_names import from_gpt2_names
from glassgpt.weights.families.state import build_model, tensors_of
from glassgpt.weights.formats import Found


def matches(found: Found) -> bool:
    """Whether there is a `config.json`: in the directory, or beside the file."""
    return (found.path / "config.json" if found.value is None else found.path.with_name("config.json")).exists()


def read(found: Found, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """The GPT-2 in a directory: safetensors, sharded or not, or an old `pytorch_model.bin`; or that of one file there.

    Every tensor is accounted for, see `from_gpt2_names`. `dtype` None keeps the file's. `config.json` says the number
    of heads. Raises `FileNotFoundError` and `ValueError`.
    """
    directory = found.path if found.value is None else found.path.parent
    config = from_config_json(read_json(directory / "config.json"), str(directory / "config.json"))
    if found.value is None:
        tensors = _tensors_in(directory)
    elif (directory / INDEX_NAME).exists() and found.path in resolve_shards(directory).values():
        tensors = SafetensorsWeights(directory)  # a shard stands for all of them
    else:
        tensors = tensors_of(found.value, found.path)
    return build_model(config, from_gpt2_names(tensors, config, dtype=dtype, source=str(directory)))


def _tensors_in(directory: Path) -> TensorSource:
    pickled = directory / "pytorch_model.bin"
    if pickled.exists() and not any((directory / name).exists() for name in (SINGLE_NAME, INDEX_NAME)):
        return tensors_of(load_pickled(pickled), pickled)
    # the single file before an index, as `transformers` does: a model saved over a sharded one has both
    single = directory / SINGLE_NAME
    return SafetensorsWeights(single if single.exists() else directory)
