"""What a resume says, and what more minutes are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glassgpt import GPTConfig, train
from glassgpt.training import plan, resume
from glassgpt.training.measure import Speed, further_steps
from glassgpt.training.progress import Progress
from glassgpt.training.request import Request
from glassgpt.training.resume import resume_report
from glassgpt.training.run_directory import RUN_FILE
from glassgpt.training.run_file import read_run
from glassgpt.training.settings import Settings
from glassgpt.training.state import newest_checkpoint
from glassgpt.training.train_file import read_train_file

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2)
SETTINGS = dict(steps=20, batch_size=4, eval_every=5, eval_batches=2, sample_tokens=0, dtype="float32")


class Heard(Progress):
    """All that is said, and what the view is given of the past; breaks the run off after `step`."""

    def __init__(self, step: int = -1) -> None:
        self.at = step
        self.messages: list[str] = []
        self.records: list[dict[str, Any]] | None = None

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.at:
            raise RuntimeError("pulled the plug")

    def message(self, text: str) -> None:
        self.messages.append(text)

    def history(self, records: list[dict[str, Any]]) -> None:
        self.records = records

    def start(self, prepared: Any, first_step: int) -> None:
        self.messages += prepared.choices


def broken(text: Path, out: Path, **options: Any) -> None:
    with pytest.raises(RuntimeError, match="plug"):
        train([text], out, shape=CONFIG, tokenizer="byte", progress=Heard(12), **{**SETTINGS, **options})


def assert_same_model(a: Path, b: Path) -> None:
    """Weights and optimizer, bit for bit."""
    (mine, _), (theirs, _) = newest_checkpoint(a), newest_checkpoint(b)
    for name in ("model.safetensors", "training_state/optimizer.safetensors"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()


def said(out: Path, **options: Any) -> list[str]:
    view = Heard(13)
    with pytest.raises(RuntimeError, match="plug"):
        train(out=out, resume=True, progress=view, **options)
    return view.messages


# ---- what is said ----------------------------------------


def test_a_resume_says_where_it_goes_and_what_changed(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    broken(text, out)
    assert said(out)[0] == (
        f"resuming {out} at step 10 of 20, epoch 0.1 of 0.1; learning rate at 56% of its peak, in the end 5%"
    )
    lines = said(out, steps=2000, patience=3)
    assert lines[:2] == [
        f"resuming {out} at step 10 of 2,000, epoch 0.1 of 12.4; learning rate from 56% to 100% of its peak, in "
        "the end 5%",
        "changed: steps 20 -> 2,000, patience 0 -> 3",
    ]
    assert not [line for line in said(out) if line.startswith("changed")]  # it is what the run is now


def test_what_no_longer_holds_is_not_said_again(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    settings = {name: value for name, value in SETTINGS.items() if name != "steps"}
    view = Heard(3)
    monkeypatch.setattr(plan, "measure_speed", lambda *_: Speed(0.1, 0.0))
    with pytest.raises(RuntimeError, match="plug"):
        train([text], out, minutes=1, tokenizer="byte", progress=view, **settings)
    plans = re.compile("steps: |time: |the text is read ")
    assert len([line for line in view.messages if plans.match(line)]) == 2
    view = Heard(4)
    with pytest.raises(RuntimeError, match="plug"):
        train(out=out, resume=True, steps=90_000, progress=view)
    assert not [line for line in view.messages if plans.match(line)]
    assert [line for line in view.messages if line.startswith("model: ")]
    record = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))
    assert not [line for line in record["choices"] if plans.match(line)]


def test_a_run_whose_steps_are_taken_says_so(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    train([text], out, shape=CONFIG, tokenizer="byte", **SETTINGS)
    view = Heard()
    assert train(out=out, resume=True, progress=view).steps == 20
    assert view.messages[0].endswith(
        "at step 20 of 20, epoch 0.1 of 0.1: all its steps are taken, ask for more steps or minutes"
    )


def test_every_kind_of_setting_can_be_named() -> None:
    before = Settings().resolved(10)
    now = before.replace(steps=1500, save_minutes=2.5, sample_prompt="To", patience=1)
    prepared: Any = SimpleNamespace(settings=now, epochs=lambda steps: steps / 100)
    (_, line) = resume_report(Path("runs/mine"), prepared, before, 5)
    assert line == "changed: steps 10 -> 1,500, save_minutes 10 -> 2.5, patience 0 -> 1, sample_prompt '' -> 'To'"


def test_the_view_is_given_the_past(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    broken(text, out)
    view = Heard(13)
    with pytest.raises(RuntimeError, match="plug"):
        train(out=out, resume=True, progress=view)
    assert view.records is not None
    assert [r["step"] for r in view.records if r["kind"] == "step"] == list(range(10))
    assert [r["step"] for r in view.records if r["kind"] == "evaluation"] == [0, 5, 10]


def test_progress_does_nothing_with_it() -> None:
    assert Progress().history([]) is None
    assert Progress().saved(3) is None


# ---- more minutes ----------------------------------------


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Speed:
    """A step of a second, an evaluation batch of nothing."""
    found = Speed(step=1.0, eval_batch=0.0)
    monkeypatch.setattr(resume, "measure_speed", lambda *_: found)
    return found


def test_more_minutes_are_more_steps_from_here(tmp_path: Path, text: Path, speed: Speed) -> None:
    out, longer = tmp_path / "run", tmp_path / "longer"
    for directory in (out, longer):
        broken(text, directory)
    view = Heard()
    result = train(out=out, resume=True, minutes=0.5, progress=view)
    settings = json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["settings"]
    more = further_steps(30, speed, Settings.from_dict(settings), 7000)
    assert result.steps == settings["steps"] == 10 + more
    assert view.messages[0] == f"steps: {more} more fit into 0.5 minutes at the speed just measured"
    assert view.messages[1].startswith(f"resuming {out} at step 10 of {10 + more}, ")
    assert view.messages[2] == f"changed: steps 20 -> {10 + more}"
    train(out=longer, resume=True, steps=result.steps)
    assert_same_model(out, longer)


def test_measuring_leaves_the_steps_as_they_are(tmp_path: Path, text: Path) -> None:
    """With the real measurement, whatever number of steps it gives."""
    out, longer = tmp_path / "run", tmp_path / "longer"
    for directory in (out, longer):
        broken(text, directory)
    steps = train(out=out, resume=True, minutes=0.01).steps
    assert steps > 10
    train(out=longer, resume=True, steps=steps)
    assert_same_model(out, longer)


def test_more_than_the_text_can_bear_is_said(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    broken(text, out)
    monkeypatch.setattr(resume, "measure_speed", lambda *_: Speed(0.001, 0.0))
    (line, *_) = said(out, minutes=60)
    assert re.search(r"they read the text [\d.]+ times in all, and more than 24 seldom make a model better", line)


def test_a_run_that_goes_on_is_not_stopped_by_the_rise_of_its_rate(tmp_path: Path, text: Path, speed: Speed) -> None:
    """More steps or minutes were asked for: they are taken, unless patience was asked for with them."""
    out = tmp_path / "run"
    broken(text, out, patience=2)
    assert "changed: steps 20 -> 38, patience 2 -> 0" in said(out, minutes=0.5)
    assert "changed: steps 38 -> 55, patience 0 -> 1" in said(out, minutes=0.8, patience=1)
    assert "changed: steps 55 -> 60, patience 1 -> 0" in said(out, steps=60)
    assert "changed: steps 60 -> 70, patience 0 -> 2" in said(out, steps=70, patience=2)
    assert "changed: steps 70 -> 30" in said(out, steps=30)  # sooner, so the rate falls


@pytest.mark.parametrize(("seconds", "steps"), [(0.1, 1), (100, 60), (1000, 675)])
def test_further_steps_count_evaluations(seconds: float, steps: int) -> None:
    """Ten batches of half a second each and a fifth of a second of saving, every eleven steps."""
    settings = Settings(eval_every=11, eval_batches=10, patience=0).resolved(100)
    assert further_steps(seconds, Speed(1.0, 0.5), settings, 0) == pytest.approx(steps, abs=4)


def test_early_evaluations_that_no_longer_fit_are_gone_for_all_who_read_the_run(tmp_path: Path, text: Path) -> None:
    """The other ranks know of a resume what `run.json` says."""
    out = tmp_path / "run"
    train([text], out, shape=CONFIG, tokenizer="char", **SETTINGS)
    record = json.loads((out / RUN_FILE).read_text(encoding="utf-8")) | {"early_evaluations": [2, 3]}
    (out / RUN_FILE).write_text(json.dumps(record), encoding="utf-8")
    for asked, early in (({}, (2, 3)), ({"eval_every": 5}, (2, 3)), ({"eval_every": 4}, ()), ({}, ())):
        prepared, _, _ = resume.reopen(out, Request((), None, {}, None, None, None, asked))
        assert prepared.early == early
        resume.record_changes(out, prepared, ["a"])
        resume.record_changes(out, prepared, ["b"])
    assert json.loads((out / RUN_FILE).read_text(encoding="utf-8"))["agents"] == ["a", "b"]


def test_the_report_of_a_resume_knows_of_rollbacks(tmp_path: Path, text: Path) -> None:
    train([text], tmp_path / "run", shape=CONFIG, tokenizer="char", **SETTINGS)
    prepared, before, _ = resume.reopen(tmp_path / "run", Request((), None, {}, None, None, None, {"steps": 40}))
    whole, half = (resume_report(tmp_path, prepared, before, 20, rate)[0] for rate in (1.0, 0.5))
    percents = [[int(p) for p in re.findall(r"(\d+)%", line)] for line in (whole, half)]
    assert len(percents[0]) == len(percents[1]) >= 2
    for a, b in zip(*percents, strict=True):
        assert abs(a / 2 - b) <= 1


def test_a_run_that_kept_its_last_model_cannot_keep_its_best(tmp_path: Path, text: Path) -> None:
    """The best of its past is gone."""
    out = tmp_path / "run"
    train([text], out, shape=CONFIG, tokenizer="byte", **{**SETTINGS, "keep": "last"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keep was 'last', now 'best': leave it out, or begin a new run elsewhere$"):
        train(out=out, resume=True, change=True, keep="best", steps=25)
    assert train(out=out, resume=True, steps=25).keep == "last"


def test_a_text_is_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, below = tmp_path / "here", tmp_path / "here" / "below"
    below.mkdir(parents=True)
    (here / "a.txt").write_text("cat dog sat on the mat " * 200, encoding="utf-8")
    (below / "a.txt").write_text("another text of that name " * 200, encoding="utf-8")
    monkeypatch.chdir(here)
    options: dict[str, Any] = {**SETTINGS, "steps": 2}
    train(["a.txt"], "m", shape=CONFIG, tokenizer="byte", **options)
    assert read_run(Path("m")).texts_from_here == ["a.txt"]
    monkeypatch.chdir(below)
    assert train(["../a.txt"], "../m", resume=True, steps=3).steps == 3
    with pytest.raises(ValueError, match="the text was .*a.txt, now a.txt"):
        train(["a.txt"], "../m", resume=True, steps=4)
    train(out="repeated", like="../m")
    assert read_train_file(Path("repeated") / "train.toml")["texts"] == ["repeated/../../a.txt"]
    assert read_run(Path("repeated")).digests == read_run(Path("../m")).digests
