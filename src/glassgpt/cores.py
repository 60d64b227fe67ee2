"""How many threads to compute with: what this process may really use, not what the machine has. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path

_MAX_THREADS = 1024  # PyTorch crashes where the system refuses it some tens of thousands
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores this process may really use: its affinity and the container's quota.

    More threads than cores make CPU work many times slower, without a word.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return cores


def wanted_threads(threads: int | None = None) -> int:
    """`threads`, or `OMP_NUM_THREADS`, or as many as there are cores for; `ValueError` for a number out of range."""
    if threads is None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(asked) if asked.isdecimal() and int(asked) else available_cores()
    if not 1 <= threads <= _MAX_THREADS:
        raise ValueError(
            f"threads {threads} must be from 1 to {_MAX_THREADS}; best is one for each of the {available_cores()} cores"
        )
    return threads
