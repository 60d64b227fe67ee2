"""Freed memory is kept for the next step, or goes back."""

import sys
from pathlib import Path

import pytest
import torch

from glassgpt.training.heap import give_back, heap_kept

STATM = Path("/proc/self/statm")


def resident() -> float:
    """Mebibytes of this process in memory."""
    return int(STATM.read_text(encoding="utf-8").split()[1]) * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 2**32, reason="for glibc")
def test_what_is_free_is_kept_until_it_is_to_go_back() -> None:
    with heap_kept():
        give_back()  # of what other tests have left free, the next blocks would be made
        before = resident()
        del (tensors := [torch.ones(2**20) for _ in range(64)])[:]  # 256 MiB
        assert resident() > before + 200
        give_back()
        assert resident() < before + 50
        tensors.extend(torch.ones(2**20) for _ in range(64))
        assert resident() > before + 200
        tensors.clear()
        assert resident() < before + 50
