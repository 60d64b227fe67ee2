"""Which number type training multiplies in: by a measurement, remembered."""

import dataclasses
from pathlib import Path

import pytest
import torch

from glassgpt import GPTConfig
from glassgpt.training import number_type
from glassgpt.training.number_type import choose_dtype, float32_by_bfloat16

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDE = GPTConfig(vocab_size=50, context_length=16, emb_dim=256, n_heads=4, n_layers=1)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """What measurements will find, the next one first."""
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path))
    found: list[float] = []
    monkeypatch.setattr(number_type, "float32_by_bfloat16", lambda config, n_tokens: found.pop(0))
    return found


@pytest.mark.parametrize(
    ("ratio", "dtype"), [(2.5, "bfloat16"), (1.2, "bfloat16"), (1.19, "float32"), (0.1, "float32")]
)
def test_a_cpu_takes_what_is_measured_and_remembers_it(times: list[float], ratio: float, dtype: str) -> None:
    times += [ratio, 9.0, 9.0]
    chosen, why = choose_dtype("auto", CPU, WIDE, rows=4)
    assert chosen == dtype
    assert why == f"a block of this model is {ratio:.1f} times as fast in bfloat16 here, measured just now"
    again, why = choose_dtype("auto", CPU, WIDE, rows=4)
    assert again == dtype
    assert "measured on 20" in why
    assert len(times) == 2
    for other in (WIDE.replace(emb_dim=512), WIDE.replace(n_heads=8)):  # another shape is another measurement
        assert choose_dtype("auto", CPU, other, rows=4)[0] == "bfloat16"
    assert not times


def test_what_is_asked_for_and_narrow_models_are_not_measured(times: list[float]) -> None:
    assert choose_dtype("float32", CPU, WIDE, 4) == ("float32", "as asked")
    assert choose_dtype("bfloat16", CPU, WIDE, 4) == ("bfloat16", "as asked")
    chosen, why = choose_dtype("auto", CPU, WIDE.replace(emb_dim=124), 4)
    assert chosen == "float32"
    assert why == "matrices under 128 wide gain too little from bfloat16 on a CPU"


def test_a_gpu_says_it_itself(times: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_dtype("auto", CUDA, WIDE, 4) == ("bfloat16", "this GPU has bfloat16 matrix instructions")


@pytest.mark.parametrize("name", ["float16", "bf16", ""])
def test_a_number_type_that_is_unknown(name: str) -> None:
    with pytest.raises(ValueError, match=f"dtype '{name}' must be one of auto, float32, bfloat16"):
        choose_dtype(name, CPU, WIDE, 4)


def test_the_measurement_is_one_and_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    ratio = float32_by_bfloat16(dataclasses.replace(WIDE, drop_rate=0.5), 32)
    assert 0 < ratio < 1000
    assert torch.equal(torch.get_rng_state(), before)
