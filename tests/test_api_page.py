"""docs/api.md is what the source says, leaves out nothing public, and its examples run."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import glassgpt

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "api.md").read_text(encoding="utf-8")


def rendered(name: str) -> Any:
    return runpy.run_path(str(DOCS / "render_api.py"))[name]


def test_the_page_is_what_the_source_says() -> None:
    assert rendered("render")() == PAGE, "run `make docs`"


def test_every_public_name_is_on_it() -> None:
    headings = re.findall(r"^### `(.+)`$", PAGE, flags=re.MULTILINE)
    assert set(glassgpt.__all__) <= set(headings)
    assert len(set(headings)) == len(headings)


def test_everything_on_it_is_explained() -> None:
    """A name, a heading or a signature is followed by words."""
    bare = re.findall(r"^### `(.+)`\n\n(?:```python\n[^`]*```\n\n)?\s*(?=#|\Z)", PAGE, flags=re.MULTILINE)
    bare += re.findall(r"^- `(\w+\(.*)`$", PAGE, flags=re.MULTILINE)  # methods; a field may speak for itself
    assert not bare


def test_the_examples_run_in_the_order_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^## [^\n]+\n\n```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(rendered("GROUPS"))
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    said = capsys.readouterr().out
    assert "the best so far" in said
    assert "identical: largest difference of scores 0" in said
    assert said.endswith("bcdefghijklmnopqrstuvwxyz\n")
    assert {"my.txt", "runs", "models", "maps.png", "mine.pth"} <= {path.name for path in tmp_path.iterdir()}
