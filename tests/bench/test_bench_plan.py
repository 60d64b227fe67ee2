"""What is timed fits every model, and the table of peers says what to install."""

import importlib.util
from typing import Any

import pytest

from glassgpt.bench import plan
from glassgpt.bench.plan import (
    ON_GPU,
    OURS,
    PEERS,
    WORKS,
    Sizes,
    installed_peers,
    our_contenders,
    peer_threads,
    possible,
)
from glassgpt.generation.cpu import weights


def test_gpt2s_sizes() -> None:
    sizes = Sizes.of(1024)
    assert (sizes.decode, sizes.naive, sizes.prompt, sizes.rows) == ((4, 200), (4, 16), 512, (16, 64))
    assert sizes.positions[0] == 1 and sizes.positions[-1] + sizes.steps == 1024
    assert sizes.n_ids == 512


@pytest.mark.parametrize("context_length", [1, 2, 3, 5, 16, 17, 64, 300, 1024])
def test_every_work_fits_the_context(context_length: int) -> None:
    sizes = Sizes.of(context_length)
    for prompt, new in (sizes.decode, sizes.naive, sizes.rows, (sizes.prompt, 1)):
        assert prompt >= 1 and new >= 1
        assert prompt + new <= max(2, context_length)
        assert prompt <= sizes.n_ids
    assert all(1 <= n <= context_length - sizes.steps for n in sizes.positions)
    assert possible("context", "cached", sizes) == (context_length > 1)


def test_the_precisions_are_the_decoders() -> None:
    assert plan.PRECISIONS == weights.PRECISIONS


def test_who_can_do_what() -> None:
    sizes = Sizes.of(64)
    assert [work for work in WORKS if possible(work, "naive", sizes)] == ["decode"]
    assert [work for work in WORKS if possible(work, "compiled int4", sizes)] == list(WORKS)
    assert [work for work in WORKS if possible(work, "llama.cpp f32", sizes)] == ["decode", "prompt"]
    assert [work for work in WORKS if possible(work, "transformers", sizes)] == ["decode", "prompt", "rows"]


@pytest.mark.parametrize(
    ("there", "contenders", "line"),
    [
        ({"transformers", "ctranslate2", "llama_cpp", "gguf"}, sum(map(len, PEERS.values())), []),
        (
            {"transformers"},
            1,
            ["not installed: ctranslate2, llama-cpp-python; pip install ctranslate2 llama-cpp-python gguf"],
        ),
        ({"transformers", "ctranslate2", "llama_cpp"}, 3, ["not installed: llama-cpp-python; pip install gguf"]),
    ],
)
def test_missing_peers_are_named_with_the_command(
    there: set[str], contenders: int, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> Any:
        return name if name in there else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    names, lines = installed_peers()
    assert len(names) == contenders
    assert lines == line
    assert not set(names) & set(OURS)


def test_a_peer_tries_one_thread_for_two_cores() -> None:
    assert (peer_threads(1), peer_threads(2), peer_threads(16)) == ((1,), (2, 1), (16, 8))


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_takes_part_where_there_is_one(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr("glassgpt.bench.plan.may_have_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert [name for name in our_contenders() if name in ON_GPU] == list(ON_GPU if there else ())
    assert set(OURS) - set(our_contenders()) == set(() if there else ON_GPU)
