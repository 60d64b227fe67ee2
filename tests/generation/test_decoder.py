from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glassgpt import GPTModel
from glassgpt.generation.decoder import CachedDecoder, NaiveDecoder, last_window_scores

Make = Callable[..., GPTModel]
CONTEXT = 8


def alone(model: GPTModel, row: Sequence[int]) -> Tensor:
    """The oracle: scores after the last context of one row, with no decoder at all."""
    with torch.no_grad():
        return model(torch.tensor([row[-model.config.context_length :]]))[0, -1]


def agree(found: Tensor, model: GPTModel, rows: Sequence[Sequence[int]]) -> None:
    torch.testing.assert_close(found, torch.stack([alone(model, row) for row in rows]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [NaiveDecoder, CachedDecoder])
@given(data=st.data())
def test_scores_are_those_of_each_row_alone_also_past_the_context(
    tiny_model: Make, kind: type[NaiveDecoder] | type[CachedDecoder], data: st.DataObject
) -> None:
    """Prompts of any lengths, rows dropped in any order, on beyond the context length."""
    model = tiny_model(
        context_length=CONTEXT,
        sliding_window=data.draw(st.none() | st.integers(1, 10), "window"),
        attention=data.draw(st.sampled_from(["sdpa", "explicit"]), "attention"),
    )
    token = st.integers(0, 96)
    rows = data.draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=4), "prompts")
    decoder: NaiveDecoder | CachedDecoder
    if kind is CachedDecoder:
        decoder = CachedDecoder(model, data.draw(st.none() | st.integers(1, 20), "capacity"))
    else:
        decoder = NaiveDecoder(model)
    rows = [list(row) for row in rows]
    agree(decoder.prefill(rows), model, rows)
    for _ in range(data.draw(st.integers(0, 10), "steps")):
        if len(rows) > 1 and data.draw(st.booleans(), "drop?"):
            place = data.draw(st.integers(0, len(rows) - 1), "place")
            decoder.drop(place)
            rows[place] = rows[-1]
            rows.pop()
        new = data.draw(st.lists(token, min_size=len(rows), max_size=len(rows)), "tokens")
        for row, t in zip(rows, new, strict=True):
            row.append(t)
        agree(decoder.step(new), model, rows)


@pytest.mark.parametrize("kind", [NaiveDecoder, CachedDecoder])
def test_a_decoder_starts_anew_and_leaves_the_prompts_alone(tiny_model: Make, kind: Any) -> None:
    model = tiny_model(context_length=CONTEXT)
    decoder, prompts = kind(model), [[1, 2, 3], [4]]
    for _ in range(2):
        first = decoder.prefill(prompts)
        decoder.step([5, 6])
        assert torch.equal(decoder.prefill(prompts), first)
        assert not first.requires_grad
    assert prompts == [[1, 2, 3], [4]]
    agree(decoder.prefill([[7]]), model, [[7]])


def test_each_token_is_read_once(tiny_model: Make) -> None:
    model = tiny_model(context_length=CONTEXT)
    read: list[tuple[int, ...]] = []
    model.tok_emb.register_forward_hook(lambda _, inputs, __: read.append(tuple(inputs[0].shape)))
    decoder = CachedDecoder(model)
    decoder.prefill([[1, 2, 3], [4]])
    decoder.step([5, 6])
    decoder.drop(0)
    decoder.step([7])
    assert read == [(1, 3), (1, 1), (2, 1), (1, 1)]


def test_a_long_prompt_is_read_in_pieces_of_the_window(tiny_model: Make) -> None:
    model = tiny_model(context_length=CONTEXT, sliding_window=3)
    read: list[int] = []
    model.tok_emb.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    CachedDecoder(model).prefill([[1, 2, 3, 4, 5, 6, 7]])
    assert read == [3, 3, 1]


def test_past_the_context_only_the_rows_that_need_it_are_computed_anew(tiny_model: Make) -> None:
    model = tiny_model(context_length=CONTEXT)
    read: list[int] = []
    decoder = CachedDecoder(model)
    decoder.prefill([list(range(8)), [1]])
    model.tok_emb.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[1]))
    decoder.step([5, 6])
    assert read == [8, 1]


def test_the_last_window(tiny_model: Make) -> None:
    model = tiny_model(context_length=CONTEXT)
    tokens = list(range(20))
    assert last_window_scores(model, tokens).shape == (1, 97)
    assert torch.equal(last_window_scores(model, tokens), last_window_scores(model, tokens[-8:]))
