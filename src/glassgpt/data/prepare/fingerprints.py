"""By what sections are compared: a digest of their text, and a MinHash signature of their shingles.

The digest is BLAKE2b's, of the text with every run of white space as one space. A signature estimates the Jaccard
similarity of two sets of shingles, five words in a row without regard to case and punctuation: it is the share of its
64 places in which two signatures are equal (Broder 1997). All places come from one hash of each shingle, which says
both the place and the value (one permutation hashing, Li et al. 2012); a place that got none takes the next one's
(Shrivastava and Li 2014). A word is a run of ASCII letters and digits and of anything outside ASCII, so of a script
without spaces it is whatever lies between two marks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

PLACES = 64
BANDS = 16
"""Groups of four places; two sections that are equal in one of them are looked at."""
SHINGLE_WORDS = 5

_U64 = np.uint64
_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 1 << 64)
_EMPTY = _U64(2**64 - 1)


def _letters() -> npt.NDArray[np.uint8]:
    """Each byte in lower case, 0 where it belongs to no word."""
    table = np.arange(256, dtype=np.uint8)
    table[:128] = [ord(chr(b).lower()) if chr(b).isalnum() else 0 for b in range(128)]
    return table


_LETTERS = _letters()
_SPACES = np.arange(256, dtype=np.uint8)
_SPACES[[9, 10, 11, 12, 13]] = 32


class Joined:
    """UTF-8 texts one after another, a space between two, for work on all of them at once."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.data = np.frombuffer(b" ".join(pieces), np.uint8)
        self.sizes = np.array([len(piece) for piece in pieces], np.int64)
        self.starts = np.cumsum(self.sizes + 1) - self.sizes - 1

    def __len__(self) -> int:
        return len(self.sizes)


def digests(texts: Joined) -> npt.NDArray[np.uint64]:
    """(len(texts), 2): 16 bytes for each text."""
    spaced = _SPACES.take(texts.data)
    space = spaced == 32
    keep = np.ones(len(spaced), bool)
    np.logical_not(space[1:] & space[:-1], out=keep[1:])
    squeezed = spaced[keep].tobytes()
    before = np.concatenate([[0], np.cumsum(keep)])
    ends = before[texts.starts + texts.sizes].tolist()
    found = (
        hashlib.blake2b(squeezed[start:end].strip(b" "), digest_size=16).digest()
        for start, end in zip(before[texts.starts].tolist(), ends, strict=True)
    )
    return np.frombuffer(b"".join(found), "<u8").reshape(-1, 2)


def is_validation(digest: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Whether sections with these second halves of digests belong to the validation part."""
    return digest < _U64(min(int(fraction * 2**64), 2**64 - 1))


def signatures(texts: Joined) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_]]:
    """(n, PLACES) and (n,): of each text its signature, and whether it has the words for one."""
    words, first = _word_hashes(_LETTERS.take(texts.data))
    owner = np.searchsorted(texts.starts, first, side="right") - 1
    n = max(0, len(words) - SHINGLE_WORDS + 1)
    shingles = np.zeros(n, _U64)
    for i in range(SHINGLE_WORDS):
        shingles = shingles * _U64(_BASE) + words[i : i + n]
    inside = owner[:n] == owner[SHINGLE_WORDS - 1 : SHINGLE_WORDS - 1 + n]
    shingles, owner = _mixed(shingles[inside]), owner[:n][inside]
    least = np.full(len(texts) * PLACES, _EMPTY)
    place = (shingles >> _U64(58)).astype(np.intp)
    np.minimum.at(least, owner * PLACES + place, shingles & _U64(2**58 - 1))
    table = least.reshape(-1, PLACES)
    return _mixed(_filled(table)).astype(np.uint16), (table != _EMPTY).any(axis=1)


def bands_of(signature: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint64]:
    """(n, BANDS): four places each as one number."""
    return np.ascontiguousarray(signature).view("<u8")


def _word_hashes(letters: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.intp]]:
    """A hash of each word, and where it begins: polynomials of the bytes, from the differences of one running sum."""
    inside = np.zeros(len(letters) + 2, bool)
    np.not_equal(letters, 0, out=inside[1:-1])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    first, end = edges[::2], edges[1::2]
    powers, inverses = _powers(1 << max(16, len(letters).bit_length()))
    sums = np.zeros(len(letters) + 1, _U64)
    np.cumsum(letters * powers[: len(letters)], out=sums[1:])
    return _mixed((sums[end] - sums[first]) * inverses[first]), first


@lru_cache(maxsize=1)
def _powers(n: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The first `n` powers of the base and of its inverse, modulo 2**64."""
    tables = []
    for base in (_BASE, _INVERSE):
        table = np.full(n, base, _U64)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=_U64))
    return tables[0], tables[1]


def _filled(least: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Empty places with the value of the next place that has one, mixed with how far away it is."""
    twice = np.concatenate([least, least], axis=1)
    places = np.where(twice != _EMPTY, np.arange(2 * PLACES), 2 * PLACES - 1)
    following = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :PLACES]
    distance = (following - np.arange(PLACES)).astype(_U64)
    return np.take_along_axis(twice, following, axis=1) + distance * _U64(0xD6E8FEB86659FD93)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Every bit depends on every bit: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))
