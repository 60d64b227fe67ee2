"""Chapter 3's classes: the book's numbers, and one class equal to the next where it should be."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glassgpt.book.attention import (
    CausalAttention,
    MultiHeadAttentionWrapper,
    PyTorchMultiHeadAttention,
    SelfAttention_v1,
    SelfAttention_v2,
)
from glassgpt.model import MultiHeadAttention

# The book's six words, three numbers each.
INPUTS = torch.tensor(
    [
        [0.43, 0.15, 0.89],
        [0.55, 0.87, 0.66],
        [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33],
        [0.77, 0.25, 0.10],
        [0.05, 0.80, 0.55],
    ]
)
B, T, D_IN, HEADS, HEAD_DIM = 2, 5, 7, 3, 4
CLASSES: dict[str, tuple[type[nn.Module], tuple[Any, ...]]] = {
    "SelfAttention_v1": (SelfAttention_v1, (3, 2)),
    "SelfAttention_v2": (SelfAttention_v2, (3, 2)),
    "CausalAttention": (CausalAttention, (3, 2, 6, 0.5)),
    "MultiHeadAttentionWrapper": (MultiHeadAttentionWrapper, (3, 2, 6, 0.5, 2)),
    "PyTorchMultiHeadAttention": (PyTorchMultiHeadAttention, (3, 2, 2, 0.0)),
    "MultiHeadAttention": (MultiHeadAttention, (3, 2, 6, 0.5, 2)),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def batch(n_tokens: int = T) -> Tensor:
    return torch.randn(B, n_tokens, D_IN)


def causal_weights(layer: SelfAttention_v2, x: Tensor) -> Tensor:
    """By the definition: each query alone, with the keys up to its own."""
    rows = []
    for i in range(len(x)):
        scores = layer.W_key(x[: i + 1]) @ layer.W_query(x[i]) / layer.W_key.out_features**0.5
        rows.append(torch.cat([scores.softmax(dim=0), torch.zeros(len(x) - i - 1)]))
    return torch.stack(rows)


# ---- the numbers the book prints, to its four digits ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "seed", "printed"),
    [
        (
            lambda: SelfAttention_v1(3, 2),
            123,
            "0.2996 0.8053  0.3061 0.8210  0.3058 0.8203  0.2948 0.7939  0.2927 0.7891  0.2990 0.8040",
        ),
        (
            lambda: SelfAttention_v2(3, 2),
            789,
            "-0.0739 0.0713  -0.0748 0.0703  -0.0749 0.0702  -0.0760 0.0685  -0.0763 0.0679  -0.0754 0.0693",
        ),
        (
            lambda: CausalAttention(3, 2, 6, 0.0),
            123,
            "-0.4519 0.2216  -0.5874 0.0058  -0.6300 -0.0632  -0.5675 -0.0843  -0.5526 -0.0981  -0.5299 -0.1081",
        ),
        (
            lambda: MultiHeadAttentionWrapper(3, 2, 6, 0.0, num_heads=2),
            123,
            "-0.4519 0.2216 0.4772 0.1063  -0.5874 0.0058 0.5891 0.3257  -0.6300 -0.0632 0.6202 0.3860 "
            "-0.5675 -0.0843 0.5478 0.3589  -0.5526 -0.0981 0.5321 0.3428  -0.5299 -0.1081 0.5077 0.3493",
        ),
        (
            lambda: MultiHeadAttention(3, 2, 6, 0.0, num_heads=2),
            123,
            "0.3190 0.4858  0.2943 0.3897  0.2856 0.3593  0.2693 0.3873  0.2639 0.3928  0.2575 0.4028",
        ),
    ],
    ids=["v1", "v2", "causal", "wrapper", "multi-head"],
)
def test_the_seeds_of_the_book_give_its_numbers(make: Callable[[], nn.Module], seed: int, printed: str) -> None:
    torch.manual_seed(seed)
    out = make()(INPUTS[None].expand(2, -1, -1))
    expected = torch.tensor([float(number) for number in printed.split()]).view(6, -1)
    assert out.shape == (2, *expected.shape)
    assert torch.allclose(out, expected.expand_as(out), rtol=0, atol=5.1e-5)


def test_the_books_first_query_by_hand() -> None:
    torch.manual_seed(123)
    layer = SelfAttention_v1(3, 2)
    query = INPUTS[1] @ layer.W_query
    scores = (INPUTS @ layer.W_key) @ query
    assert torch.allclose(query, torch.tensor([0.4306, 1.4551]), rtol=0, atol=5.1e-5)
    printed = torch.tensor([1.2705, 1.8524, 1.8111, 1.0795, 0.5577, 1.5440])
    assert torch.allclose(scores, printed, rtol=0, atol=5.1e-5)
    weights = (scores / 2**0.5).softmax(dim=0)
    assert torch.allclose(weights @ (INPUTS @ layer.W_value), layer(INPUTS)[1], atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_as_the_books_own_package(name: str) -> None:
    """The same seed, the same weights; its state loads, ours loads there; the same dropout is drawn."""
    theirs = pytest.importorskip("llms_from_scratch.ch03", reason="the book's package comes with the extra 'oracles'")
    cls, arguments = CLASSES[name]
    torch.manual_seed(7)
    mine = cls(*arguments)
    torch.manual_seed(7)
    book = getattr(theirs, name)(*arguments)
    for key, value in mine.state_dict().items():
        assert torch.equal(value, book.state_dict()[key])
    x = INPUTS if name.startswith("Self") else INPUTS[None].expand(2, -1, -1)
    torch.manual_seed(8)
    expected = book(x)
    torch.manual_seed(8)
    assert torch.allclose(mine(x), expected, atol=1e-6)
    torch.manual_seed(9)
    other = cls(*arguments)
    other.load_state_dict(book.state_dict())
    assert torch.allclose(other.eval()(x), book.eval()(x), atol=1e-6)
    if name != "MultiHeadAttention":  # ours keeps no mask
        book.load_state_dict(mine.state_dict())


# ---- each equal to the next ----------------------------------------------------------------------------------------


def test_v1_with_the_transposed_weights_of_v2() -> None:
    v1, v2 = SelfAttention_v1(D_IN, 4), SelfAttention_v2(D_IN, 4)
    v1.load_state_dict({name.removesuffix(".weight"): weight.T for name, weight in v2.state_dict().items()})
    x = batch()
    assert torch.allclose(v1(x), v2(x), atol=1e-6)
    assert torch.allclose(v1(x[0]), v1(x)[0], atol=1e-6)  # one text, with or without a batch around it


def test_v1_is_drawn_from_0_to_1_and_v2_around_0() -> None:
    for weight in SelfAttention_v1(50, 40).parameters():
        assert weight.shape == (50, 40) and 0 <= weight.min() < 0.05 < 0.95 < weight.max() < 1
    for weight in SelfAttention_v2(50, 40).parameters():
        assert weight.shape == (40, 50) and abs(weight.mean()) < 0.01 and weight.abs().max() <= 50**-0.5


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_tokens", [1, 4, T])
def test_causal_is_v2_with_a_mask(n_tokens: int, bias: bool) -> None:
    v2, causal = SelfAttention_v2(D_IN, 4, bias), CausalAttention(D_IN, 4, T, 0.0, bias)
    missing = causal.load_state_dict(v2.state_dict(), strict=False)
    assert missing.missing_keys == ["mask"] and not missing.unexpected_keys
    x = batch(n_tokens)
    for row, text in zip(causal(x), x, strict=True):
        assert torch.allclose(row, causal_weights(v2, text) @ v2.W_value(text), atol=1e-6)
    assert torch.allclose(causal(x)[:, -1], v2(x)[:, -1], atol=1e-6)  # the last token sees all in both


def test_dropout_falls_on_the_weights_and_only_in_training() -> None:
    causal = CausalAttention(D_IN, 4, T, 0.5)
    x = batch()
    torch.manual_seed(1)
    dropped = causal(x)
    v2 = SelfAttention_v2(D_IN, 4)
    v2.load_state_dict({name: weight for name, weight in causal.state_dict().items() if name != "mask"})
    torch.manual_seed(1)
    kept = nn.functional.dropout(torch.stack([causal_weights(v2, text) for text in x]), 0.5)
    assert torch.allclose(dropped, kept @ v2.W_value(x), atol=1e-6)
    assert torch.equal(causal.eval()(x), causal(x))


def test_the_mask_moves_with_the_module_and_is_not_trained() -> None:
    causal = CausalAttention(D_IN, 4, T, 0.0)
    assert causal.to("meta").mask.device.type == "meta"
    assert "mask" in causal.state_dict() and "mask" not in dict(causal.named_parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_the_wrapper_is_multi_head_attention_with_the_heads_weights_joined(bias: bool) -> None:
    wrapper = MultiHeadAttentionWrapper(D_IN, HEAD_DIM, T, 0.0, HEADS, bias)
    joined = MultiHeadAttention(D_IN, HEADS * HEAD_DIM, T, 0.0, HEADS, bias)
    for name in ("W_query", "W_key", "W_value"):
        for kind, parameter in getattr(joined, name).named_parameters():
            parameter.copy_(torch.cat([getattr(getattr(head, name), kind) for head in wrapper.heads]))
    x = batch()
    assert torch.allclose(joined.out_proj(wrapper(x)), joined(x), atol=1e-6)
    for h, head in enumerate(wrapper.heads):
        assert torch.equal(wrapper(x)[..., h * HEAD_DIM : (h + 1) * HEAD_DIM], head(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_tokens", [1, T])
def test_pytorchs_is_the_explicit_one_with_its_weights_in_one_matrix(bias: bool, n_tokens: int) -> None:
    explicit = MultiHeadAttention(D_IN, HEADS * HEAD_DIM, T, 0.0, HEADS, bias)
    fused = PyTorchMultiHeadAttention(D_IN, HEADS * HEAD_DIM, HEADS, 0.5, bias).eval()
    state = explicit.state_dict()
    renamed = {"proj.weight": state["out_proj.weight"], "proj.bias": state["out_proj.bias"]}
    for kind in ("weight", "bias") if bias else ("weight",):
        renamed[f"qkv.{kind}"] = torch.cat([state[f"{name}.{kind}"] for name in ("W_query", "W_key", "W_value")])
    fused.load_state_dict(renamed)
    x = batch(n_tokens)
    assert torch.allclose(fused(x), explicit(x), atol=1e-6)


def test_pytorchs_drops_in_training_only() -> None:
    fused = PyTorchMultiHeadAttention(D_IN, 12, HEADS, dropout=0.5)
    x = batch()
    assert not torch.allclose(fused(x), fused(x))
    assert torch.equal(fused.eval()(x), fused(x))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^6 tokens exceed the context length of 5$"):
        CausalAttention(D_IN, 4, T, 0.0)(batch(6))
    with pytest.raises(ValueError, match=r"^d_out 10 is not divisible by num_heads 3$"):
        PyTorchMultiHeadAttention(D_IN, 10, 3)
