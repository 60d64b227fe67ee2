"""Sweeps: what they train, that they are gone on with, and the search for a learning rate."""

from __future__ import annotations

import contextlib
import json
import math
import random
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from glassgpt import GPTConfig, train
from glassgpt.cli import main
from glassgpt.training.find_rate import RATES, find_rate, read_ramp
from glassgpt.training.log import read_log
from glassgpt.training.progress import Progress
from glassgpt.training.records import TrainingFailedError
from glassgpt.training.repeat import request_of
from glassgpt.training.run_file import read_run
from glassgpt.training.sweep import Range, Sweep, choices, name_of, parse_over, sweep

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.0)
SETTINGS: dict[str, Any] = dict(steps=6, batch_size=4, eval_every=3, eval_batches=1, sample_tokens=0, dtype="float32")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = random.Random(0)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words.choice(["cat", "dog", "sat", "on"]) for _ in range(2000)))
    return path


@pytest.fixture
def base(text: Path) -> dict[str, Any]:
    return dict(texts=[str(text)], config={**CONFIG.to_dict()}, tokenizer="byte", **SETTINGS)


@contextlib.contextmanager
def quiet() -> Iterator[Progress]:
    yield Progress()


def run(base: dict[str, Any], out: Path, *over: str, **options: Any) -> Sweep:
    return sweep(base, dict(map(parse_over, over)), out, **{"view": quiet, **options})


def stamps(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/log.jsonl")}


# ---- what is asked for ----------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("learning_rate=1e-3,3e-3", ("learning_rate", [0.001, 0.003])),
        ("learning-rate=1", ("learning_rate", [1.0])),
        ("optimizer=muon,adamw", ("optimizer", ["muon", "adamw"])),
        ("n_layers = 2, 3", ("n_layers", [2, 3])),
        ("dropout=0,0.1", ("drop_rate", [0.0, 0.1])),
        ("qkv_bias=true,false", ("qkv_bias", [True, False])),
        ("freeze=embedding,embedding+head", ("freeze", [["embedding"], ["embedding", "head"]])),
        ("tokenizer=bpe,byte", ("tokenizer", ["bpe", "byte"])),
        ("learning_rate=1e-4..1e-2", ("learning_rate", Range(0.0001, 0.01, False))),
        ("batch_size=4..64", ("batch_size", Range(4, 64, True))),
    ],
)
def test_settings_and_their_values(text: str, found: tuple[str, Any]) -> None:
    assert parse_over(text) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lerning_rate=1", "unknown setting 'lerning_rate' in 'lerning_rate=1': did you mean 'learning_rate'"),
        ("steps=1,2", "steps: a sweep gives each of its runs the same budget"),
        ("learning_rate", "'learning_rate' must be NAME=VALUE,VALUE or NAME=LOW..HIGH"),
        ("learning_rate=1,,2", "must be NAME=VALUE,VALUE"),
        ("learning_rate=1,1.0", "has a value twice"),
        ("learning_rate=0", "learning_rate 0.0 must be a number, above 0"),
        ("learning_rate=fast", "learning_rate 'fast' must be a number"),
        ("n_layers=1.5", "n_layers '1.5' must be a whole number"),
        ("optimizer=sgd", "optimizer 'sgd' must be one of muon, adamw"),
        ("shape=mirco", "shape 'mirco': did you mean 'micro'"),
        ("learning_rate=2..1", "learning_rate '2..1' must be two numbers, the smaller one first"),
        ("qkv_bias=true..false", "must be two numbers"),
        ("optimizer=muon..adamw", "must be two numbers"),
    ],
)
def test_what_cannot_be_swept(text: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_over(text)
    assert says in str(caught.value)


def test_every_combination() -> None:
    assert choices({"a": [1, 2], "b": ["x", "y"]}, None, 1) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a is a range: say how many to draw at random, or list its values"):
        choices({"a": Range(1, 2, False)}, None, 1)


def test_drawn_values_are_different_and_more_of_them_begin_with_the_same() -> None:
    over: dict[str, Any] = {"rate": Range(1e-4, 1e-1, False), "layers": Range(1, 8, True), "kind": ["a", "b"]}
    many = choices(over, 200, 1)
    assert many[:20] == choices(over, 20, 1) != choices(over, 20, 2)
    assert len({name_of(values) for values in many}) == 200
    assert all(1e-4 <= values["rate"] <= 1e-1 and values["layers"] in range(1, 9) for values in many)
    low = sum(values["rate"] < math.sqrt(1e-4 * 1e-1) for values in many)
    assert 70 <= low <= 130  # half of them, evenly in the logarithm
    assert len(choices({"kind": ["a", "b"]}, 10, 1)) == 2  # there are no more


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=200) | st.floats() | st.booleans(), min_size=1))
def test_every_choice_has_a_name_of_its_own_that_a_disk_takes(values: dict[str, Any]) -> None:
    name = name_of(values)
    assert 0 < len(name) <= 100
    assert name.isascii() and not {"/", "\\", "\0", ":", " "} & set(name)
    assert name_of(values | {"a": "other"}) != name_of(values | {"a": "another"})


