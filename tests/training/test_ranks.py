"""Several processes train one model: what one would have trained, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import OPTIONS, QUICK, Launch, assert_same_losses, at_step, losses

from glassgpt import train
from glassgpt.training.follow import is_own, record_of
from glassgpt.training.ranks import ALONE, _agent, _buckets
from glassgpt.training.request import Request
from glassgpt.training.state import newest_checkpoint

# The first time rank 1 kills itself, the second time rank 0 asks torchrun to stop.
DRIVER = """
import faulthandler, os, signal, sys
from pathlib import Path
faulthandler.dump_traceback_later(150, exit=True)
from glassgpt.training import train as module

real, rank, marker = module.take_step, int(os.environ["RANK"]), Path(os.environ["MARKER"])

def taking(objective, optimizers, batch, step, *rest):
    if step == 25 and rank == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if step == 35 and rank == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    return real(objective, optimizers, batch, step, *rest)

module.take_step = taking
from glassgpt.cli import main
code = main(sys.argv[1:])
(marker.parent / f"ended-{rank}").write_text(str(code))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_any_number_of_ranks_goes_on(
    tmp_path: Path, shared_text: Path, alone: Path, launch: Launch
) -> None:
    """Two ranks, with accumulation, until one is killed; then four, and one: what one process would have computed."""
    out, copy, sharded = (tmp_path / name for name in ("run", "copy", "sharded"))
    options = ("train", shared_text, *OPTIONS, "--micro-batch-size", "2", "--out", out)
    done = launch(2, *options, code=at_step(25, 1, "SIGKILL"))
    assert done.codes[0] == 1
    (line,) = done.ours
    assert "rank 1 of 2 fell silent" in line
    assert newest_checkpoint(out)[1].step == 20
    for to in (copy, sharded):
        shutil.copytree(out, to)
    for run, n, options in ((out, 4, ()), (sharded, 2, ("--fsdp",))):
        done = launch(n, "train", "--resume", "--out", run, *options)
        assert done.finished, done
        assert_same_losses(run, alone)
    train(out=copy, resume=True, threads=1)
    assert_same_losses(copy, alone)


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint_and_a_signal_saves(
    tmp_path: Path, shared_text: Path, alone: Path
) -> None:
    out, script = tmp_path / "run", tmp_path / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command += ["--log-dir", str(tmp_path / "logs"), str(script)]
    command += ["train", str(shared_text), *OPTIONS, "--out", str(out)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MARKER": str(tmp_path / "marker")}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, env=environment)
    assert done.returncode != 0
    assert f"resuming {out} at step 20" in " ".join(done.stdout.split()), done.stderr
    state = newest_checkpoint(out)[1]
    assert 35 <= state.step == state.evaluated < 50
    mine, theirs = losses(out), losses(alone)
    assert {("step", step) for step in range(state.step)} <= mine.keys()
    assert max(abs(mine[key] - theirs[key]) for key in mine.keys() & theirs.keys()) < 1e-5


@pytest.mark.slow
def test_two_machines_meet_again_after_a_restart(
    tmp_path: Path, shared_text: Path, alone: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    """Each has a `torchrun` of its own, which counts restarts for itself."""
    out, script = tmp_path / "run", tmp_path / "driver.py"
    script.write_text(DRIVER.replace("step == 35", "False"), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--max-restarts", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    command += ["--rdzv-id", "x", "--local-addr", "127.0.0.1"]
    command += ["--log-dir", str(tmp_path / "logs"), str(script)]
    command += ["train", str(shared_text), *OPTIONS, "--out", str(out)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MARKER": str(tmp_path / "marker")}
    with (tmp_path / "said").open("a", encoding="utf-8") as said:
        machines = [started(command, env=environment, stdout=said, stderr=said) for _ in range(2)]
    # of the ranks, not of torchrun, which may wait for another torchrun for minutes after its own have ended
    ended, until = [tmp_path / f"ended-{rank}" for rank in range(2)], time.monotonic() + 400
    while time.monotonic() < until and any(machine.poll() is None for machine in machines):
        if all(path.exists() and path.read_text() == "0" for path in ended):
            break
        time.sleep(0.2)
    lines = (tmp_path / "said").read_text(encoding="utf-8")
    assert [path.read_text() for path in ended if path.exists()] == ["0", "0"], lines
    assert (tmp_path / "marker").exists()
    assert f"resuming {out} at step 20" in " ".join(lines.split())
    assert_same_losses(out, alone)


TRAIN = ("--steps", "4", "--shape", "nano", "--tokenizer", "byte", "--eval-batches", "1", "--sample-tokens", "0")


@pytest.mark.slow
def test_ranks_whose_network_fails_end_in_one_line(tmp_path: Path, shared_text: Path, launch: Launch) -> None:
    """In a sum that none of them gets out of, and before, where one cannot be reached."""
    code = f"""{QUICK}
import time
import torch.distributed as dist
from glassgpt.training import ranks, train
rank_watch.STUCK = 5
"""
    hanging = f"""{code}
def taking(*rest, real=train.take_step):
    if rest[3] == 2:
        dist.all_reduce = lambda *_, **__: time.sleep(1000)
    return real(*rest)
train.take_step = taking
"""
    done = launch(2, "train", shared_text, *TRAIN, "--out", tmp_path / "run", code=hanging)
    assert done.codes == [1, 1]
    assert len(done.ours) == 1
    assert "all 2 ranks wait for each other: their network has failed; all ranks stop, and" in done.ours[0]

    apart = f"""{code}
ranks._CONNECT_SECONDS = 1.5
if rank == 1:
    dist.init_process_group = lambda *_, **__: time.sleep(1000)
"""
    done = launch(2, "train", shared_text, *TRAIN, "--out", tmp_path / "other", code=apart)
    assert done.codes == [1, 1]
    assert len(done.ours) == 1
    assert "could not connect to each other within 1.5 s: GLOO_SOCKET_IFNAME and NCCL" in done.ours[0]


@pytest.mark.slow
def test_ranks_are_waited_for_once_they_are_connected(tmp_path: Path, shared_text: Path, launch: Launch) -> None:
    code = f"""{QUICK}
import time
from glassgpt.training import ranks, train
ranks._CONNECT_SECONDS = 1.5
def taking(*rest, real=train.take_step):
    if rest[3] == 2 and rank == 1:
        time.sleep(4)
    return real(*rest)
train.take_step = taking
"""
    done = launch(2, "train", shared_text, *TRAIN, "--out", tmp_path / "run", code=code)
    assert done.finished, done


def test_a_rank_that_crashes_while_python_ends_has_not_failed() -> None:
    code = "import atexit, os, runpy, signal, sys; sys.argv = ['glassgpt']; "
    code += "atexit.register(os.kill, os.getpid(), signal.SIGSEGV); runpy.run_module('glassgpt', run_name='__main__')"
    rank = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for more, expected in ((rank, 0), ({}, -signal.SIGSEGV)):
        environment = {**os.environ, **more}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == expected
        assert "usage: glassgpt" in done.stdout or not more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("different", "line"),
    [
        (("--seed",), "rank 1 began with seed 1, rank 0 with 0: start all ranks with the same command"),
        (("--out", "run"), "rank 1 of 2: run1 is not what rank 0 has there"),
    ],
    ids=["settings", "directory"],
)
def test_ranks_that_differ_end_in_one_line(
    tmp_path: Path, shared_text: Path, launch: Launch, different: tuple[str, ...], line: str
) -> None:
    name, prefix = (*different, "")[:2]
    each = [
        ["train", str(shared_text), "--steps", "2", "--shape", "nano", "--out", "run", name, f"{prefix}{rank}"]
        for rank in range(2)
    ]
    done = launch(2, each=each, code=f"{QUICK}import os; os.chdir({str(tmp_path)!r})")
    assert all(done.codes)
    assert len(done.ours) == 1
    assert line in done.ours[0]


@pytest.mark.slow
def test_threads_from_python_reach_each_rank_and_a_warning_comes_once(
    tmp_path: Path, shared_text: Path, launch: Launch
) -> None:
    out = tmp_path / "run"
    code = f"""
import sys, torch
from glassgpt.training import train as module
def taking(*rest, real=module.take_step):
    print("threads", torch.get_num_threads())
    return real(*rest)
module.take_step = taking
options = dict(shape="nano", tokenizer="byte", steps=1, eval_batches=1, sample_tokens=0, batch_size=2, threads=3)
module.train([{str(shared_text)!r}], {str(out)!r}, **options)
sys.exit(0)
"""
    done = launch(2, code=code)
    assert done.finished, done
    assert done.stdout.count("threads 3\n") == 2
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    (out / "run.json").write_text(json.dumps(record | {"torch": "1.0"}), encoding="utf-8")
    code = code[: code.index("options =")]
    done = launch(2, "train", "--resume", "--steps", "2", "--out", out, code=code)
    assert done.finished, done
    assert done.stdout.count("threads 3\n") == 2  # what it began with
    assert done.stderr.count("was begun with PyTorch 1.0: with ") == 1


def test_tensors_are_summed_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glassgpt.training.ranks._BUCKET", 10)
    sizes = [[len(part) for part in bucket] for bucket in _buckets([torch.zeros(n) for n in (2, 8, 1, 25, 3, 3)])]
    assert sizes == [[2, 8], [1], [25], [3, 3]]


def test_alone_nothing_is_summed() -> None:
    assert (ALONE.first, ALONE.any(True, False), ALONE.sum([1.5, 2])) == (True, [True, False], [1.5, 2])


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
from glassgpt.training import train as module
from glassgpt.training.loss import IGNORE

def taking(objective, optimizers, batch, step, settings, dtype, ranks, guard, real=module.take_step):
    if step in range(22, 40) and guard.rate == 1:
        batch = batch[0], batch[1].new_full(batch[1].shape, IGNORE)
    return real(objective, optimizers, batch, step, settings, dtype, ranks, guard)

module.take_step = taking
"""


@pytest.mark.slow
def test_ranks_go_back_together(tmp_path: Path, shared_text: Path, launch: Launch) -> None:
    runs = {"one": (1, ()), "two": (2, ()), "sharded": (2, ("--fsdp",))}
    for name, (n, options) in runs.items():
        done = launch(n, "train", shared_text, *OPTIONS, *options, "--out", tmp_path / name, code=SPOILED)
        assert done.finished, done
        assert "back to step 20, with 0.5 of the learning rate" in " ".join((done.stdout + done.stderr).split())
        assert [step for kind, step in losses(tmp_path / name) if kind == "step"] == list(range(50))
        assert_same_losses(tmp_path / name, tmp_path / "one")


def test_each_run_of_a_torchrun_has_an_agent_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script that trains twice has not been restarted."""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "attempt_0" / "0" / "error.json"))
    assert _agent(0) == _agent(0) != _agent(1)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert _agent(0) == ""
