"""A place of a text as the page and programs see it: the candidates, the filters, and the attention that led to it.

All numbers are the readable model's, computed in one pass.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from glassgpt.generation.candidates import explain_choice
from glassgpt.generation.decoder import Row
from glassgpt.generation.options import Generation, Sampling
from glassgpt.generation.sampling import UniformStream, draw
from glassgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from glassgpt.model import GPTModel

MOST_WEIGHTS = 8_000_000
"""Attention weights that `inspect_text` gives at most; as JSON they are some 50 MB."""


@dataclasses.dataclass(frozen=True)
class Place:
    """What a model knows where a text ends."""

    scores: Row
    """(vocab_size,) scores of the token to come."""
    attention: npt.NDArray[np.float32]
    """(n_layers, n_heads, T): where the last token looked; each row sums to 1."""


def read_place(model: GPTModel, ids: Sequence[int]) -> Place:
    """The place after `ids`. `ValueError` for none, or for more than the context length."""
    from glassgpt.explain import last_attention
    from glassgpt.generation.torch_decoder import to_scores

    scores, attention = last_attention(model, ids)
    return Place(to_scores(scores), attention.float().cpu().numpy())


def describe_place(
    place: Place,
    tokenizer: Tokenizer,
    before: Sequence[int],
    token: int | None,
    sampling: Sampling,
    *,
    n_drawn: int = 0,
    n: int = 50,
    decimals: int = 6,
) -> dict[str, Any]:
    """`place`, which follows the ids `before` and where `token` came, ready for JSON; attention is rounded.

    `n_drawn`: so many of the last of `before` were drawn, not given. It has the `n` best candidates, and `token`.
    """
    also = () if token is None else (token,)
    drawn = drawn_ids(before, n_drawn)
    choice = explain_choice(sampling, place.scores, tokenizer, before, drawn=drawn, n=n, also=also)
    attention = np.round(place.attention.astype(np.float64), decimals).tolist()
    return {"position": len(before), "token": token, **choice.to_dict(), "attention": attention}


def drawn_at(place: Place, tokenizer: Tokenizer, before: Sequence[int], n_drawn: int, generation: Generation) -> int:
    """The id that `generation`, with its seed, draws at a place after `n_drawn` other draws: the last of `before`."""
    uniform = UniformStream(generation.seed).peek(n_drawn)
    excluded = tuple(tokenizer.stop_ids) if generation.ignore_eot else ()
    scores = place.scores[: tokenizer.n_vocab]
    return draw(generation, scores, before, uniform, excluded, drawn_ids(before, n_drawn))


def drawn_ids(before: Sequence[int], n_drawn: int) -> Counter[int]:
    """How often each of the last `n_drawn` ids is among them."""
    return Counter(before[len(before) - n_drawn :] if n_drawn else ())


def inspect_text(model: GPTModel, tokenizer: Tokenizer, text: str, sampling: Sampling, n: int = 50) -> dict[str, Any]:
    """Every place of a text, ready for JSON: its tokens, and for each but the first, and after the last, its place.

    `ValueError` for an empty text, or one that is longer than the context or than `MOST_WEIGHTS` allow.
    """
    import torch

    from glassgpt.explain import recorded_attention
    from glassgpt.generation.torch_decoder import to_scores
    from glassgpt.language_model import evaluating

    ids = tokenizer.encode(text)
    check_size(len(ids), model.config.n_layers * model.config.n_heads, model.context_length)
    with torch.no_grad(), evaluating(model), recorded_attention(model) as maps:
        scores = to_scores(model(torch.tensor([ids], device=model.device))[0])
    every = torch.cat(maps).float().cpu().numpy()
    places: list[dict[str, Any] | None] = [None]
    for end in range(1, len(ids) + 1):
        place = Place(scores[end - 1], every[:, :, end - 1, :end])
        token = ids[end] if end < len(ids) else None
        places.append(describe_place(place, tokenizer, ids[:end], token, sampling, n=n, decimals=4))
    tokens = []
    for token, seen in zip(ids, places, strict=False):
        probability = next((c["probability"] for c in seen["candidates"] if c["id"] == token), None) if seen else None
        tokens.append({"id": token, "text": tokenizer.decode([token]), "probability": probability})
    return {"tokens": tokens, "places": places, "sampling": sampling.to_dict()}


def check_size(n_tokens: int, n_heads: int, context_length: int) -> None:
    """`ValueError` for no tokens, or for more than `inspect_text` takes of a model with so many heads in all."""
    if not n_tokens:
        raise ValueError("no tokens to look at: the text is empty")
    if n_tokens > context_length:
        raise ValueError(f"{n_tokens} tokens exceed the context length of {context_length}")
    most = int((2 * MOST_WEIGHTS / n_heads) ** 0.5)
    if n_tokens > most:
        raise ValueError(
            f"the attention of {n_tokens} tokens in {n_heads} heads is too much at once: take at most {most} tokens"
        )
