"""The processor, how many threads to compute with (what this process may use), and its memory. Loads no torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_MAX_THREADS = 1024  # PyTorch crashes where the system refuses it some tens of thousands
_CGROUPS = Path("/sys/fs/cgroup")
_CPU_QUOTA = _CGROUPS / "cpu.max"
_OWN_CGROUP = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")
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


def resident_memory() -> int | None:
    """The memory that this process has now, in bytes; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory()


def available_memory() -> int | None:
    """The memory that this process may have in all, in bytes, without driving others to the disk; None where unknown.

    What the system has left, or the container: the limits of its cgroup and of those above count.
    """
    try:
        lines = (line.split() for line in _MEMORY.read_text(encoding="ascii").splitlines())
        left = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    except (OSError, ValueError, IndexError, StopIteration):
        return _all_memory()
    return min(left, *(room for room in map(_room, _own_cgroups()) if room is not None), left) + (
        resident_memory() or 0
    )


def _all_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _own_cgroups() -> list[Path]:
    """Folders of the cgroup of this process and of those above it, as far as they are seen from here."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    inner = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    folder = _CGROUPS / inner
    return [*(each for each in (folder, *folder.parents) if each.is_relative_to(_CGROUPS)), _CGROUPS / "memory"]


def _room(cgroup: Path) -> int | None:
    """Bytes that may still be taken in a cgroup of version 2 or 1; None without a limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = ((cgroup / name).read_text(encoding="ascii").strip() for name in (limit, used))
            statistics = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
            freed = next((int(line.split()[1]) for line in statistics if line.startswith(f"{cache} ")), 0)
            if most != "max":
                return max(0, int(most) - int(now) + freed)
        except (OSError, ValueError):
            continue
    return None


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
