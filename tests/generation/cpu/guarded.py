"""Kernels and decoders whose arrays lie between pages that nobody may touch: `python guarded.py`, see `test_bounds.py`.

The tiles reach memory through addresses, which Numba's bounds checks do not see: a byte before or after an array ends
the process here. Everything runs twice, with arrays that end where the second page begins and with such as begin where
the first one ends.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from test_kernels import in_panels, rows_of

from glassgpt import GPTConfig, GPTModel
from glassgpt.generation.cpu import decoder as decoder_module
from glassgpt.generation.cpu import kernels
from glassgpt.generation.cpu.cache import CACHES, new_cache
from glassgpt.generation.cpu.compiled import compiled
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.forward import new_room
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.cpu.panels import filled
from glassgpt.generation.cpu.team import new_phases
from glassgpt.generation.cpu.tiles import LANES, PANEL
from glassgpt.generation.cpu.weights import PRECISIONS
from glassgpt.generation.decoder import Draw
from glassgpt.generation.options import Sampling

Guard = Callable[[Any], Any]
LIBC, PAGE = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
RANDOM = np.random.default_rng(0)


def guarded(at_end: bool, array: Any) -> Any:
    """A copy between two such pages; of a tuple of arrays, each."""
    if isinstance(array, tuple):
        each = [guarded(at_end, one) for one in array]
        return type(array)(*each) if hasattr(array, "_fields") else tuple(each)
    size = -(-max(1, array.nbytes) // PAGE) * PAGE
    memory = mmap.mmap(-1, size + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + PAGE + size):
        assert LIBC.mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
    first = PAGE + size - array.nbytes if at_end else PAGE
    view = np.frombuffer(memory, np.uint8)[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def products(guard: Guard) -> None:
    for precision in PRECISIONS:
        for rows in (1, 5, 6, 13):
            for n_in, n_out in ((32, 1), (96, 5), (64, 9)):
                x = guard(rows_of(normal(rows, n_in), precision)[0])
                w, scales = guard(in_panels(normal(n_out, n_in), precision)[:2])
                n = filled(n_out)
                bias, out = guard(np.zeros(n, np.float32)), guard(np.zeros((rows, n), np.float32))
                kernels.linear(new_phases(1), 0, x, w, scales, bias, out, kernels.NOTHING, out)


def attentions(guard: Guard) -> None:
    heads, n, none = 2, PANEL + 6, guard(kernels.new_rows(1, 1))
    for cache in CACHES:
        for head_dim in (5, LANES, 64):
            d = heads * head_dim
            qkv = guard(normal(n, filled(3 * d)))
            keys, values = guard(tuple(memory[0] for memory in new_cache(cache, 1, 1, heads, n, head_dim)))
            slots, positions, blocks = guard((np.zeros(n, np.int64), np.arange(n), np.array([*range(0, n, 6), n])))
            kernels.store(new_phases(1), 0, qkv, heads, head_dim, slots, positions, keys, values)
            out = guard(np.zeros((n, d), np.float32))
            kernels.attention(
                new_phases(1), 0, qkv, keys, values, none, slots, positions, blocks, heads, head_dim, 1000, out
            )
            # the arrays that `_attend` makes for itself: weights, zeros, result
            width = values.shape[-1]
            for rows in (1, 6):
                weights, zeros, result = guard((normal(rows, PANEL), np.zeros(PANEL, np.float32), normal(rows, width)))
                x, init, out = weights.ctypes.data, zeros.ctypes.data, result.ctypes.data
                one, panel = guard((values[0, 0].reshape(-1).copy(), keys[0, 0, 0].reshape(-1).copy()))
                for column in range(0, width, PANEL if width % PANEL == 0 else LANES):
                    kernels._value_tiles(
                        x, PANEL, rows, none, one, column, width, init, out + 4 * column, PANEL, width % PANEL == 0
                    )
                some = guard(normal(rows, head_dim))
                kernels.product(
                    some.ctypes.data, 0, head_dim, none, 0, 0, rows, panel, 0, none.scales, 0, init, 0, x, PANEL,
                    head_dim,
                )  # fmt: skip


def decoders(guard: Guard, models: dict[str, GPTModel]) -> None:
    """Whole passes: prompts in pieces, steps, several rows, guesses, memory that grows, tokens drawn in between."""

    def room(*sizes: Any) -> Any:
        made = new_room(*sizes)
        made.x[:], made.chosen[:] = np.nan, np.nan  # nothing is read before it is written
        return guard(made)

    decoder_module.new_room = room  # type: ignore[attr-defined]
    for precision, cache in (("float32", "int8"), ("bfloat16", "float16"), ("int8", "float32"), ("int4", "int8")):
        for model in models.values():
            packed, ids = pack_model(model, precision), RANDOM.integers(0, model.vocab_size, 160).tolist()
            decoder = CPUDecoder(packed, cache=cache)
            decoder._weights = guard(packed.weights)
            memory = decoder._memory
            decoder._memory = lambda *sizes, memory=memory: guard(memory(*sizes))  # type: ignore[method-assign]
            decoder._keys, decoder._values = decoder._memory(0, 0)
            decoder.join(decoder.read(ids[90:100], decoder.read(ids[:90])))
            decoder.join(decoder.read(ids[:1]))
            decoder.extend([ids[100:120], ids[1:9]])
            decoder.cut(0, 101)
            for n in range(101, 140):
                scores = decoder.step([ids[n], ids[n - 90]])
            draws = [Draw(Sampling(top_k=5, top_p=0.9), model.vocab_size, (), [0.5] * 9) for _ in range(2)]
            drawn, scores = decoder.run([ids[140], ids[50]], draws)
            with torch.no_grad():
                expected = model(torch.tensor([[*ids[:141], *drawn[0]]]))[0, -1].numpy()
            close = 1e-3 if precision == "float32" else 0.5
            np.testing.assert_allclose(scores[0], expected, atol=close * np.abs(expected).max(), rtol=0)


@compiled()
def beyond(numbers: Any, n: int) -> Any:
    return numbers[n]


def main() -> None:
    try:
        beyond(np.zeros(3), 3)
    except IndexError:
        print("indices are checked")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    shapes: dict[str, dict[str, Any]] = {
        "odd": {"emb_dim": 21, "n_heads": 3, "n_layers": 1, "vocab_size": 97},
        "wide": {"emb_dim": 132, "n_heads": 2, "n_layers": 2, "vocab_size": 517, "sliding_window": 70},
    }
    models = {
        name: GPTModel(GPTConfig.of({"context_length": 160, "drop_rate": 0.0, **shape})).eval()
        for name, shape in shapes.items()
    }
    for at_end in (True, False):
        guard = functools.partial(guarded, at_end)
        products(guard)
        attentions(guard)
        decoders(guard, models)
    print("nothing beyond was touched")


if __name__ == "__main__":
    main()
