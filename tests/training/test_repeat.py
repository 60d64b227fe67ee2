"""A run that repeats another one, and a resume that may change one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model, train
from glassgpt.cli import main
from glassgpt.training.log import read_log
from glassgpt.training.progress import Progress
from glassgpt.training.run_file import read_run
from glassgpt.training.state import newest_checkpoint

CONFIG = GPTConfig(vocab_size=300, context_length=16, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.2)
SETTINGS: dict[str, Any] = dict(steps=12, batch_size=4, eval_batches=2, sample_tokens=0, dtype="float32")


class Heard(Progress):
    def __init__(self) -> None:
        self.choices: list[str] = []

    def start(self, prepared: Any, first_step: int) -> None:
        self.choices = prepared.choices


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [(r["kind"], r["step"], r.get("loss"), r.get("gradient_norm"), r.get("val_loss")) for r in read_log(out)]


def assert_same_model(a: Path, b: Path) -> None:
    (mine, _), (theirs, _) = newest_checkpoint(a), newest_checkpoint(b)
    for name in ("model.safetensors", "training_state/optimizer.safetensors"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
def test_a_repeated_run_is_the_same_run(tmp_path: Path, text: Path, optimizer: str, tokenizer: str) -> None:
    train([text], tmp_path / "a", shape=CONFIG, tokenizer=tokenizer, optimizer=optimizer, seed=3, **SETTINGS)
    text.unlink()  # its tokens are in the run
    train(out=tmp_path / "b", like=tmp_path / "a")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert_same_model(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")  # what was linked is its own
    train(out=tmp_path / "c", like=tmp_path / "b")
    assert curve(tmp_path / "b") == curve(tmp_path / "c")
    train(out=tmp_path / "c", resume=True, tokenizer=tokenizer, steps=14)


def test_minutes_that_were_measured_are_steps_that_are_repeated(tmp_path: Path, text: Path) -> None:
    options = {name: value for name, value in SETTINGS.items() if name != "steps"}
    train([text], tmp_path / "a", tokenizer="byte", minutes=0.02, **options)
    train(out=tmp_path / "b", like=tmp_path / "a")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert read_run(tmp_path / "a").settings == read_run(tmp_path / "b").settings


def test_single_settings_are_changed_and_what_follows_follows(tmp_path: Path, text: Path) -> None:
    train([text], tmp_path / "a", shape=CONFIG, tokenizer="byte", **SETTINGS)
    train(out=tmp_path / "b", like=tmp_path / "a", steps=40, learning_rate=0.001, config={"n_layers": 1})
    a, b = read_run(tmp_path / "a"), read_run(tmp_path / "b")
    assert b.config == a.config.replace(n_layers=1)
    changes = dict(steps=40, learning_rate=0.001, eval_every=5, warmup_steps=2)
    assert b.settings == a.settings.replace(**changes)
    train(out=tmp_path / "c", like=tmp_path / "a", minutes=0.02)
    assert read_run(tmp_path / "c").settings.replace(steps=12, eval_every=2, warmup_steps=1) == a.settings
    train(out=tmp_path / "d", like=tmp_path / "a", shape="nano", steps=1)
    assert read_run(tmp_path / "d").config.emb_dim == 64


def test_a_run_from_weights_is_repeated_from_the_same_weights(
    tmp_path: Path, text: Path, tiny_model: Callable[..., GPTModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model(vocab_size=257), Tokenizer.bytes_(), Path("source"))
    train([text], tmp_path / "a", model="source", config={"drop_rate": 0.1}, **SETTINGS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(out=tmp_path / "b", like=tmp_path / "a")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    save_model(tiny_model(seed=1, vocab_size=257), Tokenizer.bytes_(), tmp_path / "source")
    with pytest.raises(ValueError, match=r"source has other weights than when .* began with them: it cannot be"):
        train(out=tmp_path / "c", like=tmp_path / "a")
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(ValueError, match="no model at '.*source'"):
        train(out=tmp_path / "c", like=tmp_path / "a")
    assert not (tmp_path / "c").exists()


def test_weights_in_memory_are_gone(tmp_path: Path, text: Path, tiny_model: Callable[..., GPTModel]) -> None:
    train([text], tmp_path / "a", model=tiny_model(vocab_size=257), tokenizer=Tokenizer.bytes_(), **SETTINGS)
    with pytest.raises(ValueError, match="began with a model in memory, which is gone: it cannot be repeated"):
        train(out=tmp_path / "b", like=tmp_path / "a")


@pytest.mark.parametrize("how", ["changed", "replaced", "gone"])
def test_data_that_is_not_the_runs_is_refused(tmp_path: Path, text: Path, how: str) -> None:
    train([text], tmp_path / "a", shape=CONFIG, tokenizer="byte", **SETTINGS)
    path = tmp_path / "a" / "data" / "train.npy"
    if how == "changed":
        tokens = np.load(path, mmap_mode="r+")
        tokens[100:200] = 5
        tokens.flush()
        del tokens
    elif how == "replaced":
        text.write_text("another text altogether. " * 500, encoding="utf-8")
        train([text], tmp_path / "other", shape=CONFIG, tokenizer="byte", **SETTINGS)
        for name in ("train.npy", "train.npy.json"):
            shutil.copy(tmp_path / "other" / "data" / name, path.with_name(name))
    else:
        path.unlink()
    says = {"changed": "train.npy: its tokens were changed", "replaced": "not the data", "gone": "no such token file"}
    with pytest.raises((ValueError, FileNotFoundError), match=says[how]):
        train(out=tmp_path / "b", like=tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_what_was_changed_later_is_said_and_not_repeated(tmp_path: Path, text: Path) -> None:
    train([text], tmp_path / "a", shape=CONFIG, tokenizer="byte", **SETTINGS)
    begun = curve(tmp_path / "a")
    train(out=tmp_path / "a", resume=True, steps=15)
    heard = Heard()
    train(out=tmp_path / "b", like=tmp_path / "a", progress=heard)
    assert curve(tmp_path / "b") == begun
    assert any("what was changed later is not repeated: steps 12 -> 15" in choice for choice in heard.choices)


def test_the_number_of_threads_is_the_runs(
    tmp_path: Path, text: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train([text], tmp_path / "a", shape=CONFIG, tokenizer="byte", threads=2, **SETTINGS)
    train(out=tmp_path / "b", like=tmp_path / "a", steps=1)
    assert read_run(tmp_path / "b").threads == 2
    assert torch.get_num_threads() == 1
    train(out=tmp_path / "c", like=tmp_path / "a", threads=1, steps=1)
    assert "this run began with 2 threads: with 1 the last bits differ" in caplog.text


def test_the_command(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train([text], tmp_path / "a", shape=CONFIG, tokenizer="byte", **SETTINGS)
    assert main(["train", "--like", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 0
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert "repeats" in capsys.readouterr().out


# ---- a resume that may change ----------------------------------------


def test_a_resume_changes_what_it_is_told_to(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train([text], out, shape=CONFIG, tokenizer="byte", **SETTINGS)
    command = ["train", "--resume", "--out", str(out), "--steps", "20", "--learning-rate", "0.001", "--seed", "5"]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        f"glassgpt: {out} was begun differently in 2 ways: leave them out, or begin a new run, "
        "or let the resume change them\n"
        "                 the run  asked for\n"
        "  learning_rate  0.004    0.001\n"
        "  seed           1        5\n"
    )
    assert main([*command, "--change"]) == 0
    assert "changed: steps 12 -> 20, learning_rate 0.004 -> 0.001, seed 1 -> 5" in capsys.readouterr().out
    settings = read_run(out).settings
    assert (settings.learning_rate, settings.seed, settings.steps) == (0.001, 5, 20)
    train(out=out, resume=True, steps=21, seed=5)  # its own by now


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(optimizer="adamw"), "optimizer was 'muon', now 'adamw': leave it out, or begin a new run elsewhere$"),
        (dict(eval_batches=3), "eval_batches was 2, now 3"),
        (dict(freeze=["head"]), r"freeze was \(\), now \('head',\)"),
        (dict(config={"drop_rate": 0.5}), "drop_rate was 0.2, now 0.5"),
    ],
)
def test_what_a_checkpoint_decides_stays(tmp_path: Path, text: Path, options: dict[str, Any], says: str) -> None:
    train([text], tmp_path / "run", shape=CONFIG, tokenizer="byte", **SETTINGS)
    with pytest.raises(ValueError, match=says):
        train(out=tmp_path / "run", resume=True, change=True, **options)
