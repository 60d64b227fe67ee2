from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glassgpt import GPTModel, KVCache
from glassgpt.model import generate_text_simple

Make = Callable[..., GPTModel]
CONTEXT = 16
BOTH = pytest.mark.parametrize("attention", ["sdpa", "explicit"])
WINDOWS = pytest.mark.parametrize("window", [None, 1, 3, 5, 16, 30])
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@torch.no_grad()
def whole(model: GPTModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Scores of each row computed alone and at once, without any cache: (T, vocab_size) each."""
    return [model(torch.tensor([row]))[0] for row in rows]


@torch.no_grad()
def in_chunks(model: GPTModel, cache: KVCache, ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scores of (B, T) ids read in pieces of `sizes`."""
    assert sum(sizes) == ids.shape[1]
    return torch.cat([model(piece, cache) for piece in ids.split(list(sizes), dim=1)], dim=1)


@torch.no_grad()
def greedy(model: GPTModel, prompt: Tensor, n_new: int, cache: KVCache) -> Tensor:
    """Cached greedy generation, as plain as `generate_text_simple`."""
    ids, new = prompt, prompt
    for _ in range(n_new):
        token = model(new, cache)[:, -1:].argmax(-1)
        ids, new = torch.cat([ids, token], dim=1), token
    return ids


def splits(total: int) -> list[tuple[int, ...]]:
    """Every way to write `total` as a sum of pieces, in order."""
    ways: list[tuple[int, ...]] = [()]
    for _ in range(total):
        ways = [(1, *w) for w in ways] + [(w[0] + 1, *w[1:]) for w in ways if w]
    return ways


def ids_of(*shape: int) -> Tensor:
    return torch.randint(97, shape)


@BOTH
@WINDOWS
@pytest.mark.parametrize("n_prompt", [1, 2, CONTEXT - 1, CONTEXT])
def test_scores_and_greedy_tokens_are_the_uncached(
    tiny_model: Make, attention: str, window: int | None, n_prompt: int
) -> None:
    model = tiny_model(attention=attention, sliding_window=window)
    prompt = ids_of(1, n_prompt)
    wanted = generate_text_simple(model, prompt, CONTEXT - n_prompt, CONTEXT)
    cache = model.new_cache()
    for _ in range(2):  # two generations in a row from one cache
        found = greedy(model, prompt, CONTEXT - n_prompt, cache)
        assert found.tolist() == wanted.tolist()
        cache.reset()
        sizes = [n_prompt] + [1] * (CONTEXT - n_prompt)
        torch.testing.assert_close(
            in_chunks(model, cache, wanted, sizes)[0], *whole(model, wanted.tolist()), **TOLERANCE
        )
        cache.reset()


@BOTH
@pytest.mark.parametrize("window", [None, 2, 5])
def test_every_split_of_a_prompt(tiny_model: Make, attention: str, window: int | None) -> None:
    model = tiny_model(attention=attention, sliding_window=window, context_length=8)
    rows = ids_of(2, 6)
    wanted = torch.stack(whole(model, rows.tolist()))
    cache = model.new_cache(2)
    ways = splits(6)
    assert len(set(ways)) == 2**5
    for sizes in ways:
        cache.reset()
        torch.testing.assert_close(in_chunks(model, cache, rows, sizes), wanted, **TOLERANCE)


@BOTH
@WINDOWS
def test_a_batch_of_unequal_lengths_is_each_row_alone(tiny_model: Make, attention: str, window: int | None) -> None:
    model = tiny_model(attention=attention, sliding_window=window)
    prompts = [ids_of(n) for n in (1, 11, 4)]
    cache = model.new_cache(3)
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            found = model(prompt[None], cache.row(row))[0]
            torch.testing.assert_close(found, *whole(model, [prompt.tolist()]), **TOLERANCE)
        assert cache.lengths.tolist() == [1, 11, 4]
        rows = [prompt.tolist() for prompt in prompts]
        for n_new in (1, 1, 2, 1):  # steps, and two tokens at once
            new = ids_of(3, n_new)
            found = model(new, cache)
            for row, tokens in enumerate(new.tolist()):
                rows[row] += tokens
            for row, wanted in enumerate(whole(model, rows)):
                torch.testing.assert_close(found[row], wanted[-n_new:], **TOLERANCE)


@given(data=st.data())
def test_any_shape_any_batch_any_order_of_reading(tiny_model: Make, data: st.DataObject) -> None:
    """A random machine: rows are prefilled alone, stepped together, dropped and begun anew."""
    heads, context = data.draw(st.integers(1, 4), "heads"), data.draw(st.integers(1, 12), "context")
    model = tiny_model(
        context_length=context,
        n_heads=heads,
        emb_dim=heads * data.draw(st.integers(1, 4), "head_dim"),
        n_layers=data.draw(st.integers(1, 3), "layers"),
        qkv_bias=data.draw(st.booleans(), "bias"),
        sliding_window=data.draw(st.none() | st.integers(1, 14), "window"),
        attention=data.draw(st.sampled_from(["sdpa", "explicit"]), "attention"),
    )
    batch = data.draw(st.integers(1, 4), "batch")
    capacity = data.draw(st.integers(1, context), "capacity")
    cache = model.new_cache(batch, capacity)
    rows: list[list[int]] = [[] for _ in range(batch)]
    for _ in range(data.draw(st.integers(1, 8), "moves")):
        room = capacity - max(map(len, rows))
        move = data.draw(st.sampled_from(["row", "all", "drop", "reset"]), "move")
        if move == "row":
            row = data.draw(st.integers(0, len(rows) - 1), "row")
            if len(rows[row]) == capacity:
                cache.row(row).reset()
                rows[row] = []
            new = ids_of(1, data.draw(st.integers(1, capacity - len(rows[row])), "n"))
            with torch.no_grad():
                found = model(new, cache.row(row))
            rows[row] += new[0].tolist()
            torch.testing.assert_close(found[0], whole(model, [rows[row]])[0][-new.shape[1] :], **TOLERANCE)
        elif move == "all" and room:
            new = ids_of(len(rows), data.draw(st.integers(1, room), "n"))
            with torch.no_grad():
                found = model(new, cache)
            for row, tokens in enumerate(new.tolist()):
                rows[row] += tokens
            for row, wanted in enumerate(whole(model, rows)):
                torch.testing.assert_close(found[row], wanted[-new.shape[1] :], **TOLERANCE)
        elif move == "drop" and len(rows) > 1:
            row = data.draw(st.integers(0, len(rows) - 1), "row")
            cache.drop(row)
            rows[row] = rows[-1]
            rows.pop()
        elif move == "reset":
            cache.reset()
            rows = [[] for _ in rows]
        assert cache.lengths.tolist() == list(map(len, rows))
        assert cache.batch_size == len(rows)


@BOTH
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("where", ["trf_blocks.0", "trf_blocks.1.att", "trf_blocks.1.ff", "out_head"])
@pytest.mark.parametrize("unequal", [False, True])
def test_a_pass_that_fails_half_way_has_not_moved_the_cache(
    tiny_model: Make, attention: str, window: int | None, where: str, unequal: bool
) -> None:
    model = tiny_model(attention=attention, sliding_window=window)
    cache = model.new_cache(2)
    rows = ids_of(2, 12)
    starts = (5, 3) if unequal else (5, 5)
    with torch.no_grad():
        for row, start in enumerate(starts):
            model(rows[row : row + 1, :start], cache.row(row))
    new = ids_of(2, 4)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.get_submodule(where).register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model(ids_of(2, 6), cache)
    hook.remove()
    assert cache.lengths.tolist() == list(starts)
    with torch.no_grad():
        found = model(new, cache)
    full = [rows[row, :start].tolist() + new[row].tolist() for row, start in enumerate(starts)]
    for row, wanted in enumerate(whole(model, full)):
        torch.testing.assert_close(found[row], wanted[-4:], **TOLERANCE)


@WINDOWS
def test_a_view_of_a_row_touches_that_row_alone(tiny_model: Make, window: int | None) -> None:
    model = tiny_model(sliding_window=window)
    cache = model.new_cache(3)
    with torch.no_grad():
        model(ids_of(3, 4), cache)
        keys, values = cache.keys.clone(), cache.values.clone()
        view = cache.row(1)
        assert view.batch_size == 1
        model(ids_of(1, 3), view)
        assert cache.lengths.tolist() == [4, 7, 4]
        assert not torch.equal(cache.keys[:, 1], keys[:, 1])
        for row in (0, 2):
            assert torch.equal(cache.keys[:, row], keys[:, row])
            assert torch.equal(cache.values[:, row], values[:, row])
        cache.row(1).reset()
        assert cache.lengths.tolist() == [4, 0, 4]


def test_drop_puts_the_last_row_in_the_place(tiny_model: Make) -> None:
    model = tiny_model()
    cache = model.new_cache(3)
    with torch.no_grad():
        for row in range(3):
            model(ids_of(1, row + 2), cache.row(row))
    keys = cache.keys.clone()
    cache.drop(0)
    assert cache.lengths.tolist() == [4, 3]
    assert torch.equal(cache.keys, keys[:, [2, 1]])
    cache.drop(1)
    assert cache.lengths.tolist() == [4]
    cache.drop(0)
    assert cache.batch_size == 0


@pytest.mark.parametrize("window", [None, 3])
def test_what_a_broken_pass_left_behind_does_not_survive_a_reset(tiny_model: Make, window: int | None) -> None:
    model = tiny_model(sliding_window=window)
    cache = model.new_cache(2)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    cache.reset()
    rows = [ids_of(1).tolist(), ids_of(5).tolist()]
    with torch.no_grad():
        for row, tokens in enumerate(rows):
            model(torch.tensor([tokens]), cache.row(row))
        new = ids_of(2, 1)
        found = model(new, cache)
    for row, wanted in enumerate(whole(model, [rows[0] + new[0].tolist(), rows[1] + new[1].tolist()])):
        torch.testing.assert_close(found[row, 0], wanted[-1], **TOLERANCE)


# ---- dtype, memory, modes ----------------------------------------


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.4)],
)
def test_the_dtype_is_kept(tiny_model: Make, window: int | None, dtype: torch.dtype, tolerance: float) -> None:
    model = tiny_model(dtype=dtype, sliding_window=window)
    cache = model.new_cache(2)
    ids = ids_of(2, 10)
    found = in_chunks(model, cache, ids, [3, 4, 1, 1, 1])
    assert found.dtype == cache.keys.dtype == cache.values.dtype == dtype
    torch.testing.assert_close(found, torch.stack(whole(model, ids.tolist())), atol=tolerance, rtol=0.0)


