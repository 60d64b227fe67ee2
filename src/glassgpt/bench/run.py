"""The contenders take turns, each in a fresh process, round after round."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from glassgpt.bench import prepare, turn
from glassgpt.bench.plan import (
    FLOAT32,
    ON_GPU,
    OURS,
    ROUNDED,
    WORKS,
    Sizes,
    installed_peers,
    our_contenders,
    peer_threads,
    possible,
)
from glassgpt.bench.results import Bench, Turn
from glassgpt.cores import asked_threads, available_cores, wanted_threads
from glassgpt.generation.auto import CACHED, COMPILED, GRAPHS, remember_decoders
from glassgpt.measured import this_machine
from glassgpt.options import check_int, nearest
from glassgpt.terminal_text import one_line
from glassgpt.weights.download.resolve import resolve_model

Progress = Callable[[str, int, int, float | None], None]
"""(what is done now, turns done, turns in all or 0, seconds left or None); "" when all is done."""

FirstToken = Callable[[str, str, int], list[str]]
"""(model, contender, threads) -> a command that reads a prompt from standard input and writes one token."""

_VERSIONS = ("torch", "numba", "transformers", "ctranslate2", "llama-cpp-python")


class TurnError(RuntimeError):
    """A process that measures failed; the message is its own last line."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """One turn that is to be taken."""

    round: int
    work: str
    contender: str
    threads: int


def bench(
    model: str | Path,
    *,
    rounds: int = 5,
    works: Collection[str] = WORKS,
    only: Sequence[str] = (),
    peers: bool = False,
    threads: int | None = None,
    first_token: FirstToken | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Time every way to decode `model`, which is what `load_model` takes and whose errors this raises.

    `works` are some of `WORKS`; `only` are beginnings of contenders' names, () all of them. `peers` adds transformers,
    CTranslate2 and llama.cpp, where they are installed; each keeps its fastest number of threads unless `threads` says
    which. `first_token` says what is run for the work "first", which is left out without it.

    Where nothing else was running and `threads` is None, `generation.auto` remembers which decoder is the faster one.
    A contender that fails is left out from then on, and the notes say why. Ctrl-C ends the benchmark with what was
    measured so far, once anything was. Raises `ValueError` for arguments out of range, `TurnError` where nothing could
    be measured.
    """
    check_int("rounds", rounds, at_least=1)
    if unknown := [work for work in works if work not in WORKS]:
        raise ValueError(f"unknown work {unknown[0]!r}: {nearest(unknown[0], WORKS)}")
    found, notes = installed_peers() if peers else ([], [])
    known = (*our_contenders(), *found)
    contenders = [name for name in known if not only or name.startswith(tuple(only))]
    if not contenders:
        raise ValueError(f"no contender's name begins with {' or '.join(only)}: they are {', '.join(known)}")
    used = wanted_threads(threads)
    path = str(resolve_model(model))
    if (load := _load_before()) is not None:
        notes.append(load)
    with tempfile.TemporaryDirectory(prefix="glassgpt-bench-") as directory:
        show = progress or (lambda *_: None)
        show("reading the model", 0, 0, None)
        facts = prepare.facts_of(path, str(model))
        result = Bench(facts.model, machine(used), dataclasses.asdict(facts.sizes), rounds, notes=notes)
        runner = _Runner(result, path, directory, facts, first_token, show)
        runner.prepare_peers([name for name in contenders if name not in OURS], used)
        tried = (used,) if threads is not None else peer_threads(used)
        ordered = [work for work in WORKS if work in works and (work != "first" or first_token)]
        try:
            runner.run(list(_places(rounds, ordered, contenders, facts.sizes, used, tried)))
            result.finished = True
        except KeyboardInterrupt:
            if not result.turns:
                raise
        if not result.turns:
            raise TurnError("; ".join(result.notes) or "nothing to measure: ask for more works or contenders")
    if result.finished and load is None and asked_threads(threads) is None:
        _remember(result, path)
    return result


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on besides the model."""
    about = {"threads": threads, "system": platform.platform(terse=True), "python": platform.python_version()}
    return {**this_machine(*_VERSIONS), **about}


def _remember(result: Bench, model: str) -> None:
    """Which decoder is the faster one here is what is asked the next time, too."""
    on_cpu, on_gpu = {COMPILED: "compiled float32", CACHED: "cached"}, dict(zip((CACHED, GRAPHS), ON_GPU, strict=True))
    for device, names in {"cpu": on_cpu, "cuda:0": on_gpu}.items():
        rates = {name: result.median(contender, "decode", "rate") for name, contender in names.items()}
        remember_decoders(Path(model), {name: rate for name, rate in rates.items() if rate is not None}, device)


def _load_before() -> str | None:
    """A note where other work keeps the cores busy: every figure is then too low."""
    if not hasattr(os, "getloadavg"):
        return None
    load, cores = os.getloadavg()[0], available_cores()
    busy = f"other work was running at the beginning (a load of {load:.1f} on {cores} cores): figures are too low"
    return busy if load > cores / 2 else None


def _places(
    rounds: int, works: Sequence[str], contenders: Sequence[str], sizes: Sizes, threads: int, tried: Sequence[int]
) -> Iterator[_Place]:
    """All turns in order; in the first round a peer has one for each number of threads in `tried`.

    Those of one work are close together in time: the speed of a machine changes from minute to minute.
    """
    ordered = sorted(contenders, key=lambda name: name not in FLOAT32[:1])  # first the text that others are held to
    for number in range(rounds):
        for work in works:
            for name in ordered:
                if possible(work, name, sizes):
                    several = tried if name not in OURS and number == 0 else (threads,)
                    yield from (_Place(number, work, name, n) for n in several)


class _Runner:
    """Takes turns, and keeps what the later ones need of the earlier ones."""

    def __init__(
        self,
        result: Bench,
        model: str,
        directory: str,
        facts: prepare.Facts,
        first_token: FirstToken | None,
        show: Progress,
    ) -> None:
        self._result, self._model, self._directory, self._show = result, model, directory, show
        self._ids, self._text, self._first_token = facts.ids, facts.text, first_token
        self._failed: set[str] = set()
        self._seconds: dict[tuple[str, str], list[float]] = {}  # of a contender's turns at a work, start included

    def prepare_peers(self, names: Sequence[str], threads: int) -> None:
        """Write the model in each one's format."""
        for name in names:
            self._show(f"writing the model for {name}", 0, 0, None)
            try:
                _child(prepare, prepare.Request(self._model, name, self._directory), self._directory, threads)
            except TurnError as error:
                self._fail(name, error)

    def run(self, places: Sequence[_Place]) -> None:
        """Take the turns in order; `KeyboardInterrupt` leaves those that were taken."""
        for done, place in enumerate(places):
            if place.contender in self._failed:
                continue
            self._show(f"{place.contender}: {place.work}", done, len(places), self._left(places[done:]))
            began = time.monotonic()
            threads = place.threads
            if place.round and place.contender not in OURS:
                threads = self._result.best_threads(place.contender, place.work) or threads
            try:
                figures = self._first(place) if place.work == "first" else self._measure(place, threads)
            except TurnError as error:
                self._fail(place.contender, error)
                continue
            self._seconds.setdefault((place.contender, place.work), []).append(time.monotonic() - began)
            self._result.turns.append(Turn(place.contender, place.work, place.round, threads, figures))
        self._show("", len(places), len(places), 0.0)

    def _measure(self, place: _Place, threads: int) -> dict[str, Any]:
        name = self._result.reference()
        wanted = place.work == "decode" and place.contender in ROUNDED and place.round == 0 and name is not None
        request = turn.Request(
            contender=place.contender,
            work=place.work,
            model=self._model,
            prepared=self._directory,
            threads=threads,
            sizes=self._result.sizes,
            ids=self._ids,
            context_length=self._result.model["context_length"],
            reference=self._result.of(name, "decode")[0]["tokens"] if wanted and name else None,
        )
        return _child(turn, request, self._directory, threads)

    def _first(self, place: _Place) -> dict[str, Any]:
        """Seconds of the whole command for one token; files and compiled code are in the system's cache by then."""
        assert self._first_token is not None
        command = self._first_token(self._model, place.contender, place.threads)
        if place.round == 0:
            _finished(command, self._text, place.threads)
        start = time.perf_counter()
        _finished(command, self._text, place.threads)
        return {"seconds": time.perf_counter() - start}

    def _fail(self, name: str, error: TurnError) -> None:
        self._failed.add(name)
        self._result.notes.append(f"{name} was left out: {error}")

    def _left(self, places: Sequence[_Place]) -> float | None:
        """Seconds that these turns take: as long as before, and those that are new as the mean of all."""
        known = {key: statistics.mean(values) for key, values in self._seconds.items()}
        if not known:
            return None
        mean = statistics.mean(known.values())
        return sum(known.get((p.contender, p.work), mean) for p in places if p.contender not in self._failed)


def _child(module: Any, request: Any, directory: str, threads: int) -> dict[str, Any]:
    """What `module` answers to a request, in a new process; `TurnError` where that fails."""
    answer = Path(directory) / "answer.json"
    command = [sys.executable, "-m", module.__name__, str(answer)]
    _finished(command, json.dumps(dataclasses.asdict(request)), threads, plain=request.contender not in OURS)
    result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return result


def _finished(command: Sequence[str], given: str, threads: int, plain: bool = False) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"}
    if plain:  # our command line sets it for machines that are busy; a peer runs as it comes
        environment.pop("GOMP_SPINCOUNT", None)
    done = subprocess.run(command, input=given.encode(), capture_output=True, check=False, env=environment)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise TurnError(one_line(said[-1] if said else f"the process ended with code {done.returncode}", 300))
