"""The processor, how many threads to compute with (what this process may use), and its memory. Loads no torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_MAX_THREADS = 1024  # PyTorch crashes where the system refuses it some tens of thousands
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPUS = Path("/proc/cpuinfo")


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


def asked_threads(threads: int | None = None) -> int | None:
    """`threads`, or `OMP_NUM_THREADS`; None where neither says. `ValueError` for a number out of range."""
    if threads is None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        if not (asked.isdecimal() and int(asked)):
            return None
        threads = int(asked)
    if not 1 <= threads <= _MAX_THREADS:
        raise ValueError(
            f"threads {threads} must be from 1 to {_MAX_THREADS}; best is one for each of the {available_cores()} cores"
        )
    return threads


def peak_memory() -> int | None:
    """The most memory that this process has had so far, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says counts the parent's memory, too, which a child begins with
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def wanted_threads(threads: int | None = None) -> int:
    """As `asked_threads`, and as many as there are cores for where nothing is asked."""
    return asked_threads(threads) or min(available_cores(), _MAX_THREADS)


def processor() -> str:
    """What the processor calls itself."""
    try:
        with _CPUS.open("rb", buffering=0) as file:  # of the first core: the file takes long where there are many
            lines = file.read(4096).decode(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def may_have_gpu() -> bool:
    """Whether it is worth to ask PyTorch for a GPU, which takes seconds."""
    return sys.platform == "darwin" or any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/kfd", "/dev/dxg"))
