"""Threads that share the work of one call into compiled code.

Numba's own parallel loops start and end at a barrier that all threads must reach, some sixty times for each token: one
thread that the system has put aside holds up all of them each time. Here the work of a call is a row of *phases*, each
of so many *items*. A thread takes the next item of a phase until there are none, and goes on to the next phase once all
items are done, whoever did them. So a thread that comes late, or never, is not waited for, unless it holds an item.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from glassgpt.generation.cpu.compiled import compiled

_LINE = 16  # numbers between two counters: they must not share a line of the cache
_TAKEN, _DONE = 0, _LINE // 2
_SPINS = 2**12  # looks at a counter before another thread is given the processor


def new_phases(n: int, n_passes: int = 1) -> npt.NDArray[np.int64]:
    """The counters of so many passes through `n` phases, for one call."""
    return np.zeros((n_passes, n, _LINE), np.int64)


@intrinsic
def _add(typingctx, numbers, place, amount):
    """numbers[place] += amount for all threads; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [values[1]]), values[2], "acq_rel")

    return types.int64(numbers, types.int64, types.int64), codegen


@intrinsic
def _look(typingctx, numbers, place):
    """numbers[place] as other threads have left it, and all that they wrote before."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.load_atomic(builder.gep(data, [values[1]]), "acquire", 8)

    return types.int64(numbers, types.int64), codegen


@intrinsic
def _give_way(typingctx):
    """Let another thread have this processor, where the system has a call for it."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        name = next((n for n in ("sched_yield", "SwitchToThread") if binding.address_of_symbol(n)), None)
        if name is not None:
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@compiled()
def take(phases, phase, n):
    """The next of a phase's `n` items; `n` or more where all are taken."""
    flat = phases.reshape(-1)
    if _look(flat, phase * _LINE + _TAKEN) >= n:  # type: ignore[call-arg]  # numba gives the first
        return n
    return _add(flat, phase * _LINE + _TAKEN, 1)


@compiled()
def finish(phases, phase):
    """Say that an item is done."""
    _add(phases.reshape(-1), phase * _LINE + _DONE, 1)  # type: ignore[call-arg]


@compiled()
def wait(phases, phase, n):
    """Until all `n` items of a phase are done. The number of the next phase."""
    flat = phases.reshape(-1)
    spins = 0
    while _look(flat, phase * _LINE + _DONE) < n:  # type: ignore[call-arg]
        spins += 1
        if spins % _SPINS == 0:
            _give_way()
    return phase + 1


class Team:
    """The calling thread and `n_threads` - 1 others, which sleep between calls and end with the team."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._queues = [queue.SimpleQueue[Any]() for _ in range(n_threads - 1)]
        self._threads = [threading.Thread(target=_work, args=(jobs,), daemon=True) for jobs in self._queues]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _dismiss, self._queues)

    def run(self, function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> None:
        """Call a compiled function in all threads, which share its phases; returns when the work is done.

        Or in `threads` of them, at least 1: the others sleep on.

        A thread that wakes up late finds nothing left to do. It holds the arguments, so nothing in them may be used for
        the next call before it has let go: `arguments` must be arrays of this call alone, or such as nobody writes to
        outside the phases.
        """
        for jobs in self._queues[: self.n_threads if threads is None else threads - 1]:
            jobs.put((function, arguments))
        function(*arguments)


def _work(jobs: queue.SimpleQueue[Any]) -> None:
    while (job := jobs.get()) is not None:
        function, arguments = job
        with contextlib.suppress(Exception):  # the calling thread's own call raises the same
            function(*arguments)
        del job, function, arguments


def _dismiss(queues: list[queue.SimpleQueue[Any]]) -> None:
    for jobs in queues:
        jobs.put(None)
