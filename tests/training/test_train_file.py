"""Settings from a file, and the file that every run writes about itself."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model, train
from glassgpt.cli import main
from glassgpt.training.log import read_log
from glassgpt.training.run_directory import TRAIN_FILE
from glassgpt.training.train_file import merged, read_train_file

SETTINGS: dict[str, Any] = dict(steps=12, batch_size=4, eval_batches=2, sample_tokens=0, dtype="float32")
CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(r["kind"], r["step"], r.get("loss"), r.get("val_loss")) for r in read_log(out)]


# ---- reading ----------------------------------------


def test_everything_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    path = write(
        tmp_path / "my.toml",
        'text = ["a.txt", "b"]\ntext_field = "body"\nout = "run"\nfrom = "weights"\ntokenizer = "tok"\n'
        'minutes = 5\ndevice = "cpu"\nthreads = 2\n'
        '[model]\ndrop_rate = 0\n[training]\nsteps = 3\nfreeze = ["embedding"]\nkeep = "last"\n',
    )
    assert read_train_file(path) == dict(
        texts=[str(tmp_path / "a.txt"), str(tmp_path / "b")],
        text_fields=["body"],
        out=str(tmp_path / "run"),
        model=str(tmp_path / "weights"),
        tokenizer=str(tmp_path / "tok"),
        minutes=5,
        device="cpu",
        threads=2,
        config={"drop_rate": 0},
        steps=3,
        freeze=["embedding"],
        keep="last",
    )


def test_names_are_not_paths(tmp_path: Path) -> None:
    path = write(tmp_path / "my.toml", 'from = "gpt2"\ntokenizer = "byte"\nshape = "nano"\ntext = []\n')
    assert read_train_file(path) == dict(model="gpt2", tokenizer="byte", shape="nano", texts=[])


def test_weights_beside_the_file_not_beside_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "folder" / "my.toml", 'from = "mine"\n')
    assert read_train_file(path) == dict(model=str(tmp_path / "folder" / "mine"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("txt = 1", "my.toml, line 1: unknown key 'txt': did you mean 'text'"),
        ("trainig = 1", "my.toml, line 1: unknown key 'trainig': did you mean 'training'"),
        ("steps = 5", "my.toml, line 1: unknown key 'steps': it belongs below [training]"),
        ("[model]\nlayers = 5", "my.toml, line 2, [model]: unknown config key 'layers': did you mean 'n_layers'"),
        ("[model]\nsteps = 5", "line 2, [model]: unknown config key 'steps': it belongs below [training]"),
        ("[training]\nlerning_rate = 5", "line 2, [training]: unknown setting 'lerning_rate': did you mean"),
        ("[training]\nminutes = 5", "line 2, [training]: unknown setting 'minutes': it belongs above [training]"),
        ("[training]\n\nsteps = 0", "line 3, [training]: steps 0 must be a whole number, at least 1"),
        ("[training]\nsteps = 1.5", "steps 1.5 must be a whole number"),
        ("[training]\nlearning_rate = nan", "learning_rate nan must be a number"),
        ("[training]\noptimizer = 'sgd'", "optimizer 'sgd' must be one of muon, adamw"),
        ("training = 5", "line 1: training 5 must be a table: [training] on a line of its own"),
        ("minutes = 0", "line 1: minutes 0 must be a number, above 0"),
        ("minutes = 'long'", "minutes 'long' must be"),
        ("threads = true", "threads True must be a whole number"),
        ("shape = 'enormous'", "shape 'enormous' must be one of nano"),
        ("text = [1]", "line 1: text [1] must be a list of texts"),
        ("text = 1", "line 1: text 1 must be"),
        ("out = []", "line 1: out [] must be a text"),
        ("[training", "my.toml: not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    path = write(tmp_path / "my.toml", content)
    with pytest.raises(ValueError) as caught:
        read_train_file(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_asked_for_wins() -> None:
    file = dict(texts=["a"], text_fields=["body"], shape="nano", config={"n_layers": 3}, steps=5, batch_size=2)
    assert merged(file, {}) == file
    assert merged(file, dict(batch_size=4)) == {**file, "batch_size": 4}
    assert merged(file, dict(texts=["b"])) == dict(
        texts=["b"], shape="nano", config={"n_layers": 3}, steps=5, batch_size=2
    )
    assert merged(file, dict(minutes=1.0)) == {k: v for k, v in file.items() if k != "steps"} | {"minutes": 1.0}
    assert merged(dict(minutes=1), dict(steps=2)) == dict(steps=2)
    assert merged(dict(minutes=1), dict(resume=True)) == dict(resume=True)
    assert merged(file, dict(config={"emb_dim": 8}))["config"] == {"n_layers": 3, "emb_dim": 8}
    rest = dict(texts=["a"], text_fields=["body"], steps=5, batch_size=2)
    assert merged(file, dict(shape="micro")) == {**rest, "shape": "micro"}
    assert merged(file, dict(model="gpt2")) == {**rest, "model": "gpt2"}
    found = merged(file | {"model": "gpt2"}, dict(shape="micro", config={"emb_dim": 8}))
    assert found == {**rest, "shape": "micro", "config": {"emb_dim": 8}}


# ---- the file of a run ----------------------------------------


@pytest.mark.parametrize("how", ["config", "preset", "picked"])
def test_a_run_from_its_own_file_is_the_same_run(tmp_path: Path, text: Path, how: str) -> None:
    asked: dict[str, Any] = {
        "config": dict(shape=CONFIG, tokenizer="byte"),
        "preset": dict(shape="nano", config={"n_layers": 1}, tokenizer="char", optimizer="adamw"),
        "picked": dict(config={"context_length": 8}),
    }[how]
    train([text], tmp_path / "first", **SETTINGS, **asked)
    found = read_train_file(tmp_path / "first" / TRAIN_FILE)
    train(**found, out=tmp_path / "second")
    assert curve(tmp_path / "first") == curve(tmp_path / "second")
    again = read_train_file(tmp_path / "second" / TRAIN_FILE)
    assert tomllib.loads((tmp_path / "first" / TRAIN_FILE).read_text(encoding="utf-8"))["text"] == ["../text.txt"]
    assert Path(again["texts"][0]).resolve() == text
    assert {**again, "texts": []} == {**found, "texts": []}


def test_minutes_are_written_as_the_steps_they_gave(tmp_path: Path, text: Path) -> None:
    options = {name: value for name, value in SETTINGS.items() if name != "steps"}
    result = train([text], tmp_path / "first", shape=CONFIG, tokenizer="byte", minutes=0.02, **options)
    written = (tmp_path / "first" / TRAIN_FILE).read_text(encoding="utf-8")
    found = read_train_file(tmp_path / "first" / TRAIN_FILE)
    assert "# minutes = 0.02" in written
    assert "minutes" not in found
    assert found["steps"] >= result.steps  # patience may end it sooner
    train(**found, out=tmp_path / "second")
    assert curve(tmp_path / "first") == curve(tmp_path / "second")  # with the evaluations at the ends of epochs


def test_what_follows_from_the_rest_stands_in_comments(tmp_path: Path, text: Path) -> None:
    train([text], tmp_path / "run", shape=CONFIG, tokenizer="byte", **SETTINGS)
    lines = (tmp_path / "run" / TRAIN_FILE).read_text(encoding="utf-8").splitlines()
    assert "# eval_every = 2  # 1/8 of all" in lines
    assert "# warmup_steps = 1  # 1/20 of all, at most 100" in lines
    assert "# micro_batch_size: all" in lines
    assert "steps = 12" in lines
    assert 'optimizer = "muon"  # default' in lines
    assert read_train_file(tmp_path / "run" / TRAIN_FILE).keys().isdisjoint({"eval_every", "learning_rate"})


def test_a_run_from_weights_names_them(tmp_path: Path, text: Path, tiny_model: Callable[..., GPTModel]) -> None:
    save_model(tiny_model(vocab_size=257), Tokenizer.bytes_(), tmp_path / "source")
    train([text], tmp_path / "first", model=tmp_path / "source", config={"drop_rate": 0.1}, **SETTINGS)
    written = (tmp_path / "first" / TRAIN_FILE).read_text(encoding="utf-8")
    assert "# emb_dim = 12  # of the weights" in written
    found = read_train_file(tmp_path / "first" / TRAIN_FILE)
    assert found["config"] == {"drop_rate": 0.1, "context_length": 16, "attention": "sdpa"}
    train(**found, out=tmp_path / "second")
    assert curve(tmp_path / "first") == curve(tmp_path / "second")


def test_what_was_in_memory_is_said(tmp_path: Path, text: Path, tiny_model: Callable[..., GPTModel]) -> None:
    train([text], tmp_path / "a", model=tiny_model(vocab_size=257), tokenizer=Tokenizer.bytes_(), **SETTINGS)
    assert "# from: a model in memory" in (tmp_path / "a" / TRAIN_FILE).read_text(encoding="utf-8")
    train([text], tmp_path / "b", shape=CONFIG, tokenizer=Tokenizer.bytes_(), **SETTINGS)
    train(**read_train_file(tmp_path / "b" / TRAIN_FILE), out=tmp_path / "c")
    assert curve(tmp_path / "b") == curve(tmp_path / "c")


def test_the_command_takes_a_file_and_wins_over_it(tmp_path: Path, text: Path, capsys: Any) -> None:
    path = write(
        tmp_path / "my.toml",
        'text = "text.txt"\nout = "run"\ntokenizer = "byte"\nshape = "nano"\n'
        "[training]\nsteps = 9\nbatch_size = 4\neval_batches = 1\nsample_tokens = 0\npatience = 3\n",
    )
    assert main(["train", "--config", str(path), "--steps", "3", "--patience", "0"]) == 0
    written = read_train_file(tmp_path / "run" / TRAIN_FILE)
    assert (written["steps"], written["batch_size"], written["patience"]) == (3, 4, 0)
    assert main(["train", "--config", str(tmp_path / "missing.toml")]) == 2
    assert "missing.toml: no such file" in capsys.readouterr().err


def test_a_run_resumes_with_its_own_file(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train([text], tmp_path / "run", shape="nano", **SETTINGS)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "run/train.toml", "--resume", "--out", "run", "--steps", "14"]) == 0
    assert [r["step"] for r in read_log(tmp_path / "run") if r["kind"] == "step"] == list(range(14))
