"""A CPU decoder of a model by its name, without loading torch where its file can be mapped."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np

from glassgpt.cores import asked_threads, wanted_threads
from glassgpt.generation.cpu.cache import CACHES
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.tuning import tuner_for
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
    cache: str = "float32",
    threads: int | None = None,
    message: Callable[[str], None] | None = None,
) -> tuple[CPUDecoder, Tokenizer]:
    """The fastest way to a model's text on a CPU: its decoder, and its tokenizer; what both are given `complete` takes.

    `model` is what `load_model` takes, whose errors this raises. `precision`, one of `weights.PRECISIONS`, is what the
    matrices are kept in, and below float32 the text is no longer the model's own to the last token; None is a quantised
    directory's own, which has no other, and else float32. `cache`, one of `cache.CACHES`: the number type of keys and
    values. `threads`, or `OMP_NUM_THREADS`: None is one for each core, or fewer for one row where its first tokens
    measure that to be faster, which `measured` remembers. `message` hears what takes long: the first use on a machine
    compiles for some seconds. `NotImplementedError` where that fails.
    """
    if precision is not None:
        check("precision", precision, str, Rule(help="", choices=PRECISIONS))
    check("cache", cache, str, Rule(help="", choices=CACHES))
    asked = asked_threads(threads)
    threads = wanted_threads(asked)
    path = resolve_model(model)
    try:
        if not (path / "model.safetensors").is_file() or not (path / "tokenizer.json").is_file():
            raise UnsupportedError
        with ThreadPoolExecutor(1) as beside:  # a third of a second each
            reading = beside.submit(Tokenizer.load, path)
            packed = load(path, precision, threads)
            tokenizer = reading.result()
        fingerprint = functools.partial(_fingerprint, path, f"{packed.precision} {cache}")
    except UnsupportedError:
        from glassgpt.checkpoint import load_model  # any other format, through the readable model

        readable, tokenizer = load_model(path)
        packed = pack_model(readable, precision or "float32", threads)
        fingerprint = functools.partial(_fingerprint_of_packed, packed, cache)
    if tokenizer.n_vocab > packed.config.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.n_vocab} tokens, the model {packed.config.vocab_size}; "
            "they do not belong together"
        )
    decoder = _ready(packed, threads, message, cache)
    decoder.fingerprint = fingerprint
    decoder.tuner = tuner_for(decoder.team, asked, packed.config, packed.precision, cache)
    return decoder, tokenizer


def _fingerprint(directory: Path, numbers: str) -> str:
    """SHA-256 of the files of a model directory that decide its scores, and of the number types."""
    digest = hashlib.sha256(numbers.encode())
    for name in ("config.json", "model.safetensors"):
        with (directory / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _fingerprint_of_packed(packed: Packed, cache: str) -> str:
    digest = hashlib.sha256(f"{packed.config.to_dict()} {packed.precision} {cache}".encode())
    for array in packed.weights:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def compiled_decoder(
    model: Any,
    precision: str = "float32",
    message: Callable[[str], None] | None = None,
    threads: int | None = None,
) -> CPUDecoder:
    """A CPU decoder of a `GPTModel` in memory, whose weights are copied; the other arguments as above."""
    threads = wanted_threads(threads)
    return _ready(pack_model(model, precision, threads), threads, message)


def _ready(packed: Packed, threads: int, message: Callable[[str], None] | None, cache: str = "float32") -> CPUDecoder:
    """A decoder whose code is compiled."""
    decoder = CPUDecoder(packed, threads=threads, cache=cache)
    # whether the code for these arguments lies on the disk, only Numba knows: it is there in an instant, or it is not
    telling = threading.Timer(1, message or (lambda _: None), ["compiling for this machine, once: about 10 seconds"])
    telling.daemon = True
    telling.start()
    try:
        decoder.read([0])
    except numba.core.errors.NumbaError as error:
        raise NotImplementedError(one_line(f"the kernels cannot be compiled here ({error})")) from error
    finally:
        telling.cancel()
    return decoder


def pack_model(model: Any, precision: str = "float32", threads: int = 1) -> Packed:
    """The weights of a `GPTModel`, on whatever device it is, for a `CPUDecoder`."""
    from glassgpt.weights.families.gpt2_names import to_gpt2_names

    names = to_gpt2_names(model.state_dict(), model.config)
    return pack(
        model.config, {name: tensor.float().cpu().numpy() for name, tensor in names.items()}, precision, threads
    )
