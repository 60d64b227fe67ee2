"""Which format a path holds, found by looking into it and never by its name; and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.weights.containers.pickled import load_pickled
from glassgpt.weights.containers.safetensors_file import INDEX_NAME, SafetensorsWeights, resolve_shards
from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint
from glassgpt.weights.families.book import is_book, read_book
from glassgpt.weights.families.gpt2_names import build_model, from_gpt2_names
from glassgpt.weights.families.huggingface import read_huggingface, state_dict_of
from glassgpt.weights.families.nanogpt import is_nanogpt, read_nanogpt
from glassgpt.weights.families.openai import config_from_settings, tensors_from_variables

KNOWN = (
    "a Hugging Face GPT-2 directory, OpenAI's TensorFlow checkpoint, the book's .pth, nanoGPT's ckpt.pt, "
    "or a safetensors file of one of these"
)


def read_model(path: str | Path, *, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """Read the model at `path`, a directory or a file, in whichever of the known formats it is.

    `dtype` None keeps the file's. `n_heads` is for the book's files, which do not tell it (see `read_book`). Raises
    `FileNotFoundError` where there is nothing, `ValueError` for what is no model or a damaged one.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such model")
    if path.is_dir():
        return _read_directory(path, dtype)
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _read_value(load_pickled(path), path, dtype, n_heads)
    if head[8:9] == b"{":
        return _read_value(dict(SafetensorsWeights(path)), path, dtype, n_heads)
    raise ValueError(f"{path} is in no known format: {KNOWN}")


def _read_directory(path: Path, dtype: torch.dtype | None) -> GPTModel:
    if (path / "config.json").exists():
        return read_huggingface(path, dtype)
    settings = path / "hparams.json"
    if settings.exists():
        values = read_json(settings)
        try:
            config = config_from_settings(values)
        except ValueError as error:
            raise ValueError(f"{settings}: {error}") from None
        tensors = tensors_from_variables(TensorFlowCheckpoint(path), config.n_layers)
        return build_model(config, from_gpt2_names(tensors, config, dtype=dtype, source=str(path)))
    raise FileNotFoundError(f"{path} holds no model: neither config.json nor hparams.json is there ({KNOWN})")


def _read_value(value: Any, path: Path, dtype: torch.dtype | None, n_heads: int | None) -> GPTModel:
    if is_nanogpt(value):
        return read_nanogpt(value, path, dtype)
    if is_book(value):
        return read_book(value, path, n_heads, dtype)
    directory = path.parent
    if not (directory / "config.json").exists():
        raise ValueError(f"{path} holds none of {KNOWN}; a Hugging Face file needs its config.json beside it")
    if (directory / INDEX_NAME).exists() and path in resolve_shards(directory).values():
        return read_huggingface(directory, dtype, SafetensorsWeights(directory))  # a shard stands for all of them
    return read_huggingface(directory, dtype, state_dict_of(value, path))
