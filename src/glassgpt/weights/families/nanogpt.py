"""nanoGPT's `ckpt.pt`: GPT-2's names with matrices as (out, in), often without biases, and the exact GELU."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from glassgpt.config import GPTConfig
from glassgpt.model import GPTModel
from glassgpt.weights.families.gpt2_names import from_gpt2_names
from glassgpt.weights.families.state import build_model, tensors_of
from glassgpt.weights.formats import Found

_ARGUMENTS = {
    "vocab_size": "vocab_size",
    "block_size": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "dropout": "drop_rate",
}


def matches(found: Found) -> bool:
    """Whether it is a checkpoint that nanoGPT's `train.py` wrote."""
    return isinstance(found.value, dict) and {"model", "model_args"} <= found.value.keys()


def read(found: Found, dtype: torch.dtype | None = torch.float32, n_heads: int | None = None) -> GPTModel:
    """The model of a `ckpt.pt`, which says its number of heads. An absent bias becomes the zeros it stands for.

    `torch.compile`'s prefix `_orig_mod.` is dropped; the checkpoint loses its weights on the way. Raises `ValueError`
    where a tensor or an argument is missing or wrong.
    """
    path, arguments = found.path, found.value["model_args"]
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{path}: model_args is a {type(arguments).__name__}, not a dict")
    if missing := [key for key in _ARGUMENTS if key not in arguments]:
        raise ValueError(f"{path}: model_args lacks {missing[0]!r}: it is not a checkpoint of nanoGPT's")
    biased = bool(arguments.get("bias", True))
    shape = {ours: arguments[theirs] for theirs, ours in _ARGUMENTS.items()}
    try:
        config = GPTConfig.of(shape | {"qkv_bias": biased, "tie_embeddings": True, "gelu": "erf"})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tensors = tensors_of(found.value["model"], path)
    state = from_gpt2_names(tensors, config, transposed=False, biased=biased, dtype=dtype, source=str(path))
    return build_model(config, state)
