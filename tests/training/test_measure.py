"""How many steps fit into a time."""

import pytest

from glassgpt.training.measure import EVALUATIONS, Speed, settings_for
from glassgpt.training.settings import Settings


@pytest.mark.parametrize("seconds", [30.0, 60.0, 3600.0])
@pytest.mark.parametrize("step", [0.002, 0.1, 3.0])
@pytest.mark.parametrize("eval_batch", [0.001, 0.05, 1.0])
def test_steps_and_evaluations_together_take_the_time(seconds: float, step: float, eval_batch: float) -> None:
    settings, _ = settings_for(seconds, 0, Speed(step, eval_batch), Settings(), n_parameters=1_000_000)
    assert settings.steps is not None and settings.eval_batches is not None
    measuring = EVALUATIONS * settings.eval_batches * eval_batch
    assert settings.steps * step + measuring <= seconds or settings.steps == 1
    assert measuring <= 0.16 * seconds or settings.eval_batches == 1
    if settings.steps > 10:
        assert settings.steps * step + measuring >= 0.7 * seconds


def test_what_was_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _ = settings_for(60, 0, Speed(0.01, 5.0), Settings(eval_batches=7, warmup_steps=3, eval_every=11), 1000)
    assert (settings.eval_batches, settings.warmup_steps, settings.eval_every) == (7, 3, 11)
    settings, _ = settings_for(60, 0, Speed(0.01, 0.001), Settings(), 1000)
    assert settings.eval_batches == 20


def test_too_little_time_is_said() -> None:
    settings, choice = settings_for(6, 0, Speed(step=20.0, eval_batch=1.0), Settings(), 1000)
    assert settings.steps == 1
    assert choice == "steps: 1; 0.1 minutes are too short for this model: one step takes 20 s"
    assert settings_for(60, 0, Speed(0.01, 0.001), Settings(), 1000)[1].endswith(
        "fit into 1 minute at the speed just measured"
    )


def test_what_is_spent_is_not_spent_again() -> None:
    all_of_it, _ = settings_for(60, 0, Speed(0.01, 0.001), Settings(), 1000)
    rest, line = settings_for(60, 20, Speed(0.01, 0.001), Settings(), 1000)
    assert all_of_it.steps is not None and rest.steps == all_of_it.steps - 2000
    assert line.endswith("fit into 1 minute at the speed just measured")
