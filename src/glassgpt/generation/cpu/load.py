"""A CPU decoder of a model by its name, without loading torch where its file can be mapped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba

from glassgpt.cores import wanted_threads
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.forward import forward
from glassgpt.generation.cpu.weights import PRECISIONS, Packed, UnsupportedError, load, pack
from glassgpt.options import Rule, check
from glassgpt.terminal_text import one_line
from glassgpt.tokenizer import Tokenizer
from glassgpt.weights.download.resolve import resolve_model

_log = logging.getLogger(__name__)


def load_decoder(
    model: str | Path,
    *,
    precision: str = "float32",
    threads: int | None = None,
    message: Callable[[str], None] | None = None,
) -> tuple[CPUDecoder, Tokenizer]:
    """The fastest way to a model's text on a CPU: its decoder, and its tokenizer; what both are given `complete` takes.

    `model` is what `load_model` takes, whose errors this raises. `precision`, one of `weights.PRECISIONS`, is what the
    matrices are kept in; below float32 the text is no longer the model's own to the last token. `threads`: as
    `cores.wanted_threads`. `message` hears what takes long: the first use on a machine compiles for some seconds.
    `NotImplementedError` where that fails.
    """
    check("precision", precision, str, Rule(help="", choices=PRECISIONS))
    threads = wanted_threads(threads)
    path = resolve_model(model)
    try:
        if not (path / "model.safetensors").is_file() or not (path / "tokenizer.json").is_file():
            raise UnsupportedError
        with ThreadPoolExecutor(1) as beside:  # a third of a second each
            reading = beside.submit(Tokenizer.load, path)
            packed = load(path, precision, threads)
            tokenizer = reading.result()
    except UnsupportedError:
        from glassgpt.checkpoint import load_model  # any other format, through the readable model

        readable, tokenizer = load_model(path)
        packed = pack_model(readable, precision, threads)
    if tokenizer.n_vocab > packed.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.n_vocab} tokens, the model {packed.config.vocab_size}; "
            "they do not belong together"
        )
    return _ready(packed, threads, message), tokenizer


def compiled_decoder(
    model: Any, precision: str = "float32", message: Callable[[str], None] | None = None
) -> CPUDecoder:
    """A CPU decoder of a `GPTModel` in memory, whose weights are copied; `precision` and `message` as above."""
    threads = wanted_threads()
    return _ready(pack_model(model, precision, threads), threads, message)


def _ready(packed: Packed, threads: int, message: Callable[[str], None] | None) -> CPUDecoder:
    """A decoder whose code is compiled."""
    if message is not None and not is_compiled():
        message("compiling for this machine, once: about 20 seconds")
    decoder = CPUDecoder(packed, threads=threads)
    try:
        decoder.read([0])
    except numba.core.errors.NumbaError as error:
        raise NotImplementedError(one_line(f"the kernels cannot be compiled here ({error})")) from error
    return decoder


def pack_model(model: Any, precision: str = "float32", threads: int = 1) -> Packed:
    """The weights of a `GPTModel`, on whatever device it is, for a `CPUDecoder`."""
    from glassgpt.weights.families.gpt2_names import to_gpt2_names

    names = to_gpt2_names(model.state_dict(), model.config)
    return pack(
        model.config, {name: tensor.float().cpu().numpy() for name, tensor in names.items()}, precision, threads
    )


def is_compiled() -> bool:
    """Whether a version of the kernels lies on the disk."""
    directory = Path(forward.stats.cache_path or "")
    return any(directory.glob("forward.forward-*.nbi"))
