"""What is to be prepared, fixed when it begins: a rerun continues it, or is told what differs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from glassgpt.data.prepare.inputs import InputFile, Span, changes
from glassgpt.data.prepare.settings import PrepareSettings
from glassgpt.files import write_text
from glassgpt.json_file import read_json

_VERSION = 1
MAX_PLAN_BYTES = 2**30
"""It names every input."""
_FREE = ("on_error",)  # what a rerun may change: it decides nothing about what was read without an error


@dataclasses.dataclass(frozen=True)
class Asked:
    """What `prepare` was asked for, as it was given."""

    files: Sequence[InputFile]
    settings: PrepareSettings
    text_fields: Sequence[str]
    tokenizer: str
    """One of the names of tokenizers, or the fingerprint of one that was given."""

    def differences(self, now: Asked) -> list[str]:
        """What another request asks for that this one does not, in words."""
        before, after = self.settings.to_dict(), now.settings.to_dict()
        said = [
            f"{name} was {before[name]!r}, now {after[name]!r}"
            for name in before
            if before[name] != after[name] and name not in _FREE
        ]
        if list(self.text_fields) != list(now.text_fields):
            fields = [", ".join(asked.text_fields) or "not chosen" for asked in (self, now)]
            said.append(f"the text fields were {fields[0]}, now {fields[1]}")
        if self.tokenizer != now.tokenizer:
            said.append(f"the tokenizer was {self.tokenizer[:12]}, now {now.tokenizer[:12]}")
        return said + changes(self.files, now.files)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return dataclasses.asdict(self) | {"settings": self.settings.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From `to_dict`; KeyError or TypeError where it is damaged."""
        return cls(
            [InputFile(**file) for file in values["files"]],
            PrepareSettings.from_dict(values["settings"]),
            values["text_fields"],
            values["tokenizer"],
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done about it: everything that decides a byte of the result."""

    asked: Asked
    settings: PrepareSettings
    """Resolved."""
    tasks: list[list[Span]]
    tokenizer: str
    """Fingerprint."""

    def task_bytes(self, task: int) -> int:
        """Of the inputs of a task."""
        return sum(span.size for span in self.tasks[task])

    def digest(self) -> str:
        """What the parts of a plan are known by."""
        record = self._record()
        for settings in (record["asked"]["settings"], record["settings"]):
            for name in _FREE:
                del settings[name]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def _record(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "asked": self.asked.to_dict(),
            "settings": self.settings.to_dict(),
            "tasks": [[dataclasses.astuple(span) for span in task] for task in self.tasks],
            "tokenizer": self.tokenizer,
        }

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, json.dumps(self._record()) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it back; `ValueError` where it is damaged or of another version."""
        record = read_json(path, max_bytes=MAX_PLAN_BYTES)
        try:
            if record["version"] != _VERSION:
                raise ValueError(f"{path} is of version {record['version']}, where {_VERSION} is read")
            tasks = [[Span(*span) for span in task] for task in record["tasks"]]
            settings = PrepareSettings.from_dict(record["settings"])
            return cls(Asked.from_dict(record["asked"]), settings, tasks, record["tokenizer"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from None
