"""A GPT you can see through.

The names below are imported when they are first used: `import glassgpt` alone loads no torch, which keeps the command
line quick. It does make `tiktoken.get_encoding("gpt2")` work without the network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import glassgpt.offline_tiktoken  # noqa: F401 - see there

__version__ = "0.1.0"

if TYPE_CHECKING:
    from glassgpt.checkpoint import load_model, save_model
    from glassgpt.config import PRESETS, GPTConfig
    from glassgpt.data.prepare.run import prepare
    from glassgpt.generation.cpu.load import load_decoder
    from glassgpt.generation.text import complete, generate, stream
    from glassgpt.kv_cache import KVCache
    from glassgpt.model import GPTModel
    from glassgpt.tokenizer import Tokenizer
    from glassgpt.training.train import train

_HOME = {
    "GPTConfig": "config",
    "PRESETS": "config",
    "GPTModel": "model",
    "KVCache": "kv_cache",
    "Tokenizer": "tokenizer",
    "load_decoder": "generation.cpu.load",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "complete": "generation.text",
    "generate": "generation.text",
    "prepare": "data.prepare.run",
    "stream": "generation.text",
    "train": "training.train",
}

__all__ = [  # noqa: RUF022 - in the order of the documentation
    "GPTConfig", "GPTModel", "KVCache", "PRESETS", "Tokenizer",
    "complete", "generate", "load_decoder", "load_model", "prepare", "save_model", "stream", "train",
]  # fmt: skip


def __dir__() -> list[str]:
    """What is public, for those who press Tab: a name is imported only when it is used."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
