"""A CPU decoder of a model by its name, without loading torch where its file can be mapped."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
    precision: str | None = None,
    threads: int | None = None,
    message: Callable[[str], None] | None = None,
) -> tuple[CPUDecoder, Tokenizer]:
    """The fastest way to a model's text on a CPU: its decoder, and its tokenizer; what both are given `complete` takes.

    `model` is what `load_model` takes, whose errors this raises. `precision`, one of `weights.PRECISIONS`, is what the
    matrices are kept in, and below float32 the text is no longer the model's own to the last token; None is a quantised
    directory's own, which has no other, and else float32. `threads`: as `cores.wanted_threads`. `message` hears what
    takes long: the first use on a machine compiles for some seconds. `NotImplementedError` where that fails.
    """
    if precision is not None:
        check("precision", precision, str, Rule(help="", choices=PRECISIONS))
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]  # made when it is imported
    numba.set_num_threads(min(wanted_threads(threads), most))
    path = resolve_model(model)
    try:
        if not (path / "model.safetensors").is_file() or not (path / "tokenizer.json").is_file():
            raise UnsupportedError
        tokenizer, packed = Tokenizer.load(path), load(path, precision)
    except UnsupportedError:
        from glassgpt.checkpoint import load_model  # any other format, through the readable model

        readable, tokenizer = load_model(path)
        packed = pack_model(readable, precision or "float32")
    if tokenizer.n_vocab > packed.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.n_vocab} tokens, the model {packed.config.vocab_size}; "
            "they do not belong together"
        )
    return _ready(packed, message), tokenizer


def compiled_decoder(
    model: Any, precision: str = "float32", message: Callable[[str], None] | None = None
) -> CPUDecoder:
    """A CPU decoder of a `GPTModel` in memory, whose weights are copied; `precision` and `message` as above."""
    return _ready(pack_model(model, precision), message)


def _ready(packed: Packed, message: Callable[[str], None] | None) -> CPUDecoder:
    """A decoder whose code is compiled."""
    if message is not None and not is_compiled():
        message("compiling for this machine, once: about 20 seconds")
    decoder = CPUDecoder(packed)
    try:
        decoder.read([0])
    except numba.core.errors.NumbaError as error:
        raise NotImplementedError(one_line(f"the kernels cannot be compiled here ({error})")) from error
    return decoder


def pack_model(model: Any, precision: str = "float32") -> Packed:
    """The weights of a `GPTModel`, on whatever device it is, for a `CPUDecoder`."""
    from glassgpt.weights.families.gpt2_names import to_gpt2_names

    names = to_gpt2_names(model.state_dict(), model.config)
    return pack(model.config, {name: tensor.float().cpu().numpy() for name, tensor in names.items()}, precision)


def is_compiled() -> bool:
    """Whether a version of the kernels lies on the disk."""
    directory = Path(forward.stats.cache_path or "")
    return any(directory.glob("forward.forward-*.nbi"))
