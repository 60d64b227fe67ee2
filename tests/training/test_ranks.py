"""Several processes train one model: what one would have trained, whatever happens to one of them.

Each rank imports torch, which takes seconds: so the tests are few, and each run serves several of them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glassgpt import train
from glassgpt.training.follow import is_own, record_of
from glassgpt.training.log import read_log
from glassgpt.training.ranks import ALONE, _agent, _buckets
from glassgpt.training.request import Request
from glassgpt.training.state import newest_checkpoint

# At a step given by the environment, one rank does something to itself or to torchrun, once.
DRIVER = """
import os, signal, sys
from pathlib import Path
from glassgpt.training import train as module

real, rank = module.take_step, int(os.environ["RANK"])
at, who, what = int(os.environ["AT"]), int(os.environ["WHO"]), os.environ["WHAT"]
marker = Path(os.environ["MARKER"])

def taking(objective, optimizers, batch, step, *rest):
    if step == at and rank == who and not marker.exists():
        marker.touch()
        if what == "raise":
            raise RuntimeError("out of luck")
        os.kill(os.getppid() if what == "SIGTERM" else os.getpid(), getattr(signal, what))
    return real(objective, optimizers, batch, step, *rest)

module.take_step = taking
from glassgpt.cli import main
sys.exit(main(sys.argv[1:]))
"""
OPTIONS = ("--shape", "nano", "--tokenizer", "byte", "--steps", "50", "--eval-every", "10", "--eval-batches", "3")
OPTIONS += ("--sample-tokens", "0", "--seed", "5", "--dtype", "float32", "--batch-size", "8", "--dropout", "0")
TOLERANCE = 1e-5  # nats per token: sums in another order


def torchrun(
    folder: Path, n: int, *arguments: str, what: str = "", at: int = -1, who: int = 1, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`glassgpt train` on `n` ranks of this machine."""
    script = folder / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(port), *options.get("launch", ()), *options.get("program", [str(script), "train"])]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment |= {"WHAT": what, "AT": str(at), "WHO": str(who), "MARKER": str(folder / "marker")}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, encoding="utf-8", check=False, env=environment
    )


