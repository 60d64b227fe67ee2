"""Which decoder is taken on a CPU where none was asked for: the compiled one, unless it was measured to be slower.

`glassgpt.bench` measures both on one model, in turns, and what it found is remembered for models of that shape. Loads
no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassgpt.json_file import read_json
from glassgpt.measured import cache_file, recall, remember, this_machine
from glassgpt.weights.containers.quantized_file import is_quantized
from glassgpt.weights.families.config_json import from_config_json

COMPILED, CACHED = "compiled", "cached"
DEFAULT = COMPILED, "the default on the CPU"

_FASTER = 1.1  # the other decoder's sums end in other bits: a text changes with it, so it must be worth it


def choose_decoder(model: Path) -> tuple[str, str]:
    """`COMPILED` or `CACHED` for one row of a model directory in float32, and why."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        # looking for versions takes some milliseconds: not where nothing was ever measured
        if cache_file().exists() and (found := recall(_about(model))) is not None:
            compiled, cached = float(found[COMPILED]), float(found[CACHED])
            why = f"{compiled:.3g} tokens/s, cached {cached:.3g}, measured on {found['when']}"
            return (CACHED if cached > _FASTER * compiled else COMPILED), why
    return DEFAULT


def remember_decoders(model: Path, rates: Mapping[str, float]) -> None:
    """Keep the tokens per second of `COMPILED` and `CACHED` for `choose_decoder`, where `model` is a directory."""
    with contextlib.suppress(OSError, ValueError):
        remember(_about(model), {COMPILED: rates[COMPILED], CACHED: rates[CACHED]})


def _about(model: Path) -> dict[str, Any]:
    """What the rates depend on. `OSError` or `ValueError` for anything but a model directory in floats."""
    values = read_json(model / "config.json")
    if is_quantized(values):
        raise ValueError("the compiled decoder alone computes with small numbers")
    config = from_config_json(values)
    shape = [config.n_layers, config.emb_dim, config.n_heads, config.vocab_size]
    return {"what": "decoders", **this_machine("numba", "torch"), "shape": shape}
