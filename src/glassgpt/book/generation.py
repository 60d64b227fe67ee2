"""The book's ways to write text: sampling (chapter 5), and greedy with the model's own cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glassgpt.book.model import CachedGPTModel
from glassgpt.language_model import evaluating
from glassgpt.model import generate_text_simple


def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    *,
    top_p: float | None = None,
) -> Tensor:
    """Continue (B, T) ids by at most `max_new_tokens`: greedy at temperature 0, else drawn (chapter 5).

    Draws come from PyTorch's global generator as in the book, so its seeds give its texts. `top_k` keeps the
    k best tokens of each row, and those equal to the last of them; `top_p` then keeps the fewest of the best whose
    probabilities at this temperature reach it (nucleus sampling, Holtzman et al. 2020; not in the book). A row ends at
    `eos_id` and is filled up with it while others continue; when all have ended, the last `eos_id` is left out, as the
    book does. Raises `ValueError` for a temperature or length below 0, a `top_k` below 1, and a `top_p` that is not
    above 0 and at most 1.
    """
    _check_prompt(idx)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 0")
    ended = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            scores = model(idx[:, -context_size:])[:, -1]  # (B, vocab_size)
        probabilities = next_token_probabilities(scores, temperature, top_k, top_p)
        if temperature > 0:
            new = torch.multinomial(probabilities, num_samples=1)
        else:
            new = probabilities.argmax(dim=-1, keepdim=True)
        if eos_id is not None:
            new = new.masked_fill(ended, eos_id)
            ended = new == eos_id
            if ended.all():
                break
        idx = torch.cat((idx, new), dim=1)
    return idx


def next_token_probabilities(
    scores: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """What `generate` draws from: (B, V) probabilities, float32, of (B, V) scores, 0 for what is not kept.

    At temperature 0 the best token has all of it. The arguments and errors are those of `generate`.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature} must be 0 (greedy) or above")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} is below 1: leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} must be above 0 and at most 1")
    scores = scores.float()
    if temperature == 0:
        return F.one_hot(scores.argmax(dim=-1), scores.shape[-1]).float()
    if top_k is not None:
        worst_kept = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < worst_kept, -torch.inf)
    probabilities = torch.softmax(scores / temperature, dim=-1)
    return probabilities if top_p is None or top_p == 1 else _nucleus(probabilities, top_p)


def generate_text_simple_cached(
    model: CachedGPTModel,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """What `generate_text_simple` gives, (B, T + max_new_tokens), but reads each token only once.

    `context_size` is at most the model's context length, which is the default. Past it every token's position
    changes and a cache is of no use: the rest is recomputed, as `generate_text_simple` does.
    """
    _check_prompt(idx)
    limit = _limit(model, context_size)
    # The token after the last that fits is still predicted from a full context, hence the 1.
    n_cached = min(max_new_tokens, limit + 1 - idx.shape[1]) if use_cache else 0
    with evaluating(model):
        idx = _extend(model, idx, n_cached)
        return generate_text_simple(model, idx, max_new_tokens - max(n_cached, 0), limit)


def generate_within_context(
    model: CachedGPTModel,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """As `generate_text_simple_cached`, but stops where the text fills the context.

    (B, T) to (B, at most `context_size`); a prompt longer than that comes back as it is.
    """
    room = _limit(model, context_size) - idx.shape[1]
    return generate_text_simple_cached(model, idx, min(max_new_tokens, room), context_size, use_cache)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(B, V) without the tokens that `top_p` is reached without, the others' probabilities again 1 together."""
    best, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = best.cumsum(dim=-1) - best  # what the better ones have together; 0 for the best, which always stays
    kept = torch.zeros_like(best).scatter(-1, order, best.masked_fill(before >= top_p, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def _check_prompt(idx: Tensor) -> None:
    if not idx.shape[1]:
        raise ValueError("the prompt is empty: give at least one token")


def _limit(model: CachedGPTModel, context_size: int | None) -> int:
    if context_size is not None and context_size < 1:
        raise ValueError(f"context_size {context_size} is below 1")
    return min(context_size or model.config.context_length, model.config.context_length)


def _extend(model: CachedGPTModel, idx: Tensor, n_tokens: int) -> Tensor:
    """Append `n_tokens` greedy ones, through the model's own cache."""
    if n_tokens < 1:
        return idx
    model.reset_kv_cache()
    new = idx
    for _ in range(n_tokens):
        # With a sliding window, pieces of its size keep the memory within the window's bound.
        for piece in torch.split(new, model.config.sliding_window or new.shape[1], dim=1):
            scores = model(piece, use_cache=True, last_only=True)
        new = scores[:, -1].argmax(dim=-1, keepdim=True)
        idx = torch.cat((idx, new), dim=1)
    return idx
