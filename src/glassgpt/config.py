"""GPTConfig: the book's keys, checked, and presets. Imports no torch, so that the command line starts fast."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Self

ATTENTION_KINDS = ("sdpa", "explicit")
GELU_KINDS = ("tanh", "erf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of one GPT. The first seven keys are the book's (chapter 4), with its defaults for GPT-2 124M.

    Raises `ValueError` for a value that cannot work, naming the key, the value and what to change.
    """

    vocab_size: int = 50257
    context_length: int = 1024
    """Number of learned positions: the longest sequence the model can read at once, in tokens."""
    emb_dim: int = 768
    n_heads: int = 12
    n_layers: int = 12
    drop_rate: float = 0.1
    """Dropout on embeddings, attention weights and both shortcuts, 0 to 1 (1 excluded)."""
    qkv_bias: bool = False
    tie_embeddings: bool = False
    """True: the output head is the token embedding (GPT-2's own weights); False: its own matrix (the book)."""
    sliding_window: int | None = None
    """Each position sees itself and the `sliding_window - 1` tokens before it; None: all of them."""
    gelu: str = "tanh"
    """"tanh": the form GPT-2 and the book compute; "erf": the exact one, which nanoGPT trains with."""
    attention: str = "sdpa"
    """"sdpa": PyTorch's fused kernel; "explicit": written out step by step. Same results."""

    def __new__(cls, **keys: Any) -> Self:
        """An unknown key is an error that names the nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in keys:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
                raise ValueError(f"unknown config key {key!r}: {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            _check_size(key, getattr(self, key))
        if self.emb_dim % self.n_heads:
            near = [n for n in range(1, min(self.emb_dim, 4096) + 1) if self.emb_dim % n == 0]
            best = min(near, key=lambda n: abs(n - self.n_heads))
            raise ValueError(
                f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}: "
                f"use n_heads {best}, or emb_dim {-(-self.emb_dim // self.n_heads) * self.n_heads}"
            )
        if isinstance(self.drop_rate, bool) or not isinstance(self.drop_rate, (int, float)):
            raise ValueError(f"drop_rate must be a number from 0 up to 1, not {self.drop_rate!r}")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate {self.drop_rate} is outside 0 <= drop_rate < 1")
        for key in ("qkv_bias", "tie_embeddings"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"{key} must be true or false, not {getattr(self, key)!r}")
        if self.sliding_window is not None:
            _check_size("sliding_window", self.sliding_window)
        for key, kinds in (("attention", ATTENTION_KINDS), ("gelu", GELU_KINDS)):
            if getattr(self, key) not in kinds:
                raise ValueError(f"{key} {getattr(self, key)!r} is unknown: use one of {', '.join(kinds)}")

    @classmethod
    def of(cls, config: GPTConfig | Mapping[str, Any]) -> Self:
        """A config from the book's dict, or the config itself. An unknown key is an error, never ignored."""
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ValueError(f"a config is a GPTConfig or a dict, not {type(config).__name__}")
        if strange := [key for key in config if not isinstance(key, str)]:
            raise ValueError(f"unknown config key {strange[0]!r}: keys are names")
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """All keys and values, ready for JSON; `GPTConfig.of` reads it back."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Self:
        """A copy with some keys changed, checked again."""
        return self.of(self.to_dict() | changes)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.emb_dim // self.n_heads

    def n_parameters(self) -> int:
        """Number of parameters of the model this describes, without building it."""
        d = self.emb_dim
        attention = 4 * d * d + d + (3 * d if self.qkv_bias else 0)
        feed_forward = 2 * 4 * d * d + 4 * d + d
        norms = 2 * 2 * d
        head = 0 if self.tie_embeddings else self.vocab_size * d
        embeddings = (self.vocab_size + self.context_length) * d
        return embeddings + self.n_layers * (attention + feed_forward + norms) + 2 * d + head


def _check_size(key: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{key} {value} is below 1")


def _gpt2(emb_dim: int, n_heads: int, n_layers: int) -> GPTConfig:
    return GPTConfig(emb_dim=emb_dim, n_heads=n_heads, n_layers=n_layers, qkv_bias=True, tie_embeddings=True)


def _small(emb_dim: int, n_heads: int, n_layers: int, context_length: int) -> GPTConfig:
    return GPTConfig(
        emb_dim=emb_dim,
        n_heads=n_heads,
        n_layers=n_layers,
        context_length=context_length,
        vocab_size=1024,
        drop_rate=0.0,
    )


PRESETS: dict[str, GPTConfig] = {
    "nano": _small(64, 4, 2, 64),
    "micro": _small(128, 4, 4, 128),
    "mini": _small(256, 8, 6, 256),
    "small": _small(384, 6, 6, 256),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 16, 24),
    "gpt2-large": _gpt2(1280, 20, 36),
    "gpt2-xl": _gpt2(1600, 25, 48),
}
"""Shapes by name: the four GPT-2 sizes, and four that train on two cores in minutes."""


def preset(name: str) -> GPTConfig:
    """The preset called `name`; `ValueError` with the known names otherwise."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]
