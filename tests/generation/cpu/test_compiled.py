"""Where compiled code is kept."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numba
import pytest

from glassgpt.generation.cpu import compiled

SOURCE = Path(compiled.__file__)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compiled_elsewhere", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_compiled_from_other_sources_is_not_taken(tmp_path: Path) -> None:
    """What a kernel calls may have changed while the kernel's own file has not."""
    shutil.copy(SOURCE, tmp_path / "compiled.py")
    (tmp_path / "kernels.py").write_text("a = 1\n")
    first, again = (load(tmp_path / "compiled.py")._FOLDER for _ in range(2))
    (tmp_path / "kernels.py").write_text("a = 2\n")
    assert first == again != load(tmp_path / "compiled.py")._FOLDER


def test_numbas_own_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = numba.config.CACHE_DIR
    with compiled._own_folder():
        assert before or str(compiled._FOLDER) == numba.config.CACHE_DIR
    assert before == numba.config.CACHE_DIR
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))  # as NUMBA_CACHE_DIR does
    with compiled._own_folder():
        assert str(tmp_path) == numba.config.CACHE_DIR
