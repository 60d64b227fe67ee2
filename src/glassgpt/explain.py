"""Looking inside: what each head attends to, and what the model expects next."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glassgpt.language_model import LanguageModel, evaluating
from glassgpt.model import GPTModel, MultiHeadAttention
from glassgpt.tokenizer import Tokenizer


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


@contextlib.contextmanager
def recorded_attention(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, each pass of a `MultiHeadAttention` in `module` appends its weights, (B, H, T, S), in order.

    It computes explicitly meanwhile; its weights are what goes into its dropout.
    """
    maps: list[Tensor] = []
    attentions = [part for part in module.modules() if isinstance(part, MultiHeadAttention)]
    before = [attention.attention for attention in attentions]
    hooks = [
        attention.dropout.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        for attention in attentions
    ]
    for attention in attentions:
        attention.attention = "explicit"
    try:
        yield maps
    finally:
        for attention, name, hook in zip(attentions, before, hooks, strict=True):
            attention.attention = name
            hook.remove()


@dataclasses.dataclass(frozen=True)
class TokenTrace:
    """One token of a text: how probable it was, and what the model finds likeliest to come after it."""

    text: str
    probability: float | None
    """None for the first token, which nothing predicts."""
    likeliest: list[tuple[str, float]]
    """(text, probability) of the best tokens to follow this one, best first."""


@torch.no_grad()
def trace(model: LanguageModel, tokenizer: Tokenizer, text: str, k: int = 5) -> list[TokenTrace]:
    """For each token of `text`: its probability given those before it, and the `k` likeliest to come after it.

    `ValueError` for an empty text or one longer than the context.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("no tokens to look at: the text is empty")
    with evaluating(model):
        scores = model(torch.tensor([ids], device=model.device))[0, :, : tokenizer.n_vocab]
    probabilities = scores.float().softmax(dim=-1).cpu()
    best, best_ids = probabilities.topk(min(k, tokenizer.n_vocab))
    return [
        TokenTrace(
            text=tokenizer.decode([token]),
            probability=float(probabilities[index - 1, token]) if index else None,
            likeliest=[
                (tokenizer.decode([i]), p) for i, p in zip(best_ids[index].tolist(), best[index].tolist(), strict=True)
            ],
        )
        for index, token in enumerate(ids)
    ]


def plot_attention(maps: Tensor, labels: Sequence[str]) -> Any:
    """A `matplotlib` figure of `attention_maps`: one row a layer, one column a head, `labels` the tokens' texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not before it is needed
    from matplotlib.figure import Figure

    n_layers, n_heads, n_tokens, _ = maps.shape
    figure = Figure(figsize=(1.9 * n_heads + 1, 1.9 * n_layers + 0.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_layers, n_heads, squeeze=False, sharex=True, sharey=True)
    for layer in range(n_layers):
        for head in range(n_heads):
            axes = grid[layer, head]
            axes.imshow(maps[layer, head].cpu().float().numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer} head {head}", fontsize=7)
            if n_tokens <= 24:
                shown = [repr(label)[1:-1] for label in labels]
                axes.set_xticks(range(n_tokens), shown, rotation=90, fontsize=6, parse_math=False)
                axes.set_yticks(range(n_tokens), shown, fontsize=6, parse_math=False)
            else:
                axes.set_xticks([])
                axes.set_yticks([])
    figure.supxlabel("looked at", fontsize=8)
    figure.supylabel("looking", fontsize=8)
    return figure
