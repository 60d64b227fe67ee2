import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glassgpt.files import creating, is_leftover, remove_leftovers, replacing, sync, write_text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_new_file_and_its_folders_appear_when_the_body_ends(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("written", [True, False])
def test_a_body_that_fails_leaves_the_old_file(tmp_path: Path, error: type[BaseException], written: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as temporary:
        if written:
            temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_rename_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), replacing(path) as temporary:
        temporary.write_bytes(b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_whole_directory(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with replacing(path) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "file").write_bytes(b"x")
    assert (path / "deep" / "file").read_bytes() == b"x"
    with pytest.raises(RuntimeError), replacing(tmp_path / "other") as temporary:
        temporary.mkdir()
        (temporary / "file").write_bytes(b"x")
        raise RuntimeError
    with pytest.raises(OSError), replacing(path) as temporary:  # a directory does not replace a full one
        temporary.mkdir()
    assert names(tmp_path) == ["state"]
    assert (path / "deep" / "file").read_bytes() == b"x"


def test_what_killed_processes_left_is_known_by_its_name(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib, glassgpt.files as f\n"
        "with f.replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.mkdir()\n"
        "    os._exit(9)\n"
    )
    for name in ("state", ".hidden"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        subprocess.run(command, check=False, env={**os.environ, **source_path()})
    assert all(is_leftover(name) for name in names(tmp_path))
    for name in ("state", ".mine.tmp", ".a.2024-11.tmp", "x.glassgpt-tmp", ".x.12345678.glassgpt-tmp.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert len(remove_leftovers(tmp_path)) == 2
    assert len(names(tmp_path)) == 5
    assert remove_leftovers(tmp_path / "missing") == []


def test_a_link_under_such_a_name_goes_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_bytes(b"x")
    (tmp_path / ".a.12345678.glassgpt-tmp").symlink_to(tmp_path / "home")
    remove_leftovers(tmp_path)
    assert names(tmp_path / "home") == ["thesis"]


@pytest.mark.parametrize("links", [True, False])
def test_creating_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "no hard links on this disk")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "new"
    with creating(path) as temporary:
        temporary.write_bytes(b"first")
    with pytest.raises(FileExistsError, match="new exists: choose a new name"), creating(path):
        raise AssertionError("the work is done for nothing")
    with pytest.raises(FileExistsError, match="exists"), creating(tmp_path / "race") as temporary:
        temporary.write_bytes(b"ours")
        (tmp_path / "race").write_bytes(b"theirs")
    assert (path.read_bytes(), (tmp_path / "race").read_bytes()) == (b"first", b"theirs")
    assert names(tmp_path) == ["new", "race"]


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    opened: dict[int, str] = {}
    real_open, real_sync, real_replace = os.open, os.fsync, Path.replace

    def remember(path: Any, *args: Any, **options: Any) -> int:
        handle = real_open(path, *args, **options)
        opened[handle] = Path(path).suffix or Path(path).name
        return handle

    def fsync(handle: int) -> None:
        events.append(f"sync {opened[handle]}")
        real_sync(handle)

    def replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "open", remember)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "file", "x")
    assert events == ["sync .glassgpt-tmp", "rename", f"sync {tmp_path.name}"]


def test_a_process_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, sys, pathlib, glassgpt.files as f\n"
        "with f.replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os._exit(9)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], check=False, env={**os.environ, **source_path()})
    assert run.returncode == 9
    assert path.read_bytes() == b"old"


def test_text_is_utf8_with_unix_line_ends_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "ü\r\n…\n")
    write_text(path, "é\n😀\n")
    assert path.read_bytes() == "é\n😀\n".encode()
    assert names(tmp_path) == ["file"]


def test_what_cannot_be_flushed_is_left(tmp_path: Path) -> None:
    sync(tmp_path / "missing")
    assert names(tmp_path) == []


def source_path() -> dict[str, str]:
    import glassgpt

    return {"PYTHONPATH": str(Path(glassgpt.__file__).parents[1])}
