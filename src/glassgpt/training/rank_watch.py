"""Which ranks are still there. One that fails says so; one that is killed, hangs or loses its machine falls silent.

A thread of each rank writes a beat every second into the store of `torchrun`, and reads those of the others. A sum
over all ranks that cannot be finished says only that some rank is missing; the beats say which. A beat also says which
sum its rank waits in: where all wait and none gets on, their network has failed and not they.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

BEAT = 1.0
"""Seconds between beats. Time is counted in our own beats, so that nobody is lost while this process is stopped."""
SILENT = 25
"""Beats of ours without one of another rank after which that is lost: many, because a machine may be busy."""
STUCK = 120
"""Beats of ours in which all ranks wait in sums without an end of any: 32 MB take less, on all but a broken network."""
ARRIVAL_SECONDS = 600.0
"""How far apart ranks may arrive: a machine may import from a slow disk."""
_POLL = 0.1  # seconds
_MISSED = 4  # the same, once a sum has failed: then some rank is lost
_LEAVING = 10.0  # seconds that the first rank waits for the others to leave
_GRACE = 8.0  # seconds that a main thread has to end by itself, which is tidier, when another rank has failed

_log = logging.getLogger(__name__)

Store = Any
"""A `torch.distributed.Store`: a name that not every build of PyTorch has."""


class OtherRankError(RuntimeError):
    """Another rank has failed or is lost. `said`: where this process shows its errors, it has been said already."""

    def __init__(self, message: str, said: bool) -> None:
        super().__init__(message)
        self.said = said


@dataclasses.dataclass(frozen=True)
class Seat:
    """The number of a process among all, and among those of its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int

    @classmethod
    def from_environment(cls) -> Self:
        """As `torchrun` tells it; without the local numbers each process has a machine of its own."""
        names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        return cls(*(int(os.environ.get(name, default)) for name, default in names))

    def machine(self) -> range:
        """The ranks of this machine."""
        first = self.rank - self.local_rank
        return range(first, first + self.local_size)

    def speaks(self, lost: set[int]) -> bool:
        """Whether this rank tells the user of its machine about ranks that cannot."""
        return self.rank == next((rank for rank in self.machine() if rank not in lost), self.rank)


def assembled(seat: Seat, store: Store) -> str:
    """Wait until all ranks are here; the name of the part of `store` that is theirs alone, with a first beat of each.

    The store may hold what ranks before a restart have left, or still write: `torchrun` counts restarts on each machine
    for itself, so its count is no common name. Rank 0 chooses one, and answers each greeting with it.
    `RuntimeError` with the ranks that do not come.
    """
    me, name, until = secrets.token_hex(8), "", time.monotonic() + ARRIVAL_SECONDS
    store.set(f"hello/{seat.rank}", me)
    answered: dict[int, str] = {}
    while True:
        if seat.rank == 0:
            name = me
            for rank in range(1, seat.world_size):
                if (hello := _peek(store, f"hello/{rank}")) and answered.get(rank) != hello:
                    store.set(f"welcome/{rank}", f"{hello} {name}")
                    answered[rank] = hello
        elif (welcome := _peek(store, f"welcome/{seat.rank}")) and welcome.startswith(me):
            name = welcome.partition(" ")[2]  # another one where rank 0 is another one now
        beats = [f"{name}/beat/{rank}" for rank in range(seat.world_size)]
        if name:
            store.set(beats[seat.rank], "0")
            if store.check(beats):
                return name
        if time.monotonic() > until:
            missing = [str(rank) for rank, beat in enumerate(beats) if not store.check([beat])] if name else ["0"]
            raise RuntimeError(
                f"of {seat.world_size} ranks these did not come within {ARRIVAL_SECONDS:g} s: {', '.join(missing)}; "
                "all ranks stop"
            )
        time.sleep(_POLL)


def _peek(store: Store, key: str) -> str:
    """A value, "" where there is none yet."""
    return store.get(key).decode() if store.check([key]) else ""


