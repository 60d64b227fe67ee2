"""Which decoder is taken where none was asked for: a default, unless the other one was measured to be faster.

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

COMPILED, CACHED, GRAPHS = "compiled", "cached", "graphs"
_PAIRS = {"cpu": (COMPILED, CACHED), "cuda": (CACHED, GRAPHS)}  # by kind of device: the default, and the other one

_FASTER = 1.1  # the other decoder's sums end in other bits: a text changes with it, so it must be worth it


def default_decoder(device: str = "cpu") -> tuple[str, str]:
    """The decoder on a device such as "cpu" or "cuda:0" where nothing was measured, and why."""
    return _pair(device)[0], f"the default on {'the CPU' if device == 'cpu' else 'a GPU'}"


def choose_decoder(model: Path, device: str = "cpu") -> tuple[str, str]:
    """The decoder for one row of a model directory in float32 on a device, and why that one."""
    default, other = _pair(device)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        # looking for versions takes some milliseconds: not where nothing was ever measured
        if cache_file().exists() and (found := recall(_about(model, device))) is not None:
            rates = {name: float(found[name]) for name in (default, other)}
            why = f"{rates[default]:.3g} tokens/s, {other} {rates[other]:.3g}, measured on {found['when']}"
            return (other if rates[other] > _FASTER * rates[default] else default), why
    return default_decoder(device)


def remember_decoders(model: Path, rates: Mapping[str, float], device: str = "cpu") -> None:
    """Keep the tokens per second of a device's two decoders for `choose_decoder`, where `model` is a directory.

    Nothing is kept where one of them is missing.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        remember(_about(model, device), {name: rates[name] for name in _pair(device)})


def _pair(device: str) -> tuple[str, str]:
    return _PAIRS[device.partition(":")[0]]


def _about(model: Path, device: str) -> dict[str, Any]:
    """What the rates depend on. `OSError` or `ValueError` for anything but a model directory in floats."""
    values = read_json(model / "config.json")
    if is_quantized(values):
        raise ValueError("the compiled decoder alone computes with small numbers")
    config = from_config_json(values)
    shape = [config.n_layers, config.emb_dim, config.n_heads, config.vocab_size]
    about = {"what": "decoders", **this_machine("numba", "torch"), "shape": shape}
    return about if device == "cpu" else {**about, "device": device}
