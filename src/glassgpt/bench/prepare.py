"""What a benchmark needs before its first turn: facts about the model, and its files for the peers.

`python -m glassgpt.bench.prepare RESULT`, with a `Request` on standard input, writes the files of one peer; as `turn`.
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
from glassgpt.checkpoint import load_model, save_model
from glassgpt.data.corpus import manual_topics
from glassgpt.files import write_text

if TYPE_CHECKING:
    from glassgpt.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a model without timing it."""

    model: dict[str, Any]
    """As `Bench.model`."""
    sizes: Sizes
    ids: list[int]
    """Tokens that prompts are cut from."""
    text: str
    """A short text that the tokenizer knows."""


@dataclasses.dataclass(frozen=True)
class Request:
    """Which files a process is asked to write."""

    model: str
    contender: str
    """One of the peers."""
    prepared: str
    """The directory that they go to."""


def facts_of(path: str | Path, name: str) -> Facts:
    """The facts about the model at `path`, which is shown as `name`. Raises what `load_model` raises."""
    model, tokenizer = load_model(path)
    config = model.config
    sizes = Sizes.of(config.context_length)
    shown = {
        "name": name,
        "n_parameters": config.n_parameters(),
        "context_length": config.context_length,
        "vocab_size": config.vocab_size,
    }
    return Facts(shown, sizes, prompt_tokens(tokenizer, sizes.n_ids), short_text(tokenizer))


def prepare(request: Request) -> None:
    """Write the model in the peer's format."""
    prepared = Path(request.prepared)
    model, tokenizer = load_model(request.model)
    if request.contender.startswith("llama.cpp"):
        _write_gguf(model, tokenizer, prepared, request.contender.split()[-1])
        return
    if not (prepared / "hf").exists():
        save_model(model, tokenizer, prepared / "hf")
    if request.contender.startswith("ctranslate2"):
        number_type = request.contender.split()[-1]
        converter = importlib.import_module("ctranslate2.converters").TransformersConverter(str(prepared / "hf"))
        quantization = None if number_type == "float32" else number_type
        converter.convert(str(prepared / request.contender), quantization=quantization)


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
    prepare(Request(**json.load(sys.stdin)))
    write_text(Path(sys.argv[1]), "{}")


if __name__ == "__main__":
    main()
