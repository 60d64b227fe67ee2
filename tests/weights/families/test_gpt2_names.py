import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glassgpt import GPTConfig, GPTModel
from glassgpt.weights.containers.source import InMemory, OnDemand
from glassgpt.weights.families.gpt2_names import from_gpt2_names, to_gpt2_names
from glassgpt.weights.families.state import build_model

Make = Callable[..., GPTModel]
Tensors = dict[str, Tensor]
SWITCHES = pytest.mark.parametrize(("tied", "bias"), [(True, True), (True, False), (False, True), (False, False)])


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def theirs_of(make: Make, **changes: Any) -> tuple[GPTConfig, Tensors]:
    model = make(**{"qkv_bias": True, "tie_embeddings": True, **changes})
    return model.config, to_gpt2_names(model.state_dict(), model.config)


def error(tensors: Mapping[str, Tensor], config: GPTConfig, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        from_gpt2_names(InMemory(dict(tensors)), config, source="SOURCE", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(
    heads=st.integers(1, 5),
    head_dim=st.integers(1, 5),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_there_and_back_is_equal_bit_for_bit(
    tiny_model: Make, heads: int, head_dim: int, layers: int, tied: bool, bias: bool, dtype: torch.dtype
) -> None:
    model = tiny_model(
        dtype=dtype,
        emb_dim=heads * head_dim,
        n_heads=heads,
        n_layers=layers,
        tie_embeddings=tied,
        qkv_bias=bias,
    )
    theirs = to_gpt2_names(model.state_dict(), model.config)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in theirs.values())
    state = from_gpt2_names(InMemory(dict(theirs)), model.config)
    assert equal(dict(sorted(state.items())), dict(sorted(model.state_dict().items())))
    assert equal(build_model(model.config, state).state_dict(), model.state_dict())


@SWITCHES
def test_names_and_shapes_are_those_of_transformers(tiny_model: Make, tied: bool, bias: bool) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    _, theirs = theirs_of(tiny_model, tie_embeddings=tied, qkv_bias=bias)
    wanted = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=16, n_embd=12, n_head=3, n_layer=2, tie_word_embeddings=tied)
    ).state_dict()
    if tied:
        del wanted["lm_head.weight"]
    assert {name: tensor.shape for name, tensor in theirs.items()} == {n: t.shape for n, t in wanted.items()}


def test_query_key_and_value_lie_side_by_side(tiny_model: Make) -> None:
    model = tiny_model(qkv_bias=True)
    theirs = to_gpt2_names(model.state_dict(), model.config)
    attention = model.trf_blocks[1].att
    x = torch.randn(5, 12)
    found = x @ theirs["transformer.h.1.attn.c_attn.weight"] + theirs["transformer.h.1.attn.c_attn.bias"]
    wanted = torch.cat([attention.W_query(x), attention.W_key(x), attention.W_value(x)], dim=1)
    torch.testing.assert_close(found, wanted)


