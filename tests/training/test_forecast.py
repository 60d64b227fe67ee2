"""What is said of a run before it begins, beside what the run then is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt import GPTConfig, Tokenizer, train
from glassgpt.config import PRESETS
from glassgpt.json_file import read_json
from glassgpt.training import advice, forecast
from glassgpt.training.forecast import parameters_by_part
from glassgpt.training.measure import Speed, run_seconds
from glassgpt.training.memory import Memory
from glassgpt.training.progress import Progress
from glassgpt.training.request import Request
from glassgpt.training.settings import Settings

CPU = torch.device("cpu")
CONFIG = GPTConfig(vocab_size=257, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.0)
SETTINGS: dict[str, Any] = dict(steps=20, batch_size=4, eval_every=5, eval_batches=2, sample_tokens=0, dtype="float32")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A speed for which nobody waits."""
    monkeypatch.setattr(forecast, "_PROBE_SECONDS", 0.05)
    monkeypatch.setattr("glassgpt.training.number_type._RATE_SECONDS", 0.05)


def look_ahead(text: Path, out: Path, request: dict[str, Any] | None = None, **options: Any) -> forecast.Forecast:
    given = dict(texts=[text], shape=CONFIG, tokenizer="byte", settings=SETTINGS) | (request or {})
    return forecast.forecast(Request(**given), out, CPU, Progress(), **options)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tie", [True, False])
def test_the_parts_have_all_parameters(name: str, tie: bool) -> None:
    config = PRESETS[name].replace(tie_embeddings=tie)
    parts = parameters_by_part(config)
    assert sum(parts.values()) == config.n_parameters()
    assert parts["output head"] == (0 if tie else config.vocab_size * config.emb_dim)


def test_it_is_what_the_run_then_says_and_writes_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = look_ahead(text, tmp_path / "run", tokens=6400, epochs=2.0, price=3.6)
    assert sorted(tmp_path.rglob("*")) == before
    train([text], tmp_path / "run", shape=CONFIG, tokenizer="byte", **SETTINGS)
    assert found.choices == read_json(tmp_path / "run" / "run.json")["choices"]
    names = ["this run", "6,400 tokens", "2 epochs"]
    assert [goal.name for goal in found.goals[:3]] == names
    assert [goal.steps for goal in found.goals[:2]] == [20, 100]
    assert 2 <= found.goals[2].epochs < 2 + found.goals[0].epochs / 20
    optimal = found.goals[3]
    assert "Hoffmann et al. 2022" in optimal.name
    assert 20 * CONFIG.n_parameters() <= optimal.tokens < 20 * CONFIG.n_parameters() + 64
    for goal in found.goals:
        assert goal.seconds is not None and goal.cost == pytest.approx(goal.seconds / 1000)
    assert found.tokens_per_second == pytest.approx(64 / (found.step_seconds or 0))
    assert found.share is not None and found.share > 0
    record = json.loads(json.dumps(found.to_dict()))
    assert record["parameters"]["all"] == CONFIG.n_parameters()
    assert record["parameters"]["without_embeddings"] == CONFIG.n_parameters() - (257 + 16 + 257) * 16
    assert record["memory"]["total"] == found.memory.process + found.memory.at_once


