"""Which decoder `auto` takes: the compiled one, unless it was measured to be slower."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glassgpt import GPTModel, Tokenizer, save_model
from glassgpt.generation.auto import CACHED, COMPILED, GRAPHS, choose_decoder, remember_decoders
from glassgpt.measured import cache_file


@pytest.fixture
def saved(tiny_model: Callable[..., GPTModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    save_model(tiny_model(vocab_size=257), Tokenizer.bytes_(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("compiled", "cached", "taken"), [(66.0, 25.0, COMPILED), (25.0, 26.0, COMPILED), (25.0, 66.0, CACHED)]
)
def test_the_faster_one_where_it_is_worth_other_bits(saved: Path, compiled: float, cached: float, taken: str) -> None:
    assert choose_decoder(saved) == (COMPILED, "the default on the CPU")
    remember_decoders(saved, {COMPILED: compiled, CACHED: cached})
    name, why = choose_decoder(saved)
    assert name == taken
    assert why.startswith(f"{compiled:.3g} tokens/s, cached {cached:.3g}, measured on 2")


def test_each_device_has_its_own(saved: Path) -> None:
    assert choose_decoder(saved, "cuda:0") == (CACHED, "the default on a GPU")
    remember_decoders(saved, {COMPILED: 25.0, CACHED: 66.0})
    remember_decoders(saved, {CACHED: 300.0, GRAPHS: 900.0}, "cuda:0")
    remember_decoders(saved, {CACHED: 300.0}, "cuda:1")  # graphs could not be had
    assert choose_decoder(saved)[0] == CACHED
    assert choose_decoder(saved, "cuda:0")[0] == GRAPHS
    assert choose_decoder(saved, "cuda:1") == (CACHED, "the default on a GPU")


def test_another_shape_and_other_formats_are_not_meant(
    saved: Path, tmp_path: Path, tiny_model: Callable[..., GPTModel]
) -> None:
    remember_decoders(saved, {COMPILED: 1.0, CACHED: 2.0})
    save_model(tiny_model(vocab_size=257, n_layers=3), Tokenizer.bytes_(), tmp_path / "other")
    (tmp_path / "model.pth").write_bytes(b"")
    for path in (tmp_path / "other", tmp_path / "model.pth", tmp_path / "missing"):
        assert choose_decoder(path)[0] == COMPILED
        remember_decoders(path, {COMPILED: 1.0, CACHED: 2.0})
    assert choose_decoder(tmp_path / "model.pth")[0] == COMPILED


def test_small_numbers_are_the_compiled_decoders_alone(saved: Path) -> None:
    remember_decoders(saved, {COMPILED: 1.0, CACHED: 2.0})
    assert choose_decoder(saved)[0] == CACHED
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "glassgpt"}
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert choose_decoder(saved)[0] == COMPILED


@pytest.mark.parametrize("content", ["", "{}", '{"compiled": "fast"}', '{"compiled": null, "cached": 3}'])
def test_rates_that_are_none_are_passed_over(saved: Path, content: str) -> None:
    remember_decoders(saved, {COMPILED: 1.0, CACHED: 2.0})
    text = json.loads(cache_file().read_text(encoding="utf-8"))
    text["measurements"][0]["found"] = {**json.loads(content or "{}"), "when": "2025-01-31"}
    cache_file().write_text(json.dumps(text), encoding="utf-8")
    assert choose_decoder(saved) == (COMPILED, "the default on the CPU")
