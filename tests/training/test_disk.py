"""A disk that is full, read-only or failing while a run trains: one line, exit code 1, and the run resumes."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_train import assert_same_run, run

from glassgpt import train
from glassgpt.files import replacing
from glassgpt.training.progress import Progress
from glassgpt.training.state import newest_checkpoint


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of a file")
def test_a_full_disk_is_one_line_and_the_run_resumes(tmp_path: Path, text: Path) -> None:
    """No file may grow beyond a limit from some step on: the log fails in the middle of a line, for good."""
    out = tmp_path / "full"
    options = dict(steps=60, eval_every=20)
    code = f"""
import resource, sys
from pathlib import Path
from glassgpt.cli import main
from glassgpt.training.log import RunLog
real = RunLog.step
def step(self, n, *rest):
    if n == 30:
        size = Path({str(out / "log.jsonl")!r}).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
    return real(self, n, *rest)
RunLog.step = step
sys.exit(main({command(text, out, **options)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "error" in line.lower() or "large" in line] == [
        done.stderr.splitlines()[-1]
    ]
    assert "ile too large" in done.stderr
    assert not (out / "log.jsonl").read_text(encoding="utf-8").endswith("\n")  # it was cut off
    assert newest_checkpoint(out)[1].step == 20
    for folder in (tmp_path / "whole", out):
        more = ["--resume"] if folder == out else command(text, folder, **options)[1:]
        subprocess.run(
            [sys.executable, "-m", "glassgpt", "train", *more, "--out", str(folder)], check=True, capture_output=True
        )
    assert_same_run(tmp_path / "whole", out)


def command(text: Path, out: Path, **options: Any) -> list[str]:
    given = {"shape": "nano", "tokenizer": "byte", "eval-batches": 1, "sample-tokens": 0, "dtype": "float32"}
    given |= {"threads": 1, "batch-size": 4, **{name.replace("_", "-"): value for name, value in options.items()}}
    return ["train", str(text), *(f"--{name}={value}" for name, value in given.items()), "--out", str(out)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["replace", "fsync", "open"])
def test_a_disk_that_fails_at_any_call_damages_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    """From step 12 on the disk takes nothing: the error comes out, and the run resumes once the disk is well."""
    out = tmp_path / "run"

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    opened = Path.open

    def open_unless_written(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        return opened(self, mode, *rest, **options) if mode in ("r", "rb") else fail()

    class Break(Progress):
        def step(self, record: dict) -> None:
            if record["step"] == 12:
                target = {"replace": Path, "open": Path, "fsync": os}[call]
                monkeypatch.setattr(target, call, open_unless_written if call == "open" else fail)

    with pytest.raises(OSError, match=os.strerror(number)):
        run(text, out, progress=Break())
    monkeypatch.undo()
    assert newest_checkpoint(out)[1].step == 10
    assert not [path for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]
    assert train(out=out, resume=True).finished
    run(text, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", out)


def test_what_a_disk_could_not_flush_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems that keep data back say only at the flush that there was no room for it."""
    path = tmp_path / "file"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), replacing(path) as temporary:
        temporary.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]
