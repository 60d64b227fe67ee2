"""`log.jsonl`: a record of each step and each evaluation, one JSON object a line, in the order of the steps.

Each has the `time` it was written at, ISO 8601 in UTC, and the `seconds` the run had been at work by then, without the
pauses between a stop and its resume. Logs of version 0.1 have neither, and a run that began so never has `seconds`.
`log.csv` has the same for spreadsheets, and `samples.jsonl` has what the model wrote at each evaluation.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from glassgpt.files import sync, write_text
from glassgpt.training.run_directory import CSV, LOG, SAMPLES

_log = logging.getLogger(__name__)

_COLUMNS = (
    *("kind", "step", "loss", "gradient_norm", "rate", "tokens_per_second"),
    *("val_loss", "bits_per_byte", "epoch", "memory_bytes", "time", "seconds"),
)
_KEYS = {"step": {"step", "loss"}, "evaluation": {"step", "val_loss"}}


class RunLog:
    """Appends records to the log of a run; each is on the disk's way when the method returns.

    The clock of `seconds` goes from the moment this is made or rewound on, and adds to what the last record has.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._began = run, time.monotonic()
        self._before = _seconds(read_log(run))

    def rewind(self, first_step: int, evaluated: int | None = None) -> list[dict[str, Any]]:
        """Drop what a killed run logged after the checkpoint at `first_step`: those steps come again.

        `evaluated` are the steps after which that checkpoint's model was measured last; None: `first_step`. Returns
        the records that stay.
        """
        ends = {"step": first_step, "evaluation": (first_step if evaluated is None else evaluated) + 1}
        records, n_damaged = read_log_and_damage(self._run)
        if n_damaged:
            _log.warning("%s: %d damaged lines are left out", self._run / LOG, n_damaged)
        kept = [r for r in records if r["step"] < ends[r["kind"]]]
        write_text(self._run / LOG, "".join(map(_line, kept)))
        if kept:
            write_text(self._run / CSV, _csv_header() + "".join(map(_csv, kept)))
        if samples := read_samples(self._run):
            written = (sample for sample in samples if sample["step"] < ends["evaluation"])
            write_text(self._run / SAMPLES, "".join(map(_line, written)))
        self._before, self._began = _seconds(kept), time.monotonic()
        return kept

    def step(self, step: int, loss: float, norm: float, rate: float, tokens_per_second: float) -> dict[str, Any]:
        """Step number `step`, from 0: its loss before the update, its part of the peak rate."""
        record = {"kind": "step", "step": step, "loss": loss, "gradient_norm": norm, "rate": rate}
        return self._append(record | {"tokens_per_second": round(tokens_per_second, 1)})

    def evaluation(
        self,
        step: int,
        val_loss: float,
        bits_per_byte: float,
        epoch: float,
        memory_bytes: int | None = None,
        *,
        regular: bool = True,
        skipping: bool = False,
    ) -> dict[str, Any]:
        """The validation loss after `step` steps, and the most memory that was in use until then, if that is known.

        `regular` and `skipping` as `RunState.after_evaluation` tells them apart; the record has them where unusual.
        """
        record = {"kind": "evaluation", "step": step, "val_loss": val_loss, "bits_per_byte": bits_per_byte}
        record |= {"epoch": round(epoch, 4)}
        record |= ({} if regular else {"regular": False}) | ({"skipping": True} if skipping else {})
        return self._append(record if memory_bytes is None else record | {"memory_bytes": memory_bytes})

    def sample(self, step: int, text: str) -> None:
        """What the model wrote after `step` steps, into `samples.jsonl`."""
        self._append({"step": step, "text": text}, SAMPLES)

    def sync(self) -> None:
        """Onto the disk: a checkpoint that comes after must not outlive the lines that led to it."""
        for name in (LOG, CSV, SAMPLES):
            if (self._run / name).exists():
                sync(self._run / name)

    def _append(self, record: dict[str, Any], name: str = LOG) -> dict[str, Any]:
        record["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        if self._before is not None:
            record["seconds"] = round(self._before + time.monotonic() - self._began, 3)
        self._write(name, _line(record))
        if name == LOG:
            self._write(CSV, _csv(record) if (self._run / CSV).exists() else _csv_header() + _csv(record))
        return record

    def _write(self, name: str, text: str) -> None:
        with (self._run / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of `log.jsonl`, without lines that a kill cut off or that are not ours."""
    return read_log_and_damage(run)[0]


def read_log_and_damage(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of `log.jsonl`, as `read_log` has them, and how many lines before the last are none.

    After one that is damaged what does not go on from the steps before is none, either.
    """
    path = run / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    records: list[dict[str, Any]] = []
    n_damaged = 0
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None or (n_damaged and records and _place(record) <= _place(records[-1])):
            n_damaged += number < len(lines)
        else:
            records.append(record)
    return records, n_damaged


def _record(line: str) -> dict[str, Any] | None:
    """A line of the log, if it is one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return record if _KEYS.get(str(record.get("kind")), {""}) <= record.keys() else None


def _place(record: dict[str, Any]) -> tuple[int, bool]:
    """By which records are in order: the evaluation after so many steps comes before the step of that number."""
    return record["step"], record["kind"] == "step"


def read_samples(run: Path) -> list[dict[str, Any]]:
    """The records of `samples.jsonl` that are whole: each has a `step` and a `text`."""
    path, samples = run / SAMPLES, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int) and isinstance(record.get("text"), str):
            samples.append(record)
    return samples


def _seconds(records: list[dict[str, Any]]) -> float | None:
    """How long the run had been at work at its last record, if that says so."""
    seconds = records[-1].get("seconds") if records else 0.0
    return seconds if isinstance(seconds, int | float) else None


def _csv_header() -> str:
    return ",".join(_COLUMNS) + "\n"


def _csv(record: dict[str, Any]) -> str:
    """A line of `log.csv`: what the record does not have is empty. Nothing in a record needs quotes."""
    return ",".join("" if record.get(name) is None else str(record[name]) for name in _COLUMNS) + "\n"


def _line(record: dict[str, Any]) -> str:
    """JSON has no word for a number that is not finite: null."""
    non_finite = {key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(record | dict.fromkeys(non_finite)) + "\n"
