"""docs/cli.md is the help that the commands print."""

import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the page has the wording of Python 3.11's argparse")
def test_the_page_is_what_the_parser_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    rendered = runpy.run_path(str(DOCS / "render_cli.py"))["render"]()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == rendered, "run `make docs`"
