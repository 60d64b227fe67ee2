"""The tokenizer of a text that is prepared: made from its training part, or from a sample of a large one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from glassgpt.data import vocabulary
from glassgpt.data.prepare.fingerprints import Joined, digests, is_validation
from glassgpt.data.prepare.inputs import InputFile, Span
from glassgpt.data.prepare.parts import batches
from glassgpt.data.prepare.sections import Reader, Section
from glassgpt.data.prepare.settings import PrepareSettings
from glassgpt.data.vocabulary import trained_bpe, vocabulary_size
from glassgpt.tokenizer import Tokenizer


class Report(Protocol):
    """What hears of long work; `training.progress.Progress` is one."""

    def message(self, text: str) -> None:
        """One line worth knowing."""

    def work(self, name: str, done: int, total: int, unit: str = "bytes") -> None:
        """Of the work called `name`, `done` of `total` units are done; a `total` of 0 is not known."""


def make_tokenizer(
    name: str,
    files: Sequence[InputFile],
    fields: Sequence[str],
    tasks: Sequence[Sequence[Span]],
    settings: PrepareSettings,
    report: Report,
) -> Tokenizer:
    """The tokenizer "bpe" or "char" of the inputs.

    Characters are collected from all of the text. A BPE is trained on the sections for training; of a text above
    `vocabulary.MAX_BPE_BYTES` on the first ones of each task, as many as there is room for.
    """
    sample = _Sample(files, fields, tasks, settings, report)
    if name == "char":
        return Tokenizer.characters(section.text for section in sample.sections("collecting characters", None))
    n_bytes, most = sample.n_bytes, vocabulary.MAX_BPE_BYTES
    share = min(1.0, most / max(1, n_bytes))
    part = "the training part"
    if share < 1:
        part = f"a sample, {most / 1e6:,.0f} of {n_bytes / 1e6:,.0f} MB: the beginning of each of {len(tasks):,} pieces"
    report.message(f"training a tokenizer on {part}")
    found = sample.sections("counting words", None if share == 1 else share)
    size = settings.vocab_size or vocabulary_size(n_bytes)
    tokenizer = trained_bpe(sample.training(found), size, report.work)
    report.message(f"tokenizer: BPE of {tokenizer.n_vocab:,} tokens, trained on {part}")
    return tokenizer


class _Sample:
    def __init__(
        self,
        files: Sequence[InputFile],
        fields: Sequence[str],
        tasks: Sequence[Sequence[Span]],
        settings: PrepareSettings,
        report: Report,
    ) -> None:
        self._tasks, self._settings, self._report = tasks, settings, report
        self._reader = Reader(files, fields, settings.section, settings.on_error == "skip")
        self.n_bytes = sum(span.size for task in tasks for span in task)

    def sections(self, work: str, share: float | None) -> Iterator[Section]:
        """The sections of all tasks; with `share`, of each task the first ones, up to that part of its bytes."""
        total = self.n_bytes if share is None else int(share * self.n_bytes)
        done = 0.0
        for task in self._tasks:
            size = sum(span.size for span in task)
            room = size if share is None else share * size
            taken = 0
            for section in self._of_task(task):
                yield section
                taken += section.n_bytes
                self._report.work(work, int(done + min(taken, room)), total)
                if share is not None and taken >= room:
                    break
            done += room
        self._report.work(work, total, total)

    def _of_task(self, task: Sequence[Span]) -> Iterator[Section]:
        for span in task:
            yield from self._reader.sections(span)

    def training(self, sections: Iterator[Section]) -> Iterator[str]:
        """The texts of those sections that will be for training."""
        assert self._settings.validation is not None
        for batch in batches(sections):
            rest = digests(Joined([section.text.encode("utf-8") for section in batch]))[:, 1]
            out = is_validation(rest, self._settings.validation)
            yield from (section.text for section, skip in zip(batch, out, strict=True) if not skip)
