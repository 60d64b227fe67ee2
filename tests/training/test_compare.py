"""Runs side by side: finished, running and damaged ones."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from glassgpt import GPTConfig, train
from glassgpt.cli import main
from glassgpt.training.compare import compare, report
from glassgpt.training.log import read_log
from glassgpt.training.look import RUNNING_SECONDS, look
from glassgpt.training.plot import colours_for, means_of, plot_runs

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)
SETTINGS: dict[str, Any] = dict(steps=12, batch_size=4, eval_every=3, eval_batches=1, sample_tokens=0, dtype="float32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, `a` and `b`, that differ in one setting."""
    folder = tmp_path_factory.mktemp("runs")
    words = random.Random(0)
    (folder / "text.txt").write_text(" ".join(words.choice(["cat", "dog", "sat", "on"]) for _ in range(2000)))
    train([folder / "text.txt"], folder / "a", shape=CONFIG, tokenizer="byte", **SETTINGS)
    train(out=folder / "b", like=folder / "a", learning_rate=0.001)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a", "b"):
        shutil.copytree(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut(run: Path, step: int) -> None:
    """The log as it was when the step began."""
    lines = [json.dumps(record) for record in read_log(run) if record["step"] < step or record["step"] == 0]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_what_differs_and_how_well_each_did(runs: Path) -> None:
    comparison = compare(["a", "b"])
    assert comparison.differences() == {"learning_rate": [0.004, 0.001]}
    evaluations = {run: [r["val_loss"] for r in read_log(runs / run) if r["kind"] == "evaluation"] for run in "ab"}
    for summary in comparison.to_dict()["runs"]:
        losses = evaluations[summary["run"]]
        assert (summary["status"], summary["steps"], summary["planned"]) == ("finished", 12, 12)
        assert (summary["best_val_loss"], summary["val_loss"]) == (min(losses), losses[-1])
        assert summary["best_step"] == 3 * losses.index(min(losses))
        assert summary["tokens_per_second"] > 0 and summary["seconds"] > 0
    page = report(comparison)
    assert f"{min(evaluations['a']):.4f}" in page and f"{min(evaluations['b']):.4f}" in page
    assert "| learning_rate | 0.004 | 0.001 |" in page
    assert comparison.notes() == []


def test_one_run_alone_and_two_of_a_kind(runs: Path) -> None:
    assert "setting" not in report(compare(["a"]))
    shutil.copytree("a", "copy")
    assert "no setting differs" in report(compare(["a", "copy"]))


def test_a_run_that_goes_and_one_that_was_left(runs: Path) -> None:
    cut(runs / "a", 7)
    assert look("a").status == "running, 7 of 12"
    long_ago = Path("a/log.jsonl").stat().st_mtime - 2 * RUNNING_SECONDS
    os.utime("a/log.jsonl", (long_ago, long_ago))
    assert look("a").status == "unfinished, 7 of 12"
    assert not look("a").finished


def test_a_run_that_lost_its_patience_is_finished(runs: Path) -> None:
    record = json.loads((runs / "a" / "run.json").read_text(encoding="utf-8"))
    record["settings"] |= {"steps": 100, "patience": 2}
    (runs / "a" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert look("a").status == "running, 12 of 100"
    lines = [json.loads(line) for line in (runs / "a" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [r | {"val_loss": 9.0} if r["kind"] == "evaluation" and r["step"] > 6 else r for r in lines]
    (runs / "a" / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8")
    assert look("a").status == "stopped early"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("no run.json", "b: holds no run: run.json is missing"),
        ("no json", "b: b/run.json: not valid JSON"),
        ("half a record", "b: b/run.json is damaged: KeyError('baselines')"),
        ("no log", "b: log.jsonl is missing"),
        ("an empty log", "b: log.jsonl has no evaluation yet"),
        ("a torn log", "b: log.jsonl is damaged: lines that are left out: 1"),
        ("no directory", "b: holds no run: run.json is missing"),
    ],
)
def test_what_is_damaged_is_said_and_the_others_are_compared(
    runs: Path, damage: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record, log = runs / "b" / "run.json", runs / "b" / "log.jsonl"
    if damage == "no run.json":
        record.unlink()
    elif damage == "no json":
        record.write_text("no", encoding="utf-8")
    elif damage == "half a record":
        values = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({k: values[k] for k in ("config", "settings")}), encoding="utf-8")
    elif damage == "no log":
        log.unlink()
    elif damage == "an empty log":
        log.write_text("", encoding="utf-8")
    elif damage == "a torn log":
        lines = log.read_text(encoding="utf-8").splitlines()
        log.write_text("\n".join([*lines[:5], lines[5][:9], *lines[6:]]), encoding="utf-8")
    else:
        shutil.rmtree("b")
    assert main(["compare", "a", "b", "--out", "curves.png"]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("- ")]
    assert line.startswith(f"- {says}")
    assert "| a " in printed
    assert imread("curves.png").shape[2] == 4


def test_a_line_that_is_being_written_is_no_damage(runs: Path) -> None:
    log = runs / "a" / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    assert look("a").damage is None


def test_numbers_that_people_wrote_into_a_log_break_nothing(runs: Path) -> None:
    before = look("a")
    with (runs / "a" / "log.jsonl").open("a", encoding="utf-8") as file:
        for record in (
            {"kind": "evaluation", "step": 13, "val_loss": None, "bits_per_byte": None},
            {"kind": "evaluation", "step": 13, "val_loss": "low", "bits_per_byte": 1},
            {"kind": "step", "step": "two", "loss": 1},
            {"kind": "step", "step": 13, "loss": None},
        ):
            file.write(json.dumps(record) + "\n")
    after = look("a")
    plot_runs([("a", after)])
    report(compare(["a", "b"]))
    assert (after.best, after.last) == (before.best, before.last)


def test_losses_of_other_texts_are_compared_with_care(runs: Path) -> None:
    record = json.loads((runs / "b" / "run.json").read_text(encoding="utf-8"))
    record["data"]["validation"] = "other"
    (runs / "b" / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert "the validation parts are not the same tokens" in compare(["a", "b"]).notes()[0]


def test_the_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--json", "--out", "curves.svg"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == {"learning_rate": [0.004, 0.001]}
    assert Path("curves.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert main(["compare", "a", "--out", "curves.svg"]) == 2
    assert "curves.svg exists" in capsys.readouterr().err


def test_many_curves_and_long_ones() -> None:
    assert len(set(colours_for(8))) == 8
    assert len({tuple(colour) for colour in colours_for(30)}) == 30
    points = [(float(n), float(n % 2)) for n in range(1000)]
    means = means_of(points)
    assert len(means) == 200
    assert means[0] == (2.0, 0.4)
    assert means_of([]) == []
