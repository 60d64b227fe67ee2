"""Servers that really listen, at this machine's own address, with models of a moment."""

from __future__ import annotations

import importlib
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running import CONTEXT, Gate, Load, Running, serving

from glassgpt import GPTModel, Tokenizer, save_model
from glassgpt.server.engine import Engine


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    """One token for each printable character of ASCII, and the end of text: 98 ids."""
    return Tokenizer.characters([string.ascii_letters + string.digits + string.punctuation + " \n"])


@pytest.fixture(scope="session")
def load_tiny(
    tiny_model: Callable[..., GPTModel], letters: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Load:
    """Makes a model directory and loads it: `load_tiny(seed, context_length=96)`."""

    def load(seed: int = 0, context_length: int = CONTEXT) -> tuple[Path, Gate, Tokenizer]:
        path = tmp_path_factory.mktemp("served") / "tiny"
        model = tiny_model(
            seed, vocab_size=letters.n_vocab, context_length=context_length, emb_dim=32, n_heads=2, n_layers=2
        )
        save_model(model, letters, path)
        load_module = importlib.import_module("glassgpt.generation.cpu.load")  # another test may have removed it
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load_module, "CPUDecoder", Gate)
            decoder, tokenizer = load_module.load_decoder(path, threads=1)
        assert isinstance(decoder, Gate)
        return path, decoder, tokenizer

    return load


@pytest.fixture(scope="session")
def tiny(load_tiny: Load) -> tuple[Path, Gate, Tokenizer]:
    """A model for tests that leave it as it was."""
    return load_tiny()


@pytest.fixture(scope="session")
def two_models(tiny: tuple[Path, Gate, Tokenizer], load_tiny: Load) -> Iterator[Running]:
    """A server of two models, "tiny" and "other", with nothing special about it."""
    with serving({"tiny": tiny, "other": load_tiny(1)}) as running:
        yield running


@pytest.fixture
def client(two_models: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's client of it."""
    with two_models.client() as client:
        yield client


@pytest.fixture
def http(two_models: Running) -> Iterator[httpx.Client]:
    """A plain client of it."""
    with two_models.http() as client:
        yield client


@pytest.fixture
def gate(load_tiny: Load) -> Gate:
    """A decoder for one test."""
    return load_tiny()[1]


@pytest.fixture
def make_engine(gate: Gate) -> Iterator[Callable[..., Engine]]:
    """Makes an engine of it, which ends with the test."""
    engines = []

    def make(**options: Any) -> Engine:
        engines.append(Engine(gate, **options))
        return engines[-1]

    yield make
    gate.opened.set()
    gate.failing = None
    for engine in engines:
        engine.close()