@pytest.mark.parametrize(("window", "capacity", "slots"), [(None, None, 16), (None, 5, 5), (4, None, 4), (4, 2, 2)])
def test_memory_is_allocated_once_and_bounded_by_the_window(
    tiny_model: Make, window: int | None, capacity: int | None, slots: int
) -> None:
    model = tiny_model(sliding_window=window)
    cache = model.new_cache(2, capacity)
    assert cache.keys.shape == cache.values.shape == (2, 2, 3, slots, 4)
    assert cache.lengths.device.type == "cpu"
    where = cache.keys.data_ptr(), cache.values.data_ptr()
    with torch.no_grad():
        for _ in range(cache.capacity):
            model(ids_of(2, 1), cache)
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == where
    assert cache.keys.shape[3] == slots


def test_keys_are_stored_not_recomputed(tiny_model: Make) -> None:
    model, cache = tiny_model(), None
    seen = []
    model.trf_blocks[0].att.W_key.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    cache = model.new_cache()
    with torch.no_grad():
        model(ids_of(1, 5), cache)
        model(ids_of(1, 1), cache)
        model(ids_of(1, 2), cache)
    assert seen == [5, 1, 2]


def test_a_pass_in_one_mode_may_follow_one_in_another(tiny_model: Make) -> None:
    """Gradients on, off and inference mode, with rows dropped between: no error, no graph that grows."""
    model = tiny_model()
    with torch.inference_mode():
        cache = model.new_cache(3)
        model(ids_of(3, 2), cache)
        cache.drop(0)
    logits = model(ids_of(2, 2), cache)
    assert logits.requires_grad
    assert not cache.keys.requires_grad
    assert not cache.values.requires_grad
    with torch.no_grad():
        cache.drop(0)
        model(ids_of(1, 1), cache)
    model(ids_of(1, 1), cache)
    with torch.inference_mode():
        model(ids_of(1, 1), cache)
    assert cache.lengths.tolist() == [7]
    assert not cache.keys.is_inference()


