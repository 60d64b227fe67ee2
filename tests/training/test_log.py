"""The log of a run: its order, and what kills do to it."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.training import log as log_module
from glassgpt.training.log import RunLog, read_log
from glassgpt.training.run_directory import LOG


def fill(run: Path, steps: range, every: int = 5, first_step: int = 0) -> RunLog:
    """A log of steps, each `every` of them and the end evaluated, as the loop writes it."""
    run.mkdir(exist_ok=True)
    log = RunLog(run)
    log.rewind(first_step)
    for step in steps:
        if step % every == 0 and step != first_step:
            log.evaluation(step, 5.0, 2.5, 0.1)
        log.step(step, 6.0 - step / 100, 1.0, 0.5, 1000.0)
    log.evaluation(steps.stop, 4.0, 2.0, 0.2)
    return log


def timeless(run: Path) -> list[dict[str, Any]]:
    """The records without what a clock decides."""
    return [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in read_log(run)]


def numbers(run: Path, kind: str) -> list[int]:
    return [r["step"] for r in read_log(run) if r["kind"] == kind]


# ---- the log ----------------------------------------


def test_each_record_is_one_line_of_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    step = log.step(0, 6.123456789, 1.5, 0.05, 1234.5678)
    evaluation = log.evaluation(1, 5.987654321, 2.25, 1 / 3)
    lines = (tmp_path / LOG).read_bytes().decode("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [step, evaluation] == read_log(tmp_path)
    assert lines[-1] == ""
    for record in (step, evaluation):
        written = datetime.datetime.fromisoformat(record.pop("time"))
        assert abs((datetime.datetime.now(datetime.UTC) - written).total_seconds()) < 3600
        assert 0 <= record.pop("seconds") < 3600
    assert step == {
        "kind": "step",
        "step": 0,
        "loss": 6.123456789,  # every digit: a resumed run is compared with it
        "gradient_norm": 1.5,
        "rate": 0.05,
        "tokens_per_second": 1234.6,
    }
    assert evaluation == {
        "kind": "evaluation",
        "step": 1,
        "val_loss": 5.987654321,
        "bits_per_byte": 2.25,
        "epoch": 0.3333,
    }


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in range(3):
        log.step(step, 1.0, 1.0, 1.0, 1.0)
        assert numbers(tmp_path, "step") == list(range(step + 1))


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    record = log.step(0, math.nan, math.inf, 0.5, 10.0)
    assert math.isnan(record["loss"])  # who watches gets it as it is
    strict = json.loads((tmp_path / LOG).read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (strict["loss"], strict["gradient_norm"], strict["rate"]) == (None, None, 0.5)


def test_a_new_run_begins_an_empty_log(tmp_path: Path) -> None:
    RunLog(tmp_path).rewind(0)
    assert (tmp_path / LOG).read_bytes() == b""


def test_a_resume_from_step_0_keeps_its_evaluation(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    evaluation = log.evaluation(0, 6.2, 3.0, 0.0)
    log.step(0, 6.0, 1.0, 0.5, 10.0)
    log.rewind(0)
    assert read_log(tmp_path) == [evaluation]


@pytest.mark.parametrize("checkpoint", [5, 10, 15])
def test_a_resume_drops_what_comes_again(tmp_path: Path, checkpoint: int) -> None:
    fill(tmp_path / "whole", range(20))
    fill(tmp_path / "killed", range(17))
    fill(tmp_path / "killed", range(checkpoint, 20), first_step=checkpoint)
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")
    assert numbers(tmp_path / "killed", "step") == list(range(20))
    assert numbers(tmp_path / "killed", "evaluation") == [5, 10, 15, 20]


def test_an_evaluation_that_no_checkpoint_has_is_dropped(tmp_path: Path) -> None:
    """A checkpoint by the clock at step 7, then one measured at the same step and killed before it was saved."""
    log = fill(tmp_path, range(7))
    assert numbers(tmp_path, "evaluation") == [5, 7]
    kept = log.rewind(7, evaluated=5)
    assert kept == read_log(tmp_path)
    assert numbers(tmp_path, "evaluation") == [5]
    assert numbers(tmp_path, "step") == list(range(7))


def test_seconds_go_on_without_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now)
    log = RunLog(tmp_path)
    for _ in range(3):
        now += 2
        log.step(0, 1.0, 1.0, 1.0, 1.0)
    now += 5000
    log = RunLog(tmp_path)
    now += 1
    assert log.step(3, 1.0, 1.0, 1.0, 1.0)["seconds"] == 7
    log.rewind(0)
    now += 1
    assert log.step(0, 1.0, 1.0, 1.0, 1.0)["seconds"] == 1  # those that were dropped do not count
    assert [r["seconds"] for r in read_log(tmp_path)] == [1]


@pytest.mark.parametrize("seconds", [None, "soon"])
def test_a_log_without_seconds_gets_none(tmp_path: Path, seconds: str | None) -> None:
    old = {"kind": "step", "step": 0, "loss": 6.0, "gradient_norm": 1.0, "rate": 0.5, "tokens_per_second": 1.0}
    old |= {} if seconds is None else {"seconds": seconds}
    (tmp_path / LOG).write_text(json.dumps(old) + "\n", encoding="utf-8")
    record = RunLog(tmp_path).step(1, 6.0, 1.0, 0.5, 1.0)
    assert read_log(tmp_path) == [old, record]
    assert "seconds" not in record
    assert "time" in record


def test_a_log_cut_off_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    fill(tmp_path, range(6))
    whole, records = (tmp_path / LOG).read_bytes(), read_log(tmp_path)
    for size in range(len(whole)):
        (tmp_path / LOG).write_bytes(whole[:size])
        found = read_log(tmp_path)
        assert found == records[: len(found)]
        assert len(found) in (whole[:size].count(b"\n"), whole[: size + 1].count(b"\n"))
        if size % 50 == 0:
            RunLog(tmp_path).rewind(6)  # and a resume repairs it
            assert read_log(tmp_path) == found


@pytest.mark.parametrize(
    "strange",
    [b"", b"\0" * 50, b"\xff\xfe", b"null", b"5", b'"text"', b"[]", b"{}", b'{"kind": "step"}', b'{"kind": []}']
    + [b'{"kind": "step", "step": 3}', b'{"kind": "note", "step": 3}', b"[" * 100_000],
)
def test_a_line_that_is_none_of_ours_is_left_out(
    tmp_path: Path, strange: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And what comes after it stays, where it goes on from the steps before."""
    fill(tmp_path, range(3))
    whole, records = (tmp_path / LOG).read_bytes(), read_log(tmp_path)
    (tmp_path / LOG).write_bytes(whole + strange + b"\n" + whole)
    assert read_log(tmp_path) == records
    RunLog(tmp_path).rewind(3)
    assert (tmp_path / LOG).read_bytes() == whole
    fill(tmp_path, range(12))
    lines, records = (tmp_path / LOG).read_bytes().splitlines(keepends=True), read_log(tmp_path)
    (tmp_path / LOG).write_bytes(b"".join([*lines[:4], strange + b"\n", *lines[4:]]))
    assert read_log(tmp_path) == records
    caplog.clear()
    RunLog(tmp_path).rewind(12)
    assert (tmp_path / LOG).read_bytes() == b"".join(lines)
    assert "1 damaged lines are left out" in caplog.text


@given(st.binary(max_size=200))
def test_any_bytes_are_a_log(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / LOG).write_bytes(data)
    assert read_log(run) == []


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