def test_a_run_that_does_not_fit_is_not_tried(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it would not fit")

    monkeypatch.setattr(forecast, "measure_speed", never)
    monkeypatch.setattr(forecast, "planned", never)
    whole = 12 * CONFIG.n_parameters()
    for room in (whole - 1, whole + 1):  # no step at all; a step, but not this one
        monkeypatch.setattr(forecast, "available_on", lambda device, room=room: room)
        found = look_ahead(text, tmp_path / "run")
        assert found.tokens_per_second is None and found.goals[0].seconds is None
        assert found.advice[0].startswith("it does not fit: ")
        assert found.memory.parts["weights"] == 4 * CONFIG.n_parameters()


def test_of_several_shapes_the_largest_that_fits_is_tried(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `train` itself does, which says so."""
    monkeypatch.setattr(Request, "shapes", lambda *_: [("wide", CONFIG.replace(emb_dim=20000)), ("thin", CONFIG)])
    room = 10**11  # the wide one takes 115 GB
    for module in ("forecast", "plan"):
        monkeypatch.setattr(f"glassgpt.training.{module}.available_on", lambda device: room)
    found = look_ahead(text, tmp_path / "run")
    assert found.n_parameters == CONFIG.n_parameters()
    assert any(line.startswith("memory: wide does not fit, its 9") for line in found.choices)
    monkeypatch.setattr("glassgpt.training.plan.available_on", lambda device: 1000)
    with pytest.raises(
        MemoryError, match=r"parameters take .* GB or more to train, where .* can be had: take a smaller"
    ):
        train([text], tmp_path / "run", tokenizer="byte", **SETTINGS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("seconds_of_a_step", "name"), [(0.55, "large"), (0.65, "small")])
def test_a_larger_shape_must_get_enough_steps_in_the_time(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, seconds_of_a_step: float, name: str
) -> None:
    monkeypatch.setattr(Request, "shapes", lambda *_: [("large", CONFIG.replace(n_layers=3)), ("small", CONFIG)])
    monkeypatch.setattr("glassgpt.training.plan.measure_speed", lambda *_: Speed(seconds_of_a_step, 0.0001))
    settings = {name: value for name, value in SETTINGS.items() if name != "steps"}
    found = look_ahead(text, tmp_path / "run", {"shape": None, "minutes": 10, "settings": settings})
    assert any(line.startswith(f"shape: {name}, for ") for line in found.choices), found.choices


def test_a_text_in_the_directory_of_the_run_is_refused_as_in_train(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ValueError, match="lies in"):
        look_ahead(text, tmp_path)


def test_the_seconds_are_those_of_steps_evaluations_and_checkpoints() -> None:
    settings = Settings(steps=1000, batch_size=4, eval_every=300, eval_batches=10).resolved(1000)
    prepared: Any = SimpleNamespace(settings=settings, config=CONFIG, early=(7, 50), validation=SimpleNamespace())
    prepared.validation.n_tokens = 10**6
    seconds = run_seconds(prepared, Speed(step=1.0, eval_batch=100.0))
    # at 0, 7, 50, 300, 600, 900 and 1000; each saves, which takes less than a second
    assert 1000 + 7 * 1000 < seconds < 1000 + 7 * 1001
    prepared.validation.n_tokens = 16 * 20 + 1  # twenty blocks, five batches
    assert 1000 + 7 * 500 < run_seconds(prepared, Speed(1.0, 100.0)) < 1000 + 7 * 501


# ---- advice ----------------------------------------


def advised(tokens: list[int], request: dict[str, Any] | None = None, room: int | None = None, **changes: Any) -> str:
    tokenizer = Tokenizer.bytes_()
    settings = Settings(batch_size=4, dtype="float32", steps=changes.pop("steps", 5000))
    n_bytes = changes.pop("n_bytes", 10**9)
    side = SimpleNamespace(tokens=np.array(tokens, np.uint16), n_tokens=10**8, n_bytes=n_bytes)
    side.n_tokens = changes.pop("n_tokens", side.n_tokens)
    prepared: Any = SimpleNamespace(
        settings=settings,
        config=CONFIG.replace(**changes.pop("config", {})),
        tokenizer=tokenizer,
        train=side,
        validation=SimpleNamespace(n_bytes=0),
        source=changes.pop("source", None),
        parameters_per_token=lambda: CONFIG.n_parameters() / side.n_tokens,
        epochs=lambda steps: steps * 64 / side.n_tokens,
    )
    assert not changes
    memory = Memory({"weights": 900}, 900, 100)
    asked = Request(**{"settings": {}, **(request or {})})
    return "\n".join(advice.advise(prepared, asked, CPU, memory, room))


ALL = list(range(256)) * 20  # no end of text, each token twenty times
DOCUMENTS = ([1] * 9 + [256]) * 50


@pytest.mark.parametrize(
    ("situation", "says"),
    [
        (dict(tokens=ALL), ""),
        (dict(tokens=ALL, n_tokens=12_000), "read 26.7 times, and more than 24 seldom"),
        (dict(tokens=ALL, n_tokens=12_000), "1.25 parameters for each token of the text"),
        (dict(tokens=ALL, steps=20), "20 steps are few: a smaller batch_size than 4"),
        (dict(tokens=DOCUMENTS), "half of the documents have at most 10 tokens, the context is 16"),
        (dict(tokens=ALL, n_bytes=10**6, config={"vocab_size": 2000}), "1,744 of the 2,000 tokens of the vocabulary"),
        (dict(tokens=ALL, n_bytes=10**6, config={"vocab_size": 2000}), "a BPE of its own, of 512 tokens"),
        (dict(tokens=ALL, request={"settings": {"dtype": "bfloat16"}}), "dtype bfloat16: float32 would be picked here"),
        (
            dict(tokens=ALL, room=999),
            "it does not fit: 1e-06 GB are needed, 9.99e-07 GB can be had here: take a smaller",
        ),
    ],
)
def test_advice(situation: dict[str, Any], says: str) -> None:
    found = advised(**situation)
    assert says in found if says else not found


@pytest.mark.parametrize(
    "situation",
    [
        dict(tokens=DOCUMENTS, config={"context_length": 10}, n_bytes=1),
        dict(tokens=DOCUMENTS[:90], n_bytes=1),  # too few documents to say
        dict(tokens=ALL, n_bytes=10**6, config={"vocab_size": 2000}, source="weights"),  # which have their vocabulary
        dict(tokens=ALL, request={"settings": {"dtype": "float32"}}, room=1000),
    ],
)
def test_no_advice_where_none_is_due(situation: dict[str, Any]) -> None:
    assert advised(**situation) == ""
