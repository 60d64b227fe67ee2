"""`glassgpt generate --prompts`: what a kill, Ctrl-C and a full disk leave, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glassgpt
from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model
from glassgpt.cli import main

SOURCE = Path(glassgpt.__file__).parents[1]
Answer = tuple[int, str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    shape = dict(vocab_size=257, context_length=64, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.0)
    save_model(GPTModel(GPTConfig.of(shape)), Tokenizer.bytes_(), root / "model")
    (root / "prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(30)), encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture
def glass(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs `glassgpt generate` in this process."""

    def run(*argv: object) -> Answer:
        try:
            code: Any = main(["generate", *map(str, argv)])
        except SystemExit as leaving:  # how argparse ends
            code = leaving.code
        return (code, *capsys.readouterr())

    return run


def records(text: str) -> list[dict[str, Any]]:
    lines = filter(None, text.split("\n"))  # a text may hold other line ends, which JSON leaves as they are
    return sorted(map(json.loads, lines), key=lambda record: record["index"])


def test_records_go_to_standard_output_or_to_a_file(glass: Callable[..., Answer], tmp_path: Path) -> None:
    arguments = ["model", "--max-new-tokens", 9, "--seed", 3, "--prompts", "prompts.txt"]
    code, printed, errors = glass(*arguments, "--batch", 4)
    assert (code, errors.count("\n"), errors.startswith("glassgpt: 30 of 30 prompts done, ")) == (0, 1, True)
    found = records(printed)
    assert [(record["index"], record["prompt"], record["seed"]) for record in found] == [
        (n, f"prompt {n}", n + 3) for n in range(30)
    ]
    for record in found[:3]:  # as the prompt alone
        code, alone, _ = glass("--max-new-tokens", 9, "model", "--seed", record["seed"], record["prompt"], "--json")
        assert json.loads(alone)["completions"][0]["text"] == record["text"]
    out = tmp_path / "out.jsonl"
    code, printed, _ = glass(*arguments, "--out", out)
    assert (code, printed, records(out.read_text(encoding="utf-8"))) == (0, "", found)
    before = out.read_bytes()
    code, _, errors = glass(*arguments, "--out", out)
    assert (code, errors) == (0, "glassgpt: 30 of 30 prompts done, 30 of them before\n")
    assert out.read_bytes() == before


def test_ctrl_c_keeps_what_is_done(
    glass: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glassgpt.generation import batch

    plain = batch.complete_tasks

    def interrupted(*arguments: Any) -> Any:
        left = 5
        for task, completion in plain(*arguments):
            yield task, completion
            left -= completion is not None
            if not left:
                signal.raise_signal(signal.SIGINT)

    arguments = ["model", "--prompts", "prompts.txt", "--max-new-tokens", 9]
    wanted = records(glass(*arguments)[1])
    out = tmp_path / "out.jsonl"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(batch, "complete_tasks", interrupted)
            said = glass(*arguments, "--out", out)
    finally:
        signal.signal(signal.SIGINT, before)
    kept = f"glassgpt: interrupted after 5 of 30 prompts, which are kept in {out}: the same command goes on\n"
    assert said == (1, "", kept)
    assert len(records(out.read_text(encoding="utf-8"))) == 5
    assert glass(*arguments, "--out", out)[0] == 0
    assert records(out.read_text(encoding="utf-8")) == wanted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model", "x", "--prompts", "prompts.txt"], "PROMPT and --prompts exclude each other"),
        (["model"], "the following arguments are required: PROMPT"),
        (["--prompts", "prompts.txt"], "the following arguments are required: MODEL"),
        (["model", "x", "--out", "new"], "--out goes with --prompts FILE"),
        (["model", "x", "--batch", "2"], "--batch goes with --prompts FILE"),
        (["model", "--prompts", "prompts.txt", "--n", "2"], "--n goes with PROMPT"),
        (["model", "--prompts", "prompts.txt", "--batch", "0"], "'0' must be a whole number, at least 1"),
        (["model", "--prompts", "missing.txt"], "missing.txt: no such file"),
        (["model", "--prompts", "model"], "model: is a directory"),
        (["missing", "--prompts", "prompts.txt"], "no model 'missing'"),
        (
            ["model", "--prompts", "prompts.txt", "--overflow", "error"],
            "prompts.txt:1: a prompt of 8 tokens and 100 new",
        ),
        (["model", "--prompts", "prompts.txt", "--out", "prompts.txt"], "prompts.txt:1: not a record of ours"),
        (["model", "--prompts", "prompts.txt", "--out", "model"], "model is not a file"),
        (["model", "--prompts", "prompts.txt", "--out", "prompts.txt/new"], "prompts.txt"),
        (["model", "--prompts", "model/config.json"], "write the prompts as JSON lines"),
        (["model", "--prompts", "model/model.safetensors"], "looks binary"),
    ],
)
def test_nonsense_is_answered_in_one_line_and_touches_nothing(
    glass: Callable[..., Answer], place: Path, arguments: list[str], says: str
) -> None:
    def tree() -> dict[Path, bytes | None]:
        return {path: path.read_bytes() if path.is_file() else None for path in place.rglob("*")}

    before = tree()
    code, printed, errors = glass(*arguments)
    assert (code, printed, errors.count("\n")) == (2, "", 1), errors
    assert says in errors
    assert tree() == before


def test_a_full_disk_keeps_what_is_done(glass: Callable[..., Answer], tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="the operating system has no limit for the size of a file")
    arguments = ["model", "--prompts", "prompts.txt", "--max-new-tokens", 9]
    wanted = records(glass(*arguments)[1])
    out = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        code, _, errors = glass(*arguments, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, errors.count("\n"), "too large" in errors.lower()) == (1, 1, True), errors
    assert out.read_bytes().count(b"\n") > 2
    assert glass(*arguments, "--out", out)[0] == 0
    assert records(out.read_text(encoding="utf-8")) == wanted


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(
    glass: Callable[..., Answer], tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """Killed again and again as soon as something new is in the file: the records are those of an undisturbed run."""
    many = tmp_path / "many.txt"
    many.write_text("".join(f"prompt {n}\n" for n in range(200)), encoding="utf-8")
    arguments = ["model", "--prompts", many, "--max-new-tokens", 40, "--ignore-eot", "--batch", 4]
    wanted = records(glass(*arguments)[1])
    out = tmp_path / "out.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "glassgpt", "generate", *map(str, arguments), "--out", str(out)]
    kept = b""
    for _ in range(3):
        process = started(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not out.exists() or out.stat().st_size <= len(kept)):
            time.sleep(0.002)
        process.kill()
        process.wait()
        now = out.read_bytes()
        assert now.startswith(kept)
        kept = now[: now.rfind(b"\n") + 1]
    n_kept = kept.count(b"\n")
    assert 3 <= n_kept < 200
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=True)
    assert "200 of 200 prompts done, " in done.stderr
    assert f"{n_kept} of them before" in done.stderr
    assert records(out.read_text(encoding="utf-8")) == wanted
