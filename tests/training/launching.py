"""Several ranks on this machine, without the seconds that each would need to import what it uses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glassgpt.training.log import read_log

STEPS = 50
OPTIONS = ("--shape", "nano", "--tokenizer", "byte", "--steps", str(STEPS), "--eval-every", "20", "--eval-batches", "3")
OPTIONS += ("--sample-tokens", "0", "--seed", "5", "--dtype", "float32", "--batch-size", "8", "--dropout", "0")
OPTIONS += (
    "--learning-rate",
    "0.002",
    "--muon-learning-rate",
    "0.01",
)  # higher ones magnify rounding from step to step
QUICK = """
from glassgpt.training import rank_watch
rank_watch.BEAT = 0.4
"""
"""Code for `launch`: ranks that are lost, and errors of other ranks, are found sooner."""
TOLERANCE = 1e-5  # nats per token: sums in another order


@dataclasses.dataclass(frozen=True)
class Done:
    """How several ranks ended: the exit codes, and what they printed, one after the other."""

    codes: list[int]
    stdout: str
    stderr: str

    @property
    def ours(self) -> list[str]:
        """What glassgpt itself said on standard error."""
        return [line for line in self.stderr.splitlines() if line.startswith("glassgpt:")]

    @property
    def finished(self) -> bool:
        return not any(self.codes)


Launch = Callable[..., Done]


@contextlib.contextmanager
def launcher() -> Iterator[Launch]:
    """`launch(n, *arguments, code="")` runs `glassgpt` on `n` ranks of this machine, each of which first runs `code`.

    With `each` the arguments are those of each rank. Where one is killed all are, if `together`, as torchrun does it.
    """
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_ranks.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert server.stdin is not None and server.stdout is not None
    folder = Path(tempfile.mkdtemp())

    def go(
        n: int, *arguments: str | Path, code: str = "", each: list[list[str]] | None = None, together: bool = False
    ) -> Done:
        assert server.stdin is not None and server.stdout is not None
        ranks = each or [list(map(str, arguments))] * n
        job = {"arguments": ranks, "code": code, "folder": str(folder), "together": together}
        print(json.dumps(job), file=server.stdin, flush=True)
        codes = json.loads(server.stdout.readline())
        out, err = (
            "".join((folder / f"{name}-{rank}").read_text(encoding="utf-8") for rank in range(n))
            for name in ("stdout", "stderr")
        )
        for path in folder.iterdir():
            path.unlink()
        return Done(codes, out, err)

    yield go
    server.stdin.close()
    server.wait()
    server.stdout.close()
    shutil.rmtree(folder)


def at_step(step: int, rank: int, signal: str) -> str:
    """Code for `launch`: before a step one rank sends itself a signal."""
    return f"""{QUICK}
import os, signal
from glassgpt.training import train
def taking(objective, optimizers, batch, step, *rest, real=train.take_step):
    if (step, rank) == ({step}, {rank}):
        os.kill(os.getpid(), signal.{signal})
    return real(objective, optimizers, batch, step, *rest)
train.take_step = taking
"""


def losses(run: Path) -> dict[tuple[str, int], float]:
    """By kind and step."""
    return {(r["kind"], r["step"]): r["loss" if r["kind"] == "step" else "val_loss"] for r in read_log(run)}


def assert_same_losses(a: Path, b: Path) -> None:
    mine, theirs = losses(a), losses(b)
    assert mine.keys() == theirs.keys()
    assert max(abs(mine[key] - theirs[key]) for key in mine) < TOLERANCE