# ---- what is trained ----------------------------------------


def test_each_choice_is_a_run_of_the_same_budget(tmp_path: Path, base: dict[str, Any]) -> None:
    said: list[str] = []
    out = tmp_path / "sweep"
    found = run(base, out, "learning_rate=0.001,0.01", "n_layers=1,2", message=said.append)
    assert found.finished and len(found.looks) == 4
    for name, values in found.values.items():
        record = read_run(out / name)
        assert record.settings.learning_rate == values["learning_rate"]
        assert record.config.n_layers == values["n_layers"]
        assert record.settings.steps == 6 == found.looks[name].taken
    losses = [run["best_val_loss"] for run in found.to_dict()["runs"]]
    assert losses == sorted(losses)
    assert len(said) == 4
    assert imread(out / "sweep.png").shape[2] == 4
    alone = train(**{**base, "learning_rate": 0.01}, out=tmp_path / "alone")
    assert alone.best_val_loss == found.looks["learning_rate=0.01,n_layers=1"].summary()["best_val_loss"]


def test_what_is_finished_is_kept_and_what_is_not_goes_on(tmp_path: Path, base: dict[str, Any]) -> None:
    class Plug(Progress):
        def step(self, record: dict[str, Any]) -> None:
            if record["step"] == 4 and len(begun) == 2:
                raise KeyboardInterrupt

    @contextlib.contextmanager
    def plugged() -> Iterator[Progress]:
        begun.append(1)
        yield Plug()

    begun: list[int] = []
    out = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        run(base, out, "learning_rate=0.001,0.01,0.1", view=plugged)
    before = stamps(out)
    assert len(before) == 2
    found = run(base, out, "learning_rate=0.001,0.01,0.1,0.02")  # and one more
    assert found.finished and len(found.looks) == 4
    after = stamps(out)
    assert after["learning_rate=0.001"] == before["learning_rate=0.001"]
    steps = [r["step"] for r in read_log(out / "learning_rate=0.01") if r["kind"] == "step"]
    assert steps == list(range(6))
    run(base, out, "learning_rate=0.001,0.01,0.1,0.02")
    assert stamps(out) == after


