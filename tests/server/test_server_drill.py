"""The stress command, `benchmarks/server_drill.py`, in short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "server_drill.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals and /proc")
def test_a_server_lives_through_its_drill(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nthe same texts as before\nall as it should be\n")
    assert list(tmp_path.iterdir()) == []