def ours(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What glassgpt itself said on standard error, next to torchrun's own report."""
    return [line for line in done.stderr.splitlines() if line.startswith("glassgpt:")]


def losses(run: Path) -> dict[tuple[str, int], float]:
    """By kind and step."""
    return {(r["kind"], r["step"]): r["loss" if r["kind"] == "step" else "val_loss"] for r in read_log(run)}


def assert_same_losses(a: Path, b: Path) -> None:
    mine, theirs = losses(a), losses(b)
    assert mine.keys() == theirs.keys()
    assert max(abs(mine[key] - theirs[key]) for key in mine) < TOLERANCE


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, sample_text: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(sample_text * 3, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    settings = dict(steps=50, eval_every=10, eval_batches=3, sample_tokens=0, seed=5, dtype="float32", batch_size=8)
    train([text], out, shape="nano", tokenizer="byte", config={"drop_rate": 0.0}, threads=1, **settings)  # type: ignore[arg-type]
    return out


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_any_number_of_ranks_goes_on(tmp_path: Path, text: Path, alone: Path) -> None:
    """Two ranks, with accumulation, until one is killed; then four, and one: what one process would have computed."""
    out, copy = tmp_path / "run", tmp_path / "copy"
    options = (str(text), *OPTIONS, "--micro-batch-size", "2", "--out", str(out))
    done = torchrun(tmp_path, 2, *options, what="SIGKILL", at=25)
    assert done.returncode != 0
    (line,) = ours(done)
    assert "rank 1 of 2 fell silent" in line
    assert newest_checkpoint(out)[1].step == 20
    shutil.copytree(out, copy)
    done = torchrun(tmp_path, 4, "--resume", "--out", str(out))
    assert done.returncode == 0, (ours(done), done.stdout)
    assert_same_losses(out, alone)
    train(out=copy, resume=True, threads=1)
    assert_same_losses(copy, alone)


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(tmp_path: Path, text: Path, alone: Path) -> None:
    out = tmp_path / "run"
    done = torchrun(
        tmp_path, 2, str(text), *OPTIONS, "--out", str(out), what="SIGKILL", at=25, launch=["--max-restarts", "1"]
    )
    assert done.returncode == 0, (ours(done), done.stdout)
    assert "resuming" in done.stdout
    assert_same_losses(out, alone)


@pytest.mark.slow
def test_a_signal_to_torchrun_saves(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "run"
    done = torchrun(tmp_path, 2, str(text), *OPTIONS, "--out", str(out), what="SIGTERM", at=25, who=0)
    assert done.returncode != 0
    assert 25 <= newest_checkpoint(out)[1].step < 50
    assert newest_checkpoint(out)[1].evaluated == newest_checkpoint(out)[1].step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ('--seed "$RANK" --out run', "rank 1 began with seed 1, rank 0 with 0: start all ranks with the same command"),
        ('--out "run$RANK"', "rank 1 of 2: run1 is not what rank 0 has there"),
    ],
    ids=["settings", "directory"],
)
def test_ranks_that_differ_end_in_one_line(tmp_path: Path, text: Path, arguments: str, line: str) -> None:
    shell = f"cd '{tmp_path}'; exec '{sys.executable}' -m glassgpt train '{text}' --steps 2 --shape nano {arguments}"
    done = torchrun(tmp_path, 2, launch=["--no-python"], program=["bash", "-c", shell])
    assert done.returncode != 0
    assert len(ours(done)) == 1
    assert line in ours(done)[0]


def test_tensors_are_summed_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassgpt.training.ranks._BUCKET", 10)
    sizes = [[len(part) for part in bucket] for bucket in _buckets([torch.zeros(n) for n in (2, 8, 1, 25, 3, 3)])]
    assert sizes == [[2, 8], [1], [25], [3, 3]]


def test_alone_nothing_is_summed() -> None:
    assert (ALONE.first, ALONE.any(True), ALONE.any(False), ALONE.sum([1.5, 2])) == (True, True, False, [1.5, 2])


def test_the_record_tells_texts_settings_and_code_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(text: str, **settings: Any) -> dict[str, object]:
        return record_of(Request([text], None, {}, None, None, None, settings), torch.device("cpu"), resume=False)

    assert record("a.txt", seed=1) == record("a.txt", seed=1)
    assert record("a.txt", seed=1) != record("b.txt", seed=1)
    assert record("a.txt", seed=1) != record("a.txt", seed=2)
    before = record("a.txt")
    monkeypatch.setattr("glassgpt.training.follow.code_digest", lambda: "another version")
    assert {key for key, value in record("a.txt").items() if value != before[key]} == {"code"}


def test_only_the_torchrun_that_began_a_run_goes_on_with_it(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    assert not is_own(run, ["a", "b"])
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"agents": ["b", ""]}), encoding="utf-8")
    assert is_own(run, ["b", "c"])
    assert not is_own(run, ["a", "b"])  # the first is this process's own
    assert not is_own(run, ["", "b"])  # started by hand
    assert not is_own(tmp_path, ["b"])


# Steps 22 to 39 have no target, and so no loss that is finite, until the rate has been lowered.
SPOILED = """
import sys
from glassgpt.training import train as module
from glassgpt.training.loss import IGNORE

real = module.take_step

def taking(objective, optimizers, batch, step, settings, dtype, ranks, guard):
    if step in range(22, 40) and guard.rate == 1:
        batch = batch[0], batch[1].new_full(batch[1].shape, IGNORE)
    return real(objective, optimizers, batch, step, settings, dtype, ranks, guard)

module.take_step = taking
from glassgpt.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ranks_go_back_together(tmp_path: Path, text: Path) -> None:
    script = tmp_path / "spoiled.py"
    script.write_text(SPOILED, encoding="utf-8")
    for n in (1, 2):
        out = str(tmp_path / f"run-{n}")
        done = torchrun(tmp_path, n, str(text), *OPTIONS, "--out", out, program=[str(script), "train"])
        assert done.returncode == 0, done.stderr
        assert "back to step 20, with 0.5 of the learning rate" in " ".join((done.stdout + done.stderr).split())
    assert_same_losses(tmp_path / "run-1", tmp_path / "run-2")
    assert [step for kind, step in losses(tmp_path / "run-2") if kind == "step"] == list(range(50))


def test_each_run_of_a_torchrun_has_an_agent_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script that trains twice has not been restarted."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "0" / "error.json"))
    assert _agent(0) == _agent(0) != _agent(1)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert _agent(0) == ""
