"""Steps that would spoil a run: skipped, gone back from, given up on; and the same after a kill."""

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_train import CONFIG, SETTINGS, StopAt, assert_same_run

from glassgpt import train
from glassgpt.training import step as step_module
from glassgpt.training import train as train_module
from glassgpt.training.guard import BACK_OFF, LEAST, UNGUARDED, WINDOW, Guard
from glassgpt.training.log import read_log
from glassgpt.training.look import look
from glassgpt.training.progress import Progress
from glassgpt.training.ranks import ALONE
from glassgpt.training.records import RunState, TrainingFailedError
from glassgpt.training.rollback import roll_back
from glassgpt.training.settings import Settings
from glassgpt.training.state import checkpoints, newest_checkpoint, step_of

SPIKES = Settings(spike_loss=2, spike_norm=10)


def after(guard: Guard, *steps: tuple[float, float], settings: Settings = SPIKES) -> Guard:
    for loss, norm in steps:
        guard = guard.after(loss, norm, guard.refusal(loss, norm, settings), settings)
    return guard


# ---- what is a spike ----------------------------------------


def test_only_what_is_not_finite_is_skipped_unless_asked() -> None:
    guard = after(UNGUARDED, *[(1.0, 1.0)] * 100, settings=Settings())
    assert guard == UNGUARDED  # nothing is remembered, nothing is written into checkpoints
    assert guard.refusal(1e30, 1e30, Settings()) is None
    for loss, norm in ((math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)):
        assert guard.refusal(loss, norm, Settings()) == "not finite"


def test_a_spike_is_measured_by_the_median() -> None:
    guard = after(UNGUARDED, *[(3.0, 0.5)] * (LEAST - 1))
    assert guard.refusal(100.0, 100.0, SPIKES) is None  # too few steps to tell
    guard = after(guard, (3.0, 0.5))
    assert guard.refusal(6.0, 5.0, SPIKES) is None
    assert guard.refusal(6.1, 0.5, SPIKES) == "the loss is above 2 times the median of the last 16 steps"
    assert guard.refusal(3.0, 5.1, SPIKES) == "the gradient norm is above 10 times the median of the last 16 steps"
    assert after(guard, (50.0, 0.5)).losses == guard.losses  # what was skipped is no measure of others
    assert after(guard, *[(1.0, 0.1)] * WINDOW).losses == (1.0,) * WINDOW


def test_skipped_steps_count_in_a_row() -> None:
    guard = after(UNGUARDED, (1.0, 1.0), (math.nan, 1.0), (1.0, math.inf))
    assert guard.skipped == 2
    assert guard.measured(7, 1.0).back_to == -1
    guard = after(guard, (1.0, 1.0))
    assert guard.skipped == 0
    assert guard.measured(7, math.inf).back_to == -1
    assert guard.measured(7, 1.0).back_to == 7


@given(st.builds(Guard, *[st.integers(-1, 9)] * 3, *[st.lists(st.floats(0, 1e30), max_size=5).map(tuple)] * 2))
def test_it_comes_back_from_json_as_it_was(guard: Guard) -> None:
    state = RunState(3, 2, 1.0, 1.0, 2, guard)
    assert RunState.from_dict(json.loads(json.dumps(dataclasses.asdict(state)))) == state


def test_the_best_is_none_of_the_steps_that_a_rollback_drops() -> None:
    state = RunState().after_evaluation(3.0, regular=True)
    skipping = dataclasses.replace(state, step=28, guard=dataclasses.replace(state.guard, skipped=7))
    measured = skipping.after_evaluation(2.0, regular=True)
    assert (measured.best_val_loss, measured.best_step) == (3.0, 0)
    assert (measured.val_loss, measured.is_best) == (2.0, False)


def test_when_a_run_is_tired_does_not_depend_on_where_it_was_stopped() -> None:
    undisturbed = stopped = RunState().after_evaluation(3.0, regular=True)
    stopped = dataclasses.replace(stopped, step=24).after_evaluation(2.0, regular=False)
    assert (stopped.best_val_loss, stopped.best_step, stopped.is_best) == (2.0, 24, True)
    both = [dataclasses.replace(s, step=30).after_evaluation(2.5, regular=True) for s in (undisturbed, stopped)]
    assert [s.best_regular_step for s in both] == [30, 30]
    assert [s.best_step for s in both] == [30, 24]
    old = dataclasses.asdict(both[1])
    del old["best_regular_loss"], old["best_regular_step"]
    assert RunState.from_dict(json.loads(json.dumps(old))).best_regular_step == 24


