"""GPTConfig: the book's keys, checked, and presets. Imports no torch, so that the command line starts fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self, TypedDict

from glassgpt.options import Options, option

ATTENTION_KINDS = ("sdpa", "explicit")
GELU_KINDS = ("tanh", "erf")

ROLES = ("embedding", "head", "hidden", "residual", "scale", "bias")
"""What a parameter is for: token or position vectors, the output head, a matrix inside a block, such a matrix whose
output is added to the shortcut, the factor of a norm, or a vector that is added."""


WEIGHTS_LEAVE_OPEN = ("context_length", "drop_rate", "attention")
"""Fields of a shape that may be chosen for weights that are there already."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(Options):
    """The shape of one GPT. The first seven keys are the book's (chapter 4), with its defaults for GPT-2 124M.

    Raises `ValueError` for a value that cannot work, naming the key, the value and what to change.
    """

    noun = "config key"

    vocab_size: int = option(50257, "number of token ids", unit="tokens", at_least=1)
    context_length: int = option(
        1024, "learned positions: the longest sequence the model can read at once", unit="tokens", at_least=1
    )
    emb_dim: int = option(768, "width of each token's vector, a multiple of the heads", unit="width", at_least=1)
    n_heads: int = option(12, "attention heads in each layer", unit="heads", at_least=1)
    n_layers: int = option(12, "transformer blocks", unit="layers", at_least=1)
    drop_rate: float = option(
        0.1, "dropout on embeddings, attention weights and shortcuts", unit="part", at_least=0, below=1, short="dropout"
    )
    qkv_bias: bool = option(False, "biases in the query, key and value projections")
    tie_embeddings: bool = option(
        False, "the output head is the token embedding (GPT-2) instead of its own matrix (the book)", short="tie"
    )
    sliding_window: int | None = option(
        None,
        "each position sees itself and the N - 1 tokens before it",
        unit="tokens",
        at_least=1,
        at_most=2**31,
        derived="all",
    )
    gelu: str = option("tanh", "tanh: what GPT-2 and the book compute; erf: exact, as nanoGPT", choices=GELU_KINDS)
    attention: str = option(
        "sdpa", "sdpa: PyTorch's fused kernel; explicit: step by step; same results", choices=ATTENTION_KINDS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.emb_dim % self.n_heads:
            near = [n for n in range(1, min(self.emb_dim, 4096) + 1) if self.emb_dim % n == 0]
            best = min(near, key=lambda n: abs(n - self.n_heads))
            raise ValueError(
                f"emb_dim {self.emb_dim} is not divisible by n_heads {self.n_heads}: "
                f"use n_heads {best}, or emb_dim {-(-self.emb_dim // self.n_heads) * self.n_heads}"
            )

    @classmethod
    def of(cls, config: GPTConfig | Mapping[str, Any]) -> Self:
        """The config itself, or one from the book's dict; an unknown key is an error."""
        return config if isinstance(config, cls) else cls.from_dict(config)  # type: ignore[arg-type]

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


NORM_EPS = 1e-5
"""What GPT-2's layer norms add to the variance."""

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


def preset_sizes() -> str:
    """The presets as a line of help: layers x width, context and parameters of each."""
    return ", ".join(
        f"{name} {c.n_layers}x{c.emb_dim} context {c.context_length} ({c.n_parameters() / 1e6:,.1f}M parameters)"
        for name, c in PRESETS.items()
    )


class GPTConfigKeywords(TypedDict, total=False):
    """The fields of `GPTConfig`, for type checkers and editors; a test keeps the two alike."""

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool
    tie_embeddings: bool
    sliding_window: int | None
    gelu: str
    attention: str
