"""The book's `model.pth`: a state dict under the core's own names, with each layer's causal mask alongside."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassgpt.config import PRESETS, GPTConfig
from glassgpt.files import creating
from glassgpt.model import GPTModel
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.containers.pickled import load_pickled
from glassgpt.weights.containers.source import TensorSource
from glassgpt.weights.families.state import (
    MASKS,
    account_for,
    build_model,
    check_tensor,
    meta_state,
    own_copy,
    same,
    tensors_of,
)
from glassgpt.weights.formats import Found
from glassgpt.weights.proof import Proof, prove

_log = logging.getLogger(__name__)
_HEADS = {PRESETS[name].emb_dim: PRESETS[name].n_heads for name in PRESETS if name.startswith("gpt2")}


def matches(found: Found) -> bool:
    """Whether it is a state dict of the book's model, alone or with its optimizer's."""
    return "tok_emb.weight" in _state_dict(found)


def read(found: Found, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """The model of a `model.pth`.

    Its shape is read off the tensors, but for the number of heads, which leaves no trace in them: `n_heads`, or, where
    the width is one of GPT-2's, GPT-2's, which is logged as a warning. Equal embedding and head become one, tied. The
    file's dict loses its weights on the way, so that they are not in memory twice. Raises `ValueError` naming each
    tensor that is missing, unexpected, of a wrong shape, not of a floating type or not finite.
    """
    path = found.path
    tensors = tensors_of(_state_dict(found), path)
    config = _config_of(tensors, path, n_heads)
    expected = {name: tuple(tensor.shape) for name, tensor in meta_state(config, str(path)).items()}
    shapes = {name: tensors.shape(name) for name in tensors if not name.endswith(MASKS)}
    account_for(expected, shapes, f"{path} is not a complete model of the book's")
    if config.tie_embeddings:
        tensors.take("out_head.weight")
        del expected["out_head.weight"]
    state = {}
    for name in sorted(expected, key=lambda name: -math.prod(expected[name])):
        tensor = tensors.take(name)
        check_tensor(tensor, name, str(path))
        state[name] = own_copy(tensor, dtype)
    if config.tie_embeddings:
        state["out_head.weight"] = state["tok_emb.weight"]
    return build_model(config, state)


def _state_dict(found: Found) -> Any:
    value = found.value if isinstance(found.value, Mapping) else {}
    state = value.get("model_state_dict", value)
    return state if isinstance(state, Mapping) else {}


def export(
    model: GPTModel, tokenizer: Tokenizer, path: Path, number_type: str | None, name: str | None
) -> tuple[Proof, list[str], GPTModel | None]:
    """`write_book`, proved by reading the file again; the note is the `cfg` to build the book's model with."""
    write_book(model, path)
    result = read(Found(path, load_pickled(path)), n_heads=model.config.n_heads)
    return prove(model, result), [f"cfg = {book_dict(model.config)}"], None


def write_book(model: GPTModel, path: Path) -> None:
    """Write a state dict that the book's `GPTModel(cfg).load_state_dict` takes, strictly; `path` must be new.

    `cfg` is the dict that `book_dict` gives. Raises `ValueError` for a model the book's code cannot be.
    """
    config = model.config
    book_dict(config)
    state: dict[str, Tensor] = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    mask = torch.ones(config.context_length, config.context_length).triu(1)
    state |= {f"trf_blocks.{i}.att.mask": mask for i in range(config.n_layers)}
    # not torch.save(state, temporary): it would write the temporary name into the file
    with creating(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def book_dict(config: GPTConfig) -> dict[str, Any]:
    """The book's seven keys; `ValueError` for what they cannot say."""
    if config.sliding_window is not None or config.gelu != "tanh":
        wrong = "a sliding window" if config.sliding_window is not None else "the erf form of GELU"
        raise ValueError(f"the book's model has no place for {wrong}")
    keys = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate", "qkv_bias")
    return {key: value for key, value in config.to_dict().items() if key in keys}


def _config_of(state: TensorSource, path: Path, n_heads: int | None) -> GPTConfig:
    try:
        vocab_size, emb_dim = state.shape("tok_emb.weight")
        context_length, _ = state.shape("pos_emb.weight")
    except (KeyError, ValueError):
        raise ValueError(f"{path} has no two-dimensional tok_emb.weight and pos_emb.weight") from None
    if n_heads is None:
        if emb_dim not in _HEADS:
            raise ValueError(
                f"{path}: the number of heads is not in the file: give n_heads, or import the file with it once"
            )
        n_heads = _HEADS[emb_dim]
        _log.warning(
            "%s does not say its number of heads: %d are assumed, as in GPT-2 of this width; give n_heads if it was "
            "trained with another number",
            path,
            n_heads,
        )
    layers = {name.split(".")[1] for name in state if name.startswith("trf_blocks.")}
    tied = "out_head.weight" in state and same(state["out_head.weight"], state["tok_emb.weight"])
    try:
        return GPTConfig(
            vocab_size=vocab_size,
            context_length=context_length,
            emb_dim=emb_dim,
            n_heads=n_heads,
            n_layers=max(1, len(layers)),
            drop_rate=0.0,
            qkv_bias=any(name.endswith(("W_query.bias", "W_key.bias", "W_value.bias")) for name in state),
            tie_embeddings=tied,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
