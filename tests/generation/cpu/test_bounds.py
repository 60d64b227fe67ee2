"""No kernel reads or writes beyond a buffer, and none reads what it did not write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards its arrays by mprotect")
def test_nothing_beyond_a_buffer_is_touched(tmp_path: Path) -> None:
    """Compiled anew with checked indices, with pages around the arrays, and memory that is handed out full of 3e38."""
    checks = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "MALLOC_PERTURB_": "128"}
    command = [sys.executable, str(Path(__file__).with_name("guarded.py"))]
    done = subprocess.run(command, env=os.environ | checks, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "indices are checked\nnothing beyond was touched\n"
