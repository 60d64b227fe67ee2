"""`config.json` of a Hugging Face GPT-2 and `GPTConfig`, in both directions. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glassgpt.config import NORM_EPS, GPTConfig

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
