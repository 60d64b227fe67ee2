"""The static step: few shapes, fixed addresses, and nothing that asks the device for a number."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glassgpt import GPTModel
from glassgpt.generation.graphs import GraphDecoder, StaticCache
from glassgpt.generation.torch_decoder import CachedDecoder

Make = Callable[..., GPTModel]


class _Recorder:
    """Stands where CUDA would record: it runs what it is given, as a replay does, and counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Callable[[], object]) -> Callable[[], object]:
        self.recorded += 1
        for _ in range(3):
            compute()

        def replay() -> None:
            self.replayed += 1
            compute()

        return replay


@pytest.fixture
def recorded(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> tuple[GraphDecoder, _Recorder]:
    decoder, recorder = GraphDecoder(tiny_model(context_length=16), span=4), _Recorder()
    monkeypatch.setattr(decoder, "_records", True)
    monkeypatch.setattr(decoder, "_record", recorder)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, pin_memory=False, **more: zeros(*size, **more))  # needs CUDA
    return decoder, recorder


def test_a_shape_is_recorded_once_and_recording_changes_nothing(recorded: tuple[GraphDecoder, _Recorder]) -> None:
    decoder, recorder = recorded
    plain = CachedDecoder(decoder.model)
    for each in (decoder, plain):
        each.add([[1, 2], [3], [4, 5, 6]])
    for step in range(9):
        tokens = [7 + step, 8, 9]
        np.testing.assert_allclose(decoder.step(tokens), plain.step(tokens), atol=1e-5, rtol=0)
    # rows of at most 4, 8 and 12 tokens, on three rows of four
    assert (recorder.recorded, recorder.replayed) == (3, 9)
    for each in (decoder, plain):
        each.drop(0)
    np.testing.assert_allclose(decoder.step([1, 2]), plain.step([1, 2]), atol=1e-5, rtol=0)
    assert recorder.recorded == 4


def test_a_cache_that_has_grown_is_recorded_again(recorded: tuple[GraphDecoder, _Recorder]) -> None:
    decoder, recorder = recorded
    plain = CachedDecoder(decoder.model)
    for prompt in ([1], [2, 3], [4], [5], [6]):
        for each in (decoder, plain):
            each.add([prompt])
        tokens = list(range(decoder._cache.batch_size))
        np.testing.assert_allclose(decoder.step(tokens), plain.step(tokens), atol=1e-5, rtol=0)
    assert recorder.recorded >= 4


def test_scores_stay_what_they_were(tiny_model: Make) -> None:
    decoder = GraphDecoder(tiny_model())
    decoder.add([[1]])
    first = decoder.step([2])
    before = first.copy()
    decoder.step([3])
    np.testing.assert_array_equal(first, before)


def test_a_full_row_is_refused_and_nothing_has_changed(tiny_model: Make) -> None:
    decoder = GraphDecoder(tiny_model(context_length=4))
    decoder.add([[1, 2, 3]])
    decoder.step([4])
    with pytest.raises(ValueError, match="exceed the cache's capacity of 4"):
        decoder.step([5])
    decoder.cut(0, 3)
    decoder.step([4])


class _Operations(TorchDispatchMode):
    """Names of the operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_static_pass_reads_no_number_of_the_device(tiny_model: Make) -> None:
    """What would make a capture fail, or wait: a tensor's number in Python, a size that depends on numbers."""
    model = tiny_model()
    cache = model.new_cache(2)
    static = StaticCache(cache, 2, 8)
    with torch.inference_mode(), _Operations() as operations:
        model(torch.tensor([[1], [2]]), static, last_only=True)
    waits = [name for name in operations.names if "local_scalar" in name or "nonzero" in name or "item" in name]
    assert len(operations.names) > 20 and waits == []


def test_where_nothing_can_be_recorded_it_says_so_and_goes_on(
    tiny_model: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, plain = GraphDecoder(tiny_model()), CachedDecoder(tiny_model())

    def refuse() -> None:
        raise RuntimeError("out of streams")

    monkeypatch.setattr(torch.cuda, "Stream", refuse)
    with caplog.at_level(logging.WARNING):
        run = decoder._record(lambda: None)
    run()
    assert [record.message for record in caplog.records] == [
        "no CUDA graph: out of streams; operations are launched one by one"
    ]
    for each in (decoder, plain):
        each.add([[1, 2]])
    np.testing.assert_allclose(decoder.step([3]), plain.step([3]), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs: there is no CUDA device here")
def test_graphs_on_a_gpu(tiny_model: Make) -> None:
    model = tiny_model(context_length=16).to("cuda")
    decoder, plain = GraphDecoder(model, span=4), CachedDecoder(model)
    for each in (decoder, plain):
        each.add([[1, 2], [3]])
    for token in range(9):
        np.testing.assert_allclose(decoder.step([token, 5]), plain.step([token, 5]), atol=1e-4, rtol=0)
    assert all(step.run is not step.compute for step in decoder._steps.values())
