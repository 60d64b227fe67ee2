"""How a text is prepared: the fields are `prepare`'s keywords, the command line's options and their help."""

from __future__ import annotations

import dataclasses
from typing import Self, TypedDict

from glassgpt.options import Options, option

_VALIDATION_BYTES = 2**24  # measure a loss well enough; a tenth of a large text would be lost to training
_LEAST_SECTION, _MOST_SECTION = 2**12, 2**20
ON_ERROR = ("stop", "skip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareSettings(Options):
    """How to prepare a text. `ValueError` for values that cannot work."""

    noun = "setting"

    vocab_size: int | None = option(
        None, "tokens of a BPE that is trained", unit="tokens", at_least=257, derived="by the size of the text"
    )
    validation: float | None = option(
        None,
        "part of the text to keep for validation, picked by a hash of each section",
        unit="part",
        above=0,
        below=1,
        derived="0.1, less of a large text: about 16 MB",
    )
    drop_duplicates: bool = option(
        False, "leave out all but the first of sections that are equal but for white space", unit=""
    )
    on_error: str = option(
        "stop",
        "stop: at a text that cannot be read; skip: leave it out and count it",
        choices=ON_ERROR,
    )
    section_bytes: int | None = option(
        None,
        "longer documents are cut, at line ends, into sections of this size, which are split and compared",
        unit="bytes",
        at_least=64,
        derived="about a thousandth of the text, from 4 kB to 1 MB",
    )
    part_bytes: int = option(
        2**25, "text that a process encodes between two savings", unit="bytes", at_least=2**10, at_most=2**30
    )
    shard_tokens: int = option(10**8, "tokens of one file of the result", unit="tokens", at_least=1, at_most=2**31 - 1)

    def resolved(self, n_bytes: int) -> Self:
        """For inputs of `n_bytes` in all: what was left to be derived is filled in, but for the vocabulary."""
        section = 2 ** max(0, n_bytes // 1024).bit_length()
        return dataclasses.replace(
            self,
            validation=self.validation or round(min(0.1, _VALIDATION_BYTES / max(1, n_bytes)), 6) or 1e-6,
            section_bytes=self.section_bytes or min(_MOST_SECTION, max(_LEAST_SECTION, section)),
        )

    @property
    def section(self) -> int:
        """`section_bytes` of resolved settings."""
        assert self.section_bytes is not None
        return self.section_bytes


class PrepareKeywords(TypedDict, total=False):
    """The fields of `PrepareSettings`, for type checkers and editors; a test keeps the two alike."""

    vocab_size: int | None
    validation: float | None
    drop_duplicates: bool
    on_error: str
    section_bytes: int | None
    part_bytes: int
    shard_tokens: int
