"""A run as the page sees it: whatever is in its directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glassgpt import GPTConfig, train
from glassgpt.server.page.run_view import run_view

CONFIG = GPTConfig(vocab_size=257, context_length=16, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    (folder / "text.txt").write_text("the cat sat on the mat and the dog on the log " * 40)
    train(
        [folder / "text.txt"], folder / "run", shape=CONFIG, tokenizer="byte", steps=4, batch_size=2, eval_every=2,
        eval_batches=1, dtype="float32", sample_prompt="the\x1b", sample_tokens=3,
    )  # fmt: skip
    return folder / "run"


def test_it_has_the_curve_the_baselines_and_the_samples(run: Path) -> None:
    view = run_view(run)
    assert view is not None
    view = json.loads(json.dumps(view, allow_nan=False))
    assert (view["status"], view["steps"], view["planned"], view["finished"]) == ("finished", 4, 4, True)
    assert view["chart"].startswith("<svg") and view["chart"].count("<circle") >= 2
    assert view["baselines"]["uniform"] > view["baselines"]["bigram"]
    assert {fact[0] for fact in view["facts"]} >= {"best validation loss", "bigram baseline", "tokens/s"}
    assert view["samples"][-1]["text"].startswith("the␛")


def test_what_is_no_run_has_no_view(run: Path, tmp_path: Path) -> None:
    assert run_view(tmp_path) is None
    assert run_view(tmp_path / "nothing") is None
    assert run_view(run / "config.json") is None  # a model may be a file
    (tmp_path / "run.json").write_text('{"mine": 1}')
    assert run_view(tmp_path) is None


def test_a_run_without_any_log_can_be_looked_at(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((run / "run.json").read_bytes())
    view = run_view(tmp_path)
    assert view is not None
    assert (view["steps"], view["chart"], view["samples"]) == (0, "", [])
    json.dumps(view, allow_nan=False)
