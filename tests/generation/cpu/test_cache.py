"""Keys and values in each number type: what is kept, equal bits however rows are put together, and what it costs."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from test_cpu_decoder import SHAPES, ids_for

from glassgpt import GPTModel
from glassgpt.generation.compare import compare
from glassgpt.generation.cpu import decoder as decoder_module
from glassgpt.generation.cpu.cache import CACHES, OF_KEYS, OF_VALUES, keep, new_cache, scales_of, times_scales
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.cpu.tiles import LANES, PANEL

Make = Callable[..., GPTModel]


@njit(error_model="numpy")
def keep_all(keys: Any, values: Any, new: Any) -> None:
    scales = scales_of(keys)
    for n in range(len(new)):
        keep(keys, values, scales, 0, 0, n, new[n, 0], new[n, 1])


@njit(error_model="numpy")
def multiply(panels: Any, which: int, rows: Any) -> None:
    times_scales(panels, which, rows, 0)


def kept(new: np.ndarray, cache: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, 2, head_dim) keys and values as the cache of one head has them, and the scales (tokens, 2)."""
    n, _, head_dim = new.shape
    keys, values = (memory[0] for memory in new_cache(cache, 1, 1, 1, n, head_dim))
    keep_all(keys, values, new)
    keys, values = keys[0, 0], values[0, 0]
    scales = np.ones((2, len(keys) * PANEL), np.float32)
    for which in (OF_KEYS, OF_VALUES):
        multiply(keys, which, scales[which : which + 1])
    if cache == "float16":
        keys, values = keys.view(np.float16), values.view(np.float16)
    columns = keys[:, :head_dim].transpose(0, 2, 1).reshape(-1, head_dim)[:n]
    assert not values[:, head_dim:].any(), "what fills up a value is 0"
    return np.stack([columns, values[:, :head_dim]], axis=1), scales.T[:n]


numbers = st.floats(-(2.0**127), 2.0**127, width=32) | st.floats(-4, 4, width=32)


@pytest.mark.parametrize("cache", CACHES)
@given(data=st.data())
def test_what_is_kept_is_near(cache: str, data: st.DataObject) -> None:
    """int8: within half a scale, which is the largest number's 127th part; float16: in 11 bits, up to its largest."""
    head_dim, n = data.draw(st.integers(1, 2 * LANES + 1)), data.draw(st.sampled_from([1, 2, PANEL + 1]))
    drawn = data.draw(st.lists(numbers, min_size=1, max_size=8))
    new = np.resize(np.array(drawn, np.float32), (n, 2, head_dim))
    found, scales = kept(new, cache)
    wide = new.astype(np.float64)
    if cache == "float32":
        assert np.array_equal(found, new)
    elif cache == "float16":
        np.testing.assert_allclose(found, np.clip(wide, -65504, 65504), rtol=2**-11, atol=2**-25)
    else:
        largest = np.abs(wide).max(axis=2)
        np.testing.assert_allclose(scales, np.where(largest > 1e-30, largest / 127, 0), rtol=1e-6, atol=1e-38)
        step = scales[:, :, None].astype(np.float64)
        assert (np.abs(found * step - wide) <= 0.5001 * step + 1e-30).all()
        assert np.abs(found.astype(int)).max() <= 127


