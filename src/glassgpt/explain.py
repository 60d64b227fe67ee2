"""Looking inside: what each head attends to. What the model expects next is in `generation.trace`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.language_model import evaluating
from glassgpt.model import GPTModel, MultiHeadAttention
from glassgpt.options import check_int


@torch.no_grad()
def attention_maps(model: GPTModel, ids: Sequence[int]) -> Tensor:
    """Attention weights of every layer and head for one text: (n_layers, n_heads, T, T).

    Row i says where token i looks: it sums to 1 and is exactly 0 right of the diagonal. They are computed by the
    explicit path whatever `attention` the config names, from the very inputs each layer gets. `ValueError` for no
    ids, or more than the context length.
    """
    if not ids:
        raise ValueError("no tokens to look at: the text is empty")
    with evaluating(model), recorded_attention(model) as maps:
        model.hidden(torch.tensor([list(ids)], device=model.device))
    return torch.cat(maps)


@torch.no_grad()
def last_attention(model: GPTModel, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What led to the token after a text: its scores, (vocab_size,), and where the last token looked.

    The latter is the last row of `attention_maps`, (n_layers, n_heads, T), without ever holding more than one layer's
    map. `ValueError` as there.
    """
    if not ids:
        raise ValueError("no tokens to look at: the text is empty")
    with evaluating(model), recorded_attention(model, last_only=True) as rows:
        scores = model(torch.tensor([list(ids)], device=model.device), last_only=True)
    return scores[0, -1], torch.cat(rows)[:, :, 0]


@contextlib.contextmanager
def recorded_attention(module: nn.Module, last_only: bool = False) -> Iterator[list[Tensor]]:
    """Inside, each pass of a `MultiHeadAttention` in `module` appends its weights, (B, H, T, S), in order.

    It computes explicitly meanwhile; its weights are what goes into its dropout. `last_only`: of the last row alone,
    (B, H, 1, S).
    """
    maps: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor]) -> None:
        maps.append(inputs[0][:, :, -1:].clone() if last_only else inputs[0])

    attentions = [part for part in module.modules() if isinstance(part, MultiHeadAttention)]
    before = [attention.attention for attention in attentions]
    hooks = [attention.dropout.register_forward_pre_hook(record) for attention in attentions]
    for attention in attentions:
        attention.attention = "explicit"
    try:
        yield maps
    finally:
        for attention, name, hook in zip(attentions, before, hooks, strict=True):
            attention.attention = name
            hook.remove()


_DPI = 110
_LABEL = 0.14  # inches that a label needs across its text
_PANEL = 1.9  # inches at least, of one map
_PAGE = 60.0  # inches at most, of all maps side by side: more makes a picture of gigabytes


def plot_attention(maps: Tensor, labels: Sequence[str], layer: int | None = None, head: int | None = None) -> Any:
    """A `matplotlib` figure of `attention_maps`: one row a layer, one column a head, `labels` the tokens' texts.

    `layer` and `head` pick one of them, counted from 0. The maps grow with the text, so that each token has its label;
    where the page would grow too large, every second token has one, or every third, and so on. `ValueError` for a
    layer or head that there is not.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not before it is needed
    from matplotlib.colors import PowerNorm  # the square root: small weights, which most are, can be told apart
    from matplotlib.figure import Figure

    layers, heads = (_picked(*asked) for asked in (("layer", layer, len(maps)), ("head", head, maps.shape[1])))
    n_tokens = maps.shape[-1]
    shown = [repr(label)[1:-1][:16] if label.strip(" ") else "␣" * len(label) for label in labels]
    panel = min(max(_PANEL, _LABEL * n_tokens), _PAGE / max(len(layers), len(heads)))
    every = math.ceil(_LABEL * n_tokens / panel)
    places = range(0, n_tokens, every)
    margin = 0.15 + 0.085 * max(map(len, shown[::every]))  # inches, for the labels at the left and below
    column, row = panel + margin + 0.1, panel + margin + 0.3
    width, height = column * len(heads) + 0.3, row * len(layers) + 0.3
    figure = Figure(figsize=(width, height), dpi=_DPI)
    figure.set_layout_engine("none")  # every place is computed here, whatever the user's style says
    FigureCanvasAgg(figure)
    for i, layer in enumerate(layers):
        for j, head in enumerate(heads):
            left, bottom = 0.3 + j * column + margin, height - (i + 1) * row + margin
            axes = figure.add_axes((left / width, bottom / height, panel / width, panel / height))
            axes.imshow(maps[layer, head].cpu().float().numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
            axes.set_title(f"layer {layer} head {head}", fontsize=9)
            ticks = [shown[place] for place in places]
            axes.set_xticks(places, ticks, rotation=90, fontsize=8, parse_math=False)
            axes.set_yticks(places, ticks, fontsize=8, parse_math=False)
    figure.supxlabel("looked at", fontsize=9, y=0.05 / height)
    figure.supylabel("looking", fontsize=9, x=0.05 / width)
    return figure


def _picked(name: str, asked: int | None, number: int) -> Sequence[int]:
    if asked is None:
        return range(number)
    check_int(name, asked, at_least=0, at_most=number - 1)
    return [asked]