def test_nanogpts_matrices_are_the_other_way_round(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    linear = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    turned = {name: tensor.T.contiguous() if name.endswith(linear) else tensor for name, tensor in theirs.items()}
    assert equal(
        from_gpt2_names(InMemory(dict(turned)), config, transposed=False),
        from_gpt2_names(InMemory(dict(theirs)), config),
    )
    assert "h.0.attn.c_attn.weight is [36, 12] instead of [12, 36]" in error(turned, config)


def test_the_names_of_the_bare_model_and_the_masks_of_old_files(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in theirs.items()}
    for i in range(2):
        bare[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
        bare[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    bare["lm_head.weight"] = bare["wte.weight"].clone()  # as .bin files of a tied model have it
    assert equal(from_gpt2_names(InMemory(dict(bare)), config), from_gpt2_names(InMemory(dict(theirs)), config))


@SWITCHES
def test_every_single_missing_extra_or_misshapen_tensor_is_named(tiny_model: Make, tied: bool, bias: bool) -> None:
    config, theirs = theirs_of(tiny_model, tie_embeddings=tied, qkv_bias=bias)
    for name, tensor in theirs.items():
        short = name.removeprefix("transformer.")
        without = {other: t for other, t in theirs.items() if other != name}
        if short.endswith("c_attn.bias") and not bias:
            from_gpt2_names(InMemory(dict(without)), config)  # zeros may be written or left out
        else:
            assert error(without, config) == f"SOURCE does not fit its config: missing {short} {list(tensor.shape)}"
            shape = [*tensor.shape[:-1], tensor.shape[-1] + 1]
            text = error({**theirs, name: torch.zeros(shape)}, config)
            wanted = f"{short} is {shape} instead of {list(tensor.shape)}"
            assert text == f"SOURCE does not fit its config: {wanted}"
        if short.endswith("c_attn.bias") and not bias:
            continue
        flat = error({**theirs, name: tensor.flatten()[:0]}, config)
        assert f"{short} is [0] instead of" in flat
    for extra in ("score.weight", "h.2.ln_1.weight", "h.0.attn.c_attn.scale", "transformer.h.0.mlp.c_fc"):
        text = error({**theirs, extra: torch.zeros(3)}, config)
        assert text == f"SOURCE does not fit its config: unexpected {extra.removeprefix('transformer.')}"


@pytest.mark.parametrize(
    "name", ["h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight", "h.1.mlp.c_proj.weight", "wte.weight"]
)
def test_a_transposed_matrix_is_named(tiny_model: Make, name: str) -> None:
    config, theirs = theirs_of(tiny_model)
    shape = list(theirs[f"transformer.{name}"].shape)
    text = error({**theirs, f"transformer.{name}": theirs[f"transformer.{name}"].T}, config)
    assert text == f"SOURCE does not fit its config: {name} is {shape[::-1]} instead of {shape}"


def test_all_problems_come_at_once_and_stay_one_line(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    text = error({**theirs, "a": torch.zeros(1), "transformer.ln_f.bias": torch.zeros(7)}, config.replace(n_layers=1))
    assert text.count("unexpected h.1.") == 6
    assert text.endswith(f" and {1 + 12 + 1 - 6} more")
    del theirs["transformer.wpe.weight"]
    text = error({**theirs, "a": torch.zeros(1), "transformer.ln_f.bias": torch.zeros(7)}, config)
    wanted = "missing wpe.weight [16, 12]; unexpected a; ln_f.bias is [7] instead of [12]"
    assert text == f"SOURCE does not fit its config: {wanted}"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_single_number_that_is_none_is_found_in_any_tensor(tiny_model: Make, value: float) -> None:
    config, theirs = theirs_of(tiny_model, tie_embeddings=False)
    for name, tensor in theirs.items():
        bad = tensor.clone()
        bad.view(-1)[-1] = value
        text = error({**theirs, name: bad}, config)
        assert text == f"SOURCE: {name.removeprefix('transformer.')} holds NaN or infinite values"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_another_kind_of_numbers_is_named(tiny_model: Make, dtype: torch.dtype) -> None:
    config, theirs = theirs_of(tiny_model)
    text = error({**theirs, "transformer.wpe.weight": torch.zeros(16, 12, dtype=dtype)}, config)
    assert text == f"SOURCE: wpe.weight is {dtype}, not a floating type"


def test_what_the_config_says_of_heads_and_biases_is_checked(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    other = {**theirs, "lm_head.weight": theirs["transformer.wte.weight"] + 1}
    assert error(other, config) == "SOURCE: lm_head.weight differs from wte.weight though the config ties them"
    text = error(theirs, config.replace(qkv_bias=False))
    assert text == "SOURCE: h.0.attn.c_attn.bias is not zero though the config says qkv_bias false"
    assert error(theirs, config.replace(tie_embeddings=False)).endswith("missing lm_head.weight [97, 12]")


def test_a_name_twice(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    text = error({**theirs, "wte.weight": theirs["transformer.wte.weight"]}, config)
    assert text == "two tensors are called wte.weight: transformer.wte.weight and wte.weight"


def test_a_config_of_absurdly_many_layers_is_refused_before_they_are_counted(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    started = time.monotonic()
    assert "1000000000000 layers" in error(theirs, config.replace(n_layers=10**12))
    assert time.monotonic() - started < 5


def test_the_result_is_a_copy_in_the_dtype_asked_for(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    for dtype in (None, torch.float64, torch.bfloat16):
        state = from_gpt2_names(InMemory(dict(theirs)), config, dtype=dtype)
        assert {tensor.dtype for tensor in state.values()} == {dtype or torch.float32}
    before = {name: tensor.clone() for name, tensor in from_gpt2_names(InMemory(dict(theirs)), config).items()}
    kept = list(theirs.values())
    state = from_gpt2_names(InMemory(theirs), config)
    assert not theirs  # the dict is emptied, so that the weights are not held twice
    for tensor in kept:
        tensor.zero_()
    assert equal(state, before)
    assert state["out_head.weight"] is state["tok_emb.weight"]


def test_a_lazy_source_is_read_one_tensor_at_a_time(tiny_model: Make) -> None:
    config, theirs = theirs_of(tiny_model)
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def read(tensor: Tensor) -> Tensor:
        nonlocal most
        copy = tensor.clone()
        alive.add(copy)
        most = max(most, len(alive))
        return copy

    lazy = OnDemand(theirs, read, lambda tensor: tensor.shape)
    state = from_gpt2_names(lazy, config)
    assert equal(state, from_gpt2_names(InMemory(dict(theirs)), config))
    assert most <= 2
    assert not alive


@SWITCHES
def test_a_model_is_built_of_the_very_tensors_without_drawing_numbers(tiny_model: Make, tied: bool, bias: bool) -> None:
    config, theirs = theirs_of(tiny_model, tie_embeddings=tied, qkv_bias=bias)
    state = from_gpt2_names(InMemory(dict(theirs)), config)
    random = torch.get_rng_state()
    model = build_model(config, state)
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training
    assert (model.out_head.weight is model.tok_emb.weight) == tied
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr()
        assert parameter.requires_grad
    assert sum(p.numel() for p in model.parameters()) == config.n_parameters()
