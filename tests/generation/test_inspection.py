"""A place of a text: its numbers are the model's, its draws are those of generation."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from glassgpt import GPTModel, Tokenizer
from glassgpt.explain import attention_maps
from glassgpt.generation import inspection
from glassgpt.generation.inspection import Place, check_size, describe_place, drawn_at, inspect_text, read_place
from glassgpt.generation.options import Generation, Sampling
from glassgpt.generation.text import complete

Make = Callable[..., GPTModel]
TEXT = "To be, or not"


@pytest.fixture(scope="module")
def model(tiny_model: Make) -> GPTModel:
    return tiny_model(vocab_size=260)


@pytest.mark.parametrize("window", [None, 4])
def test_a_place_has_the_models_scores_and_attention(
    tiny_model: Make, tiny_tokenizer: Tokenizer, window: int | None
) -> None:
    model = tiny_model(vocab_size=260, sliding_window=window)
    ids = tiny_tokenizer.encode(TEXT)
    with torch.no_grad():
        scores = model(torch.tensor([ids]))[0].numpy()
    maps = attention_maps(model, ids).numpy()
    for end in range(1, len(ids) + 1):
        place = read_place(model, ids[:end])
        np.testing.assert_allclose(place.scores, scores[end - 1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(place.attention, maps[:, :, end - 1, :end], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(place.attention.sum(axis=-1), 1, rtol=1e-5)


def test_what_is_told_of_a_place(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode(TEXT)
    place = read_place(model, ids[:5])
    told = json.loads(json.dumps(describe_place(place, tiny_tokenizer, ids[:5], ids[5], Sampling(top_k=3), n=4)))
    assert (told["position"], told["token"], told["n_tokens"]) == (5, ids[5], tiny_tokenizer.n_vocab)
    assert ids[5] in [c["id"] for c in told["candidates"]]
    assert len(told["candidates"]) in (4, 5)
    np.testing.assert_allclose(told["attention"], place.attention, atol=5.1e-7)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"repetition_penalty": 1.5}])
def test_the_seed_draws_here_what_it_drew_when_the_text_was_written(
    model: GPTModel, tiny_tokenizer: Tokenizer, options: dict[str, float]
) -> None:
    prompt = tiny_tokenizer.encode("To be")
    generation = Generation(seed=7, max_new_tokens=8, ignore_eot=True, **options)
    (written,) = complete(model, tiny_tokenizer, [prompt], **generation.to_dict())
    for n, token in enumerate(written.ids):
        before = [*prompt, *written.ids[:n]]
        assert drawn_at(read_place(model, before), tiny_tokenizer, before, n, generation) == token


def test_a_whole_text_has_each_of_its_places(model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    told = inspect_text(model, tiny_tokenizer, TEXT, Sampling(top_p=0.9), n=3)
    ids = tiny_tokenizer.encode(TEXT)
    assert [token["id"] for token in told["tokens"]] == ids
    assert "".join(token["text"] for token in told["tokens"]) == TEXT
    assert told["places"][0] is None and told["tokens"][0]["probability"] is None
    assert told["sampling"] == Sampling(top_p=0.9).to_dict()
    for end, shown in enumerate(told["places"][1:], start=1):
        place = read_place(model, ids[:end])
        token = ids[end] if end < len(ids) else None
        wanted = describe_place(place, tiny_tokenizer, ids[:end], token, Sampling(top_p=0.9), n=3, decimals=4)
        np.testing.assert_allclose(shown.pop("attention"), wanted.pop("attention"), atol=1.1e-4)
        assert [c["id"] for c in shown["candidates"]] == [c["id"] for c in wanted["candidates"]]
        assert shown["removed"][0]["n_tokens"] == wanted["removed"][0]["n_tokens"]
        if token is not None:
            assert told["tokens"][end]["probability"] == pytest.approx(
                next(c["probability"] for c in wanted["candidates"] if c["id"] == token), rel=1e-4
            )


@pytest.mark.parametrize(
    ("text", "message"), [("", "the text is empty"), ("x" * 17, "17 tokens exceed the context length of 16")]
)
def test_a_text_that_cannot_be_read_is_refused(
    model: GPTModel, tiny_tokenizer: Tokenizer, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        inspect_text(model, tiny_tokenizer, text, Sampling())
    with pytest.raises(ValueError, match=message):
        read_place(model, tiny_tokenizer.encode(text))


def test_too_much_attention_for_one_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "MOST_WEIGHTS", 6 * 10 * 10 // 2)
    check_size(10, 6, 1024)
    with pytest.raises(ValueError, match="11 tokens in 6 heads is too much at once: take at most 10 tokens"):
        check_size(11, 6, 1024)


def test_a_place_needs_no_model_to_be_told(tiny_tokenizer: Tokenizer) -> None:
    place = Place(np.zeros(260, np.float32), np.full((1, 1, 2), 0.5, np.float32))
    told = describe_place(place, tiny_tokenizer, [1, 2], None, Sampling())
    assert told["token"] is None and told["attention"] == [[[0.5, 0.5]]]
