from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glassgpt import GPTModel
from glassgpt.explain import attention_maps, last_attention, plot_attention

Make = Callable[..., GPTModel]
BOTH = pytest.mark.parametrize("attention", ["sdpa", "explicit"])
WINDOWS = pytest.mark.parametrize("window", [None, 1, 3, 16])

IDS = [5, 96, 0, 5, 41, 17, 3, 3, 80]


# ---- attention_maps ------------------------------------------------------------------------------------------------


@BOTH
@WINDOWS
def test_rows_sum_to_one_and_what_is_hidden_has_exactly_zero(
    tiny_model: Make, attention: str, window: int | None
) -> None:
    maps = attention_maps(tiny_model(attention=attention, sliding_window=window), IDS)
    assert maps.shape == (2, 3, len(IDS), len(IDS))
    assert not maps.requires_grad
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, len(IDS)))
    row, column = torch.arange(len(IDS))[:, None], torch.arange(len(IDS))
    visible = (column <= row) & (column > row - (window or len(IDS)))
    assert (maps[..., ~visible] == 0).all()
    assert (maps[..., visible] > 0).all()


@BOTH
@WINDOWS
def test_the_weights_are_those_the_model_computes_with(tiny_model: Make, attention: str, window: int | None) -> None:
    """Weighting each layer's values by its map must give what that layer put out, by either kind of attention."""
    model = tiny_model(attention=attention, sliding_window=window)
    seen: list[tuple[Tensor, Tensor]] = []
    for block in model.trf_blocks:
        block.att.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        model(torch.tensor([IDS]))
    layers = list(seen)
    maps = attention_maps(model, IDS)
    for (x, output), weights, block in zip(layers, maps, model.trf_blocks, strict=True):
        values = block.att.W_value(x[0]).view(len(IDS), 3, 4).transpose(0, 1)  # (H, T, head_dim)
        wanted = block.att.out_proj((weights @ values).transpose(0, 1).reshape(len(IDS), 12))
        torch.testing.assert_close(output[0], wanted, atol=1e-5, rtol=1e-5)


@given(ids=st.lists(st.integers(0, 96), min_size=1, max_size=16), data=st.data())
def test_a_longer_text_leaves_the_maps_of_its_beginning_alone(
    tiny_model: Make, ids: list[int], data: st.DataObject
) -> None:
    model = tiny_model()
    n = data.draw(st.integers(1, len(ids)))
    torch.testing.assert_close(attention_maps(model, ids[:n]), attention_maps(model, ids)[..., :n, :n])


def test_dropout_takes_no_part_and_the_mode_stays_as_it_was(tiny_model: Make) -> None:
    wanted = attention_maps(tiny_model(), IDS)
    model = tiny_model(drop_rate=0.5)
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(attention_maps(model, IDS), wanted)
        assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize(
    ("ids", "message"), [([], "the text is empty"), ([1] * 17, "17 tokens exceed the context length of 16")]
)
def test_a_text_that_cannot_be_read_is_an_error_that_leaves_nothing_behind(
    tiny_model: Make, ids: list[int], message: str
) -> None:
    model = tiny_model().train()
    with pytest.raises(ValueError, match=message):
        attention_maps(model, ids)
    with pytest.raises(ValueError, match=message):
        last_attention(model, ids)
    assert model.training
    assert all(not block.att._forward_hooks for block in model.trf_blocks)


@BOTH
@WINDOWS
def test_the_last_row_alone_is_that_of_the_maps(tiny_model: Make, attention: str, window: int | None) -> None:
    model = tiny_model(attention=attention, sliding_window=window).train()
    scores, rows = last_attention(model, IDS)
    assert model.training and not rows.requires_grad
    torch.testing.assert_close(rows, attention_maps(model, IDS)[:, :, -1])
    with torch.no_grad():
        torch.testing.assert_close(scores, model.eval()(torch.tensor([IDS]))[0, -1], atol=1e-5, rtol=1e-5)


# ---- plot_attention ------------------------------------------------------------------------------------------------


def random_maps(n_layers: int, n_heads: int, n_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n_layers, n_heads, n_tokens, n_tokens, generator=generator).tril()


def saved(figure: Any, path: Path) -> tuple[int, ...]:
    figure.savefig(path, format="png")
    shape: tuple[int, ...] = matplotlib.image.imread(path).shape
    return shape


def test_the_figure_has_a_panel_for_each_head_with_its_own_weights(tmp_path: Path) -> None:
    maps = random_maps(2, 3, 5)
    figure = plot_attention(maps, ["The", " cat", "\n", "é", "'"])
    assert [axes.get_title() for axes in figure.axes] == [
        f"layer {layer} head {head}" for layer in range(2) for head in range(3)
    ]
    for axes, weights in zip(figure.axes, maps.flatten(0, 1), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), weights.numpy())
        assert axes.images[0].get_clim() == (0, 1)  # one scale for all, or heads cannot be compared
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == ["The", " cat", r"\n", "é", "'"]
    height, width, _ = saved(figure, tmp_path / "maps.png")
    assert width > height > 300


@pytest.mark.parametrize("n_tokens", [1, 24, 25, 100])
def test_every_token_has_its_label_at_both_sides(tmp_path: Path, n_tokens: int) -> None:
    labels = [f" w{n}" for n in range(n_tokens)]
    figure = plot_attention(random_maps(2, 2, n_tokens).bfloat16(), labels)
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == labels
        assert [label.get_text() for label in axes.get_yticklabels()] == labels
    assert saved(figure, tmp_path / "maps.png")


def test_a_page_of_very_many_maps_has_a_label_for_some_of_its_tokens(tmp_path: Path) -> None:
    figure = plot_attention(random_maps(1, 12, 300), [str(n) for n in range(300)])
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == [str(n) for n in range(0, 300, int(shown[1]))]
    assert figure.get_size_inches().max() < 90
    height, width, _ = saved(plot_attention(random_maps(1, 12, 300), ["x"] * 300, head=3), tmp_path / "maps.png")
    assert min(height, width) > 2**11


def test_one_layer_or_one_head_can_be_picked(tmp_path: Path) -> None:
    maps = random_maps(2, 3, 5)
    titles = lambda **picked: [axes.get_title() for axes in plot_attention(maps, list("abcde"), **picked).axes]  # noqa: E731
    assert titles(layer=1) == [f"layer 1 head {head}" for head in range(3)]
    assert titles(head=2) == ["layer 0 head 2", "layer 1 head 2"]
    assert titles(layer=0, head=1) == ["layer 0 head 1"]
    for wrong in ({"layer": 2}, {"head": 3}, {"layer": -1}):
        with pytest.raises(ValueError, match="must be a whole number, at least 0 and at most"):
            plot_attention(maps, list("abcde"), **wrong)


@pytest.mark.parametrize("label", ["$$", r"$\frac{$"])
def test_labels_are_plain_text_and_no_formulas(tmp_path: Path, label: str) -> None:
    """Matplotlib reads what stands between dollar signs as mathematics, and GPT-2 has a token "$$"."""
    assert saved(plot_attention(random_maps(1, 1, 2), [label, label]), tmp_path / "maps.png")


def test_a_users_style_does_not_disturb_the_maps(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        assert saved(plot_attention(random_maps(1, 2, 5), list("abcde")), tmp_path / "maps.png")  # warnings are errors
