"""What is remembered of measurements: a file that may be anything, or nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassgpt import measured
from glassgpt.measured import cache_file, recall, remember, this_machine

ABOUT = {"what": "a test", "shape": [1, 2]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLASSGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_remembered_is_recalled_with_its_day() -> None:
    assert recall(ABOUT) is None
    remember(ABOUT, {"threads": 2})
    remember({**ABOUT, "shape": [1, 3]}, {"threads": 4})
    remember(ABOUT, {"threads": 3})
    found = recall(ABOUT)
    assert found is not None
    assert found["threads"] == 3
    assert len(found["when"]) == len("2025-01-31")
    assert recall({**ABOUT, "shape": [2, 1]}) is None
    assert len(json.loads(cache_file().read_text(encoding="utf-8"))["measurements"]) == 2


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_MOST", 3)
    for n in range(5):
        remember({"n": n}, {})
    assert [n for n in range(5) if recall({"n": n}) is not None] == [2, 3, 4]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    assert cache_file().parent == cache
    monkeypatch.delenv("GLASSGPT_CACHE")
    monkeypatch.setattr(measured.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_file().parent == tmp_path / "xdg" / "glassgpt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(measured.Path, "home", lambda: tmp_path)
    assert cache_file().parent == tmp_path / ".cache" / "glassgpt"
    monkeypatch.setattr(measured.sys, "platform", "darwin")
    assert cache_file().parent == tmp_path / "Library" / "Caches" / "glassgpt"
    monkeypatch.setattr(measured.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_file().parent == tmp_path / "local" / "glassgpt"


def test_without_a_place_nothing_is_remembered_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for place in (os.devnull, str(tmp_path / "file")):
        monkeypatch.setenv("GLASSGPT_CACHE", place)
        remember(ABOUT, {"threads": 2})
        assert recall(ABOUT) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def no_home() -> Path:
        raise RuntimeError("no home")

    for name in ("GLASSGPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(measured.Path, "home", no_home)
    remember(ABOUT, {"threads": 2})
    assert recall(ABOUT) is None


ENTRIES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "about": st.sampled_from([ABOUT, {}, [], None, 3]),
            "found": st.sampled_from([{}, {"when": "2025-01-31"}, {"when": "\x1b[2J"}, {"when": 7}, [], "x"]),
        },
    )
)


@given(
    st.one_of(
        st.binary(),
        st.sampled_from([b"", b"{", b"[]", b"{}", b"\xff", b'{"measurements": 3}', b"[" * 10_000]),
        ENTRIES.map(lambda entries: json.dumps({"measurements": entries}).encode()),
    )
)
def test_a_file_may_hold_anything(content: bytes) -> None:
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert recall(ABOUT) in (None, {"when": "2025-01-31"})
    remember(ABOUT, {"threads": 2})
    if path.read_bytes() != content:  # it was one of ours
        found = recall(ABOUT)
        assert found is not None and found["threads"] == 2
    path.unlink()


def test_what_is_not_ours_stays_as_it_is() -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text("my notes", encoding="utf-8")
    remember(ABOUT, {"threads": 2})
    assert cache_file().read_text(encoding="utf-8") == "my notes"


def test_processes_that_write_at_once_leave_a_whole_file(cache: Path) -> None:
    code = (
        "import sys; from glassgpt.measured import recall, remember\n"
        "for n in range(20): remember({'by': sys.argv[1], 'n': n}, {'n': n})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(3)]
    while any(writer.poll() is None for writer in writers):
        recall(ABOUT)
        if cache_file().exists():
            json.loads(cache_file().read_text(encoding="utf-8"))
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert recall({"by": "0", "n": 19}) or recall({"by": "1", "n": 19}) or recall({"by": "2", "n": 19})
    assert [path.name for path in cache.iterdir()] == [cache_file().name]


def test_the_machine_is_named_by_what_decides_a_speed() -> None:
    about = this_machine("numpy", "no-such-package")
    assert about["processor"] and about["cores"] >= 1
    assert "numpy" in about["versions"] and "no-such-package" not in about["versions"]
    assert json.loads(json.dumps(about)) == about
