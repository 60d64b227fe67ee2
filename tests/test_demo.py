"""`glassgpt demo`: a run of seconds tells the whole story, and what it says to type next can be typed."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glassgpt import demo as module
from glassgpt import load_model
from glassgpt.cli import main
from glassgpt.cli import parser as _parser
from glassgpt.data.corpus import Document
from glassgpt.demo import CONFIG, PROMPT, demo, share_of_known_words
from glassgpt.training.progress import Progress


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A toy manual in place of Python's, a smaller model, and a short ladder."""
    text = "The function returns a list of the words. " * 200
    for place in ("glassgpt.demo.default_corpus", "glassgpt.training.prepare.default_corpus"):
        monkeypatch.setattr(place, lambda: [Document.from_text("toy", text)])
    monkeypatch.setattr(module, "CONFIG", CONFIG.replace(emb_dim=32, n_layers=2))
    monkeypatch.setattr(module, "_LADDER_CONFIG", CONFIG.replace(context_length=80))
    module._known_words.cache_clear()
    yield
    module._known_words.cache_clear()


def check_story(told: str, out: Path) -> None:
    """Everything `demo` tells is there and true."""
    texts = re.findall(
        r"^--- (before|after): (\d+)% of its words occur in the manual\n(.*?)\n\n(?=---|The speed)", told, re.M | re.S
    )
    assert [name for name, _, _ in texts] == ["before", "after"]
    assert all(text.startswith(PROMPT) for _, _, text in texts)
    measured, verdict, bigram = re.findall(
        r"validation part: ([\d.]+) nats per token, (.*) the bigram's ([\d.]+)\.", told
    )[0]
    assert verdict == ("below" if float(measured) < float(bigram) else "not below")
    rungs = re.findall(r"^ +([\d,]+) tokens/s +([\d.]+) x  (\w+).*: the same (.*)$", told, re.M)
    assert rungs[0][1] == "1.0"
    assert [name for _, _, name, _ in rungs] == ["naive", "cached", "compiled", "8", "4", "batch"]
    assert all(same == "tokens" for _, _, name, same in rungs if name not in ("8", "4"))
    assert (out / "loss.png").exists()
    assert f"{out}/loss.png" in told
    model, tokenizer = load_model(out)
    assert model.config == module.CONFIG.replace(vocab_size=tokenizer.n_vocab)
    assert torch.isfinite(model.out_head.weight).all()


def commands(told: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in told.splitlines() if re.match(r"  \S*glassgpt ", line)]


def test_the_story(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, stream = tmp_path / "the run", StringIO()
    result = demo(out, 0.3, Progress(), stream)
    assert result.finished
    told = stream.getvalue()
    check_story(told, out)
    asked = commands(told)
    called = [(Path(words[0]).name, words[1]) for words in asked]
    assert called == [("glassgpt", command) for command in ("generate", "explain", "train")]
    for words in asked:
        _parser().parse_args(words[1:])  # leaves with SystemExit if it does not parse
    monkeypatch.chdir(tmp_path)
    for words in asked[:2]:
        assert main([*words[1:], "--threads", "1"]) == 0
    assert (tmp_path / "maps.png").exists()
    saved = (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="the run already holds a run"):
        demo(out, 0.1, Progress(), StringIO())
    assert (out / "model.safetensors").read_bytes() == saved


def test_an_earlier_run_stays_as_it_is(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no place is named, each run gets the next one that is free, and says where it went."""
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    (runs / "demo").mkdir(parents=True)  # an empty folder is free
    stream = StringIO()
    assert demo(None, 0.1, Progress(), stream).directory == Path("runs/demo")
    assert "an earlier run" not in stream.getvalue()
    saved = (runs / "demo" / "model.safetensors").read_bytes()
    (runs / "demo-2").write_text("somebody's file", encoding="utf-8")
    stream = StringIO()
    assert demo(None, 0.1, Progress(), stream).directory == Path("runs/demo-3")
    assert "runs/demo holds an earlier run, which stays as it is: this one goes to runs/demo-3." in stream.getvalue()
    check_story(stream.getvalue(), Path("runs/demo-3"))
    assert (runs / "demo" / "model.safetensors").read_bytes() == saved


@pytest.mark.slow
def test_the_story_with_pythons_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LADDER_CONFIG", CONFIG.replace(context_length=128))
    stream = StringIO()
    result = demo(tmp_path / "run", 2.0, Progress(), stream)
    check_story(stream.getvalue(), tmp_path / "run")
    assert result.bigram_loss < 4.5
    assert "occur in the manual" in stream.getvalue()


def test_ctrl_c_ends_the_story_where_it_is(small: None, tmp_path: Path) -> None:
    class Impatient(Progress):
        def step(self, record: dict[str, Any]) -> None:
            signal.raise_signal(signal.SIGINT)

    stream = StringIO()
    result = demo(tmp_path / "run", 60.0, Impatient(), stream)  # many steps, however busy the machine is
    assert (result.finished, result.steps) == (False, 1)
    assert "What to type next" not in stream.getvalue()


@pytest.mark.parametrize(("finished", "code"), [(True, 0), (False, 1)])
def test_the_exit_code(monkeypatch: pytest.MonkeyPatch, finished: bool, code: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(module, "demo", lambda *_: SimpleNamespace(finished=finished))
    assert main(["demo"]) == code


def test_the_two_ends_of_the_ladder_are_one_model(small: None) -> None:
    """The longer model is the trained one as far as its positions go."""
    torch.manual_seed(0)
    model = module.GPTModel(CONFIG.replace(context_length=24, vocab_size=50)).eval()
    long = module._stretched(model)
    ids = torch.randint(50, (2, 24))
    with torch.no_grad():
        assert torch.equal(model(ids), long(ids))
        assert long(torch.randint(50, (1, 80))).shape == (1, 80, 50)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("x The function xyzzy y", 2 / 3),  # The, function and not xyzzy; the ends do not count
        ("x list, words; of: y", 1.0),
        ("x LIST the y", 0.5),  # as written
        ("x 12 34 y", 0.0),
        ("x function-returns y", 1.0),
        ("one", 0.0),
        ("", 0.0),
        ("The list", 0.0),
    ],
)
def test_share_of_known_words(small: None, text: str, share: float) -> None:
    assert share_of_known_words(text) == share