class RankWatch:
    """Beats for this rank, and listens for the others, which have sent a first one, until the body of `with` ends.

    Should the main thread hang in a sum that nobody will finish, the watch ends the process with exit code 1: nothing
    else can interrupt it.
    """

    def __init__(self, seat: Seat, store: Store) -> None:
        self._seat, self._store = seat, store
        self._ended, self._found, self._suspicious = threading.Event(), threading.Event(), threading.Event()
        self._error: OtherRankError | None = None
        self._beats = [f"beat/{rank}" for rank in range(seat.world_size)]
        self._sums = 0  # that have begun or ended here: odd within one
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        # it may be waiting for the store, and a thread that comes back while Python ends aborts the process
        self._thread.join(30 * BEAT)

    def check(self) -> None:
        """`OtherRankError` where a rank is known to have failed or to be lost."""
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """What fails inside because another rank is not there any more becomes an `OtherRankError`."""
        self.check()
        try:
            yield
        except RuntimeError:  # the store's and the group's errors are
            self._suspicious.set()
            self._found.wait(BEAT * (2 * _MISSED + 3))
            self.check()
            raise

    @contextlib.contextmanager
    def summing(self) -> Iterator[None]:
        """As `explained`, for what waits for all other ranks and does nothing else."""
        self._sums += 1
        try:
            with self.explained():
                yield
        finally:
            self._sums += 1

    def summed(self) -> None:
        """Within `summing`: a part of it has ended."""
        self._sums += 2

    def leave(self) -> None:
        """Wait until all ranks have done all that they need each other for: from then on none can fail the others.

        Rank 0 stays until the others have seen that, for the store may be its own.
        """
        done, seen = ([f"{word}/{rank}" for rank in range(self._seat.world_size)] for word in ("done", "seen"))
        self._store.set(done[self._seat.rank], "")
        while not self._store.check(done):
            self.check()
            time.sleep(_POLL)
        self._store.set(seen[self._seat.rank], "")
        until = time.monotonic() + _LEAVING
        while self._seat.rank == 0 and not self._store.check(seen) and time.monotonic() < until:
            time.sleep(_POLL)

    def failed(self, error: Exception) -> Exception:
        """What to raise for an error of this rank: all ranks hear of it, and of those that fail alike one speaks."""
        if self._seat.rank > 0:
            self._found.wait(2 * BEAT)  # rank 0 may have the same to say
        if self._error is not None:
            return self._error
        with contextlib.suppress(RuntimeError):  # the store is gone: so are the others
            self._store.set("failed", json.dumps([self._seat.rank, str(error) or type(error).__name__]))
        if self._seat.rank == 0:
            return error
        return RuntimeError(f"rank {self._seat.rank} of {self._seat.world_size}: {error or type(error).__name__}")

    def _run(self) -> None:
        """Until something is found, and then for a while more: the main thread ends the process better than we do."""
        seen: list[str] = []
        missed = [0] * self._seat.world_size
        sums: list[str] = []
        count = still = 0
        while not self._ended.wait(BEAT) and self._error is None:
            count += 1
            try:
                self._store.set(self._beats[self._seat.rank], f"{count} {self._sums}")
                beats = [beat.decode() for beat in self._store.multi_get(self._beats)]
                failed = json.loads(self._store.get("failed")) if self._store.check(["failed"]) else None
            except RuntimeError:
                if not self._ended.wait(2 * BEAT):
                    self._lost({0}, "the machine of rank 0 is lost, or the torchrun on it")
                break
            missed = [n + 1 if old == new else 0 for n, old, new in zip(missed, seen or beats, beats, strict=True)]
            seen, before, sums = beats, sums, [beat.partition(" ")[2] for beat in beats]
            still = still + 1 if sums == before and all(int(n or 0) % 2 for n in sums) else 0
            if failed is not None:
                rank, line = failed
                said = rank in self._seat.machine() or not self._seat.speaks(set())
                self._error = OtherRankError(f"rank {rank} of {self._seat.world_size}: {line}", said)
            elif lost := {rank for rank, n in enumerate(missed) if n > self._limit()} - {self._seat.rank}:
                names = " and ".join(f"rank {rank}" for rank in sorted(lost))
                self._lost(lost, f"{names} of {self._seat.world_size} fell silent: killed, hanging, or its machine")
            elif still > STUCK:
                self._lost(set(), f"all {self._seat.world_size} ranks wait for each other: their network has failed")
        if self._error is not None:
            self._found.set()
            if not self._ended.wait(_GRACE):
                if not self._error.said:
                    _log.error("%s", self._error)
                os._exit(1)

    def _limit(self) -> int:
        return _MISSED if self._suspicious.is_set() else SILENT

    def _lost(self, lost: set[int], line: str) -> None:
        self._error = OtherRankError(
            f"{line}; all ranks stop, and the last checkpoint can be resumed", not self._seat.speaks(lost)
        )
