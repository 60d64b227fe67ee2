"""From parts to a dataset: shards for training and validation, and an index of all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.data.dataset import INDEX, MAGIC, SPLITS, VERSION, index_digest
from glassgpt.data.prepare.duplicates import SIMILAR, Bools, Duplicates
from glassgpt.data.prepare.fingerprints import is_validation
from glassgpt.data.prepare.parts import ENDS_DOCUMENT, Part
from glassgpt.data.prepare.worker import Work
from glassgpt.data.shards import write_shard
from glassgpt.files import write_text

_SLICE_TOKENS = 1 << 20  # copied at once
Tokens = npt.NDArray[Any]


@dataclasses.dataclass
class _Sums:
    """Of one side of the split."""

    n_documents: int = 0
    n_sections: int = 0
    n_bytes: int = 0


class EmptySplitError(ValueError):
    """There is no text for one of the splits; what was written of the other is gone."""


def join(
    work: Work, parts: Sequence[Part], duplicates: Duplicates, out: Path, told: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write the shards and, when they are whole, the index, which is returned; `told` hears bytes done and in all.

    Raises `ValueError` where a side of the split has no text.
    """
    settings = work.plan.settings
    assert settings.validation is not None
    keep = ~duplicates.equal if settings.drop_duplicates else np.ones(len(duplicates.equal), bool)
    total = len(SPLITS) * sum(part.n_bytes for part in parts)
    splits: dict[str, Any] = {}
    for number, split in enumerate(SPLITS):
        sums = _Sums()
        stream = _Stream(
            _joined(parts, keep, settings.validation, split, work.tokenizer.eot_id, sums),
            partial(_tell, told, number, total),
        )
        shards: list[dict[str, Any]] = []
        while stream.more():
            name = f"{split}-{len(shards):05d}.bin"
            tokens = stream.take(settings.shard_tokens)
            shard = write_shard(out / name, tokens, work.tokenizer.n_vocab, work.tokenizer.fingerprint)
            shards.append({"file": name, "n_tokens": shard.n_tokens, "sha256": shard.sha256})
        if not shards:
            for written in splits.values():
                for shard in written["shards"]:
                    (out / shard["file"]).unlink()
            text = f"{sum(part.n_bytes for part in parts):,} bytes in {len(keep):,} sections"
            raise EmptySplitError(
                f"the text, {text}, is too short: none of it is for {split}; add text, choose shorter sections or "
                "another part for validation, or train on it as it is"
            )
        n_tokens = sum(shard["n_tokens"] for shard in shards)
        splits[split] = {"n_tokens": n_tokens, **dataclasses.asdict(sums), "shards": shards}
    index = _index(work, parts, duplicates, splits)
    work.tokenizer.save(out)
    write_text(out / INDEX, json.dumps(index, indent=1) + "\n")
    return index


