"""TensorBoard's own reader opens the event files; and other watchers of a run."""

from __future__ import annotations

import csv
import json
import math
import random
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import GPTConfig, train
from glassgpt.training.log import read_log, read_samples
from glassgpt.training.progress import Progress
from glassgpt.training.run_directory import CSV, TENSORBOARD
from glassgpt.training.run_file import read_run
from glassgpt.training.tensorboard import event, framed, scalar_value, text_value
from glassgpt.weights.containers.tensorflow import masked_crc32c

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)
SETTINGS: dict[str, Any] = dict(steps=12, batch_size=4, eval_every=3, eval_batches=1, dtype="float32", sample_tokens=3)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words.choice(["cat", "dog", "sat", "on"]) for _ in range(2000)))
    return path


def run(text: Path, out: Path, **options: Any) -> None:
    train([text], out, **{**dict(shape=CONFIG, tokenizer="byte", **SETTINGS), **options})


class StopAt(Progress):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.at:
            raise RuntimeError("pulled the plug")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard has read once it has read all: tag, step, value; texts are in it by their tag."""
    pytest.importorskip("tensorboard", reason="TensorBoard's own reader: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    tags = reader.Tags()
    found = {tag: {e.step: e.value for e in reader.Scalars(tag)} for tag in tags["scalars"]}
    texts = {tag: {e.step: e.tensor_proto.string_val[0] for e in reader.Tensors(tag)} for tag in tags["tensors"]}
    return found | texts


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("stopped", [False, True])
def test_tensorboard_reads_what_the_log_says(tmp_path: Path, text: Path, stopped: bool) -> None:
    out = tmp_path / "run"
    if stopped:
        with pytest.raises(RuntimeError, match="plug"):
            run(text, out, tensorboard=True, progress=StopAt(8))
        train(out=out, resume=True)  # the setting is the run's
    else:
        run(text, out, tensorboard=True)
    assert len(list((out / TENSORBOARD).iterdir())) == 1 + stopped
    found, log = scalars(out / TENSORBOARD), read_log(out)
    for key, tag in (("loss", "loss/training"), ("gradient_norm", "training/gradient_norm")):
        expected = {r["step"]: pytest.approx(r[key], rel=1e-6) for r in log if r["kind"] == "step"}
        assert found[tag] == expected
    expected = {r["step"]: pytest.approx(r["val_loss"], rel=1e-6) for r in log if r["kind"] == "evaluation"}
    assert found["loss/validation"] == expected
    texts = {sample["step"]: sample["text"].encode() for sample in read_samples(out)}
    assert found["sample"] == texts


class KilledAfter(Progress):
    """Ends where the checkpoint of a step is saved, before anything else is told of it."""

    def __init__(self, step: int) -> None:
        self.at = step

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        if record["step"] == self.at:
            raise RuntimeError("pulled the plug")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("at", [9, 12])
def test_a_kill_right_after_a_checkpoint_leaves_nothing_behind_the_log(tmp_path: Path, text: Path, at: int) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, tensorboard=True, progress=KilledAfter(at))
    assert train(out=out, resume=True).finished
    found, log = scalars(out / TENSORBOARD), read_log(out)
    expected = {r["step"]: pytest.approx(r["val_loss"], rel=1e-6) for r in log if r["kind"] == "evaluation"}
    assert found["loss/validation"] == expected
    assert list(found["loss/training"]) == list(range(12))
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "finished" in report
    assert "step 9 of 12" not in report


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_asks_for_it_later_has_its_past_in_it(tmp_path: Path, text: Path) -> None:
    run(text, tmp_path / "run")
    assert not (tmp_path / "run" / TENSORBOARD).exists()
    train(out=tmp_path / "run", resume=True, steps=14, tensorboard=True)
    assert list(scalars(tmp_path / "run" / TENSORBOARD)["loss/training"]) == list(range(14))


def test_a_run_with_event_files_is_replaced_whole(tmp_path: Path, text: Path) -> None:
    run(text, tmp_path / "run", tensorboard=True)
    run(text, tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / TENSORBOARD).exists()


# ---- the bytes ----------------------------------------


def records(data: bytes) -> list[bytes]:
    """The TFRecords in `data`, checksums verified."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert masked_crc32c(data[:8]) == struct.unpack("<I", data[8:12])[0]
        content = data[12 : 12 + length]
        assert masked_crc32c(content) == struct.unpack("<I", data[12 + length : 16 + length])[0]
        found.append(content)
        data = data[16 + length :]
    return found


