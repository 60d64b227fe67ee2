"""The table of formats: what is recognised, read and written, in what order, and by which module.

A new format is one file in `families/` and one line here. Nothing heavy is imported until a format is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBER_TYPES = ("f32", "f16", "q8_0")
"""GGUF's number types of the matrices: 32, 16 and about 8.5 bits a weight. Vectors and positions stay float32."""


@dataclass(frozen=True)
class Found:
    """What lies at a path."""

    path: Path
    value: Any = None
    """What a pickled file holds, or the `TensorSource` of a safetensors file; None for a directory."""


@dataclass(frozen=True)
class Format:
    """One format; its functions are in `families/` under its name."""

    name: str
    """As `export --to` calls it."""
    title: str
    """As messages and documents call it."""
    reads: bool = False
    """It has `matches(found) -> bool` and `read(found, dtype, n_heads) -> GPTModel`."""
    writes: bool = False
    """It has `export(model, tokenizer, path, number_type, name) -> (Proof, notes, result)`, where the result is the
    model read back if its weights are rounded, else None; ours is `checkpoint.save_model`."""
    keeps_dtype: bool = False
    """Whether weights are written in the dtype that the source has; else from float32."""

    def function(self, name: str) -> Callable[..., Any]:
        """One of the functions named above."""
        module = importlib.import_module(f"glassgpt.weights.families.{self.name}")
        function: Callable[..., Any] = getattr(module, name)
        return function


FORMATS = (
    Format("nanogpt", "nanoGPT's `ckpt.pt`", reads=True),
    Format("book", "the book's `model.pth`", reads=True, writes=True),
    Format("quantized", "`glassgpt quantize` directory", reads=True),
    Format("huggingface", "Hugging Face directory", reads=True, writes=True, keeps_dtype=True),
    Format("openai", "OpenAI's TensorFlow checkpoint", reads=True),
    Format("gguf", "GGUF", writes=True),
    Format("onnx", "ONNX", writes=True),
)
"""In the order of recognition: the first that matches reads."""

READABLE = tuple(each for each in FORMATS if each.reads)
WRITABLE = {each.name: each for each in FORMATS if each.writes}
KNOWN = f"{', '.join(each.title.replace('`', '') for each in READABLE)}, or a safetensors file of one of these"
"""For messages: what can be read."""