def _tell(told: Callable[[int, int], None], split: int, total: int, done: int) -> None:
    told(split * total // len(SPLITS) + done, total)


class _Stream:
    """Tokens in arrays of any length, taken in runs of a given length."""

    def __init__(self, arrays: Iterator[tuple[Tokens, int]], told: Callable[[int], None]) -> None:
        self._arrays, self._told, self._rest = arrays, told, np.zeros(0, np.uint16)

    def more(self) -> bool:
        """Whether there are tokens left."""
        while not len(self._rest):
            found = next(self._arrays, None)
            if found is None:
                return False
            self._rest = found[0]
            self._told(found[1])
        return True

    def take(self, n: int) -> Iterator[Tokens]:
        """The next `n` tokens, or as many as there are."""
        while n and self.more():
            piece, self._rest = self._rest[:n], self._rest[n:]
            n -= len(piece)
            yield piece


def _joined(
    parts: Sequence[Part], keep: Bools, validation: float, split: str, eot_id: int | None, sums: _Sums
) -> Iterator[tuple[Tokens, int]]:
    """(tokens, bytes of text passed) of one side of the split, in order.

    An end of text follows each document, and each section whose next one is not there: what comes then is another text.
    """
    first = done = 0
    pending = False  # whether the last section that was kept may go on with the next
    follows = False  # whether the section before was kept
    for part in parts:
        table = part.sections()
        mine = is_validation(table["rest"], validation) == (split == "validation")
        mine &= keep[first : first + len(table)]
        first += len(table)
        ends = (table["flags"] & ENDS_DOCUMENT).astype(bool)
        with part.open_tokens() as file:
            for rows in _slices(table["n_tokens"]):
                size = table["n_tokens"][rows].astype(np.int64)
                tokens = np.frombuffer(file.read(int(size.sum()) * part.dtype.itemsize), part.dtype)
                chosen = mine[rows]
                before = np.concatenate([[follows], chosen[:-1]])
                broken = np.concatenate([[not pending], ends[rows][:-1]]) | ~chosen
                marks = np.flatnonzero(before & broken)  # the section before this one was the last of its text
                kept = np.cumsum(np.concatenate([[0], size * chosen]))
                result = tokens[np.repeat(chosen, size)]
                if eot_id is not None:
                    result = np.insert(result, kept[marks], eot_id)
                sums.n_sections += int(chosen.sum())
                sums.n_bytes += int(table["n_bytes"][rows][chosen].sum(dtype=np.int64))
                sums.n_documents += len(marks)
                done += int(table["n_bytes"][rows].sum(dtype=np.int64))
                follows, pending = bool(chosen[-1]), not ends[rows][-1]
                yield result, done
    sums.n_documents += follows
    if follows and eot_id is not None:
        yield np.array([eot_id]), done


def _slices(sizes: npt.NDArray[Any]) -> Iterator[slice]:
    """Rows of a table, of about `_SLICE_TOKENS` together."""
    ends = np.cumsum(sizes, dtype=np.int64)
    start = 0
    while start < len(sizes):
        begun = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, begun + _SLICE_TOKENS, side="right")))
        yield slice(start, stop)
        start = stop


def _index(work: Work, parts: Sequence[Part], found: Duplicates, splits: dict[str, Any]) -> dict[str, Any]:
    plan, tokenizer = work.plan, work.tokenizer
    sizes = np.concatenate([part.sections()["n_bytes"] for part in parts])
    skipped = [part.skipped for part in parts]
    index: dict[str, Any] = {
        "magic": MAGIC,
        "version": VERSION,
        "tokenizer": {"sha256": tokenizer.fingerprint, "n_vocab": tokenizer.n_vocab, "eot_id": tokenizer.eot_id},
        "dtype": parts[0].dtype.name,
        "splits": splits,
        "duplicates": {
            "n_sections": len(sizes),
            "equal": int(found.equal.sum()),
            "equal_bytes": int(sizes[found.equal].sum(dtype=np.int64)),
            "dropped": plan.settings.drop_duplicates,
            "similar": int(found.similar.sum()),
            "similar_bytes": int(sizes[found.similar].sum(dtype=np.int64)),
            "similar_from": SIMILAR,
            "validation_like_training": int(found.leaked.sum()),
            "examples": [
                {"kind": kind, "section": _place(work, parts, a), "earlier": _place(work, parts, b)}
                for a, b, kind in found.examples
            ],
        },
        "skipped": {
            "count": sum(each.count for each in skipped),
            "first": next((each.first for each in skipped if each.count), ""),
            "records_without_text": sum(each.empty for each in skipped),
        },
        "asked": {
            **plan.asked.to_dict(),
            "settings": {k: v for k, v in plan.asked.settings.to_dict().items() if k != "on_error"},
        },
        "settings": {k: v for k, v in plan.settings.to_dict().items() if k != "on_error"},
    }
    return index | {"sha256": index_digest(index)}


def _place(work: Work, parts: Sequence[Part], section: int) -> str:
    """Where a section is in the inputs."""
    for part in parts:
        if section < part.n_sections:
            row = part.sections()[section]
            span = work.plan.tasks[int(part.path.name.split("-")[0])][int(row["span"])]
            file = work.plan.asked.files[span.file]
            if file.kind == "text":
                return f"{file.name}, byte {int(row['at'])}"
            noun = "line" if file.kind in ("JSONL", "CSV", "TSV") else "record"
            where = f"row group {span.start}" if file.kind == "Parquet" else f"byte {span.start}"
            return f"{file.name}, {noun} {int(row['at'])}" + f" from {where} on" * bool(span.start)
        section -= part.n_sections
    raise AssertionError("a section is in a part")
