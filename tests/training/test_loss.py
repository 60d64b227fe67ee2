"""The chunked cross-entropy equals the plain one, forward and backward."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from glassgpt.training import loss as module
from glassgpt.training.loss import IGNORE, linear_cross_entropy


@given(
    n=st.integers(1, 40),
    d=st.integers(1, 8),
    v=st.integers(1, 30),
    piece=st.integers(1, 300),
    ignored=st.sampled_from(["none", "some", "all"]),
    seed=st.integers(0, 1000),
)
def test_equals_the_plain_formula(n: int, d: int, v: int, piece: int, ignored: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(v, d, generator=random, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, v, (n,), generator=random)
    if ignored != "none":
        chosen = torch.rand(n, generator=random) < 0.4 if ignored == "some" else torch.ones(n, dtype=torch.bool)
        targets[chosen] = IGNORE
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=IGNORE)
    wanted = torch.autograd.grad(plain * 0.5, [hidden, weight])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", piece)
        ours = linear_cross_entropy(hidden, weight, targets)
        found = torch.autograd.grad(ours * 0.5, [hidden, weight])
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-5)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_without_gradients_and_in_bfloat16() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32), torch.randn(100, 32) / 6
    targets = torch.randint(0, 100, (64,))
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets), plain, rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert low.dtype == torch.float32
    assert math.isclose(float(low.detach()), float(plain), rel_tol=0.01)
    low.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
