"""The memory of a step, counted tensor by tensor, beside what is known of it otherwise."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path

import pytest
import torch

from glassgpt import GPTConfig
from glassgpt import cores as cores_module
from glassgpt.cores import available_memory, resident_memory
from glassgpt.training.memory import CountedSteps, Memory, count_memory, extrapolated, least_memory
from glassgpt.training.settings import Settings

CPU = torch.device("cpu")
CONFIG = GPTConfig(vocab_size=300, context_length=32, emb_dim=32, n_heads=2, n_layers=2, drop_rate=0.0)
WEIGHTS = 4 * CONFIG.n_parameters()


@pytest.fixture(autouse=True)
def resident(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the process has each time it is asked, and then nothing: it has much more than these models."""
    told: list[int] = []
    monkeypatch.setattr("glassgpt.training.memory.resident_memory", lambda: told.pop(0) if told else 0)
    return told


def settings(optimizer: str = "adamw", **options: object) -> Settings:
    return Settings.from_dict({"optimizer": optimizer, "dtype": "float32", "batch_size": 8, **options}).with_rates()


def test_weights_gradients_and_optimizer_state_are_what_they_must_be() -> None:
    parts = count_memory(CONFIG, settings(), CPU, 1)[1].parts
    assert (parts["weights"], parts["gradients"]) == (WEIGHTS, WEIGHTS)
    # AdamW has two numbers for each, and for each tensor how many steps there were
    assert 2 * WEIGHTS <= parts["optimizer state"] < 2 * WEIGHTS + 1000
    muon = count_memory(CONFIG, settings("muon"), CPU, 1)[1].parts
    assert WEIGHTS < muon["optimizer state"] < parts["optimizer state"]
    frozen = count_memory(CONFIG, settings(freeze=["embedding"]), CPU, 1)[1].parts
    embedding = 4 * (300 + 32) * 32
    assert (frozen["weights"], frozen["gradients"]) == (WEIGHTS, WEIGHTS - embedding)


def test_activations_grow_with_the_rows_and_are_no_less_than_what_autograd_keeps() -> None:
    kept: set[tuple[int, int]] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.add((tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()))
        return tensor

    counted = CountedSteps(CONFIG, settings(), CPU)
    one, four, eight = (counted.step(n).parts["activations"] for n in (1, 4, 8))
    parameters = {p.untyped_storage()._cdata for p in counted.trainee.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = counted.trainee.model.hidden(torch.zeros(4, 32, dtype=torch.int64))
    saved = sum(size for key, size in kept if key not in parameters)
    del hidden
    assert saved <= four < 3 * saved
    assert eight - four == pytest.approx(4 / 3 * (four - one), rel=0.05)


def test_rows_that_are_not_the_whole_batch_meet_gradients_that_are_there() -> None:
    """The second pass of an accumulated step: where the first one has left gradients."""
    whole = count_memory(CONFIG, settings(batch_size=4), CPU, 4)[4]
    part = count_memory(CONFIG, settings(batch_size=8, micro_batch_size=4), CPU, 4)[4]
    assert part.parts["activations"] == pytest.approx(whole.parts["activations"], rel=0.1)
    assert part.at_once > whole.at_once
    assert max(part.parts.values()) < part.at_once < sum(part.parts.values())


def test_what_the_process_had_before_and_what_is_kept_of_freed_memory_count(resident: list[int]) -> None:
    quiet = count_memory(CONFIG, settings(), CPU, 1)[1]
    began, kept = 10**7, 5 * 10**7
    resident += [began, kept]
    found = count_memory(CONFIG, settings(), CPU, 1)[1]
    assert found.parts == quiet.parts and quiet.process == 0
    assert 0 < began - found.process < 5 * WEIGHTS  # less what the model takes by then
    assert found.total == kept


def test_checkpointed_activations_are_fewer() -> None:
    plain, less = (
        count_memory(CONFIG.replace(n_layers=6), settings(activation_checkpointing=each), CPU, 2)[2].parts
        for each in (False, True)
    )
    assert less["activations"] < 0.6 * plain["activations"]
    assert less["weights"] == plain["weights"]


def test_nothing_of_it_stays() -> None:
    counted = CountedSteps(CONFIG, settings(), CPU)
    counted.step(1)
    model = weakref.ref(counted.trainee.model)
    del counted
    gc.collect()
    assert model() is None


def test_what_was_not_counted_lies_on_the_line_through_the_last_two() -> None:
    def memory(n: int) -> Memory:
        return Memory({"activations": 100 * n, "weights": 7}, 100 * n + 7, process=5)

    counted = {1: Memory({"activations": 1, "weights": 7}, 8, 5), 2: memory(2), 4: memory(4)}
    assert extrapolated(counted, 2) == memory(2)
    assert extrapolated(counted, 16) == memory(16)
    assert extrapolated(counted, 16).total == 1612


def test_counting_ends_where_the_next_step_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_memory(CONFIG, settings(), CPU, 8)
    assert list(whole) == [1, 2, 4, 8]
    # one byte less than what 4 rows take by the line through 1 and 2
    room = extrapolated({n: whole[n] for n in (1, 2)}, 4).at_once - 1
    monkeypatch.setattr("glassgpt.training.memory.available_memory", lambda: room)
    assert list(count_memory(CONFIG, settings(), CPU, 8)) == [1, 2]


def test_the_least_is_less_than_any_step_takes() -> None:
    for optimizer, freeze in itertools.product(("muon", "adamw"), ((), ("hidden",))):
        asked = settings(optimizer, freeze=freeze)
        assert WEIGHTS <= least_memory(CONFIG, asked) <= count_memory(CONFIG, asked, CPU, 1)[1].at_once


# ---- what there is ----------------------------------------


def limit(folder: Path, most: str, now: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{now}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8,000,000 kB left, whose cgroups are below the folder."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total: 0\n")
    (tmp_path / "cgroup").write_text("0::/team/job\n")
    monkeypatch.setattr(cores_module, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(cores_module, "_OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(cores_module, "_CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(cores_module, "resident_memory", lambda: 1000)
    return tmp_path / "fs"


def test_what_can_be_had_is_the_least_of_all_limits(machine: Path) -> None:
    assert available_memory() == 8_000_000 * 1024 + 1000
    limit(machine / "team" / "job", "max", 70)
    assert available_memory() == 8_000_000 * 1024 + 1000
    limit(machine / "team", "5000000", 1_000_000, cache=200_000)  # of the group above; a cache is given back
    assert available_memory() == 4_200_000 + 1000
    limit(machine, "300", 400)  # of a container, which is the root of what it sees
    assert available_memory() == 1000


def test_the_limit_of_an_older_kernel(machine: Path) -> None:
    folder = machine / "memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("4000000")
    (folder / "memory.usage_in_bytes").write_text("1000000")
    (folder / "memory.stat").write_text("total_inactive_file 500000")
    assert available_memory() == 3_500_000 + 1000


def test_a_system_that_says_nothing(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores_module, "_MEMORY", machine / "nothing")
    monkeypatch.setattr(cores_module.os, "sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_memory() == 40960


def test_this_process_has_memory() -> None:
    assert 10**7 < (resident_memory() or 0) < 10**12
