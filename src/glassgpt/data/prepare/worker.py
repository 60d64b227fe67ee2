"""Encodes tasks of a plan into parts: here, or as a process of its own that `team` starts.

    python -m glassgpt.data.prepare.worker DIR ON_ERROR

reads numbers of tasks from standard input, one a line, and writes a line of JSON for whatever happens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from glassgpt.data.prepare.inputs import Span
from glassgpt.data.prepare.parts import MOST_SECTIONS, Part, write_part
from glassgpt.data.prepare.plan import Plan
from glassgpt.data.prepare.sections import Reader, Section, Skipped
from glassgpt.data.shards import dtype_for
from glassgpt.tokenizer import Tokenizer

PLAN, TOKENIZER, PARTS = "plan.json", "tokenizer", "parts"
"""In the folder of the work."""
ERRORS = {kind.__name__: kind for kind in (ValueError, FileNotFoundError, OSError, ImportError, MemoryError)}
"""What a worker's error becomes where it is told of."""
_TELL_SECONDS = 0.1


class Work:
    """The folder in which a plan is carried out."""

    def __init__(self, folder: Path, on_error: str) -> None:
        self.folder, self.plan, self.on_error = folder, Plan.load(folder / PLAN), on_error
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        self.digest, self.dtype = self.plan.digest(), dtype_for(self.tokenizer.n_vocab)

    def part(self, task: int, number: int) -> Path:
        """Where a part of a task is, or will be."""
        return self.folder / PARTS / f"{task:06d}-{number:04d}"

    def parts(self, task: int, *, verify: bool = False) -> Iterator[Part]:
        """The parts of a task that are there, from the first on; `ValueError` at one that is damaged."""
        for number in itertools.count():
            if not (path := self.part(task, number)).is_dir():
                return
            part = Part.load(path, self.digest, self.dtype, verify=verify)
            yield part
            if part.last:
                return

    def encode(self, task: int, told: Callable[[int], None]) -> None:
        """Write the parts of a task that are not there yet; `told` hears how many bytes of its files are done.

        Raises `ValueError` for a text that cannot be read, unless such texts are skipped.
        """
        there = list(self.parts(task))
        if there and there[-1].last:
            return
        run = _TaskRun(self, task, told)
        for part in there:
            run.pass_over(part.n_sections)
        for number in itertools.count(len(there)):
            write_part(self.part(task, number), run.sections_of_part, self.tokenizer, self.digest, run.about)
            if run.ended:
                return


class _TaskRun:
    """The sections of a task on their way into parts."""

    def __init__(self, work: Work, task: int, told: Callable[[int], None]) -> None:
        plan = work.plan
        self._spans, self._told, self._part_bytes = plan.tasks[task], told, plan.settings.part_bytes
        self._reader = Reader(plan.asked.files, plan.asked.text_fields, plan.settings.section, work.on_error == "skip")
        self._counted = Skipped()
        self._done = 0
        self._sections = self._all()
        self._next = next(self._sections, None)

    @property
    def ended(self) -> bool:
        """Whether there is nothing after what was taken."""
        return self._next is None

    def _all(self) -> Iterator[Section]:
        for number, span in enumerate(self._spans):
            before = self._done
            for section in self._reader.sections(span, partial(self._watch, span, before)):
                yield section._replace(span=number)
            self._done = before + span.size

    def _watch(self, span: Span, before: int, at: int) -> None:
        # a Parquet file is read from its end, so only whole groups count
        if self._reader.files[span.file].kind != "Parquet":
            self._done = before + min(span.size, max(0, at - span.start))

    def _take(self) -> Section:
        section = self._next
        assert section is not None
        self._next = next(self._sections, None)
        return section

    def pass_over(self, n: int) -> None:
        """Take the sections of a part that is there."""
        for _ in range(n):
            self._take()
        self._counted = self._reader.skipped.copy()

    def sections_of_part(self) -> Iterator[Section]:
        """The sections of the next part."""
        size = n = 0
        while self._next is not None and size < self._part_bytes and n < MOST_SECTIONS:
            section = self._take()
            size, n = size + section.n_bytes, n + 1
            yield section
            if n % 16 == 0 or section.n_bytes > 1 << 16:
                self._told(self._done)

    def about(self) -> dict[str, Any]:
        """What there is to say of the part that was just taken."""
        now, before = self._reader.skipped.copy(), self._counted
        self._counted = now
        first = now.first if now.count > before.count else ""
        return {
            "last": self.ended,
            "input_bytes": self._done,
            "skipped": [now.count - before.count, first, now.empty - before.empty],
        }


def main() -> int:
    """Work on the tasks that standard input names, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this one hears it too, and ends us
    out = sys.stdout

    told_at = 0.0

    def say(**record: Any) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    def tell(task: int, done: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= _TELL_SECONDS:
            told_at = time.monotonic()
            say(task=task, done=done)

    try:
        work = Work(Path(sys.argv[1]), sys.argv[2])
        for line in sys.stdin:
            task = int(line)
            work.encode(task, partial(tell, task))
            say(task=task, ended=True)
    except BrokenPipeError:  # whoever started this one is gone
        return 1
    except tuple(ERRORS.values()) as error:
        kind = next(name for name, kind in ERRORS.items() if isinstance(error, kind))
        with contextlib.suppress(BrokenPipeError):
            say(error=str(error), kind=kind)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
