"""Which sections of all parts are alike: equal ones by their digests, similar ones by their signatures.

Similar sections are found by locality-sensitive hashing (Indyk and Motwani 1998): only sections that are equal in a
whole band are compared, each with the first of those. Two with a Jaccard similarity of 0.8 meet in at least one of the
16 bands 99.98 times in 100, two of 0.5 in six of ten; the estimate from all 64 places then decides. So the count of
similar sections is an estimate, that of equal ones is exact. Keys are sorted some millions at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from glassgpt.data.prepare.fingerprints import BANDS, is_validation
from glassgpt.data.prepare.parts import COMPARABLE, Part

SIMILAR = 0.8
"""Estimated share of shingles in common from which on two sections count as similar."""
_MOST_KEYS = 1 << 21  # in memory at once
_MOST_PAIRS = 1 << 15  # whose signatures are
_EXAMPLES = 5
_BLANK = int.from_bytes(hashlib.blake2b(b"", digest_size=16).digest()[:8], "little")

Bools = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]


@dataclass
class Duplicates:
    """What was found. Sections are numbered in the order of the parts."""

    equal: Bools = field(repr=False)
    """(n_sections,): whether an earlier section has the same text, but for white space."""
    similar: Bools = field(repr=False)
    """(n_sections,): whether an earlier section is similar, but not equal."""
    leaked: Bools = field(repr=False)
    """(n_sections,): a section for validation that is similar to one for training."""
    examples: list[tuple[int, int, str]]
    """(section, the earlier one, how they are alike) of a few."""


def find_duplicates(parts: Sequence[Part], validation: float, told: Callable[[int, int], None]) -> Duplicates:
    """Compare all sections; `told` hears of how many of the passes are done."""
    n = sum(part.n_sections for part in parts)
    result = Duplicates(np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool), [])
    finder = _Finder(parts, validation, result)
    passes = -(-n // _MOST_KEYS)
    total = passes * (BANDS + 1)
    for number in range(passes):
        finder.equal(number, passes)
        told(number + 1, total)
    for band in range(BANDS):
        for number in range(passes):
            finder.similar(band, number, passes)
            told(passes * (band + 1) + number + 1, total)
    return result


class _Finder:
    def __init__(self, parts: Sequence[Part], validation: float, result: Duplicates) -> None:
        self._parts, self._result = parts, result
        self._first = np.cumsum([0, *(part.n_sections for part in parts)])
        self._comparable, self._validation = np.zeros(self._first[-1], bool), np.zeros(self._first[-1], bool)
        for table, ids in self._tables():
            self._comparable[ids] = table["flags"] & COMPARABLE
            self._validation[ids] = is_validation(table["rest"], validation)

    def _tables(self) -> Iterator[tuple[npt.NDArray[Any], slice]]:
        for part, first in zip(self._parts, self._first.tolist(), strict=False):
            yield part.sections(), slice(first, first + part.n_sections)

    def equal(self, number: int, passes: int) -> None:
        """Find equal sections among those whose keys fall into pass `number`."""
        found = []
        for table, ids in self._tables():
            mine = (table["digest"] % np.uint64(passes) == number) & (table["digest"] != np.uint64(_BLANK))
            rows = np.flatnonzero(mine)
            found.append((table["digest"][rows], table["rest"][rows], rows + ids.start))
        keys, rests, ids_of = (np.concatenate(columns) for columns in zip(*found, strict=True))
        order = np.lexsort((ids_of, rests, keys))
        keys, rests, ids_of = keys[order], rests[order], ids_of[order]
        same = np.zeros(len(keys), bool)
        same[1:] = (keys[1:] == keys[:-1]) & (rests[1:] == rests[:-1])
        firsts = ids_of[_starts(same)]
        self._result.equal[ids_of[same]] = True
        self._show(ids_of[same], firsts[same], "equal")

    def similar(self, band: int, number: int, passes: int) -> None:
        """Find similar sections by one band of their signatures, among those whose keys fall into pass `number`."""
        found = []
        for part, first in zip(self._parts, self._first.tolist(), strict=False):
            wanted = self._comparable[first : first + part.n_sections]
            wanted = wanted & ~self._result.equal[first : first + part.n_sections]
            keys = part.band(band)
            rows = np.flatnonzero(wanted & (keys % np.uint64(passes) == number))
            found.append((keys[rows], rows + first))
        keys, ids = (np.concatenate(columns) for columns in zip(*found, strict=True))
        order = np.argsort(keys, kind="stable")  # sections with one key stay in their order
        keys, ids = keys[order], ids[order]
        same = np.zeros(len(keys), bool)
        same[1:] = keys[1:] == keys[:-1]
        starts = _starts(same)
        self._compare(ids[same], ids[starts][same], self._result.similar, "similar")
        # beside the first section of a group, one for validation meets the first one for training
        place = np.arange(len(ids))
        training = np.where(self._validation[ids], len(ids), place)
        heads = np.flatnonzero(~same)
        nearest = np.minimum.reduceat(training, heads) if len(heads) else training
        nearest = np.repeat(nearest, np.diff(heads, append=len(ids)))
        pairs = self._validation[ids] & (nearest < len(ids))
        self._compare(ids[pairs], ids[nearest[pairs]], self._result.leaked, "across the split")

    def _compare(self, later: Ids, earlier: Ids, marks: Bools, word: str) -> None:
        """Mark those of `later` whose signatures are like those of `earlier`."""
        new = ~marks[later]
        later, earlier = later[new], earlier[new]
        for start in range(0, len(later), _MOST_PAIRS):
            a, b = (self._signatures(ids[start : start + _MOST_PAIRS]) for ids in (later, earlier))
            alike = np.flatnonzero((a == b).mean(axis=1) >= SIMILAR) + start
            marks[later[alike]] = True
            self._show(later[alike], earlier[alike], word)

    def _signatures(self, ids: Ids) -> npt.NDArray[np.uint16]:
        """(len(ids), 64)"""
        result = np.empty((len(ids), BANDS), "<u8")
        owners = np.searchsorted(self._first, ids, side="right") - 1
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            result[mine] = self._parts[owner].bands()[:, ids[mine] - self._first[owner]].T
        return result.view("<u2")

    def _show(self, later: Ids, earlier: Ids, word: str) -> None:
        shown = sum(kind == word for *_, kind in self._result.examples)
        pairs = zip(later.tolist(), earlier.tolist(), strict=True)
        self._result.examples += [(a, b, word) for _, (a, b) in zip(range(_EXAMPLES - shown), pairs, strict=False)]


def _starts(same: Bools) -> Ids:
    """Where the group of each element of a sorted array begins; `same`: whether it is equal to the one before."""
    return np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))
