"""The picture of a run."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.image import imread

from glassgpt.data.baselines import Baselines
from glassgpt.training.log import RunLog, read_log
from glassgpt.training.look import Look
from glassgpt.training.plot import plot_losses
from glassgpt.training.run_directory import CSV, LOG


def seen(run: Path) -> Look:
    record: Any = SimpleNamespace(baselines=Baselines(uniform=6.2, unigram=5.2, bigram=3.9))
    return Look(str(run), record, read_log(run), None, 0.0)


def test_the_picture_shows_both_curves(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in range(40):
        log.step(step, 6.0 - step / 100, 1.0, 0.5, 1000.0)
        if step % 5 == 4:
            log.evaluation(step + 1, 5.0 - step / 100, 2.5, 0.1)
    plot_losses(tmp_path, seen(tmp_path))
    picture = imread(tmp_path / "loss.png")
    assert picture.shape == (540, 960, 4)
    colours = {tuple(round(255 * float(c)) for c in pixel) for pixel in picture[:, :, :3].reshape(-1, 3)}
    assert {(0x1F, 0x5F, 0xAE), (0x88, 0x88, 0x88)} <= colours  # validation, baselines
    assert sorted(p.name for p in tmp_path.iterdir()) == [CSV, LOG, "loss.png"]


@pytest.mark.parametrize("loss", [0.0, 1e30, math.nan, math.inf])
def test_no_loss_breaks_the_picture(tmp_path: Path, loss: float) -> None:
    log = RunLog(tmp_path)
    log.evaluation(0, 6.2, 3.0, 0.0)
    log.step(0, loss, loss, 0.5, 10.0)
    log.evaluation(1, loss, loss, 0.0)
    plot_losses(tmp_path, seen(tmp_path))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_measured_is_no_picture(tmp_path: Path) -> None:
    plot_losses(tmp_path, seen(tmp_path))
    assert list(tmp_path.iterdir()) == []
