"""What the tests of training share."""

import random
from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words.choice(["cat", "dog", "sat", "on", "the", "mat"]) for _ in range(3000)))
    return path
