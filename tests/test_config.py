import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import PRESETS, GPTConfig, GPTModel
from glassgpt.config import preset
from glassgpt.generation.options import Generation
from glassgpt.training.settings import Settings

BOOK = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    n_heads = draw(st.integers(1, 5))
    return GPTConfig(
        vocab_size=draw(st.integers(1, 50)),
        context_length=draw(st.integers(1, 20)),
        emb_dim=n_heads * draw(st.integers(1, 5)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 3)),
        drop_rate=draw(st.sampled_from([0.0, 0, 0.1, 0.999])),
        qkv_bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        sliding_window=draw(st.none() | st.integers(1, 30)),
        attention=draw(st.sampled_from(["sdpa", "explicit"])),
        gelu=draw(st.sampled_from(["tanh", "erf"])),
    )


def message(**values: Any) -> str:
    with pytest.raises(ValueError) as caught:
        GPTConfig.of(values)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_defaults_are_the_books_dict() -> None:
    assert {key: GPTConfig().to_dict()[key] for key in BOOK} == BOOK
    assert GPTConfig.of(BOOK) == GPTConfig()


@pytest.mark.parametrize("key", ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "12", None, math.nan, [8]])
def test_a_bad_size_names_the_key_and_the_value(key: str, value: object) -> None:
    assert message(**{key: value}) == f"{key} {value!r} must be a whole number, at least 1"


@pytest.mark.parametrize("value", [1, 1.0, -0.1, 7, math.nan, math.inf, -math.inf])
def test_dropout_outside_its_range(value: float) -> None:
    assert message(drop_rate=value) == f"drop_rate {value} must be a number, at least 0 and below 1"


@pytest.mark.parametrize("value", ["0.1", None, True, [0.1]])
def test_dropout_that_is_no_number(value: object) -> None:
    assert message(drop_rate=value) == f"drop_rate {value!r} must be a number, at least 0 and below 1"


@pytest.mark.parametrize("key", ["qkv_bias", "tie_embeddings"])
@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_a_switch_is_true_or_false(key: str, value: object) -> None:
    assert message(**{key: value}) == f"{key} {value!r} must be true or false"


@pytest.mark.parametrize("value", [0, 1.5, False])
def test_a_bad_window(value: object) -> None:
    assert (
        message(sliding_window=value)
        == f"sliding_window {value!r} must be a whole number, at least 1 and at most 2147483648, or None"
    )


@pytest.mark.parametrize("value", ["flash", "", None, 3, []])
def test_an_unknown_kind_lists_the_known(value: object) -> None:
    assert message(attention=value) == f"attention {value!r} must be one of sdpa, explicit"
    assert message(gelu=value) == f"gelu {value!r} must be one of tanh, erf"


@given(st.integers(1, 400), st.integers(1, 400))
def test_heads_that_do_not_divide_the_width_get_two_ways_out_that_work(emb_dim: int, n_heads: int) -> None:
    if emb_dim % n_heads == 0:
        assert GPTConfig(emb_dim=emb_dim, n_heads=n_heads).head_dim * n_heads == emb_dim
        return
    text = message(emb_dim=emb_dim, n_heads=n_heads)
    assert text.startswith(f"emb_dim {emb_dim} is not divisible by n_heads {n_heads}: use n_heads ")
    heads, width = text.split("use n_heads ")[1].split(", or emb_dim ")
    assert emb_dim % int(heads) == 0
    divisors = [n for n in range(1, emb_dim + 1) if emb_dim % n == 0]
    assert abs(int(heads) - n_heads) == min(abs(n - n_heads) for n in divisors)
    assert int(width) % n_heads == 0
    assert emb_dim < int(width) < emb_dim + n_heads


def test_an_absurd_width_is_refused_without_counting_to_it() -> None:
    assert "is not divisible by" in message(emb_dim=10**18 + 1, n_heads=7)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("emb_dims", "emb_dim"),
        ("n_head", "n_heads"),
        ("vocabsize", "vocab_size"),
        ("dropout_rate", "drop_rate"),
    ]
    + [("context_lenght", "context_length"), ("qkv-bias", "qkv_bias"), ("window", "sliding_window")],
)
def test_an_unknown_key_suggests_the_nearest(key: str, nearest: str) -> None:
    assert message(**{key: 1}) == f"unknown config key {key!r}: did you mean {nearest!r}?"


def test_a_key_like_no_other_lists_the_known() -> None:
    text = message(zzz=1)
    for field in dataclasses.fields(GPTConfig):
        assert field.name in text


def test_a_key_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="unknown config key 3"):
        GPTConfig.of({3: 4})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [3, None, "gpt2", [("emb_dim", 8)]])
def test_what_is_no_config(value: Any) -> None:
    with pytest.raises(ValueError, match=f"^GPTConfig is made from a dict, not {type(value).__name__}$"):
        GPTConfig.of(value)


@given(configs())
def test_a_config_goes_through_json_unchanged(config: GPTConfig) -> None:
    assert GPTConfig.of(json.loads(json.dumps(config.to_dict()))) == config
    assert GPTConfig.of(config) is config


def test_replace_checks_again() -> None:
    config = GPTConfig()
    assert config.replace(n_layers=3).n_layers == 3
    assert config.n_layers == 12
    with pytest.raises(ValueError, match="^n_layers 0 must be a whole number, at least 1$"):
        config.replace(n_layers=0)
    with pytest.raises(ValueError, match="did you mean 'n_layers'"):
        config.replace(n_layer=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layers = 0  # type: ignore[misc]


@given(configs())
def test_the_parameter_count_is_the_models(config: GPTConfig) -> None:
    with torch.device("meta"):
        model = GPTModel(config)
    assert config.n_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_the_gpt2_presets_have_gpt2s_sizes(name: str, n_parameters: int) -> None:
    config = preset(name)
    assert config.n_parameters() == n_parameters
    assert (config.vocab_size, config.context_length, config.qkv_bias) == (50257, 1024, True)
    assert config.head_dim == 64


def test_the_books_dict_has_the_books_number_of_parameters() -> None:
    assert GPTConfig.of(BOOK).n_parameters() == 163_009_536
    assert GPTConfig.of(BOOK).replace(tie_embeddings=True).n_parameters() == 124_412_160


def test_the_small_presets_grow() -> None:
    small = [name for name in PRESETS if not name.startswith("gpt2")]
    sizes = [PRESETS[name].n_parameters() for name in small]
    assert sizes == sorted(set(sizes))
    assert all(PRESETS[name].drop_rate == 0 for name in small)


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown preset 'gpt3': use one of nano, micro, .*gpt2-xl"):
        preset("gpt3")


def test_a_number_that_no_float_can_be() -> None:
    with pytest.raises(ValueError, match="^learning_rate 1000.*000 must be a number, above 0"):
        Settings.from_dict({"learning_rate": 10**400})
    with pytest.raises(ValueError, match="^steps 1000.*000 must be a whole number, at least 1 and at most 99999999"):
        Settings.from_dict({"steps": 10**400})
    with pytest.raises(ValueError, match="^logit_bias 5 must be a mapping"):
        Generation.from_dict({"logit_bias": 5})