# ---- errors ----------------------------------------


@pytest.mark.parametrize("capacity", [0, -1, 17])
def test_a_capacity_the_model_cannot_read(tiny_model: Make, capacity: int) -> None:
    with pytest.raises(ValueError, match=rf"^capacity {capacity} must be from 1 to the context length of 16$"):
        tiny_model().new_cache(1, capacity)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("held", "new"), [(6, 1), (5, 2), (0, 7)])
def test_more_tokens_than_capacity(tiny_model: Make, window: int | None, held: int, new: int) -> None:
    model = tiny_model(sliding_window=window)
    cache = model.new_cache(2, 6)
    with torch.no_grad():
        if held:
            model(ids_of(1, held), cache.row(1))  # the longest row counts
        with pytest.raises(ValueError, match=f"^{held} cached and {new} new tokens exceed the cache's capacity of 6: "):
            model(ids_of(2, new), cache)
    assert cache.lengths.tolist() == [0, held]


@pytest.mark.parametrize("rows", [1, 3])
def test_another_number_of_rows_than_the_cache_has(tiny_model: Make, rows: int) -> None:
    model = tiny_model()
    cache = model.new_cache(2)
    with pytest.raises(ValueError, match=f"^{rows} rows of tokens, but the cache has 2$"):
        model(ids_of(rows, 3), cache)
    assert cache.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("window", [None, 2, 5])
