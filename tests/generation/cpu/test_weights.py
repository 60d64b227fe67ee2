"""Packing a model directory: the same weights whatever the pieces, and little memory beside them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model
from glassgpt.generation.cpu import weights as module
from glassgpt.generation.cpu.load import pack_model
from glassgpt.generation.cpu.weights import PRECISIONS, load
from glassgpt.json_file import read_json
from glassgpt.quantize.model import quantize_model

CONFIG = GPTConfig(
    vocab_size=5000, context_length=16, emb_dim=256, n_heads=4, n_layers=2, drop_rate=0.0, tie_embeddings=True
)


@pytest.fixture(scope="module")
def model() -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(CONFIG).eval()


@pytest.fixture(scope="module")
def saved(model: GPTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, Tokenizer.bytes_(), directory)
    return directory


@pytest.fixture(scope="module")
def quantized(saved: Path) -> Path:
    return quantize_model(saved, saved.parent / "int4", "int4", method="nearest").path


def equal(a: module.Packed, b: module.Packed) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.weights, b.weights, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pieces_of_any_size_and_threads_give_the_same(
    model: GPTModel, saved: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE", 2**40)
    whole = pack_model(model, precision)
    for piece in (1, 10_000, 2**18):
        monkeypatch.setattr(module, "_PIECE", piece)
        assert equal(load(saved, precision, threads=3), whole)


def test_a_quantised_directory_holds_what_rounding_gives(saved: Path, quantized: Path) -> None:
    assert equal(load(quantized), load(saved, "int4"))


@pytest.mark.parametrize("name", [*PRECISIONS, "quantized"])
def test_loading_takes_little_memory_beside_the_weights(
    saved: Path, quantized: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest matrix, whole, has 5 MB in float32; two threads have a piece each, of about a megabyte."""
    monkeypatch.setattr(module, "read_json", lambda path: read_json(path, 2**16))  # it takes as much as it may read
    path, precision = (quantized, None) if name == "quantized" else (saved, name)
    load(path, precision)  # compiled
    tracemalloc.start()
    try:
        packed = load(path, precision, threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - packed.n_bytes < 2_500_000
