"""The book's ways to write text: sampling (chapter 5), and greedy with the model's own cache."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from glassgpt.book.data import BookTokenizer, text_to_token_ids, token_ids_to_text
from glassgpt.book.model import CachedGPTModel
from glassgpt.language_model import evaluating
from glassgpt.model import GPTModel, generate_text_simple


def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
) -> Tensor:
    """Continue (B, T) ids by at most `max_new_tokens`: greedy at temperature 0, else drawn (chapter 5).

    Draws come from PyTorch's global generator as in the book, so its seeds give its texts. `top_k` keeps the
    k best tokens of each row, and those equal to the last of them. A row ends at `eos_id` and is filled up
    with it while others continue; when all have ended, the last `eos_id` is left out, as the book does. Raises
    `ValueError` for a temperature or length below 0 and a `top_k` below 1.
    """
    _check_prompt(idx)
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature} must be 0 (greedy) or above")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} is below 1: leave it out to keep every token")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens {max_new_tokens} must be at least 0")
    ended = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            scores = model(idx[:, -context_size:])[:, -1].float()  # (B, vocab_size)
        if top_k is not None:
            worst_kept = scores.topk(min(top_k, scores.shape[1])).values[:, -1:]
            scores = scores.masked_fill(scores < worst_kept, -torch.inf)
        if temperature > 0:
            new = torch.multinomial(torch.softmax(scores / temperature, dim=-1), num_samples=1)
        else:
            new = scores.argmax(dim=-1, keepdim=True)
        if eos_id is not None:
            new = new.masked_fill(ended, eos_id)
            ended = new == eos_id
            if ended.all():
                break
        idx = torch.cat((idx, new), dim=1)
    return idx


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


def show_generation(
    model: GPTModel,
    write: Callable[..., Tensor],
    tokenizer: BookTokenizer,
    *,
    max_new_tokens: int,
    start_context: str = "Hello, I am",
    report: Callable[[str], None] = print,
) -> None:
    """Report what goes into `write` and what comes out, as the book's scripts do, and how fast.

    `write` is `generate_text_simple` or one with the same first four parameters.
    """
    idx = text_to_token_ids(start_context, tokenizer)
    report(f"{_title('IN')}\nInput text: {start_context}\nEncoded input text: {idx[0].tolist()}")
    start = time.perf_counter()
    with evaluating(model):
        out = write(model, idx, max_new_tokens, model.config.context_length)
    seconds = time.perf_counter() - start
    n_new = out.shape[1] - idx.shape[1]
    report(
        f"{_title('OUT')}\nOutput: {out[0].tolist()}\nOutput length: {out.shape[1]}\n"
        f"Output text: {token_ids_to_text(out, tokenizer)}\n\n"
        f"Time: {seconds:.2f} s for {n_new} tokens, {n_new / seconds:.1f} tokens/s"
    )


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


def _title(word: str) -> str:
    return f"\n{'=' * 50}\n{word:^50}\n{'=' * 50}\n"
