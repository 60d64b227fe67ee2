"""One step: its seed, its schedule, its gradients."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt import GPTConfig, GPTModel
from glassgpt.training.build import build, initial_model
from glassgpt.training.loss import IGNORE
from glassgpt.training.objective import NextTokenLoss
from glassgpt.training.ranks import Ranks
from glassgpt.training.settings import Settings
from glassgpt.training.step import accumulate_gradients, evaluate_loss, schedule, step_seed, take_step

CONFIG = GPTConfig(vocab_size=50, context_length=8, emb_dim=16, n_heads=2, n_layers=3, drop_rate=0.0)


def test_micro_batches_give_the_gradients_of_the_whole() -> None:
    torch.manual_seed(0)
    x, y = torch.randint(0, 50, (8, 8)), torch.randint(0, 50, (8, 8))
    y[0] = -100  # a whole row that does not count
    y[3, 2:] = -100
    found = []
    for micro in (None, 4, 2, 1):
        model = initial_model(CONFIG, 1)
        loss = accumulate_gradients(NextTokenLoss(model), x, y, micro)
        found.append((loss, {n: p.grad.clone() for n, p in model.named_parameters()}))
    plain = initial_model(CONFIG, 1)
    wanted = torch.nn.functional.cross_entropy(plain(x).flatten(0, 1), y.flatten())  # the mean of what counts
    wanted.backward()
    assert math.isclose(found[0][0], float(wanted.detach()), rel_tol=1e-6)
    found.insert(0, (float(wanted.detach()), {n: p.grad for n, p in plain.named_parameters()}))
    for loss, grads in found[1:]:
        assert math.isclose(loss, found[0][0], rel_tol=1e-6)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], rtol=1e-4, atol=1e-7)


def test_schedule_rises_then_falls() -> None:
    settings = Settings(steps=100, warmup_steps=10, final_rate=0.1)
    rates = [schedule(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.1)
    assert max(rates) <= 1


def test_a_linear_schedule_falls_by_equal_steps() -> None:
    settings = Settings(steps=110, warmup_steps=10, final_rate=0.2, decay="linear")
    rates = [schedule(step, settings) for step in range(10, 111)]
    assert rates[0] == pytest.approx(1)
    assert rates[50] == pytest.approx(0.6)
    assert rates[100] == pytest.approx(0.2)
    assert all(a - b == pytest.approx(0.008) for a, b in itertools.pairwise(rates))


def test_step_seeds_differ_between_steps_and_seeds() -> None:
    seeds = {step_seed(seed, step) for seed in range(30) for step in range(100)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_loss_is_ln_v(tied: bool) -> None:
    model = initial_model(CONFIG.replace(tie_embeddings=tied), 0)
    tokens = torch.randint(0, 50, (2000,), generator=torch.Generator().manual_seed(0)).numpy()
    assert abs(evaluate_loss(NextTokenLoss(model), tokens, 16) - math.log(50)) < 0.05 * math.log(50)
    assert model.training


def test_the_evaluated_loss_is_that_of_the_plain_formula() -> None:
    model = initial_model(CONFIG, 0)
    tokens = torch.randint(0, 50, (8 * 5 + 1,), generator=torch.Generator().manual_seed(3))
    blocks = tokens[:-1].view(5, 8)
    with torch.no_grad():
        logits = model.eval()(blocks)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:])
    assert evaluate_loss(NextTokenLoss(model), tokens.numpy(), 2) == pytest.approx(float(plain), rel=1e-5)


def test_a_device_without_fused_clipping_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's: PyTorch refuses `foreach=True` where the device has no such kernels."""
    monkeypatch.setattr("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", list)
    monkeypatch.setattr("torch.nn.utils.clip_grad._device_has_foreach_support", lambda _: False)
    monkeypatch.setattr("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: False)
    settings = Settings(optimizer="adamw").resolved(10)
    trainee = build(CONFIG, settings, torch.device("cpu"))
    batch = torch.randint(0, 50, (2, 8)), torch.randint(0, 50, (2, 8))
    assert take_step(trainee.objective, trainee.optimizers, batch, 0, settings)[2] is None


def test_the_objective_is_what_wraps_and_compiles() -> None:
    """Whatever wraps the module sees the whole computation: the loss goes through `forward`, and so do gradients."""
    calls = []

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: NextTokenLoss) -> None:
            super().__init__()
            self.inner, self.model = inner, inner.model

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            calls.append(tuple(x.shape))
            return self.inner(x, y)

    x, y = torch.randint(0, 50, (4, 8)), torch.randint(0, 50, (4, 8))
    objective = Wrapper(NextTokenLoss(initial_model(CONFIG, 0)))
    accumulate_gradients(objective, x, y, 2)  # type: ignore[arg-type]
    evaluate_loss(objective, torch.randint(0, 50, (33,)).numpy(), 2, 4)  # type: ignore[arg-type]
    assert calls == [(2, 8)] * 4
    total, count = objective(x, y.masked_fill(y > 25, -100))
    assert int(count) == int((y <= 25).sum())
    assert total.requires_grad


