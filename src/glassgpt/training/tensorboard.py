"""Event files that TensorBoard reads, written without it: TFRecords of the few protocol buffer fields that they need.

Formats: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto and framework/summary.proto.
"""

from __future__ import annotations

import datetime
import struct
import time
from pathlib import Path
from typing import Any

from glassgpt.training.log import read_samples
from glassgpt.training.progress import Progress
from glassgpt.training.records import Prepared, TrainResult
from glassgpt.training.run_directory import TENSORBOARD
from glassgpt.weights.containers.tensorflow import masked_crc32c

_STEP_TAGS = {
    "loss": "loss/training",
    "gradient_norm": "training/gradient_norm",
    "rate": "training/part_of_peak_rate",
    "tokens_per_second": "training/tokens_per_second",
}
_EVALUATION_TAGS = {
    "val_loss": "loss/validation",
    "bits_per_byte": "validation/bits_per_byte",
    "epoch": "validation/epoch",
    "memory_bytes": "validation/memory_bytes",
}
_START = 1  # SessionLog.START: TensorBoard forgets what earlier files have from that step on
_DT_STRING = 7


class TensorBoard(Progress):
    """Writes a run's records into `tensorboard/` in its directory, a file for each time that it is begun or resumed.

    A new run is elsewhere until its first checkpoint is whole, so nothing is written before the first step or the end.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / TENSORBOARD
        self._path: Path | None = None
        self._pending: list[bytes] = []
        self._past: list[dict[str, Any]] = []
        self._evaluated = 0

    def history(self, records: list[dict[str, Any]]) -> None:
        """See `Progress`."""
        self._past = records
        if self._path is not None:  # the run has rolled back to its last evaluation: later steps come again
            self._again(records[-1]["step"])

    def start(self, prepared: Prepared, first_step: int) -> None:
        """See `Progress`."""
        self._pending.append(event(time.time(), file_version="brain.Event:2"))
        if first_step and self._folder.is_dir():
            self._again(first_step)
        else:
            for record in self._past:
                self._record(record)
        self._past = []

    def _again(self, first: int) -> None:
        """Replace what was written from that step on, by a killed run too, by what the log has of it."""
        self._pending.append(event(time.time(), first, session_log=_START))
        for record in self._past:
            if record["step"] >= first:
                self._record(record)
        for sample in read_samples(self._folder.parent):
            if sample["step"] >= first:
                self._evaluated = sample["step"]
                self.sample(sample["text"])

    def step(self, record: dict[str, Any]) -> None:
        """See `Progress`."""
        self._record(record)
        self._write()

    def evaluation(self, record: dict[str, Any], best: bool) -> None:
        """See `Progress`."""
        self._evaluated = record["step"]
        self._record(record)
        if self._path is not None:
            self._write()

    def sample(self, text: str) -> None:
        """See `Progress`."""
        self._pending.append(event(time.time(), self._evaluated, summary=text_value("sample", text)))

    def finish(self, result: TrainResult) -> None:
        """See `Progress`."""
        self._write()

    def _record(self, record: dict[str, Any]) -> None:
        tags = _STEP_TAGS if record["kind"] == "step" else _EVALUATION_TAGS
        values = [scalar_value(tag, record[key]) for key, tag in tags.items() if record.get(key) is not None]
        written = record.get("time")
        when = datetime.datetime.fromisoformat(written).timestamp() if written else time.time()
        self._pending.append(event(when, record["step"], summary=b"".join(values)))

    def _write(self) -> None:
        if self._path is None:
            self._folder.mkdir(exist_ok=True)
            self._path = self._folder / f"events.out.tfevents.{time.time_ns() // 10**6}.glassgpt"
        with self._path.open("ab") as file:
            file.write(b"".join(map(framed, self._pending)))
        self._pending.clear()


def framed(data: bytes) -> bytes:
    """One TFRecord: length and content, each with its masked CRC-32C."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def event(when: float, step: int = 0, *, file_version: str = "", session_log: int = 0, summary: bytes = b"") -> bytes:
    """An `Event` at `when` (seconds since 1970), with one of the three."""
    data = _key(1, 1) + struct.pack("<d", when) + _number(2, step)
    if file_version:
        data += _bytes(3, file_version.encode())
    if session_log:
        data += _bytes(7, _number(1, session_log))
    return data + (_bytes(5, summary) if summary else b"")


def scalar_value(tag: str, value: float) -> bytes:
    """A number as a value of a `Summary`, in float32: what is too large for it is infinite."""
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        packed = struct.pack("<f", float("inf") if value > 0 else float("-inf"))
    return _bytes(1, _bytes(1, tag.encode()) + _key(2, 5) + packed)


def text_value(tag: str, text: str) -> bytes:
    """A text as a value of a `Summary`, for TensorBoard's text plugin."""
    shape = _bytes(2, _number(1, 1))  # one text
    tensor = _number(1, _DT_STRING) + _bytes(2, shape) + _bytes(8, text.encode("utf-8", errors="replace"))
    plugin = _bytes(1, _bytes(1, b"text"))
    return _bytes(1, _bytes(1, tag.encode()) + _bytes(8, tensor) + _bytes(9, plugin))


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)
