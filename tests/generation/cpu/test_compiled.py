"""Where compiled code is kept."""

from pathlib import Path

import numba
import pytest

from glassgpt.generation.cpu import compiled


def test_code_compiled_from_other_sources_is_not_taken(tmp_path: Path) -> None:
    """What a kernel calls may have changed while the kernel's own file has not."""
    found = []
    for text in ("a = 1\n", "a = 1\n", "a = 2\n"):
        (tmp_path / "kernels.py").write_text(text)
        found.append(compiled._digest(tmp_path))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("given", ["", "elsewhere"])
def test_numba_keeps_it_below_its_usual_folder_by_the_digest(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", given)  # as NUMBA_CACHE_DIR does
    with compiled._own_folder():
        folder = Path(numba.config.CACHE_DIR)
    assert folder.name == f"numba-{compiled._DIGEST}"
    assert folder.parent == (Path(given) if given else Path(compiled.__file__).parent / "__pycache__")
    assert given == numba.config.CACHE_DIR
