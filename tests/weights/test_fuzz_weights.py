"""A short run of the fuzz command, and that it can fail."""

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fuzz_weights
import pytest

SCRIPT = Path(fuzz_weights.__file__)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_a_short_run_finds_nothing() -> None:
    done = run("--cases", "300", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == list(fuzz_weights.FORMATS)
    for line in lines:
        loaded, refused = (re.search(rf"(\d+) {kind}", line) for kind in ("loaded", "ValueError"))
        assert loaded and int(loaded[1]) >= 3, line  # the samples are valid before they are changed
        assert refused and int(refused[1]) >= 30, line


def make_file(folder: Path) -> None:
    (folder.parent / "marker").touch()


def raise_two_lines(folder: Path) -> None:
    raise ValueError("one\ntwo")


def raise_key_error(folder: Path) -> None:
    raise KeyError("a")


@pytest.mark.parametrize("load", [make_file, raise_two_lines, raise_key_error])
def test_a_reader_that_does_wrong_is_found(tmp_path: Path, load: Callable[[Path], None]) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    broken = fuzz_weights.Format([{"x": b"content"}], load)
    with pytest.raises(fuzz_weights.CaseFailedError):
        fuzz_weights.run_case(broken, random.Random(0), folder)