def test_the_log_has_the_same_best_and_end_as_the_state(tmp_path: Path, text: Path) -> None:
    train([text], tmp_path / "run", shape=CONFIG, tokenizer="byte", **{**SETTINGS, "steps": 10, "patience": 2})
    run = look(tmp_path / "run")
    for losses, best, finished in (
        ([(0, 3.0, {}), (4, 2.0, {"regular": False}), (5, 2.5, {}), (10, 2.6, {}), (15, 2.7, {})], 4, True),
        ([(0, 3.0, {}), (5, 2.5, {}), (10, 2.0, {"skipping": True}), (15, 2.7, {})], 5, True),
        ([(0, 3.0, {}), (5, 2.6, {}), (10, 2.5, {}), (15, 2.7, {})], 10, False),
    ):
        state, log = RunState(), []
        for step, loss, notes in losses:
            guard = dataclasses.replace(UNGUARDED, skipped=3 if "skipping" in notes else 0)
            state = dataclasses.replace(state, step=step, guard=guard)
            state = state.after_evaluation(loss, notes.get("regular", True))
            log += [{"kind": "step", "step": n, "loss": 1.0} for n in range(log[-1]["step"] if log else 0, step)]
            log.append({"kind": "evaluation", "step": step, "val_loss": loss, "bits_per_byte": loss, **notes})
        settings = dataclasses.replace(run.record.settings, steps=100, eval_every=5, patience=2)
        seen = dataclasses.replace(run, log=log, record=dataclasses.replace(run.record, settings=settings))
        assert seen.best is not None
        assert (seen.best["step"], seen.best["val_loss"]) == (state.best_step, state.best_val_loss)
        assert state.best_step == best
        assert seen.finished == settings.tired(state.step - state.best_regular_step) == finished


@pytest.mark.parametrize("name", ["spike_loss", "spike_norm"])
def test_a_factor_that_skips_half_of_all_steps_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 0.9 would skip every other step"):
        Settings(**{name: 0.9})


# ---- runs ----------------------------------------


class Heard(StopAt):
    def __init__(self, step: int = -1) -> None:
        super().__init__(step)
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def run(text: Path, out: Path, progress: Progress | None = None, **options: Any) -> Any:
    given = {**SETTINGS, "steps": 40, **options}
    return train([text], out, shape=CONFIG, tokenizer="byte", progress=progress, **given)


def broken(monkeypatch: pytest.MonkeyPatch, steps: range, until: float = 0.0, loss: float = 50.0) -> None:
    """At these steps the loss is `loss`, while the learning rate is at least the part `until` of what it was."""
    real, at = step_module.accumulate_gradients, step_module.schedule
    now: list[float] = [0, 0]

    def schedule(step: int, settings: Settings) -> float:
        now[0] = step
        return at(step, settings)

    def accumulate(objective: Any, *rest: Any) -> float:
        value = real(objective, *rest)
        return loss if now[0] in steps and now[1] >= until else value

    def take_step(*arguments: Any) -> Any:
        now[1] = arguments[-1].rate
        return taken(*arguments)

    taken = step_module.take_step
    monkeypatch.setattr(step_module, "schedule", schedule)
    monkeypatch.setattr(step_module, "accumulate_gradients", accumulate)
    monkeypatch.setattr(train_module, "take_step", take_step)


def test_without_a_spike_the_guard_changes_nothing(tmp_path: Path, text: Path) -> None:
    run(text, tmp_path / "plain")
    run(text, tmp_path / "guarded", spike_loss=10, spike_norm=1000)
    assert read_states(tmp_path / "plain")["guard"]["losses"] == []
    assert len(read_states(tmp_path / "guarded")["guard"]["losses"]) == 40
    assert_same_run(tmp_path / "plain", tmp_path / "guarded")


def read_states(out: Path) -> dict[str, Any]:
    path, _ = newest_checkpoint(out)
    return json.loads((path / "training_state" / "state.json").read_text(encoding="utf-8"))