@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_counted(tiny_model: Make, shape: dict[str, Any]) -> None:
    packed = pack_model(tiny_model(**shape))
    config, row = packed.config, {cache: CPUDecoder(packed, cache=cache).row_bytes for cache in CACHES}
    assert row["float16"] * 2 == row["float32"]
    scales = config.n_layers * config.n_heads * -(-config.context_length // PANEL) * PANEL * 2 * 4
    assert row["int8"] == row["float32"] // 4 + scales


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cache", CACHES)
def test_bits_are_equal_alone_in_steps_and_in_pieces(tiny_model: Make, shape: dict[str, Any], cache: str) -> None:
    model = tiny_model(**shape)
    packed, ids = pack_model(model), ids_for(model, 70)
    decoder = CPUDecoder(packed, cache=cache)
    alone = [decoder.read(ids[: n + 1]).scores for n in range(len(ids))]
    stepped = [decoder.add([ids[:1]])[0]] + [decoder.step([token])[0] for token in ids[1:]]
    assert np.array_equal(stepped, alone)
    for size in (1, 5, len(ids)):
        prefix, pieces = None, []
        for start in range(0, len(ids), size):
            prefix, scores = decoder.read_all(ids[start : start + size], prefix)
            pieces += [*scores]
        assert np.array_equal(pieces, alone)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("threads", [1, 2])
@settings(max_examples=20)
@given(data=st.data())
def test_whatever_rows_go_through_their_bits_are_those_of_a_fresh_read(
    tiny_model: Make, threads: int, cache: str, data: st.DataObject
) -> None:
    """Rows join, outgrow their memory, are extended, cut, left to others and dropped, in one thread or in several."""
    packed = pack_model(tiny_model(context_length=150))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_module, "ALONE", 0)  # small work is shared, too
        decoder, fresh, rows = CPUDecoder(packed, threads=threads, cache=cache), CPUDecoder(packed, cache=cache), []
        for move in data.draw(
            st.lists(st.sampled_from(["join", "step", "extend", "cut", "leave", "drop"]), max_size=12)
        ):
            row = int(random.integers(max(1, len(rows))))
            if move == "join" or not rows:
                first, rest = (random.integers(0, 97, random.integers(1, 40)).tolist() for _ in range(2))
                prefix = decoder.read(rest, decoder.read(first))
                decoder.join(prefix)
                rows.append([*first, *rest])
                scores, of_rows = prefix.scores[None], [rows[-1]]
            elif move == "drop":
                decoder.drop(row)
                rows[row] = rows[-1]
                rows.pop()
                continue
            elif move == "cut":
                del rows[row][random.integers(1, len(rows[row]) + 1) :]
                decoder.cut(row, len(rows[row]))
                continue
            elif move == "leave":
                left = rows[row][: random.integers(1, len(rows[row]) + 1)]
                prefix = decoder.left_by(row, len(left))
                assert (prefix.n_tokens, prefix.scores) == (len(left), None)
                scores, of_rows = decoder.read([7, 8], prefix).scores[None], [[*left, 7, 8]]
            elif max(map(len, rows)) >= 130:
                continue
            elif move == "step":
                tokens = random.integers(0, 97, len(rows)).tolist()
                scores = decoder.step(tokens)
                rows = of_rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
            else:
                new = [random.integers(0, 97, random.integers(1, 20)).tolist() for _ in rows]
                scores = decoder.extend(new)
                of_rows = [
                    [*row, *some[: n + 1]] for row, some in zip(rows, new, strict=True) for n in range(len(some))
                ]
                rows = [[*row, *some] for row, some in zip(rows, new, strict=True)]
            assert np.array_equal(scores, [fresh.read(ids).scores for ids in of_rows])


@pytest.mark.parametrize("cache", CACHES)
def test_a_number_too_large_stays_finite(tiny_model: Make, cache: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.trf_blocks[0].att.W_value.weight.mul_(1e6)
    assert np.isfinite(CPUDecoder(pack_model(model), cache=cache).read([1, 2, 3]).scores).all()


@pytest.mark.parametrize(
    ("cache", "precision", "outlier", "error", "divergence"),
    [
        ("float16", "float32", 1, 5e-4, 1e-7),  # measured: 1.1e-4 and 6e-9
        ("int8", "float32", 1, 1e-2, 2e-5),  # 2.4e-3 and 2.7e-6
        ("int8", "float32", 30, 5e-2, 1e-3),  # 2.1e-2 and 2.2e-4
        ("int8", "int8", 1, 3e-2, 2e-4),  # 7.8e-3 and 2.3e-5: activations round to other bytes
        ("int8", "int4", 1, 3e-2, 2e-4),  # 7.8e-3 and 2.3e-5
    ],
)
def test_what_it_costs_a_trained_model(
    trained_model: Callable[..., Any], cache: str, precision: str, outlier: int, error: float, divergence: float
) -> None:
    """Of the scores, and in nats, beside keys and values in float32 with the same weights.

    One number of each head's keys is `outlier` times as large as it was, and the query's as many times smaller.
    """
    model, _, ids = trained_model(emb_dim=96, n_heads=3, context_length=70)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.trf_blocks:
            block.att.W_key.weight[5::32] *= outlier
            block.att.W_query.weight[5::32] /= outlier
    packed = pack_model(model, precision)
    windows = [ids[start : start + 71] for start in range(0, 71 * 20, 71)]
    found = compare(CPUDecoder(packed), CPUDecoder(packed, cache=cache), windows)
    assert 0 < found.score_error < error
    assert found.mean_divergence < divergence
    assert found.max_divergence < 200 * divergence
    assert abs(found.rise) < 0.005
    assert found.agreement > 0.95
