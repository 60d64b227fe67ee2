"""What docs/serving holds: the client, the container file and the unit say nothing that is not so."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from running import Running

from glassgpt.cli import main

SERVING = Path(__file__).parents[2] / "docs" / "serving"


def test_the_client_talks_with_a_server(
    two_models: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["client.py", f"{two_models.address}/v1", "Once"])
    runpy.run_path(str(SERVING / "client.py"), run_name="__main__")
    told, first = capsys.readouterr().out.split("\n\nfirst token:\n")
    assert told.startswith("tiny: Once") and len(told) > len("tiny: Once") + 10
    assert len(first.splitlines()) == 3


@pytest.mark.parametrize("name", ["Containerfile", "glassgpt.service"])
def test_the_options_are_those_of_serve(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    line = next(
        line
        for line in (SERVING / name).read_text(encoding="utf-8").splitlines()
        if '"serve"' in line or " serve " in line
    )
    assert set(re.findall(r"--[a-z-]+", line)) <= known
    assert "--host" in line
