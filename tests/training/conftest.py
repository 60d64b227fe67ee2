"""What the tests of training share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launch, launcher

from glassgpt import train


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words.choice(["cat", "dog", "sat", "on", "the", "mat"]) for _ in range(3000)))
    return path


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """See `launching.Launch`."""
    with launcher() as launch:
        yield launch


@pytest.fixture(scope="session")
def shared_text(tmp_path_factory: pytest.TempPathFactory, sample_text: str) -> Path:
    """The text of the runs whose losses are compared."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(sample_text * 3, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, shared_text: Path) -> Path:
    """The run of one process, with `launching.OPTIONS`."""
    out = tmp_path_factory.mktemp("alone") / "run"
    settings = dict(steps=50, eval_every=20, eval_batches=3, sample_tokens=0, seed=5, dtype="float32", batch_size=8)
    settings |= dict(learning_rate=0.002, muon_learning_rate=0.01)
    train([shared_text], out, shape="nano", tokenizer="byte", config={"drop_rate": 0.0}, threads=1, **settings)  # type: ignore[arg-type]
    return out
