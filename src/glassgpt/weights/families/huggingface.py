"""Hugging Face's GPT-2 directory: `config.json` and `model.safetensors`, as `transformers` and vLLM read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from glassgpt.config import NORM_EPS, GPTConfig
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
from glassgpt.weights.families.gpt2_names import from_gpt2_names
from glassgpt.weights.families.state import build_model, tensors_of
from glassgpt.weights.formats import Found

OURS = "glassgpt"
"""The key of config.json that holds what `GPT2Config` has no word for."""

# What a GPT-2 config may say that this model does not do: (key, the values it does do)
_FIXED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("model_type", ("gpt2", OURS)),
    ("activation_function", ("gelu_new", "gelu_pytorch_tanh", "gelu")),
    ("layer_norm_epsilon", (NORM_EPS,)),
    ("scale_attn_weights", (True,)),
    ("scale_attn_by_inverse_layer_idx", (False,)),
    ("add_cross_attention", (False,)),
)


def to_config_json(config: GPTConfig, eot_id: int | None = None) -> dict[str, Any]:
    """The config as `config.json` of a GPT-2: `transformers` reads it, and `from_config_json` without loss."""
    # GPT-2 has no sliding window: tools that would ignore it, and answer wrongly, must not take it for one
    is_gpt2 = config.sliding_window is None
    return {
        "architectures": ["GPT2LMHeadModel" if is_gpt2 else "GPTModel"],
        "model_type": "gpt2" if is_gpt2 else OURS,
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "n_inner": None,
        "activation_function": "gelu" if config.gelu == "erf" else "gelu_new",
        "layer_norm_epsilon": NORM_EPS,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": config.drop_rate,
        "resid_pdrop": config.drop_rate,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        OURS: {
            "qkv_bias": config.qkv_bias,
            "sliding_window": config.sliding_window,
            "attention": config.attention,
        },
    }


def from_config_json(values: Mapping[str, Any], source: str = "config.json") -> GPTConfig:
    """A `GPTConfig` from a GPT-2's `config.json`; `ValueError` where it asks for what this model does not do."""
    for key, allowed in _FIXED:
        if values.get(key, allowed[0]) not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise ValueError(f"{source}: {key} is {values[key]!r}; this model is a GPT-2 with {wanted}")
    try:
        shape = {
            "vocab_size": values["vocab_size"],
            "context_length": values.get("n_positions", values.get("n_ctx")),
            "emb_dim": values["n_embd"],
            "n_heads": values["n_head"],
            "n_layers": values["n_layer"],
            "gelu": "erf" if values.get("activation_function") == "gelu" else "tanh",
        }
    except KeyError as error:
        raise ValueError(f"{source} has no {error}: it is not a GPT-2's") from None
    ours = values.get(OURS, {})
    if not isinstance(ours, Mapping):
        raise ValueError(f"{source}: {OURS!r} is {ours!r}, not an object")
    drop_rate = values.get("resid_pdrop", 0.1)
    tied = values.get("tie_word_embeddings", True)
    try:
        config = GPTConfig.of({**shape, "drop_rate": drop_rate, "tie_embeddings": tied, "qkv_bias": True, **ours})
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if values.get("n_inner") not in (None, 4 * config.emb_dim):
        raise ValueError(f"{source}: n_inner is {values['n_inner']!r}; this model's is 4 x n_embd")
    return config


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
