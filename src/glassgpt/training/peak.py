"""What a run's speed is held against: how fast this machine is in large matrix products. Loads no torch."""

from __future__ import annotations

from typing import Any

from glassgpt.config import GPTConfig
from glassgpt.measured import recall, remember, this_machine


def operations(config: GPTConfig) -> float:
    """Floating-point operations of one trained token, forward and backward, recomputation not counted.

    Six for each parameter that is multiplied, and twelve for each layer, number of the width and token that is seen
    (Chowdhery et al. 2022, "PaLM", appendix B).
    """
    looked_up = config.context_length * config.emb_dim  # what is only looked up: positions, an untied embedding
    looked_up += 0 if config.tie_embeddings else config.vocab_size * config.emb_dim
    seen = min(config.context_length, config.sliding_window or config.context_length)
    return 6.0 * (config.n_parameters() - looked_up) + 12.0 * config.n_layers * config.emb_dim * seen


def remember_rate(rate: float, dtype: str, device: str, threads: int | None) -> None:
    """Keep operations per second that large products reached, for reports of runs to come."""
    remember(_about(dtype, device, threads), {"rate": rate})


def known_rate(dtype: str, device: str | None, threads: int | None) -> tuple[float, str] | None:
    """What was kept last, and the day; None where nothing was."""
    found = recall(_about(dtype, device, threads)) or {}
    rate = found.get("rate")
    return (rate, found["when"]) if isinstance(rate, float) and rate > 0 else None


def _about(dtype: str, device: str | None, threads: int | None) -> dict[str, Any]:
    return {"what": "large products", "dtype": dtype, "device": device, "threads": threads, **this_machine("torch")}
