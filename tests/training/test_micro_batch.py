"""How many rows are computed at once, where that is to be picked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt import GPTConfig, train
from glassgpt.json_file import read_json
from glassgpt.training import micro_batch
from glassgpt.training.log import read_log
from glassgpt.training.micro_batch import choose_rows
from glassgpt.training.settings import Settings, spelled_out

CPU = torch.device("cpu")
CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)
SETTINGS = Settings(batch_size=12, dtype="float32", micro_batch_size="auto").with_rates()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What each number of rows will take, for each row; those that are measured are taken out."""
    times: dict[int, float] = {}
    monkeypatch.setattr(micro_batch, "_seconds", lambda trainee, config, settings, rows: rows * times.pop(rows))
    return times


@pytest.mark.parametrize(
    ("times", "chosen", "untried"),
    [
        ({1: 0.1, 2: 0.08, 3: 0.07, 4: 0.071, 6: 0.07, 12: 0.075}, 6, set()),  # the most of those that are the same
        ({1: 0.1, 2: 0.05, 3: 0.04, 4: 0.03, 6: 0.02, 12: 0.01}, 12, set()),
        ({1: 0.01, 2: 0.02, 3: 9.0, 4: 9.0, 6: 9.0, 12: 9.0}, 1, {3, 4, 6, 12}),  # it will not become faster again
        ({1: 2.0, 2: 1.0, 3: 1.0, 4: 0.1, 6: 0.1, 12: 0.1}, 3, {4, 6, 12}),  # to try 4 would take too long
    ],
)
def test_the_most_rows_of_the_fastest(
    seconds: dict[int, float], times: dict[int, float], chosen: int, untried: set[int]
) -> None:
    seconds |= times
    rows, why = choose_rows(SETTINGS, CPU, CONFIG)
    assert rows == chosen
    assert set(seconds) == untried
    assert why.startswith("of 12 in a batch, the fastest for each: 1: ") and why.endswith(", measured just now")


def test_it_is_remembered_for_the_same_model_and_share_of_the_batch(seconds: dict[int, float]) -> None:
    seconds |= {1: 0.1, 2: 0.08, 3: 0.07, 4: 0.07, 6: 0.09}
    assert choose_rows(SETTINGS, CPU, CONFIG)[0] == 4
    rows, why = choose_rows(SETTINGS, CPU, CONFIG)
    assert rows == 4
    assert ", measured on 20" in why
    seconds |= {1: 0.1, 2: 0.08, 3: 0.06, 6: 0.06}
    assert choose_rows(SETTINGS, CPU, CONFIG, world_size=2)[0] == 6  # rows of one of two processes
    seconds |= {1: 0.1, 2: 0.9}
    assert choose_rows(SETTINGS, CPU, CONFIG.replace(emb_dim=32))[0] == 1


def test_what_does_not_fit_is_not_tried_nor_remembered(
    seconds: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = {1: 0.1, 2: 0.08, 3: 0.07, 4: 0.06, 6: 0.05, 12: 0.04}
    seconds |= fast
    monkeypatch.setattr(micro_batch, "available_on", lambda device: 1000)
    rows, why = choose_rows(SETTINGS, CPU, CONFIG)
    assert rows == 2  # two are counted before anything is known
    assert "; 3 would take " in why
    assert set(seconds) == {3, 4, 6, 12}
    monkeypatch.setattr(micro_batch, "available_on", lambda device: None)
    seconds |= fast
    assert choose_rows(SETTINGS, CPU, CONFIG)[0] == 12
    monkeypatch.setattr(micro_batch, "available_on", lambda device: 1000)  # what was remembered does not fit any more
    seconds |= fast
    assert choose_rows(SETTINGS, CPU, CONFIG)[0] == 2


def test_a_gpu_that_is_full(seconds: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(trainee: Any, config: Any, settings: Any, rows: int) -> float:
        if rows > 3:
            raise torch.OutOfMemoryError("no room")
        return 1.0

    monkeypatch.setattr(micro_batch, "_seconds", full)
    rows, why = choose_rows(SETTINGS, CPU, CONFIG)
    assert rows == 3
    assert why.endswith("; 4 do not fit into the memory of cpu")


def test_a_real_measurement() -> None:
    rows, why = choose_rows(dataclasses.replace(SETTINGS, batch_size=4), CPU, CONFIG)
    assert rows in (1, 2, 4), why


def test_a_batch_size_of_auto_is_the_batch_as_it_is_in_rows_that_are_picked() -> None:
    assert spelled_out({"batch_size": "auto", "seed": 3}) == {"micro_batch_size": "auto", "seed": 3}
    assert spelled_out({"batch_size": 8}) == {"batch_size": 8}
    settings = Settings.from_dict({"batch_size": "auto"})
    assert (settings.batch_size, settings.micro_batch_size, settings.rows_at_once) == (16, "auto", 16)
    with pytest.raises(ValueError, match="batch_size 'auto' picks micro_batch_size, which is 2: leave one of them out"):
        Settings.from_dict({"batch_size": "auto", "micro_batch_size": 2})
    for wrong in ("much", 0, 1.5):
        with pytest.raises(ValueError, match=f"micro_batch_size {wrong!r} must be a whole number, at least 1, or auto"):
            Settings.from_dict({"micro_batch_size": wrong})


def test_a_run_keeps_what_was_picked_and_computes_what_it_would_with_it(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = dict(steps=6, eval_every=3, eval_batches=1, sample_tokens=0, dtype="float32")
    options |= dict(shape=CONFIG, tokenizer="byte")
    tried = {n: micro_batch._Tried(1.0 if n <= 4 else 2.0, 1) for n in (1, 2, 4, 8, 16)}
    monkeypatch.setattr(micro_batch, "_measure", lambda *_: (tried, ""))
    train([text], tmp_path / "auto", batch_size="auto", **options)
    train([text], tmp_path / "given", micro_batch_size=4, **options)
    losses = [[(r["step"], r.get("loss")) for r in read_log(tmp_path / name)] for name in ("auto", "given")]
    assert losses[0] == losses[1]
    record = read_json(tmp_path / "auto" / "run.json")
    assert (record["settings"]["batch_size"], record["settings"]["micro_batch_size"]) == (16, 4)
    assert any(line.startswith("rows at once: 4 (of 16 in a batch, the fastest") for line in record["choices"])
    toml = (tmp_path / "auto" / "train.toml").read_text(encoding="utf-8")
    assert "micro_batch_size = 4  # picked" in toml

    def never(*_: Any) -> None:
        raise AssertionError("a resume measures nothing")

    monkeypatch.setattr(micro_batch, "_measure", never)
    monkeypatch.setattr(micro_batch, "recall", never)
    train(out=tmp_path / "auto", resume=True, batch_size="auto", steps=8)
    assert read_json(tmp_path / "auto" / "run.json")["settings"]["micro_batch_size"] == 4
