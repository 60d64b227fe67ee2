"""What was measured on this machine, remembered for the next time in a small file of the user's cache directory.

The file may go at any time: what it held is measured again. Two processes that write at once lose one's measurement at
most. `GLASSGPT_CACHE` names the directory; else it is where the system keeps caches.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassgpt.cores import available_cores, processor
from glassgpt.files import write_text
from glassgpt.json_file import read_json

_NAME = "measurements-1.json"  # a file of another layout gets another name
_MOST = 100
_MAX_BYTES = 2**20


def this_machine(*packages: str) -> dict[str, Any]:
    """What every measurement depends on: the processor, the cores there are to use, and versions of packages."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("glassgpt", *packages):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"processor": processor(), "cores": available_cores(), "versions": versions}


def cache_file() -> Path:
    """Where measurements are kept. `OSError` where the user has no home."""
    if given := os.environ.get("GLASSGPT_CACHE"):
        return Path(given) / _NAME
    if given := os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"):
        return Path(given) / "glassgpt" / _NAME
    try:
        home = Path.home()
    except RuntimeError as error:
        raise OSError(str(error)) from None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "glassgpt" / _NAME


def recall(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was remembered of exactly this, and `when`; None where nothing was, or the file cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        for entry in _entries(cache_file()):
            if entry["about"] == about:
                found: dict[str, Any] = entry["found"]
                return {**found, "when": datetime.date.fromisoformat(str(found.get("when"))).isoformat()}
    return None


def remember(about: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Keep `found`, a JSON object, for the next `recall`, with the day as `when`.

    Where that cannot be done nothing happens: a file that is damaged is left as it is, since it may be another's.
    """
    with contextlib.suppress(OSError, ValueError):
        path = cache_file()
        entries = [entry for entry in _entries(path) if entry["about"] != about] if path.exists() else []
        day = datetime.date.today().isoformat()
        entries.append({"about": dict(about), "found": {**found, "when": day}})
        write_text(path, json.dumps({"measurements": entries[-_MOST:]}, indent=1) + "\n")


def _entries(path: Path) -> list[dict[str, Any]]:
    """The measurements of a file, checked; the newest is last. `ValueError` where it is not one of ours."""
    entries = read_json(path, _MAX_BYTES).get("measurements")
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("about"), dict) and isinstance(entry.get("found"), dict)
        for entry in entries
    ):
        raise ValueError(f"{path} holds no measurements")
    return entries