@pytest.mark.parametrize("capacity", [4, 7])
def test_a_copy_of_a_row_joins_a_cache_of_another_size(tiny_model: Make, window: int | None, capacity: int) -> None:
    model = tiny_model(sliding_window=window)
    rows = ids_of(2, capacity + 1)
    small, large = model.new_cache(1, capacity), model.new_cache(1, capacity + 3)
    model(rows[:1, :capacity], large)
    for piece in rows[1:, :capacity].split(3, dim=1):
        model(piece, small)
    large.join(small)
    found = model(rows[:, capacity:], large)[:, 0]
    wanted = torch.stack([scores[-1] for scores in whole(model, rows.tolist())])
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    assert (small.lengths.tolist(), small.row_bytes) == ([capacity], model.new_cache(0, capacity).row_bytes)
    with pytest.raises(ValueError, match=f"^a row of {capacity + 1} tokens exceeds the cache's capacity of {capacity}"):
        small.join(large)
    assert small.batch_size == 1


def test_a_row_is_cut_unless_its_window_wrapped() -> None:
    cache = KVCache.allocate(1, 1, 2, capacity=8, batch_size=2, window=3)
    cache.lengths[:] = torch.tensor([3, 4])
    cache.cut(0, 1)
    cache.cut(1, 4)
    assert cache.lengths.tolist() == [1, 4]
    with pytest.raises(ValueError, match="a row of 4 tokens in a window of 3 cannot be cut"):
        cache.cut(1, 3)
    with pytest.raises(ValueError, match="n_tokens 2 must be from 0 to the row's 1"):
        cache.cut(0, 2)
