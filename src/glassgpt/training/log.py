"""`log.jsonl`: a record of each step and each evaluation, one JSON object a line, in the order of the steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from glassgpt.files import write_text
from glassgpt.training.run_directory import LOG

_KEYS = {"step": {"step", "loss"}, "evaluation": {"step", "val_loss"}}


class RunLog:
    """Appends records to the log of a run; each is on the disk's way when the method returns."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def rewind(self, first_step: int) -> None:
        """Drop what a killed run logged after the checkpoint at `first_step`: those steps come again."""
        kept = [r for r in read_log(self._run) if r["step"] < first_step + (r["kind"] == "evaluation")]
        write_text(self._run / LOG, "".join(map(_line, kept)))

    def step(self, step: int, loss: float, norm: float, rate: float, tokens_per_second: float) -> dict[str, Any]:
        """Step number `step`, from 0: its loss before the update, its part of the peak rate."""
        record = {"kind": "step", "step": step, "loss": loss, "gradient_norm": norm, "rate": rate}
        return self._append(record | {"tokens_per_second": round(tokens_per_second, 1)})

    def evaluation(self, step: int, val_loss: float, bits_per_byte: float, epoch: float) -> dict[str, Any]:
        """The validation loss after `step` steps."""
        record = {"kind": "evaluation", "step": step, "val_loss": val_loss, "bits_per_byte": bits_per_byte}
        return self._append(record | {"epoch": round(epoch, 4)})

    def _append(self, record: dict[str, Any]) -> dict[str, Any]:
        with (self._run / LOG).open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(record))
        return record


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of `log.jsonl`, up to the first line that a kill cut off or that is not ours."""
    path = run / LOG
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not _KEYS.get(str(record.get("kind")), {""}) <= record.keys():
            break
        records.append(record)
    return records


def _line(record: dict[str, Any]) -> str:
    """JSON has no word for a number that is not finite: null."""
    non_finite = {key for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(record | dict.fromkeys(non_finite)) + "\n"
