"""What was measured: every turn as it was taken, and the medians that are shown."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from glassgpt.bench.plan import FLOAT32, OURS, PEERS

FORMAT = 1
"""Of `bench.json`."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One contender did one work in a process of its own."""

    contender: str
    work: str
    round: int
    """From 0."""
    threads: int
    figures: dict[str, Any]
    """What `turn.measure` returned; tokens per second, seconds and bytes."""


@dataclasses.dataclass
class Bench:
    """A benchmark of one model on one machine, finished or not."""

    model: dict[str, Any]
    """name, n_parameters, context_length, vocab_size."""
    machine: dict[str, Any]
    """processor, cores, threads, and the versions of what computes."""
    sizes: dict[str, Any]
    """The fields of `plan.Sizes`."""
    rounds: int
    turns: list[Turn] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    """What a reader should know, one line each."""
    finished: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` reads it back."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Bench:
        """What `to_dict` gave. `ValueError` for another version's."""
        values = dict(values)
        if (version := values.pop("format", None)) != FORMAT:
            raise ValueError(f"a benchmark of format {version!r}, where {FORMAT} is known: measure again")
        values["turns"] = [Turn(**turn) for turn in values["turns"]]
        return cls(**values)

    def of(self, contender: str, work: str) -> list[dict[str, Any]]:
        """The figures of a contender's turns at a work; a peer's with its fastest number of threads alone."""
        turns = [turn for turn in self.turns if (turn.contender, turn.work) == (contender, work)]
        threads = self.best_threads(contender, work)
        return [turn.figures for turn in turns if turn.threads == threads]

    def best_threads(self, contender: str, work: str) -> int | None:
        """The number of threads of its fastest turn in the first round, in which it tries several."""
        tried = [turn for turn in self.turns if (turn.contender, turn.work, turn.round) == (contender, work, 0)]
        return max(tried, key=lambda turn: speed(turn.figures)).threads if tried else None

    def contenders(self, work: str | None = None) -> list[str]:
        """Those that took a turn (at this work), in the order of `plan`."""
        found = {turn.contender for turn in self.turns if work in (None, turn.work)}
        return [name for name in (*OURS, *(name for names in PEERS.values() for name in names)) if name in found]

    def median(self, contender: str, work: str, figure: str) -> float | None:
        """The median over the rounds; None where it was not measured."""
        values = [figures[figure] for figures in self.of(contender, work) if figures.get(figure) is not None]
        return statistics.median(values) if values else None

    def series(self, contender: str, work: str, figure: str) -> dict[int, float]:
        """As `median`, of a figure that has a value for each of several numbers of rows or tokens."""
        every = [figures[figure] for figures in self.of(contender, work)]
        return {int(n): statistics.median(values[n] for values in every) for n in (every[0] if every else ())}

    def share_of_read(self, contender: str) -> float | None:
        """Bytes of weights a second in decoding, as a part of what a plain read of memory took in the same process."""
        shares = [
            figures["rate"] * figures["weight_bytes"] / figures["read_rate"]
            for figures in self.of(contender, "decode")
            if figures.get("read_rate")
        ]
        return statistics.median(shares) if shares else None

    def memory(self, contender: str) -> tuple[float | None, float | None]:
        """The most memory that a process took while it decoded, and how much of it is neither weights nor cache."""
        peaks = [figures for figures in self.of(contender, "decode") if figures.get("peak_bytes")]
        if not peaks:
            return None, None
        most = max(peaks, key=lambda figures: figures["peak_bytes"])
        if not most.get("weight_bytes"):
            return most["peak_bytes"], None
        return most["peak_bytes"], most["peak_bytes"] - most["weight_bytes"] - most["cache_bytes"]

    def reference(self) -> str | None:
        """The contender whose greedy tokens the others are compared with."""
        return next((name for name in FLOAT32 if self.of(name, "decode")), None)

    def first_difference(self, contender: str) -> int | None:
        """The first greedy token, from 0, that any turn had otherwise than `reference`; None where all are the same.

        Who wrote fewer tokens is compared as far as they go.
        """
        name = self.reference()
        if name is None:
            return None
        text = self.of(name, "decode")[0]["tokens"]
        different = [
            index
            for turn in self.turns
            if (turn.contender, turn.work) == (contender, "decode")
            for index, (ours, theirs) in enumerate(zip(text, turn.figures["tokens"], strict=False))
            if ours != theirs
        ]
        return min(different, default=None)

    def off_line(self, contender: str) -> float | None:
        """How far the cost of a token is from a straight line over the length of the text, at most, as a part of it."""
        costs = self.series(contender, "context", "seconds")
        if len(costs) < 3:
            return None
        slope, start = statistics.linear_regression(list(costs), list(costs.values()))
        return max(abs(start + slope * n - cost) / cost for n, cost in costs.items())


def speed(figures: dict[str, Any]) -> float:
    """One number by which two turns at the same work are compared: more is faster."""
    return sum(figures["rates"].values()) if "rates" in figures else figures.get("rate", 0.0)


def threads_of(bench: Bench) -> str:
    """Such as "2 threads of AMD EPYC"."""
    n = bench.machine["threads"]
    return f"{n} thread{'' if n == 1 else 's'} of {bench.machine['processor']}"
