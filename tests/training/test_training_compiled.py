"""Training with `--compile`: the same losses, dropout included, and eager where there is no compiler."""

import logging
import shutil

import pytest
import torch

from glassgpt import GPTConfig
from glassgpt.training.build import Trainee, build
from glassgpt.training.settings import Settings
from glassgpt.training.step import evaluate_loss, take_step

CONFIG = GPTConfig(vocab_size=50, context_length=8, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.1)
CPU = torch.device("cpu")


def losses(trainee: Trainee, settings: Settings, steps: int = 5) -> list[float]:
    batch = torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(0))
    found = [
        take_step(trainee.objective, trainee.optimizers, (batch[:, :-1], batch[:, 1:]), step, settings)[0]
        for step in range(steps)
    ]
    return [*found, evaluate_loss(trainee.objective, batch.flatten().numpy(), 3)]


def settings(**changes: object) -> Settings:
    return Settings(**{"dtype": "float32", **changes}).resolved(10)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_steps_have_the_plain_losses() -> None:
    plain = losses(build(CONFIG, settings(), CPU), settings())
    trainee = build(CONFIG, settings(compile=True), CPU)
    found = losses(trainee, settings(compile=True))
    assert trainee.objective.compiled._compiled is not None  # type: ignore[union-attr]
    assert found == pytest.approx(plain, abs=1e-4)


def test_without_a_compiler_training_goes_on_with_the_plain_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = losses(build(CONFIG, settings(), CPU), settings())

    def broken(function: object, **options: object) -> object:
        def call(x: torch.Tensor) -> torch.Tensor:
            torch.rand(3)
            raise RuntimeError("No working C++ compiler found in CXX\nmore of it")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with caplog.at_level(logging.WARNING):
        found = losses(build(CONFIG, settings(compile=True), CPU), settings(compile=True))
    assert found == plain
    (record,) = caplog.records
    assert record.getMessage() == (
        "torch.compile failed, training goes on without it: No working C++ compiler found in CXX"
    )
