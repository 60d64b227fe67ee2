"""A benchmark as it was recorded, with round numbers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from glassgpt.bench.plan import ROW_COUNTS, Sizes
from glassgpt.bench.results import Bench, Turn

TEXT = [5, 3, 8, 8, 1]


def decode(rate: float, tokens: list[int] | None = None, **more: Any) -> dict[str, Any]:
    return {"rate": rate, "cold_rate": rate / 2, "tokens": tokens or TEXT, "peak_bytes": 300_000_000, **more}


@pytest.fixture
def recorded() -> Bench:
    """Two rounds of five contenders, of which int8 and CTranslate2 disagree with the text here and there."""
    sizes = Sizes.of(64)
    turns = []

    def add(name: str, work: str, number: int, threads: int = 2, **figures: Any) -> None:
        turns.append(Turn(name, work, number, threads, figures))

    ours = {"weight_bytes": 100_000_000, "cache_bytes": 50_000_000, "read_rate": 4e10}
    for number, factor in enumerate((1.0, 3.0)):
        add("naive", "decode", number, **decode(2 * factor, TEXT[:3]))
        add("cached", "decode", number, **decode(25 * factor, **ours))
        add("compiled float32", "decode", number, **decode(100 * factor, **ours))
        agreement = {"agreement": 0.984} if number == 0 else {}
        add("compiled int8", "decode", number, **decode(200 * factor, [5, 3, 9, 9, 9], **ours, **agreement))
        for threads in (2, 1) if number == 0 else (1,):
            tokens = [*TEXT[:3], 7, 7]
            add("ctranslate2 float32", "decode", number, threads, **decode(60 * factor / threads, tokens))
        for name, rate in (("cached", 25), ("compiled float32", 100), ("ctranslate2 float32", 60)):
            rates = {str(n): rate * factor * n**0.5 for n in ROW_COUNTS}
            add(name, "rows", number, rates=rates)
            add(name, "prompt", number, rate=rate * factor * 10)
        for name, seconds in (("cached", 0.04), ("compiled float32", 0.01)):
            add(name, "context", number, seconds={str(n): seconds * (1 + n / 100) for n in sizes.positions})
            add(name, "first", number, seconds=100 * seconds)
    return Bench(
        model={"name": "runs/mine", "n_parameters": 124_439_808, "context_length": 64, "vocab_size": 50257},
        machine={
            "processor": "A Processor",
            "cores": 2,
            "threads": 2,
            "system": "Linux",
            "python": "3",
            "versions": {},
        },
        sizes=json.loads(json.dumps(dataclasses.asdict(sizes))),
        rounds=2,
        turns=turns,
        notes=["not installed: llama-cpp-python; pip install llama-cpp-python"],
        finished=True,
    )
