"""The stress command, `benchmarks/kills.py`, in short: runs that are killed end as the undisturbed ones do."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL and no fork server")
def test_killed_runs_end_as_the_undisturbed_ones(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "4", "--seed", "1", "--dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\n4 of 4 ends are equal bit for bit\n")
    assert list(tmp_path.iterdir()) == []
