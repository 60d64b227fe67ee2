"""What draws the notebook's pictures."""

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from glassgpt.book.notebook import Picture, draw


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MPLBACKEND", "agg")
    plt = pytest.importorskip("matplotlib.pyplot", reason="pictures are drawn by matplotlib")
    yield plt
    plt.close("all")


def labels(ticks: list[Any]) -> list[str]:
    return [tick.get_text() for tick in ticks]


def test_a_picture_has_its_alternative_text_and_shows_once(pyplot: Any) -> None:
    figure, _ = pyplot.subplots(figsize=(2, 1), dpi=50)
    picture = Picture(figure, 'a "map" of a < b')
    assert not pyplot.get_fignums()
    assert repr(picture) == 'a "map" of a < b'
    html = picture._repr_html_()
    assert re.fullmatch(r'<img alt="a &quot;map&quot; of a &lt; b" src="data:image/png;base64,[\w+/=]+">', html)
    assert pyplot.imread(io.BytesIO(picture.png)).shape[:2] == (50, 100)
    assert b"matplotlib" not in picture.png.lower()


def test_a_matrix_is_drawn_with_its_labels_and_numbers(pyplot: Any) -> None:
    _, axes = pyplot.subplots()
    matrix = torch.tensor([[0.0, 0.96], [-torch.inf, -0.001]], requires_grad=True)
    image = draw(axes, matrix, "weights", ["the", "cat"], ["a", "b"], digits=1)
    np.testing.assert_array_equal(image.get_array(), matrix.detach().numpy())
    assert (axes.get_title(), labels(axes.get_yticklabels())) == ("weights", ["the", "cat"])
    assert labels(axes.get_xticklabels()) == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["0.0", "1.0", r"$-\infty$", "0.0"]  # no minus before 0
    assert [text.get_color() for text in axes.texts] == ["black", "white", "black", "black"]
    assert (image.get_cmap().name, image.get_clim()) == ("Blues", (0, 1))


def test_a_vector_is_one_row_and_long_labels_lean(pyplot: Any) -> None:
    _, axes = pyplot.subplots()
    image = draw(axes, torch.zeros(3), "x", columns=["one", "two", "three"], low=-2, high=2)
    assert image.get_array().shape == (1, 3)
    assert image.get_cmap().name == "RdBu"
    assert not axes.texts and not labels(axes.get_yticklabels())
    assert {tick.get_rotation() for tick in axes.get_xticklabels()} == {45}
