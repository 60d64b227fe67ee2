"""How many threads a step of one token wakes: as many as there are cores, or fewer where that is measured to be faster.

Such a step is bound by memory, which a few cores may exhaust, and each thread costs some time to wake. A row's scores
are the same bits with any number of threads, so the numbers are tried while the first tokens are computed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import time
from collections.abc import Callable, Generator
from typing import Any

from glassgpt.config import GPTConfig
from glassgpt.generation.cpu.team import Team
from glassgpt.generation.cpu.tiles import HERE
from glassgpt.measured import recall, remember, this_machine

Seconds = dict[int, float]
"""What a step takes, by the number of threads."""

ALONE = 2**21
"""Multiplications that one thread does before a second one has woken up."""

FEW = 4
"""Steps of so many tokens are bound by memory as those of one; larger ones have all threads."""

MEASURED_AHEAD = 4
"""Tokens that a call may draw, besides the one after it, while numbers of threads are tried."""

_FIRST = 2  # steps that are not timed: they bring the weights in
_STEPS = 5  # of each number of threads
_SAME, _WORSE = 1.02, 1.15  # so far apart two are alike; so much slower, and fewer threads are not tried
# What is measured beside other work would be remembered when that has gone. Such work shows in the load of the last
# minute, and in a processor that is taken away from this process.
_LOAD = 0.5  # for each core
_SWITCHES = 0.5  # for each step


class Tuner:
    """Runs steps with a team, in as many threads as is best."""

    def __init__(
        self,
        team: Team,
        threads: int | None = None,
        why: str = "as asked",
        measured: Callable[[Seconds, int], None] = lambda seconds, threads: None,
    ) -> None:
        """`threads`, and `why` so many; None measures it and calls `measured` with what was found and chosen."""
        self._team, self._measured = team, measured
        self._threads, self._why = threads or team.n_threads, why
        self._trying = None if threads else _tried(team.n_threads)
        if self._trying:
            self._threads = next(self._trying)

    def __str__(self) -> str:
        """The number of threads, and why it is that."""
        if self._trying:
            return f"{threads_text(self._team.n_threads)} (one for each core; too few tokens so far to measure that)"
        return f"{threads_text(self._threads)} ({self._why})"

    @property
    def measuring(self) -> bool:
        """Whether numbers of threads are being tried."""
        return self._trying is not None

    def run(self, n_tokens: int, n_steps: Callable[[], int], function: Callable[..., Any], *arguments: Any) -> None:
        """`Team.run` for steps of so many tokens each; `n_steps` says afterwards how many they were."""
        if n_tokens > FEW:
            self._team.run(function, *arguments)
        elif self._trying is None or n_tokens > 1:
            self._team.run(function, *arguments, threads=self._threads)
        else:
            began = time.perf_counter()
            self._team.run(function, *arguments, threads=self._threads)
            self._heard(self._trying, (time.perf_counter() - began) / n_steps())

    def _heard(self, trying: Trying, seconds: float) -> None:
        try:
            self._threads = trying.send(seconds)
        except StopIteration as end:
            self._trying = None
            self._threads, found = end.value
            if found:
                self._why = f"measured now: {seconds_text(found)}"
                self._measured(found, self._threads)
            else:
                self._why = "one for each core; not measured, because other work is running"


Trying = Generator[int, float, tuple[int, Seconds]]
"""Yields the number of threads that the next step is to have, is sent what it took, and returns the best number and the
medians, or {} where other work disturbed them."""


def _tried(most: int) -> Trying:
    """Half as many threads, and half of those, in turns with the best so far, until fewer are clearly slower."""
    for _ in range(_FIRST):
        yield most
    best, tried, seconds = most, most // 2, Seconds()
    while tried:
        switches, times = _switches(), {best: list[float](), tried: list[float]()}
        for _ in range(_STEPS):
            for threads in times:
                times[threads].append((yield threads))
        if _switches() - switches > _SWITCHES * 2 * _STEPS or _is_busy():
            return most, {}
        seconds |= {threads: statistics.median(each) for threads, each in times.items()}
        ratio = seconds[tried] / seconds[best]
        if ratio <= _SAME:
            best = tried
        elif ratio > _WORSE:
            break
        tried //= 2
    return best, dict(sorted(seconds.items()))


def _switches() -> int:
    """How often a processor was taken away from this process so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _is_busy() -> bool:
    """Whether the machine had other work within the last minute; False where the system does not say."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > _LOAD * (os.cpu_count() or 1)


def tuner_for(team: Team, asked: int | None, config: GPTConfig, weights: str, cache: str) -> Tuner:
    """For a model of this shape and these number types: as `asked`, or as measured on this machine before, or now."""
    if asked:
        return Tuner(team, asked)
    if team.n_threads == 1:
        return Tuner(team, 1, "there is one core to use")
    about = {
        "what": "threads of the compiled decoder",
        **this_machine("numba"),
        "instructions": f"{HERE.lanes} lanes, {HERE.dot}",
        "shape": [config.n_layers, config.emb_dim, config.n_heads, config.vocab_size],
        "weights": weights,
        "cache": cache,
    }
    found = recall(about) or {}
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # somebody has been at the file
        threads, seconds = found["threads"], {int(n): float(time) for n, time in found["seconds"].items()}
        if type(threads) is int and 1 <= threads <= team.n_threads:
            return Tuner(team, threads, f"measured on {found['when']}: {seconds_text(seconds)}")
    return Tuner(team, measured=functools.partial(_remember, about))


def _remember(about: dict[str, Any], seconds: Seconds, threads: int) -> None:
    remember(about, {"threads": threads, "seconds": seconds})


def threads_text(threads: int) -> str:
    """Such as "2 threads"."""
    return f"{threads} thread{'' if threads == 1 else 's'}"


def seconds_text(seconds: Seconds) -> str:
    """Such as "a token takes 25.1 ms with 1 thread, 15.0 with 2"."""
    first, *others = seconds.items()
    parts = [f"{first[1] * 1000:.3g} ms with {threads_text(first[0])}"]
    return "a token takes " + ", ".join([*parts, *(f"{time * 1000:.3g} with {threads}" for threads, time in others)])
