"""`glassgpt plan` as it is typed."""

import json
from pathlib import Path

import pytest

from glassgpt import cli

OPTIONS = ["--tokenizer", "byte", "--shape", "nano", "--dtype", "float32", "--threads", "1"]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("glassgpt.training.forecast._PROBE_SECONDS", 0.05)
    monkeypatch.setattr("glassgpt.training.number_type._RATE_SECONDS", 0.05)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"This is line number {n} of a text.\n" for n in range(300)), encoding="utf-8")
    return path


def test_what_it_says(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(text), *OPTIONS, "--steps", "100", "--price", "36", "--epochs", "2", "--batch-size", "auto"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert [line for line in lines if line.startswith("train would pick  rows at once: ")]
    found = "parameters", "memory", "speed", "time", "advice"
    assert [line.split(" ")[0] for line in lines if line.split(" ")[0] in found] == list(found)
    assert "136,704, of which 99,712 in the blocks" in shown
    assert "this run: 100 steps, 102,400 tokens, " in shown
    assert "2 epochs: " in shown
    assert "compute-optimal, 20 tokens per parameter (Hoffmann et al. 2022): 2,670 steps" in shown
    assert shown.count(", cost 0.") + shown.count(", cost 1.") + shown.count(", cost 2.") >= 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_for_programs(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(text), *OPTIONS, "--steps", "10", "--tokens", "1e5", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["parameters"]["all"] == sum(found["parameters"]["parts"].values()) == 136_704
    assert found["memory"]["parts"]["weights"] == 4 * 136_704
    assert [goal["steps"] for goal in found["goals"]] == [10, 98, 2670]
    assert found["goals"][0]["cost"] is None
    assert "numbers: float32 (as asked)" in found["choices"]
    assert printed.err.startswith("reading the text\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_of_a_run_that_is_to_be_repeated(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = ["train", str(text), *OPTIONS, "--steps", "2", "--sample-tokens", "0", "--out", "run"]
    assert cli.main(training) == 0
    assert cli.main(["plan", "--like", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["goals"][0]["steps"] == 2
    assert any(choice.startswith("repeats run: ") for choice in found["choices"])
