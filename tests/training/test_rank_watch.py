"""Who is lost is found, and named; who is only slow is not."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch.distributed as dist

from glassgpt.training import rank_watch
from glassgpt.training.rank_watch import OtherRankError, RankWatch, Seat, assembled


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A hundred beats a second, and what would have been exit codes."""
    exits: list[int] = []
    monkeypatch.setattr(rank_watch, "BEAT", 0.01)
    monkeypatch.setattr(rank_watch, "_GRACE", 0.05)
    monkeypatch.setattr(os, "_exit", exits.append)
    yield exits


def error_of(watch: RankWatch) -> OtherRankError:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            watch.check()
        except OtherRankError as error:
            return error
        time.sleep(0.01)
    pytest.fail("nothing was found")


def test_a_silent_rank_is_named_and_a_beating_one_is_not(monkeypatch: pytest.MonkeyPatch, quick: list[int]) -> None:
    monkeypatch.setattr(rank_watch, "SILENT", 100)
    store, ended = dist.HashStore(), threading.Event()
    for rank in (1, 2):
        store.set(f"beat/{rank}", "0")

    def beats() -> None:
        count = 0
        while not ended.wait(0.002):
            count += 1
            store.set("beat/1", str(count))

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with RankWatch(Seat(0, 3, 0, 3), store) as watch:
            error = error_of(watch)
            deadline = time.monotonic() + 30
            while not quick and time.monotonic() < deadline:  # the main thread stays where it is: the watch ends it
                time.sleep(0.01)
    finally:
        ended.set()
        thread.join()
    assert str(error).startswith("rank 2 of 3 fell silent")
    assert not error.said
    assert quick == [1]


def test_after_a_sum_has_failed_silence_is_found_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "SILENT", 10**9)
    monkeypatch.setattr(rank_watch, "_MISSED", 20)
    store = dist.HashStore()
    store.set("beat/1", "0")
    with (
        RankWatch(Seat(0, 2, 0, 2), store) as watch,
        pytest.raises(OtherRankError, match="rank 1 of 2"),
        watch.explained(),
    ):
        raise RuntimeError("connection closed by peer")


def test_an_error_of_another_rank_is_told_once_on_each_machine() -> None:
    for seat, said in ((Seat(0, 4, 0, 2), False), (Seat(1, 4, 1, 2), True), (Seat(2, 4, 0, 2), True)):
        store = dist.HashStore()
        for rank in set(range(4)) - {seat.rank}:
            store.set(f"beat/{rank}", "0")
        store.set("failed", json.dumps([3, "out of memory"]))
        with RankWatch(seat, store) as watch:
            error = error_of(watch)
            assert (str(error), error.said) == ("rank 3 of 4: out of memory", said)


@contextlib.contextmanager
def beating(store: object, *sums: int) -> Iterator[None]:
    """Beats of rank 1, which is in these sums, one after the other."""
    ended, count = threading.Event(), itertools.count()
    store.set("beat/1", "0")  # type: ignore[attr-defined]

    def beats() -> None:
        for number in itertools.cycle(sums):
            store.set("beat/1", f"{next(count)} {number}")  # type: ignore[attr-defined]
            if ended.wait(0.005):
                return

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_ranks_that_all_wait_in_sums_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "SILENT", 10**9)
    monkeypatch.setattr(rank_watch, "STUCK", 30)
    for sums, found in (((7,), True), ((6,), False), ((7, 8, 9), False), ((7, 9, 11), False)):
        store = dist.HashStore()
        with (
            beating(store, *sums),
            RankWatch(Seat(0, 2, 0, 2), store) as watch,
            pytest.raises(OtherRankError) if found else contextlib.nullcontext(),
            watch.summing(),
        ):
            if found:
                assert str(error_of(watch)).startswith("all 2 ranks wait for each other: their network has failed;")
                raise RuntimeError("an end of the sum, at last")
            else:
                time.sleep(1)
                watch.check()
    store = dist.HashStore()
    with beating(store, 7), RankWatch(Seat(0, 2, 0, 2), store) as watch:
        for _ in range(100):  # each of ours ends
            with watch.summing():
                time.sleep(0.005)
                watch.summed()
                time.sleep(0.005)
        time.sleep(0.5)  # we compute
        watch.check()


def test_nobody_leaves_before_all_have_done_their_part() -> None:
    store = dist.HashStore()
    for rank in range(3):
        store.set(f"beat/{rank}", "0")
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        watches = [stack.enter_context(RankWatch(Seat(rank, 3, rank, 3), store)) for rank in range(3)]
        first, second = (pool.submit(watches[rank].leave) for rank in (0, 1))
        time.sleep(0.3)
        assert not first.done()
        assert not second.done()
        watches[2].leave()
        second.result(30)
        first.result(30)
        assert store.check(["seen/0", "seen/1", "seen/2"])


def test_who_waits_to_leave_hears_of_a_failure() -> None:
    store = dist.HashStore()
    store.set("beat/1", "0")
    with RankWatch(Seat(0, 2, 0, 2), store) as watch:
        store.set("failed", json.dumps([1, "out of memory"]))
        with pytest.raises(OtherRankError, match="rank 1 of 2: out of memory"):
            watch.leave()


def test_the_first_error_is_the_one_that_is_told() -> None:
    store = dist.HashStore()
    store.set("beat/0", "0")
    with RankWatch(Seat(1, 2, 1, 2), store) as watch:
        told = watch.failed(ValueError("no such text"))
        assert str(told) == "rank 1 of 2: no such text"
        assert json.loads(store.get("failed")) == [1, "no such text"]


def arriving(pool: ThreadPoolExecutor, store: object, *ranks: int, n: int = 3) -> list[Future[str]]:
    return [pool.submit(assembled, Seat(rank, n, rank, n), store) for rank in ranks]


def test_ranks_meet_under_a_name_of_their_own_whatever_earlier_ones_have_left() -> None:
    store, names = dist.HashStore(), []
    with ThreadPoolExecutor(3) as pool:
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
            found = [future.result(60) for future in arriving(pool, store, *order)]
            assert len(set(found)) == 1
            names += found[:1]
            assert all(store.get(f"{found[0]}/beat/{rank}") == b"0" for rank in range(3))
    assert len(set(names)) == 3


def test_a_rank_0_that_was_started_again_is_followed() -> None:
    """One that had welcomed a rank and then died: the rank has not gone on without all."""
    store = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        (waiting,) = arriving(pool, store, 1)
        while not store.check(["hello/1"]):
            time.sleep(0.01)
        hello = store.get("hello/1").decode()
        store.set("welcome/1", f"{hello} dead")
        while not store.check(["dead/beat/1"]):
            time.sleep(0.01)
        others = arriving(pool, store, 2, 0)
        assert len({future.result(60) for future in (waiting, *others)}) == 1


def test_ranks_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_watch, "ARRIVAL_SECONDS", 2.0)
    monkeypatch.setattr(rank_watch, "_POLL", 0.01)
    with ThreadPoolExecutor(2) as pool:
        for there, names in (((0, 2), "1, 3"), ((1,), "0")):
            for future in arriving(pool, dist.HashStore(), *there, n=4):
                with pytest.raises(RuntimeError, match=f"of 4 ranks these did not come within 2 s: {names}; all"):
                    future.result(60)


def test_without_local_numbers_each_process_has_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    seat = Seat.from_environment()
    assert (list(seat.machine()), seat.speaks({1}), seat.speaks({3})) == ([3], True, True)
