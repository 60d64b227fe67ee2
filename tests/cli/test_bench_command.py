"""`glassgpt bench`: what it asks for, prints and writes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glassgpt import GPTConfig, GPTModel, Tokenizer, save_model
from glassgpt.bench import run as module
from glassgpt.bench.plan import WORKS
from glassgpt.bench.results import Bench, Turn
from glassgpt.cli import main
from glassgpt.cli.bench import _generate_command


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """`bench` answers with `asked.result`, and its arguments are kept."""
    figures = {"rate": 12.5, "cold_rate": 10.0, "tokens": [1, 2], "peak_bytes": 10**8}
    sizes = {"decode": [4, 12], "naive": [4, 12], "prompt": 15, "rows": [8, 8], "positions": [], "steps": 8}
    result = Bench(
        model={"name": "m", "n_parameters": 1000, "context_length": 16, "vocab_size": 257},
        machine={"processor": "P", "cores": 2, "threads": 1, "system": "", "python": "", "versions": {}},
        sizes=sizes,
        rounds=1,
        turns=[Turn("cached", "decode", 0, 1, figures)],
        finished=True,
    )
    seen = SimpleNamespace(result=result, arguments={})

    def bench(model: str, **arguments: Any) -> Bench:
        arguments["progress"]("cached: decode", 0, 1, 3723.4)
        seen.arguments = {"model": model, **arguments}
        return seen.result

    monkeypatch.setattr(module, "bench", bench)
    yield seen


def test_defaults_and_options(asked: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "m"]) == 0
    given = asked.arguments
    assert (given["model"], given["rounds"], given["works"], given["only"]) == ("m", 5, WORKS, [])
    assert (given["peers"], given["threads"]) == (False, None)
    out, err = capsys.readouterr()
    assert out.startswith("m: 1,000 parameters, context 16, vocabulary 257; 1 thread of P; one round\n\n| contender ")
    assert "| cached    |   12.5 |   10 | 100 MB |          same |" in out
    assert err == "glassgpt: 0 of 1 turns  1:02:03 left  cached: decode\n"
    options = ["--quick", "--peers", "--work", "rows", "--work", "first", "--only", "compiled", "--threads", "2"]
    assert main(["bench", "m", *options]) == 0
    given = asked.arguments
    assert (given["rounds"], given["works"], given["only"]) == (1, ["rows", "first"], ["compiled"])
    assert (given["peers"], given["threads"]) == (True, 2)


def test_json_is_the_whole_result(asked: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "m", "--json"]) == 0
    assert Bench.from_dict(json.loads(capsys.readouterr().out)) == asked.result


def test_files_are_new_and_refused_before_the_work(
    asked: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench"
    assert main(["bench", "m", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    before = (out / "bench.md").read_bytes()
    asked.arguments = {}
    capsys.readouterr()
    assert main(["bench", "m", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"glassgpt: {out}/bench.json exists: choose a new directory\n"
    assert asked.arguments == {} and (out / "bench.md").read_bytes() == before


def test_a_stopped_one_shows_and_writes_what_it_has(
    asked: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.result.finished = False
    assert main(["bench", "m", "--out", str(tmp_path / "bench")]) == 1
    out, err = capsys.readouterr()
    assert "stopped before it was done" in out
    assert err.endswith("glassgpt: interrupted: these are the results so far\n")
    assert json.loads((tmp_path / "bench" / "bench.json").read_text(encoding="utf-8"))["finished"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "nosuch"),
        ([".", "--rounds", "0"], "argument --rounds: '0' must be a whole number, at least 1"),
        ([".", "--rounds", "2", "--quick"], "not allowed with argument"),
        ([".", "--work", "decoding"], "invalid choice: 'decoding': did you mean 'decode'?"),
        ([".", "--only", "gpu"], "no contender's name begins with gpu"),
    ],
)
def test_misuse_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["bench", *words])
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err
    assert code == 2
    assert said in err and err.count("\n") == 1


def test_the_first_token_is_asked_of_the_contender_itself() -> None:
    cached = " ".join(_generate_command("m", "cached", 2))
    assert cached.endswith("generate m - --max-new-tokens 1 --temperature 0 --threads 2 --device cpu --decoder cached")
    compiled = " ".join(_generate_command("m", "compiled int4", 1))
    assert compiled.endswith("--threads 1 --device cpu --decoder compiled --precision int4")
    graphs = " ".join(_generate_command("m", "graphs on the GPU", 1))
    assert graphs.endswith("--threads 1 --device cuda --decoder graphs")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT goes to a console's whole group there")
def test_ctrl_c_leaves_a_table_and_no_process(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=257, context_length=32, emb_dim=24, n_heads=3, n_layers=2, drop_rate=0.0)
    save_model(GPTModel(config).eval(), Tokenizer.bytes_(), tmp_path / "model")
    command = [sys.executable, "-m", "glassgpt", "bench", str(tmp_path / "model"), "--work", "decode", "--rounds", "99"]
    process = started(
        [*command, "--only", "compiled", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if " of 396 turns" in line and " left " in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped before all 99 were done" in out and "| compiled float32 " in out
    assert err.splitlines()[-1] == "glassgpt: interrupted: these are the results so far"
    assert "Traceback" not in err
    assert (tmp_path / "out" / "bench.png").stat().st_size > 1000
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # a process that was killed is there until the system has noticed
            os.killpg(process.pid, 0)
            time.sleep(0.1)
