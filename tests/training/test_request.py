"""What `train` may be asked for, and what contradicts itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model
from glassgpt.config import PRESETS, preset
from glassgpt.training.request import Request
from glassgpt.training.settings import LEARNING_RATE, MUON_LEARNING_RATE, Settings

CPU = torch.device("cpu")


def request(**given: Any) -> Request:
    nothing = dict(texts=[], shape=None, config={}, model=None, tokenizer=None, minutes=None, settings={})
    return Request(**{**nothing, **given})


@pytest.fixture
def model(tiny_model: Callable[..., GPTModel]) -> GPTModel:
    return tiny_model(vocab_size=257)


def test_a_shape_by_name_by_config_and_by_the_text() -> None:
    assert request(shape="micro").shapes(10**9) == [("micro", preset("micro"))]
    config = GPTConfig(emb_dim=32, n_heads=2)
    assert request(shape=config).shapes(10**9) == [("", config)]
    assert [name for name, _ in request().shapes(10**6)] == ["micro", "nano"]


def test_single_fields_change_whatever_shape_is_picked() -> None:
    changed = request(config={"n_layers": 3, "drop_rate": 0.3}).shapes(10**6)
    assert [(name, c) for name, c in changed] == [
        (name, preset(name).replace(n_layers=3, drop_rate=0.3)) for name in ("micro", "nano")
    ]
    assert request(shape=PRESETS["nano"], config={"context_length": 5}).shapes(0)[0][1].context_length == 5


@pytest.mark.parametrize(("width", "heads"), [(96, 6), (100, 5), (7, 1), (64, 4), (1, 1)])
def test_a_width_alone_brings_heads_that_divide_it(width: int, heads: int) -> None:
    ((_, config),) = request(shape="nano", config={"emb_dim": width}).shapes(0)
    assert (config.emb_dim, config.n_heads) == (width, heads)


def test_heads_that_were_asked_for_are_not_changed() -> None:
    with pytest.raises(ValueError, match="emb_dim 100 is not divisible by n_heads 8"):
        request(shape="nano", config={"emb_dim": 100, "n_heads": 8}).checked(CPU)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(shape="nano", model="gpt2"), "shape and model exclude each other: weights have their shape"),
        (dict(config={"n_layers": 3}, model="gpt2"), "n_layers 3: the weights that the run begins with decide it"),
        (dict(tokenizer="bpe", model="gpt2"), "tokenizer 'bpe': a model keeps the tokenizer"),
        (dict(config={"layers": 3}), "unknown config key 'layers': did you mean 'n_layers'"),
        (dict(config={"drop_rate": 1.0}), "drop_rate 1.0 must be a number, at least 0 and below 1"),
        (dict(config={"n_layers": 0}), "n_layers 0 must be a whole number, at least 1"),
        (dict(tokenizer="no/such/place"), "tokenizer 'no/such/place' must be one of bpe, gpt2, char, byte, or a dir"),
        (dict(settings={"freeze": ["norms"]}), "freeze 'norms' is not a role of parameters: "),
        (dict(settings={"freeze": "embeding"}), "freeze 'embeding' is not a role .* did you mean 'embedding'"),
        (dict(settings={"fsdp": True, "compile": True}), "compile cannot be had with fsdp, .* leave one out"),
        (dict(minutes=1.0, settings={"steps": 2}), "minutes and steps exclude each other"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_read(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        request(**given).checked(CPU)


def test_a_model_in_memory_needs_its_tokenizer(model: GPTModel) -> None:
    with pytest.raises(ValueError, match="a model in memory comes without a tokenizer"):
        request(model=model).checked(CPU)
    assert request(model=model, tokenizer=Tokenizer.bytes_()).checked(CPU)


def test_weights_come_with_their_tokenizer_and_a_lower_rate(tmp_path: Path, model: GPTModel) -> None:
    save_model(model, Tokenizer.bytes_(), tmp_path)
    asked = request(model=tmp_path)
    start = asked.start()
    assert start is not None
    assert start.name == str(tmp_path)
    assert start.tokenizer.fingerprint == Tokenizer.bytes_().fingerprint
    assert Settings().with_rates(start.model.n_parameters()).learning_rate == pytest.approx(LEARNING_RATE / 3)
    assert Settings().with_rates(124_000_000).muon_learning_rate == pytest.approx(MUON_LEARNING_RATE / 10)
    assert Settings().with_rates().learning_rate == LEARNING_RATE
    assert Settings(learning_rate=1.0).with_rates(124_000_000).learning_rate == 1.0
    assert Settings(freeze="embedding").freeze == ("embedding",)


def test_weights_may_be_read_in_shorter_blocks_and_not_in_longer_ones(tmp_path: Path, model: GPTModel) -> None:
    save_model(model, Tokenizer.bytes_(), tmp_path)
    asked = request(model=tmp_path, config={"context_length": 8, "drop_rate": 0.25})
    assert asked.shapes(0, asked.start()) == [("", model.config.replace(context_length=8, drop_rate=0.25))]
    asked = request(model=tmp_path, config={"context_length": 17})
    with pytest.raises(ValueError, match=r"context_length 17 is more than the 16 positions of .*: use as many"):
        asked.shapes(0, asked.start())