def test_a_run_that_fails_does_not_end_the_others(
    tmp_path: Path, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glassgpt.training import sweep as module

    def broken(**keywords: Any) -> Any:
        if keywords.get("learning_rate") == 0.5:
            raise TrainingFailedError("the loss was not finite")
        return train(**keywords)

    monkeypatch.setattr(module, "train", broken)
    found = run(base, tmp_path / "sweep", "learning_rate=0.5,0.001")
    assert found.finished
    assert found.failed == {"learning_rate=0.5": "the loss was not finite"}
    assert found.ranked() == ["learning_rate=0.001", "learning_rate=0.5"]
    monkeypatch.undo()
    assert run(base, tmp_path / "sweep", "learning_rate=0.5,0.001").failed == found.failed  # and is not tried again


def test_a_choice_that_cannot_be_does_not_end_the_others(tmp_path: Path, base: dict[str, Any]) -> None:
    found = run(base, tmp_path / "sweep", "context_length=50000,8", "seed=1,2")
    assert found.finished
    assert list(found.failed) == ["context_length=50000,seed=1", "context_length=50000,seed=2"]
    assert all("tokens" in reason for reason in found.failed.values())
    assert {name.split(",")[0] for name in found.ranked()[:2]} == {"context_length=8"}
    assert run(base, tmp_path / "sweep", "context_length=50000,8", "seed=1,2").failed == found.failed


def test_what_all_choices_lack_ends_the_sweep(tmp_path: Path, base: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="missing.txt: no such file"):
        run(base | {"texts": ["missing.txt"]}, tmp_path / "sweep", "learning_rate=0.001,0.01")
    assert not (tmp_path / "sweep").exists()


def test_what_is_given_for_all_runs_holds_for_every_size(tmp_path: Path, base: dict[str, Any]) -> None:
    shared = base | {"config": {"context_length": 32, "drop_rate": 0.0}, "steps": 1}
    found = run(shared, tmp_path / "sweep", "shape=nano")
    record = found.looks["shape=nano"].record
    assert (record.config.context_length, record.config.drop_rate, record.config.n_layers) == (32, 0.0, 2)


def test_other_texts_in_one_sweep_are_told(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(text), "--shape", "nano", "--tokenizer", "byte", "--steps", "1", "--eval-batches", "1"]
    command = ["sweep", "--out", str(tmp_path / "sweep"), "--", *options]
    assert main([command[0], "--over", "seed=1", *command[1:]]) == 0
    text.write_text(text.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    assert main([command[0], "--over", "seed=1,2", *command[1:]]) == 0
    assert "- the validation parts are not the same tokens: " in capsys.readouterr().out


def test_a_sweep_around_a_run_reads_no_text(tmp_path: Path, text: Path, base: dict[str, Any]) -> None:
    train(**base, out=tmp_path / "run")
    text.unlink()
    found = run({"like": str(tmp_path / "run")}, tmp_path / "sweep", "optimizer=muon,adamw")
    curve = [r["val_loss"] for r in read_log(tmp_path / "run") if r["kind"] == "evaluation"]
    assert [r["val_loss"] for r in found.looks["optimizer=muon"].evaluations] == curve


@pytest.mark.parametrize("what", ["a foreign file", "another base", "no file of a sweep"])
def test_what_is_not_this_sweep_is_left_alone(tmp_path: Path, base: dict[str, Any], what: str) -> None:
    out = tmp_path / "sweep"
    if what == "another base":
        run(base, out, "learning_rate=0.001")
        says = "holds a sweep with batch_size 4, now 8: choose another directory"
        base = base | {"batch_size": 8}
    else:
        out.mkdir()
        name, says = ("thesis.tex", "holds 'thesis.tex' and no sweep")
        if what == "no file of a sweep":
            name, says = ("sweep.json", "sweep.json is not the file of a sweep")
        (out / name).write_text("{}", encoding="utf-8")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=says):
        run(base, out, "learning_rate=0.001")
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {p: b for p, b in after.items() if p.name != ".glassgpt-lock"} == {
        p: b for p, b in before.items() if p.name != ".glassgpt-lock"
    }


def test_what_cannot_work_is_said_before_anything_is_trained(tmp_path: Path, base: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="micro_batch_size 3 does not divide batch_size 4"):
        run(base, tmp_path / "sweep", "micro_batch_size=2,3")
    assert not (tmp_path / "sweep").exists()


def test_a_text_that_is_not_there_leaves_nothing_behind(tmp_path: Path, base: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="missing.txt: no such file"):
        run(base | {"texts": ["missing.txt"]}, tmp_path / "deep" / "sweep", "learning_rate=0.001")
    assert not (tmp_path / "deep").exists()


def test_the_command(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep"
    options = [str(text), "--shape", "nano", "--tokenizer", "byte", "--steps", "2", "--eval-batches", "1"]
    command = ["sweep", "--over", "learning-rate=0.001,0.01", "--out", str(out), "--json", "--", *options]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["values"] for run in found["runs"]] == [{"learning_rate": 0.01}, {"learning_rate": 0.001}]
    command.remove("--json")
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| 0.01          | finished |     2 |" in printed and "sweep.png" in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("sweep", "one of the arguments --over --find is required"),
        ("sweep --over learning_rate=1 --find learning_rate", "not allowed with argument"),
        ("sweep --over learning_rate=1 --over learning-rate=2 -- x", "learning_rate is given twice"),
        ("sweep --over learning_rate=1 -- x --out there", "--out is not for the runs of a sweep"),
        ("sweep --over learning_rate=1 -- x --resume", "--resume is not for the runs of a sweep"),
        ("sweep --over learning_rate=1 -- x --stepps 1", "unrecognized arguments: --stepps 1; did you mean --steps"),
        ("sweep --find learning_rate --random 3 -- x", "--random is for --over"),
        ("sweep --find muon_learning_rate -- --optimizer adamw", "the optimizer adamw has no such rate"),
        ("sweep --over learning_rate=1..2 -- x", "learning_rate is a range"),
    ],
)
def test_misuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words.split())
    except SystemExit as leaving:
        code = leaving.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert says in error
    assert list(tmp_path.rglob("*")) == []