def test_a_spike_is_skipped_and_said(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, range(22, 24))
    heard = Heard()
    assert run(text, tmp_path / "run", heard, spike_loss=2).finished
    said = [line for line in heard.messages if "skipped" in line]
    assert [line.partition(":")[0] for line in said] == ["step 22", "step 23"]
    assert "loss 50, gradient norm " in said[0]
    assert said[0].endswith(": skipped, the loss is above 2 times the median of the last 22 steps")


@pytest.mark.parametrize("save_minutes", [10.0, 1e-9])  # 1e-9: a checkpoint after each step
@pytest.mark.parametrize("crashes", [(26,), (31,), (27, 21, 33)])
def test_a_run_goes_back_with_a_lower_rate_and_the_same_after_a_kill(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, save_minutes: float, crashes: tuple[int, ...]
) -> None:
    """The second of three crashes comes after the resumed run has gone back."""
    broken(monkeypatch, range(22, 40), until=0.5)  # 32 to 39 are never reached at the full rate
    options = dict(spike_loss=2, keep="last")
    heard, out = Heard(), tmp_path / "killed"
    assert run(text, tmp_path / "whole", heard, **options).finished
    assert [line for line in heard.messages if "back to" in line] == [
        "10 steps in a row up to step 31 were skipped, each with its reason: back to step 20, with 0.5 of the learning "
        "rate (rollback 1 of 3)",
        "10 steps in a row up to step 31 were skipped, each with its reason: back to step 20, with 0.25 of the "
        "learning rate (rollback 2 of 3)",
    ]
    records = [r for r in read_log(tmp_path / "whole") if r["kind"] == "step"]
    assert [r["step"] for r in records] == list(range(40))
    assert records[20]["rate"] == pytest.approx(step_module.schedule(20, Settings(steps=40, warmup_steps=2)) / 4)
    for n, crash in enumerate(crashes):
        with pytest.raises(RuntimeError, match="plug"):
            if n:
                train(out=out, resume=True, progress=StopAt(crash))
            else:
                run(text, out, StopAt(crash), save_minutes=save_minutes, **options)
    train(out=out, resume=True)
    assert_same_run(tmp_path / "whole", out)
    assert read_states(out)["guard"] == read_states(tmp_path / "whole")["guard"]


def test_no_checkpoint_of_the_dropped_steps_stays(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill must not resume from steps that a rollback has dropped."""
    broken(monkeypatch, range(22, 40), until=0.6)
    out, seen = tmp_path / "run", []

    class Look(Heard):
        def message(self, text: str) -> None:
            if "back to" in text:
                seen.extend(step_of(path) for path in checkpoints(out))
                raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, Look(), spike_loss=2, save_minutes=1e-9)
    assert seen == [20]  # kept for this, though by the clock there were many newer ones


def test_at_last_it_stops_with_a_reason_and_a_resume_may_allow_more(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, range(22, 40), until=BACK_OFF**1)
    out = tmp_path / "run"
    with pytest.raises(
        TrainingFailedError,
        match="10 steps in a row up to step 31 were skipped.*after 1 rollbacks.*lower learning rate",
    ):
        run(text, out, spike_loss=2, rollbacks=1)
    assert train(out=out, resume=True, rollbacks=2).finished
    run(text, tmp_path / "whole", spike_loss=2, rollbacks=2)
    assert_same_run(tmp_path / "whole", out)


def test_a_run_without_a_guard_in_its_state_goes_back_to_its_newest_checkpoint(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RuntimeError, match="plug"):
        run(text, out, StopAt(12))
    for path in checkpoints(out):  # as versions before the guard wrote it
        file = path / "training_state" / "state.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        del record["guard"]
        file.write_text(json.dumps(record), encoding="utf-8")
    broken(monkeypatch, range(11, 40), until=1.0, loss=math.nan)
    heard = Heard()
    assert train(out=out, resume=True, progress=heard).finished
    assert any("back to step 10" in line for line in heard.messages)


def test_a_resume_may_allow_fewer_rollbacks_than_there_were() -> None:
    state = RunState()
    state = dataclasses.replace(state, guard=dataclasses.replace(state.guard, rollbacks=2))
    prepared: Any = types.SimpleNamespace(settings=Settings(rollbacks=1))
    writer: Any = None
    with pytest.raises(TrainingFailedError, match="after 2 rollbacks"):
        roll_back(prepared, state, Path("run"), torch.device("cpu"), writer, ALONE)