class _Half(Ranks):
    """One of two ranks; the second adds what the first has left."""

    world_size = 2

    def __init__(self, rank: int, left: list[Any]) -> None:
        self.rank, self._left = rank, left

    def sum(self, values: Sequence[float]) -> list[float]:
        if self.rank == 0:
            self._left.append(list(values))
            return list(values)
        return [a + float(b) for a, b in zip(values, self._left.pop(), strict=True)]

    def sum_gradients(self, parameters: Iterable[torch.Tensor], values: Sequence[float]) -> list[float]:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.rank == 0:
            self._left.append([g.clone() for g in gradients])
        else:
            for mine, theirs in zip(gradients, self._left.pop(0), strict=True):
                mine += theirs
        return self.sum(values)


def test_masked_targets_weigh_alike_on_all_ranks(tiny_model: Callable[..., GPTModel]) -> None:
    """One rank has nearly all of the targets: loss and gradients are still those of the whole batch."""
    torch.manual_seed(3)
    x, y = torch.randint(0, 97, (4, 8)), torch.randint(0, 97, (4, 8))
    y[:2, 1:] = IGNORE
    whole, half = tiny_model(), tiny_model()
    loss = accumulate_gradients(NextTokenLoss(whole), x, y)
    left: list[Any] = []
    accumulate_gradients(NextTokenLoss(half), x[:2], y[:2], 1, ranks=_Half(0, left))
    half.zero_grad()
    shared = accumulate_gradients(NextTokenLoss(half), x[2:], y[2:], 1, ranks=_Half(1, left))
    assert shared == pytest.approx(loss, abs=1e-6)
    for mine, theirs in zip(half.parameters(), whole.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 5, None])
def test_ranks_share_an_evaluation(tiny_model: Callable[..., GPTModel], blocks: int | None) -> None:
    objective, tokens = NextTokenLoss(tiny_model()), torch.randint(0, 97, (150,)).numpy()
    left: list[Any] = []
    with contextlib.suppress(ZeroDivisionError):  # the first rank of this test has nobody to add to
        evaluate_loss(objective, tokens, 2, blocks, ranks=_Half(0, left))
    shared = evaluate_loss(objective, tokens, 2, blocks, ranks=_Half(1, left))
    assert shared == pytest.approx(evaluate_loss(objective, tokens, 2, blocks), abs=1e-9)


def test_each_rank_has_random_numbers_of_its_own() -> None:
    alone = np.random.SeedSequence([5, 7]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    assert step_seed(5, 7, 0) == int(alone)  # as runs that know of no ranks began with
    assert len({step_seed(5, step, rank) for step in range(20) for rank in range(20)}) == 400
