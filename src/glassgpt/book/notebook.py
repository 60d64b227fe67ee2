"""Pictures of `src/attention_implementation.ipynb`, so that its cells can keep to attention."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


class Picture:
    """A `matplotlib` figure as Jupyter shows it, with a text for those who cannot see it."""

    def __init__(self, figure: Any, alt: str) -> None:
        """Draw `figure` and close it, so that Jupyter does not show it a second time."""
        from matplotlib import pyplot  # slow to import

        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})  # the release would differ by machine
        pyplot.close(figure)
        self.png = png.getvalue()
        self.alt = alt

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        # not as image/png with the text in its metadata: nbconvert's page leaves that out
        data = base64.b64encode(self.png).decode()
        return f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{data}">'


def draw(
    axes: Any,
    matrix: Tensor,
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    digits: int | None = None,
    *,
    low: float = 0,
    high: float = 1,
    cmap: str | None = None,
) -> Any:
    """Draw a matrix, or a vector as one row, as a square for each number; returns the image, for a colour bar.

    The colours go from `low` to `high`: pale to blue, or from red over white to blue where `low` is below 0. `rows` and
    `columns` are the labels, and `digits` writes each number, rounded, into its square.
    """
    numbers = np.atleast_2d(matrix.detach().numpy())
    image = axes.imshow(numbers, vmin=low, vmax=high, cmap=cmap or ("RdBu" if low < 0 else "Blues"))
    axes.set_title(title)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=45 if max(map(len, columns), default=0) > 2 else 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)
    if digits is not None:
        for (i, j), number in np.ndenumerate(numbers):
            _write(axes, image, i, j, float(number), digits)
    return image


_LUMINANCE = (0.2126, 0.7152, 0.0722, 0)  # of red, green, blue (Rec. 709)


def _write(axes: Any, image: Any, row: int, column: int, number: float, digits: int) -> None:
    """A number into its square, white on dark."""
    finite = np.isfinite(number)
    dark = finite and np.dot(image.cmap(image.norm(number)), _LUMINANCE) < 0.5
    text = f"{number:z.{digits}f}" if finite else r"$-\infty$"
    axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
