"""What is said about the plan of a run."""

from types import SimpleNamespace
from typing import Any

import pytest

from glassgpt.training.plan import _dropout_line


@pytest.mark.parametrize(
    ("dropout", "ratio", "epochs", "line"),
    [
        (0.4, 28_123.4, 24, "dropout: 0.4, for 28,123 parameters per token"),
        (0.1, 1.26, 24, "dropout: 0.1, for 1.3 parameters per token"),
        (0.0, 28_123.4, 0.9, "dropout: 0, for a text that is read 0.9 times"),
        (0.0, 0.26, 24, "dropout: 0, for 0.26 parameters per token"),
    ],
)
def test_the_dropout_is_said_with_what_decided_it(dropout: float, ratio: float, epochs: float, line: str) -> None:
    prepared: Any = SimpleNamespace(
        config=SimpleNamespace(drop_rate=dropout), parameters_per_token=lambda: ratio, epochs=lambda steps: epochs
    )
    assert _dropout_line(prepared, 1) == line