def fields(data: bytes) -> dict[int, Any]:
    """A protocol buffer message, by field number."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not data[at - 1] & 0x80:
                return value, at

    at, found = 0, {}
    while at < len(data):
        key, at = varint(at)
        kind = key & 7
        if kind == 0:
            found[key >> 3], at = varint(at)
        elif kind == 2:
            length, at = varint(at)
            found[key >> 3], at = data[at : at + length], at + length
        else:
            size, form = {1: (8, "<d"), 5: (4, "<f")}[kind]
            found[key >> 3], at = struct.unpack(form, data[at : at + size])[0], at + size
    return found


@given(st.text(max_size=40), st.floats(), st.integers(0, 2**62), st.floats(0, 1e10))
def test_any_value_is_in_the_event(tag: str, value: float, step: int, when: float) -> None:
    tag = tag.encode("utf-8", errors="ignore").decode()
    (data,) = records(framed(event(when, step, summary=scalar_value(tag, value))))
    found = fields(data)
    assert (found[1], found[2]) == (when, step)
    written = fields(fields(found[5])[1])
    assert written[1] == tag.encode()
    rounded = value if not math.isfinite(value) or abs(value) < 3.4e38 else math.copysign(math.inf, value)
    assert written[2] == pytest.approx(rounded, rel=1e-6, abs=1e-44, nan_ok=True)


@given(st.text(max_size=300))
def test_any_text_is_in_the_event(text: str) -> None:
    value = fields(fields(text_value("sample", text))[1])
    assert fields(value[8])[8] == text.encode("utf-8", errors="replace")


def test_a_file_is_opened_and_sessions_begin() -> None:
    assert fields(event(1.5, file_version="brain.Event:2")) == {1: 1.5, 2: 0, 3: b"brain.Event:2"}
    assert fields(event(1.5, 7, session_log=1)) == {1: 1.5, 2: 7, 7: b"\x08\x01"}


# ---- the table for spreadsheets ----------------------------------------


def test_the_csv_has_what_the_log_has(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, progress=StopAt(8))
    train(out=out, resume=True)
    with (out / CSV).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    log = read_log(out)
    assert len(rows) == len(log)
    for row, record in zip(rows, log, strict=True):
        assert {name: value for name, value in row.items() if value} == {k: str(v) for k, v in record.items()}


# ---- Weights & Biases ----------------------------------------


class FakeWandb(types.ModuleType):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run: object | None = None
        self.told: list[tuple[Any, ...]] = []

    def init(self, **options: Any) -> object:
        self.run = object()
        self.told.append(("init", options))
        return self.run

    def define_metric(self, name: str, step_metric: str) -> None:
        self.told.append(("metric", name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.told.append(("log", values))

    def finish(self, exit_code: int) -> None:
        self.run = None
        self.told.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_weights_and_biases_hears_of_a_run_and_of_its_resume(tmp_path: Path, text: Path, wandb: FakeWandb) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, wandb=True, progress=StopAt(8))
    train(out=out, resume=True)
    inits = [told[1] for told in wandb.told if told[0] == "init"]
    assert [init["name"] for init in inits] == ["run", "run"]
    assert inits[0]["id"] == inits[1]["id"]
    assert inits[0]["project"] == "glassgpt" and inits[0]["resume"] == "allow"
    assert inits[0]["config"]["learning_rate"] == 0.004
    assert [told for told in wandb.told if told[0] == "finish"] == [("finish", 1), ("finish", 0)]
    assert [told for told in wandb.told if told[0] == "metric"] == 2 * [("metric", "*", "step")]
    values = [told[1] for told in wandb.told if told[0] == "log"]
    logged = {(each["step"], name): value for each in values for name, value in each.items()}
    for record in read_log(out):
        name, key = ("train/loss", "loss") if record["kind"] == "step" else ("validation/val_loss", "val_loss")
        assert logged[record["step"], name] == record[key]
    run(text, out, wandb=True, overwrite=True)
    assert wandb.told[-1] == ("finish", 0)
    assert [told[1]["id"] for told in wandb.told if told[0] == "init"][-1] != inits[0]["id"]


def test_without_it_nothing_is_begun(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="wandb missing: pip install wandb"):
        run(text, tmp_path / "run", wandb=True)
    assert not (tmp_path / "run").exists()


def test_nobody_hears_of_a_run_unasked(tmp_path: Path, text: Path, wandb: FakeWandb) -> None:
    run(text, tmp_path / "run")
    assert wandb.told == []
    assert "began" in json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert not read_run(tmp_path / "run").settings.wandb
