"""What a benchmark needs before its first turn, in a process of its own, so that the parent loads no model.

`python -m glassgpt.bench.prepare RESULT`, with a `Request` on standard input; as `turn`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.bench.plan import Sizes
from glassgpt.data.corpus import manual_topics
from glassgpt.files import write_text

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Request:
    """Facts about a model, or its files for a peer."""

    model: str
    prepared: str
    """The directory that the files go to."""
    contender: str | None = None
    """The peer; None: the facts."""


def prepare(request: Request) -> dict[str, Any]:
    """The model's sizes, and tokens and a text for prompts; for a peer nothing, after its files are written."""
    from glassgpt.checkpoint import load_model, save_model  # not before: the parent imports this module without torch

    prepared = Path(request.prepared)
    model, tokenizer = load_model(request.model)
    config = model.config
    if request.contender is None:
        sizes = Sizes.of(config.context_length)
        return {
            "model": {
                "name": request.model,
                "n_parameters": config.n_parameters(),
                "context_length": config.context_length,
                "vocab_size": config.vocab_size,
            },
            "sizes": dataclasses.asdict(sizes),
            "ids": prompt_tokens(tokenizer, sizes.n_ids),
            "text": short_text(tokenizer),
        }
    if request.contender.startswith("llama.cpp"):
        _write_gguf(model, tokenizer, prepared, request.contender.split()[-1])
        return {}
    if not (prepared / "hf").exists():
        save_model(model, tokenizer, prepared / "hf")
    if request.contender.startswith("ctranslate2"):
        number_type = request.contender.split()[-1]
        converter = importlib.import_module("ctranslate2.converters").TransformersConverter(str(prepared / "hf"))
        quantization = None if number_type == "float32" else number_type
        converter.convert(str(prepared / request.contender), quantization=quantization)
    return {}


def _write_gguf(model: Any, tokenizer: Tokenizer, prepared: Path, number_type: str) -> None:
    from glassgpt.weights.families.gguf import write_gguf
    from glassgpt.weights.formats import NUMBER_TYPES

    path = prepared / f"{number_type}.gguf"
    if number_type in NUMBER_TYPES:
        write_gguf(model, tokenizer, path, number_type)
        return
    library = importlib.import_module("llama_cpp")
    plain = prepared / "f32.gguf"
    if not plain.exists():
        write_gguf(model, tokenizer, plain)
    options = library.llama_model_quantize_default_params()
    options.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{number_type.upper()}")
    options.pure = True  # the output matrix as well, as ours: else it is kept in more bits
    code = library.llama_model_quantize(bytes(plain), bytes(path), options)
    if code:
        raise OSError(f"llama.cpp could not write {path} (code {code})")


def prompt_tokens(tokenizer: Tokenizer, n: int) -> list[int]:
    """So many tokens: the beginning of Python's manual, or any where the vocabulary cannot say it."""
    ids: list[int] = []
    try:
        for document in manual_topics():
            for piece in document.pieces(max_bytes=1 << 16):
                ids += tokenizer.encode(piece)
                if len(ids) >= n:
                    return ids[:n]
    except ValueError:
        pass  # a character that the vocabulary lacks
    known = [i for i in range(tokenizer.n_vocab) if i not in tokenizer.special_ids]
    return random.Random(0).choices(known, k=n)


def short_text(tokenizer: Tokenizer) -> str:
    """A text of few tokens that the tokenizer knows and that any terminal takes."""
    for text in ("Hello, I am", *(tokenizer.decode([i]) for i in range(tokenizer.n_vocab))):
        if text.isprintable() and text.strip():
            try:
                if tokenizer.encode(text):
                    return text
            except ValueError:
                continue  # a character that the vocabulary lacks
    return ""


def main() -> None:
    """See the module."""
    write_text(Path(sys.argv[1]), json.dumps(prepare(Request(**json.load(sys.stdin)))))


if __name__ == "__main__":
    main()
