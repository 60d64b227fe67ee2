"""Freed memory is kept for the next step, or goes back."""

import subprocess
import sys

import pytest

# in a process of its own: what others left free, and the arena of another thread, would hide what is asked
CODE = """
from pathlib import Path
import torch
from glassgpt.training.heap import give_back, heap_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

with heap_kept():
    before = resident()
    del (tensors := [torch.ones(2**20) for _ in range(64)])[:]  # 256 MiB
    assert resident() > before + 200
    give_back()
    assert resident() < before + 50
    tensors.extend(torch.ones(2**20) for _ in range(64))
    assert resident() > before + 200
    tensors.clear()
assert resident() < before + 50
"""


@pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 2**32, reason="for glibc")
def test_what_is_free_is_kept_until_it_is_to_go_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
