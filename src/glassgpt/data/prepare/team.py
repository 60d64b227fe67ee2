"""The processes that encode: each is given one task after another, and says how far it is."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from glassgpt.data.prepare import worker
from glassgpt.data.prepare.worker import ERRORS, Work


def encode_here(work: Work, tasks: Iterable[int], told: Callable[[int, int], None]) -> None:
    """Encode tasks in this process; `told` hears how many bytes of a task are done."""
    for task in tasks:
        work.encode(task, lambda done, task=task: told(task, done))  # type: ignore[misc]
        told(task, work.plan.task_bytes(task))


def encode(work: Work, tasks: Iterable[int], processes: int, told: Callable[[int, int], None]) -> None:
    """As `encode_here`, in so many processes. What goes wrong in one of them is raised here, and ends all."""
    waiting = deque(tasks)
    heard: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
    team: list[subprocess.Popen[str]] = []
    listeners: list[threading.Thread] = []
    busy = set()
    try:
        for number in range(min(processes, len(waiting))):
            team.append(_start(work))
            listeners.append(threading.Thread(target=_listen, args=(number, team[-1], heard), daemon=True))
            listeners[-1].start()
        for number, member in enumerate(team):
            _give(member, waiting.popleft())
            busy.add(number)
        while busy:
            number, record = heard.get()
            if record is None:
                if number in busy:
                    raise RuntimeError(_ending(team[number].wait()))
            elif "error" in record:
                raise ERRORS[record["kind"]](record["error"])
            elif "done" in record:
                told(record["task"], record["done"])
            else:
                told(record["task"], work.plan.task_bytes(record["task"]))
                busy.discard(number)
                if waiting:
                    _give(team[number], waiting.popleft())
                    busy.add(number)
    finally:
        for member in team:
            member.kill()
        for member in team:
            member.wait()
        for listener in listeners:
            listener.join()
        for member in team:
            assert member.stdin is not None and member.stdout is not None
            member.stdin.close()
            member.stdout.close()


def _ending(code: int) -> str:
    """Why a process ended in the middle of its work, as far as its exit code tells."""
    if code < 0:
        why = f"was ended by signal {-code}: it was killed, or there was not enough memory"
    else:
        why = f"ended with code {code}, in an error that it has printed above"
    return f"a process that encodes {why}; the same command continues"


def _start(work: Work) -> subprocess.Popen[str]:
    # one process has one core: what else it loads shall not start threads for all of them
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, "-m", worker.__name__, str(work.folder), work.on_error],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def _give(member: subprocess.Popen[str], task: int) -> None:
    assert member.stdin is not None
    try:
        member.stdin.write(f"{task}\n")
        member.stdin.flush()
    except BrokenPipeError:
        pass  # the listener hears of its end


def _listen(number: int, member: subprocess.Popen[str], heard: queue.Queue[tuple[int, dict[str, Any] | None]]) -> None:
    assert member.stdout is not None
    try:
        for line in member.stdout:
            heard.put((number, json.loads(line)))
    except ValueError:  # the end of a line that was begun when the process was killed
        pass
    finally:
        heard.put((number, None))
