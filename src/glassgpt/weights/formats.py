"""Which format a path holds, found by looking into it and never by its name; and reading it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from glassgpt.json_file import read_json
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.book import is_book, read_book
from glassgpt.weights.gpt2_names import build_model, from_gpt2_names
from glassgpt.weights.huggingface import read_huggingface
from glassgpt.weights.nanogpt import is_nanogpt, read_nanogpt
from glassgpt.weights.openai import config_from_settings, params_from_variables, tensors_from_params
from glassgpt.weights.pickled import load_pickled
from glassgpt.weights.safetensors_file import SafetensorsWeights
from glassgpt.weights.tensorflow import TensorFlowCheckpoint

KNOWN = (
    "a Hugging Face GPT-2 directory, OpenAI's TensorFlow checkpoint, the book's .pth, nanoGPT's ckpt.pt, "
    "or a safetensors file of one of these"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read: the model, the tokenizer if one came with it, and the format's name."""

    model: GPTModel
    tokenizer: Tokenizer | None
    kind: str


def read_model(path: str | Path, *, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> Source:
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


def _read_directory(path: Path, dtype: torch.dtype | None) -> Source:
    if (path / "config.json").exists():
        return Source(read_huggingface(path, dtype), _tokenizer_in(path), "huggingface")
    if (path / "hparams.json").exists():
        config = config_from_settings(read_json(path / "hparams.json"))
        params = params_from_variables(TensorFlowCheckpoint(path), config.n_layers)
        state = from_gpt2_names(tensors_from_params(params), config, dtype=dtype, source=str(path))
        return Source(build_model(config, state), _tokenizer_in(path) or Tokenizer.gpt2(), "openai")
    raise FileNotFoundError(f"{path} holds no model: neither config.json nor hparams.json is there ({KNOWN})")


def _read_value(value: Any, path: Path, dtype: torch.dtype | None, n_heads: int | None) -> Source:
    if is_nanogpt(value):
        model, kind = read_nanogpt(value, path, dtype), "nanogpt"
    elif is_book(value):
        model, kind = read_book(value, path, n_heads, dtype), "book"
    elif (path.parent / "config.json").exists():  # one of a Hugging Face directory's own files was named
        return _read_directory(path.parent, dtype)
    else:
        raise ValueError(f"{path} holds none of {KNOWN}; a Hugging Face file needs its config.json beside it")
    return Source(model, _tokenizer_in(path.parent), kind)


def _tokenizer_in(directory: Path) -> Tokenizer | None:
    names = ("tokenizer.json", "vocab.json", "encoder.json")
    return Tokenizer.load(directory) if any((directory / name).exists() for name in names) else None
