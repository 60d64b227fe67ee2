"""Attention by plain products, which training in bfloat16 takes: the fused kernel's function, and its gradients."""

import pytest
import torch
from torch import nn

from glassgpt import GPTConfig, attention
from glassgpt.attention import attend
from glassgpt.training.build import initial_model
from glassgpt.training.objective import NextTokenLoss


def inputs(dtype: torch.dtype, tokens: int = 9) -> list[torch.Tensor]:
    """Queries, keys and values as a model hands them on: views whose heads lie side by side."""
    torch.manual_seed(0)
    return [torch.randn(2, tokens, 3, 8).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def results(dtype: torch.dtype, mask: torch.Tensor | None = None) -> list[torch.Tensor]:
    parts = inputs(dtype)
    out = attend(*parts, mask, nn.Dropout(0.0))
    return [out, *torch.autograd.grad((out * torch.linspace(-1, 1, 8)).sum(), parts)]


def test_products_equal_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = results(torch.float64)
    fused = results(torch.float32)
    monkeypatch.setattr(attention, "_by_products", lambda *_: True)
    for plain, kernel, wanted in zip(results(torch.float32), fused, exact, strict=True):
        torch.testing.assert_close(plain, wanted.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(plain, kernel, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_products_are_as_near_to_the_truth_as_the_kernel() -> None:
    exact = results(torch.float64)
    everything = torch.ones(9, 9, dtype=torch.bool).tril()
    for plain, kernel, wanted in zip(results(torch.bfloat16), results(torch.bfloat16, everything), exact, strict=True):
        assert plain.dtype == torch.bfloat16
        error, kernels = ((x.double() - wanted).norm() / wanted.norm() for x in (plain, kernel))
        assert error < max(0.01, 1.5 * kernels)


@pytest.mark.parametrize(
    ("dtype", "p", "tokens", "wanted"),
    [
        (torch.bfloat16, 0.0, 9, True),
        (torch.float32, 0.0, 9, False),
        (torch.float32, 0.1, 9, True),
        (torch.bfloat16, 0.1, 1200, False),  # too many weights to keep
    ],
)
def test_products_are_taken_where_they_gain(
    dtype: torch.dtype, p: float, tokens: int, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(attention, "_products", lambda q, k, v, dropout: taken.append(dropout.p))
    attend(*inputs(dtype, tokens), None, nn.Dropout(p))
    assert bool(taken) == wanted


def test_dropout_acts_on_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token sees itself alone: its value doubled or nothing, and on average all of it."""
    monkeypatch.setattr(attention, "_by_products", lambda *_: True)
    parts = inputs(torch.float32)
    drop = nn.Dropout(0.5)
    ratios = torch.stack([(attend(*parts, None, drop) / parts[2])[:, :, 0].detach() for _ in range(200)])
    assert ((ratios.abs() < 1e-6) | ((ratios - 2).abs() < 1e-5)).all()
    assert float(ratios.mean()) == pytest.approx(1, abs=5 / (6 * 200) ** 0.5)
    torch.testing.assert_close(attend(*parts, None, drop.eval()), attend(*parts, None, nn.Dropout(0.0)))


def test_a_hundred_steps_have_the_losses_of_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and batches the same, attention step by step in float32, or by products: losses equal within rounding."""
    config = GPTConfig(vocab_size=50, context_length=8, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.0)
    batches = torch.randint(0, 50, (100, 4, 9), generator=torch.Generator().manual_seed(1))
    curves = []
    monkeypatch.setattr(attention, "_by_products", lambda *_: True)
    for kind in ("explicit", "sdpa"):
        objective = NextTokenLoss(initial_model(config.replace(attention=kind), 1))
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
        losses = []
        for batch in batches:
            total, count = objective(batch[:, :-1], batch[:, 1:])
            optimizer.zero_grad()
            (total / count).backward()
            optimizer.step()
            losses.append(float(total.detach()) / int(count))
        curves.append(losses)
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
