"""What the machine is said to have: devices, number types and cores, all of them pretended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from glassgpt import cores as cores_module
from glassgpt.cores import available_cores
from glassgpt.device import check_dtype, gpu_dtype, pick_device, set_threads

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Sets what the machine has: accelerators, cores this process may use, the container's quota of them."""

    def has(*, cuda: bool = False, mps: bool = False, cores: int = 8, quota: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        path = tmp_path / "cpu.max"
        path.unlink(missing_ok=True)
        if quota is not None:
            path.write_text(quota, encoding="ascii")
        monkeypatch.setattr(cores_module, "_CPU_QUOTA", path)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    has()
    return has


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What PyTorch was told, without telling it."""
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    return told


@pytest.mark.parametrize(
    ("cuda", "mps", "picked"), [(True, True, CUDA), (True, False, CUDA), (False, True, MPS), (False, False, CPU)]
)
def test_auto_takes_the_best(machine, cuda: bool, mps: bool, picked: torch.device) -> None:
    machine(cuda=cuda, mps=mps)
    assert pick_device() == pick_device("auto") == picked
    assert pick_device("cpu") == CPU


def test_a_device_with_a_number(machine) -> None:
    machine(cuda=True)
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cuda", "device 'cuda' is not on this machine: use mps or cpu"),
        ("cuda:0", "device 'cuda:0' is not on this machine: use mps or cpu"),
        ("meta", "device 'meta' is not on this machine: use mps or cpu"),
        ("gpu", "device 'gpu' is unknown: use auto, mps, cpu"),
        ("", "device '' is unknown: use auto, mps, cpu"),
        ("cuda:x", "device 'cuda:x' is unknown: use auto, mps, cpu"),
    ],
)
def test_a_device_that_is_not_here(machine, name: str, says: str) -> None:
    machine(mps=True)
    with pytest.raises(ValueError) as raised:
        pick_device(name)
    assert str(raised.value) == says


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), None)])
def test_a_gpu_takes_bfloat16_from_8_0(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert gpu_dtype(CUDA)[0] == (dtype or "float32")
    if dtype is None:
        with pytest.raises(ValueError, match=r"compute capability 8\.0 or more: use float32"):
            check_dtype("bfloat16", CUDA)


def test_mps_takes_float32() -> None:
    assert gpu_dtype(MPS) == ("float32", "MPS has no bfloat16 matrix instructions")


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        (None, 8),
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("garbage", 8),
        ("", 8),
    ],
)
def test_cores_are_those_the_container_grants(machine, threads: list[int], quota: str | None, cores: int) -> None:
    machine(cores=8, quota=quota)
    assert available_cores() == cores
    assert set_threads() == cores
    assert threads == [cores]


def test_cores_are_those_of_the_affinity(machine) -> None:
    machine(cores=3, quota="400000 100000")
    assert available_cores() == 3


def test_cores_where_the_system_knows_no_affinity(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cores() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_threads_as_asked(machine, threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [set_threads(5), set_threads()] == threads == [5, 3]
    for nothing in ("0", "many", "4,2", ""):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert set_threads() == 8


@pytest.mark.parametrize("wrong", [0, -1, 1025, 10**9])
def test_threads_that_cannot_be(machine, threads: list[int], wrong: int) -> None:
    with pytest.raises(
        ValueError, match=rf"threads {wrong} must be from 1 to 1024; best is one for each of the 8 cores"
    ):
        set_threads(wrong)
    assert threads == []