# ---- a learning rate ----------------------------------------


def test_the_ramp_is_read_where_the_loss_falls_and_where_it_is_lowest() -> None:
    rates = [10 ** (-6 + 6 * n / 199) for n in range(200)]
    # flat, a fall in the middle of 1e-4 to 1e-2, then a rise
    losses = [
        6 - 3 / (1 + math.exp(-6 * (math.log10(rate) + 3))) + max(0.0, 8 * (math.log10(rate) + 1)) for rate in rates
    ]
    found = read_ramp("learning_rate", rates, losses)
    assert 1e-3 < found.steepest < 4e-3  # the smoothing lags by a few steps
    assert 3e-2 < found.lowest < 0.2
    assert len(found.smoothed) == 200
    flat = read_ramp("learning_rate", rates, [5.0] * 200)
    assert flat.steepest in rates and flat.lowest in rates
    with pytest.raises(TrainingFailedError, match="not finite after 3 steps"):
        read_ramp("learning_rate", rates[:3], [5.0] * 3)


@pytest.mark.parametrize("setting", list(RATES))
def test_a_rate_is_found_and_nothing_is_left(tmp_path: Path, base: dict[str, Any], setting: str) -> None:
    cpu = torch.device("cpu")
    request = request_of(base | {setting: 0.5}, cpu)  # what is searched for is not taken
    found = find_rate(request, setting, cpu, Progress(), steps=60)
    assert RATES[setting] / 1000 == pytest.approx(found.rates[0])
    assert found.rates[0] < found.steepest <= found.lowest <= found.rates[-1]
    assert min(found.smoothed) < found.smoothed[0] - 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    again = find_rate(request, setting, cpu, Progress(), steps=60)
    assert again == found


def test_the_other_rate_stays(tmp_path: Path, base: dict[str, Any]) -> None:
    cpu = torch.device("cpu")
    ramps = [
        find_rate(request_of(base | {"muon_learning_rate": rate}, cpu), "learning_rate", cpu, Progress(), 30)
        for rate in (0.02, 0.2)
    ]
    assert ramps[0].losses[0] == ramps[1].losses[0] and ramps[0].losses[5] != ramps[1].losses[5]


def test_the_command_finds_a_rate(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "find"
    options = [str(text), "--shape", "nano", "--tokenizer", "byte", "--batch-size", "2"]
    command = ["sweep", "--find", "learning_rate", "--out", str(out), "--json", "--", *options]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "learning_rate.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in out.iterdir()) == ["learning_rate.json", "learning_rate.png"]
    assert imread(out / "learning_rate.png").shape[2] == 4
    assert main(command) == 2
    assert "learning_rate.png exists: choose a new name" in capsys.readouterr().err


def test_runs_of_other_tokenizers_are_ranked_by_bits_per_byte() -> None:
    looks: Any = {
        "tokenizer=byte": types.SimpleNamespace(best={"val_loss": 1.5, "bits_per_byte": 2.2}),
        "tokenizer=bpe": types.SimpleNamespace(best={"val_loss": 4.0, "bits_per_byte": 2.0}),
    }
    values = {name: {"tokenizer": name.partition("=")[2]} for name in [*looks, "none"]}
    found = Sweep(Path("sweep"), values, looks, {}, True)
    assert found.ranked() == ["tokenizer=bpe", "tokenizer=byte", "none"]
