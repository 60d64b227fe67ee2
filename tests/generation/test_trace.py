"""Probabilities along a text, from the readable model and from the compiled decoder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from glassgpt import GPTModel, Tokenizer
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.trace import trace

Make = Callable[..., GPTModel]
TEXT = "To be, or not"  # 13 bytes; a tiny model has 16 places


@pytest.fixture
def byte_model(tiny_model: Make) -> GPTModel:
    """More scores than the byte tokenizer has ids, as in a model whose vocabulary was rounded up."""
    return tiny_model(vocab_size=300)


def test_trace_is_a_softmax_over_the_tokens_there_are(byte_model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode(TEXT)
    with torch.no_grad():
        scores = byte_model(torch.tensor([ids]))[0, :, : tiny_tokenizer.n_vocab]
    wanted = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)

    places = trace(byte_model, tiny_tokenizer, TEXT, k=3)
    assert "".join(place.text for place in places) == TEXT
    assert places[0].probability is None
    for row, token, place in zip(wanted, ids[1:], places[1:], strict=False):
        assert place.probability == pytest.approx(float(row[token]), rel=1e-5)
    for row, place in zip(wanted, places, strict=True):
        best = sorted(range(len(row)), key=lambda token: -row[token])[:3]
        assert [text for text, _ in place.likeliest] == [tiny_tokenizer.decode([token]) for token in best]
        assert [p for _, p in place.likeliest] == pytest.approx(row[best].tolist(), rel=1e-5)


def test_trace_gives_no_more_than_the_whole_vocabulary(byte_model: GPTModel, tiny_tokenizer: Tokenizer) -> None:
    (place,) = trace(byte_model, tiny_tokenizer, "T", k=1000)
    assert len(place.likeliest) == tiny_tokenizer.n_vocab
    assert sum(p for _, p in place.likeliest) == pytest.approx(1)


def test_trace_ignores_dropout_and_keeps_the_mode(tiny_model: Make, tiny_tokenizer: Tokenizer) -> None:
    wanted = trace(tiny_model(vocab_size=257), tiny_tokenizer, TEXT)
    model = tiny_model(vocab_size=257, drop_rate=0.5).train()
    assert trace(model, tiny_tokenizer, TEXT) == wanted
    assert model.training


@pytest.mark.parametrize(
    ("text", "message"), [("", "the text is empty"), ("x" * 17, "17 tokens exceed the context length of 16")]
)
def test_trace_refuses_a_text_that_cannot_be_read(
    byte_model: GPTModel, tiny_tokenizer: Tokenizer, text: str, message: str
) -> None:
    byte_model.train()
    with pytest.raises(ValueError, match=message):
        trace(byte_model, tiny_tokenizer, text)
    assert byte_model.training


@pytest.mark.parametrize("window", [None, 5])
def test_the_compiled_decoder_expects_the_same(tiny_model: Make, tiny_tokenizer: Tokenizer, window: int | None) -> None:
    model = tiny_model(vocab_size=300, context_length=200, sliding_window=window)
    text = TEXT * 12  # more than the decoder scores in one piece
    expected = trace(model, tiny_tokenizer, text, k=3)
    found = trace(CPUDecoder(pack_model(model)), tiny_tokenizer, text, k=3)
    assert [place.text for place in found] == [place.text for place in expected]
    for mine, its in zip(found[1:], expected[1:], strict=True):
        assert mine.probability == pytest.approx(its.probability, rel=1e-3, abs=1e-6)
        assert [token for token, _ in mine.likeliest] == [token for token, _ in its.likeliest]
        assert [p for _, p in mine.likeliest] == pytest.approx([p for _, p in its.likeliest], rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("x" * 17, "17 tokens exceed the context length of 16")]
)
def test_the_compiled_decoder_refuses_the_same(
    byte_model: GPTModel, tiny_tokenizer: Tokenizer, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trace(CPUDecoder(pack_model(byte_model)), tiny_tokenizer, text)


def test_it_needs_no_torch() -> None:
    code = "import sys, glassgpt.generation.trace, glassgpt.generation.auto; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
