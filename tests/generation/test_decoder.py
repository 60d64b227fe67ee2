"""Decoders: rows that join, advance and leave at any time have the scores that each would have alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTModel
from glassgpt.generation.decoder import Decoder, ReadsAll, Scores
from glassgpt.generation.graphs import GraphDecoder
from glassgpt.generation.torch_decoder import CachedDecoder, NaiveDecoder

Make = Callable[..., GPTModel]
CONTEXT = 8


def spans(model: GPTModel) -> GraphDecoder:
    """Three spans a row."""
    return GraphDecoder(model, span=3)


EVERY = pytest.mark.parametrize("make_decoder", [NaiveDecoder, CachedDecoder, spans])


def alone(model: GPTModel, row: Sequence[int]) -> np.ndarray:
    """The oracle: scores after one row, with no decoder at all."""
    with torch.no_grad():
        return model(torch.tensor([row]))[0, -1].numpy()


def agree(scores: Scores, model: GPTModel, rows: Sequence[Sequence[int]]) -> None:
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.stack([alone(model, row) for row in rows]), atol=1e-4, rtol=0)


@EVERY
@given(data=st.data())
def test_scores_are_those_of_each_row_alone(tiny_model: Make, make_decoder: Any, data: st.DataObject) -> None:
    """Prompts of any lengths, rows that join and leave at every step."""
    model = tiny_model(
        context_length=CONTEXT,
        sliding_window=data.draw(st.none() | st.integers(1, 10), "window"),
        attention=data.draw(st.sampled_from(["sdpa", "explicit"]), "attention"),
    )
    token = st.integers(0, 96)
    prompts = st.lists(st.lists(token, min_size=1, max_size=CONTEXT), min_size=1, max_size=3)
    decoder: Decoder = make_decoder(model)
    assert (decoder.vocab_size, decoder.context_length) == (97, CONTEXT)
    rows: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 12), "moves")):
        move = data.draw(st.sampled_from(["add", "step", "drop"]), "move") if rows else "add"
        if move == "add":
            new = data.draw(prompts, "prompts")
            agree(decoder.add(new), model, new)
            rows += [list(row) for row in new]
        elif move == "step" and max(map(len, rows)) < CONTEXT:
            tokens = data.draw(st.lists(token, min_size=len(rows), max_size=len(rows)), "tokens")
            rows = [[*row, t] for row, t in zip(rows, tokens, strict=True)]
            agree(decoder.step(tokens), model, rows)
        else:
            index = data.draw(st.integers(0, len(rows) - 1), "index")
            decoder.drop(index)
            rows[index] = rows[-1]
            rows.pop()


@EVERY
@given(data=st.data())
def test_pieces_of_any_size_give_the_scores_of_the_whole(
    tiny_model: Make, make_decoder: Any, data: st.DataObject
) -> None:
    """Prefixes are read beside live rows, go on in several ways, and join as often as one likes."""
    model = tiny_model(context_length=CONTEXT, sliding_window=data.draw(st.none() | st.integers(1, 10), "window"))
    token = st.integers(0, 96)
    decoder: Decoder = make_decoder(model)
    rows: list[list[int]] = []
    known: list[tuple[list[int], Any]] = [([], None)]
    for _ in range(data.draw(st.integers(1, 12), "moves")):
        tokens, prefix = data.draw(st.sampled_from(known), "prefix")
        move = data.draw(st.sampled_from(["read", "join", "step", "drop"]), "move")
        if move == "read" and len(tokens) < CONTEXT:
            new = data.draw(st.lists(token, min_size=1, max_size=CONTEXT - len(tokens)), "new")
            if isinstance(decoder, ReadsAll) and data.draw(st.booleans(), "all"):
                read, scores = decoder.read_all(new, prefix)
                agree(scores, model, [[*tokens, *new[: n + 1]] for n in range(len(new))])
            else:
                read = decoder.read(new, prefix)
            known.append(([*tokens, *new], read))
        elif move == "join" and prefix is not None:
            decoder.join(prefix)
            rows.append(tokens)
        elif move == "step" and rows and max(map(len, rows)) < CONTEXT:
            drawn = data.draw(st.lists(token, min_size=len(rows), max_size=len(rows)), "tokens")
            rows = [[*row, t] for row, t in zip(rows, drawn, strict=True)]
            agree(decoder.step(drawn), model, rows)
        elif move == "drop" and rows:
            decoder.drop(0)
            rows[0] = rows[-1]
            rows.pop()
    for tokens, prefix in known[1:]:  # whatever happened since it was read
        assert prefix.n_tokens == len(tokens)
        agree(prefix.scores[None], model, [tokens])
        if len(tokens) < CONTEXT:
            agree(decoder.read([5], prefix).scores[None], model, [[*tokens, 5]])


@EVERY
def test_a_prefix_holds_no_more_than_the_context(tiny_model: Make, make_decoder: Any) -> None:
    decoder = make_decoder(tiny_model(context_length=CONTEXT))
    prefix = decoder.read([1] * 5)
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"^a prompt of {5 + n} tokens must have from 1 to {CONTEXT}$"):
            decoder.read([2] * n, prefix)
    with pytest.raises(AssertionError, match="another decoder's prefix"):
        (CachedDecoder if make_decoder is NaiveDecoder else NaiveDecoder)(tiny_model()).join(prefix)


def test_a_prefix_takes_no_more_memory_than_its_tokens(tiny_model: Make) -> None:
    decoder = CachedDecoder(tiny_model(context_length=CONTEXT))
    prefix = decoder.read([4], decoder.read([1, 2]))
    assert prefix.held.row_bytes == decoder.row_bytes * 3 // CONTEXT  # type: ignore[union-attr]
    assert decoder.row_bytes == 2 * 2 * CONTEXT * 12 * 4  # keys and values, layers, tokens, width, float32


@EVERY
def test_prompts_are_left_alone_and_scores_have_no_gradient(tiny_model: Make, make_decoder: Any) -> None:
    model, prompts = tiny_model(context_length=CONTEXT), [[1, 2, 3], [4]]
    decoder = make_decoder(model)
    decoder.add(prompts)
    decoder.step([5, 6])
    assert prompts == [[1, 2, 3], [4]]
    assert isinstance(decoder, Decoder)
    assert not isinstance(model, Decoder)


@EVERY
def test_a_row_holds_no_more_than_the_context(tiny_model: Make, make_decoder: Any) -> None:
    model = tiny_model(context_length=CONTEXT)
    decoder = make_decoder(model)
    for prompt in ([], [1] * (CONTEXT + 1)):
        with pytest.raises(ValueError, match=f"^a prompt of {len(prompt)} tokens must have from 1 to {CONTEXT}$"):
            decoder.add([[1], prompt])
    decoder.add([[1] * CONTEXT, [2]])
    with pytest.raises(ValueError, match=r"8 cached and 1 new|a prompt of 9 tokens"):
        decoder.step([1, 1])
    decoder.drop(0)  # and what failed has not moved the others
    agree(decoder.step([3]), model, [[2, 3]])


def test_each_token_is_read_once(tiny_model: Make) -> None:
    model = tiny_model(context_length=CONTEXT)
    read: list[tuple[int, ...]] = []
    model.tok_emb.register_forward_hook(lambda _, inputs, __: read.append(tuple(inputs[0].shape)))
    decoder = CachedDecoder(model)
    decoder.add([[1, 2, 3], [4]])
    decoder.step([5, 6])
    decoder.drop(0)
    decoder.step([7])
    decoder.add([[8, 9]])
    decoder.step([1, 2])
    assert read == [(1, 3), (1, 1), (2, 1), (1, 1), (1, 2), (2, 1)]


def test_a_long_prompt_is_read_in_pieces_of_the_window(tiny_model: Make) -> None:
    model = tiny_model(context_length=CONTEXT, sliding_window=3)
    read: list[int] = []
    model.tok_emb.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    CachedDecoder(model).add([[1, 2, 3, 4, 5, 6, 7]])
    assert read == [3, 3, 1]


def test_rows_that_join_reuse_the_memory_of_rows_that_left(tiny_model: Make) -> None:
    decoder = CachedDecoder(tiny_model(context_length=CONTEXT))
    decoder.add([[1], [2], [3], [4]])
    memory = decoder._cache.keys.data_ptr()
    for _ in range(20):
        decoder.drop(1)
        decoder.add([[5, 6]])
    assert decoder._cache.keys.data_ptr() == memory
    decoder.add([[7]])
    assert decoder._cache.batch_size == 5


def test_low_precision_scores_come_as_float32(tiny_model: Make) -> None:
    model = tiny_model(dtype=torch.bfloat16)
    scores = CachedDecoder(model).add([[1, 2], [3]])
    assert scores.dtype == np.float32
    assert scores.shape == (2, 97)
