"""A served model's run, if it came from one: its curve and samples, ready for JSON, read from its files each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glassgpt.terminal_text import visible
from glassgpt.training.log import read_samples
from glassgpt.training.look import look
from glassgpt.training.report import facts_of, loss_chart
from glassgpt.training.run_directory import RUN_FILE

MOST_SAMPLES = 50


def run_view(path: Path) -> dict[str, Any] | None:
    """How the run in the directory `path` stands; None where there is none that can be read."""
    if not (path / RUN_FILE).is_file():
        return None
    try:
        run = look(path)
    except (OSError, ValueError):  # it is being written, or moved into place; or it is no run of ours
        return None
    samples = read_samples(path)[-MOST_SAMPLES:]
    return {
        **run.summary(),
        "run": path.name,
        "baselines": {key: getattr(run.record.baselines, key) for key in ("uniform", "unigram", "bigram")},
        "facts": facts_of(run),
        "chart": loss_chart(run),
        "samples": [{"step": sample["step"], "text": visible(sample["text"])} for sample in samples],
    }
