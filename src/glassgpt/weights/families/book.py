"""The book's `model.pth`: a state dict under the core's own names, with each layer's causal mask beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glassgpt.config import PRESETS, GPTConfig
from glassgpt.files import creating
from glassgpt.model import GPTModel
from glassgpt.weights.families.gpt2_names import build_model, check_tensor, own_copy, same
from glassgpt.weights.families.huggingface import state_dict_of

_HEADS = {PRESETS[name].emb_dim: PRESETS[name].n_heads for name in PRESETS if name.startswith("gpt2")}


def is_book(value: Any) -> bool:
    """Whether an unpickled value is a state dict of the book's model, alone or with its optimizer's."""
    value = value.get("model_state_dict", value) if isinstance(value, dict) else {}
    return isinstance(value, dict) and "tok_emb.weight" in value


def read_book(
    value: Mapping[str, Any],
    path: Path,
    n_heads: int | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> GPTModel:
    """The model of an unpickled `model.pth`.

    Its shape is read off the tensors, but for the number of heads, which leaves no trace in them: `n_heads`, or, where
    the width is one of GPT-2's, GPT-2's. Equal embedding and head become one, tied. `value` loses its weights on the
    way, so that they are not in memory twice. Raises `ValueError` naming each tensor that is missing, unexpected, of a
    wrong shape, not of a floating type or not finite.
    """
    state = state_dict_of(value.get("model_state_dict", value), path)
    for name in [name for name in state if name.endswith(".att.mask")]:
        del state[name]
    config = _config_of(state, path, n_heads)
    shapes = _shapes(config)
    problems = [f"missing {name} {list(shape)}" for name, shape in shapes.items() if name not in state]
    problems += [f"unexpected {name[:100]}" for name in state if name not in shapes]
    problems += [
        f"{name} is {list(state[name].shape)} where {list(shape)} is needed"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if problems:
        raise ValueError(f"{path} is not a complete model of the book's: {'; '.join(problems[:6])}")
    if config.tie_embeddings:
        del state["out_head.weight"]
    for name in sorted(state, key=lambda name: -state[name].numel()):
        check_tensor(state[name], name, str(path))
        state[name] = own_copy(state[name], dtype)
    if config.tie_embeddings:
        state["out_head.weight"] = state["tok_emb.weight"]
    return build_model(config, state)


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


def _config_of(state: Mapping[str, Tensor], path: Path, n_heads: int | None) -> GPTConfig:
    try:
        vocab_size, emb_dim = state["tok_emb.weight"].shape
        context_length, _ = state["pos_emb.weight"].shape
    except (KeyError, ValueError):
        raise ValueError(f"{path} has no two-dimensional tok_emb.weight and pos_emb.weight") from None
    if n_heads is None:
        if emb_dim not in _HEADS:
            raise ValueError(f"{path}: the number of heads is not in the file: give n_heads")
        n_heads = _HEADS[emb_dim]
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


def _shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the model, which is not built: a file may claim any number of layers."""
    with torch.device("meta"):
        of_one_layer = GPTModel(config.replace(n_layers=1)).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in of_one_layer.items():
        in_layer = name.removeprefix("trf_blocks.0.")
        names = [name] if in_layer == name else [f"trf_blocks.{i}.{in_layer}" for i in range(config.n_layers)]
        shapes |= dict.fromkeys(names, tuple(tensor.shape))
    return shapes
