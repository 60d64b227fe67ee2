"""What a run's speed is held against: kept for one machine, number type, device and number of threads."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from glassgpt import GPTConfig, GPTModel
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.peak import known_rate, operations, remember_rate


def test_a_rate_is_known_for_what_it_was_measured_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path))
    assert known_rate("float32", "cpu", 2) is None
    remember_rate(2e11, "float32", "cpu", 2)
    remember_rate(1e11, "float32", "cpu", 1)
    remember_rate(3e11, "float32", "cpu", 2)
    today = datetime.date.today().isoformat()
    assert known_rate("float32", "cpu", 2) == (3e11, today)
    assert known_rate("float32", "cpu", 1) == (1e11, today)
    for other in (("bfloat16", "cpu", 2), ("float32", "cuda", 2), ("float32", None, None)):
        assert known_rate(*other) is None


def test_what_is_no_rate_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path))
    for rate in (0.0, -1.0, float("nan"), "fast"):
        remember_rate(rate, "float32", "cpu", 2)  # type: ignore[arg-type]
        assert known_rate("float32", "cpu", 2) is None


@pytest.mark.parametrize("tie", [True, False])
def test_the_operations_are_those_that_pytorch_counts(tie: bool) -> None:
    shape = dict(vocab_size=257, context_length=16, emb_dim=32, n_heads=2, n_layers=2, drop_rate=0.0)
    config = GPTConfig.of(shape).replace(tie_embeddings=tie, attention="explicit")
    objective = NextTokenLoss(GPTModel(config))
    ids = torch.zeros(4, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        objective(ids, ids)[0].backward()
    vectors = 6.0 * sum(p.numel() for p in objective.parameters() if p.dim() == 1)  # added, which it does not count
    assert (operations(config) - vectors) * ids.numel() == pytest.approx(counter.get_total_flops(), rel=0.01)
