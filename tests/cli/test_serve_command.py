"""`glassgpt serve`, as a process that is told to stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glassgpt import GPTModel, Tokenizer, save_model
from glassgpt.cli import main


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable[..., GPTModel]) -> Path:
    tokenizer = Tokenizer.characters([string.ascii_letters + " "])
    save_model(tiny_model(vocab_size=tokenizer.n_vocab, context_length=64), tokenizer, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_what_is_served_where_how_fast_and_a_line_that_works(
    model: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    command = [sys.executable, "-W", "error", "-m", "glassgpt", "serve", str(model), f"again={model}", "--port", "0"]
    environment = {**os.environ, "GLASSGPT_API_KEY": "from the environment".replace(" ", "-")}
    process = started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stderr is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("try: "):
            break
    assert lines[0].startswith("tiny: context 64, ") and "tokens/s for one text, chat as a plain" in lines[0]
    assert lines[1].startswith("again: ")
    assert lines[2].startswith("serving at http://127.0.0.1:") and "with a key" in lines[2]
    words = shlex.split(lines[3].removeprefix("try: ").replace("$GLASSGPT_API_KEY", environment["GLASSGPT_API_KEY"]))
    answer = subprocess.run([*words, "-sS"], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["usage"]["prompt_tokens"] == 4  # the text itself may end at once
    process.send_signal(signal.SIGTERM)
    log = process.stderr.read()
    assert process.wait(60) == 0
    *lines, last = log.splitlines()
    (line,) = [json.loads(line) for line in lines]
    assert (line["level"], line["path"], line["status"]) == ("INFO", "/v1/completions", 200)
    assert last == "glassgpt: stopped"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ("serve nowhere", 2, "no model 'nowhere'"),
        ("serve {model} {model}", 2, "two models are called 'tiny': give one another name"),
        ("serve =x", 2, "must be a model, or NAME=MODEL"),
        ("serve {model} --host 0.0.0.0", 2, "can be reached from other machines: give an api_key"),
        ("serve {model} --port 70000", 2, "port 70000 must be"),
        ("serve {model} --host 192.0.2.1 --api-key x", 1, "cannot listen at 192.0.2.1 port 8000"),
    ],
)
def test_misuse(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    code: int,
    error: str,
) -> None:
    monkeypatch.delenv("GLASSGPT_API_KEY", raising=False)
    assert main(words.format(model=model).split()) == code
    assert error in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(model)]) == 1
    assert capsys.readouterr().err == (
        "glassgpt: serve needs an extra: pip install 'glassgpt[server]' (fastapi missing: pip install fastapi)\n"
    )
