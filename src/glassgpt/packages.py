"""Packages that only some work needs: imported where it begins, so that the book's files run without them."""

from __future__ import annotations

import importlib


def require(*modules: str) -> None:
    """Import `modules`; `ModuleNotFoundError` with the command that installs those that are not there.

    For modules whose package has the same name, but for `-` in place of `_`.
    """
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            missing.append(module.replace("_", "-"))
    if missing:
        raise ModuleNotFoundError(f"{' and '.join(missing)} missing: pip install {' '.join(missing)}")
