"""What the book's files show when they are started: shapes, speeds, memory, and one training step taken apart."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from glassgpt.book.appendix_d import find_highest_gradient
from glassgpt.book.data import Batch, BookTokenizer, text_to_token_ids, token_ids_to_text
from glassgpt.book.generation import (
    generate_text_simple_cached,
    generate_within_context,
    next_token_probabilities,
)
from glassgpt.book.model import CachedGPTModel
from glassgpt.book.training import calc_loss_batch
from glassgpt.kv_cache import causal_mask
from glassgpt.language_model import evaluating
from glassgpt.model import GPTModel, generate_text_simple

Report = Callable[[str], None]

_MIB = 2**20
# By the ends of names, the longest first.
_MEANINGS = {
    "tok_emb": "a vector for each token",
    "pos_emb": "and one for each position, added to it",
    "att.W_query": "what each token looks for, the heads side by side",
    "att.W_key": "what it is found by",
    "att.W_value": "what it hands on",
    "att.dropout": "each head's weights: a row for each token that looks, 1 in all",
    "att.out_proj": "what the heads found, joined",
    "ff.layers.0": "each token on its own, four times as wide",
    "ff.layers.2": "and back",
    "trf_blocks.0": "as it came in, so that any number of blocks can follow",
    "out_head": "after each token a score for every token of the vocabulary",
}


def show_generation(
    model: GPTModel,
    write: Callable[..., Tensor],
    tokenizer: BookTokenizer,
    *,
    max_new_tokens: int,
    start_context: str = "Hello, I am",
    report: Report = print,
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


def show_parameters(model: GPTModel, report: Report = print) -> None:
    """Report how many parameters each part of `model` has, and the memory of all, in MiB."""
    sizes = {name: _n(part) for name, part in model.trf_blocks[0].named_children() if _n(part)}
    in_block = f"each: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}"
    for name, part in model.named_children():
        if _n(part):
            title = f"{name} ({len(model.trf_blocks)} blocks)" if part is model.trf_blocks else name
            report(f"  {title:<24}{_n(part):>13,}" + (f"   {in_block}" if part is model.trf_blocks else ""))
    total = model.n_parameters()
    tied = total - _n(model.out_head)
    report(
        f"Parameters: {total:,}\n"
        f"Parameters if the output head were the token embedding, as in GPT-2: {tied:,}\n"
        f"Memory for them in float32: {total * 4 / _MIB:,.0f} MiB"
    )


def show_batches(loader: DataLoader[Batch], tokenizer: BookTokenizer, report: Report = print) -> Batch:
    """Report the text of each row of the first batch and of its targets; the batch itself comes back."""
    inputs, targets = next(iter(loader))
    report(f"A batch: inputs {_shape(inputs)}, targets {_shape(targets)}, each a token further")
    for row in range(len(inputs)):
        texts = (repr(tokenizer.decode(ids[row].tolist())) for ids in (inputs, targets))
        report("  {:<34} -> {}".format(*texts))
    return inputs, targets


def show_shapes(model: GPTModel, input_batch: Tensor, report: Report = print) -> None:
    """Report the shape of every step from (B, T) ids to their scores, of the blocks, all alike, only the first."""
    report(f"  {'ids':<28}{_shape(input_batch)}")

    def say(name: str, output: Tensor) -> None:
        meaning = next((text for end, text in _MEANINGS.items() if name.endswith(end)), "")
        report(f"  {name:<28}{_shape(output):<20}{meaning}".rstrip())

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: say(name, output))
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.Sequential) and name.split(".")[1:2] in ([], ["0"])
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(input_batch)
    finally:
        for hook in hooks:
            hook.remove()


def show_speedup(
    model: CachedGPTModel,
    tokenizer: BookTokenizer,
    *,
    max_new_tokens: int,
    start_context: str = "Hello, I am",
    report: Report = print,
) -> None:
    """Generate the same text without and with the cache: report both speeds, and whether the tokens are the same."""
    idx = text_to_token_ids(start_context, tokenizer)
    report(f"Input text: {start_context}\nEncoded input text: {idx[0].tolist()}\n")
    with evaluating(model), torch.no_grad():
        model(idx)  # the first pass of a process is slower than all others
    outs, clocks = [], []
    for write in (generate_text_simple, generate_text_simple_cached):
        with _ticks(model.out_head) as ticks:
            start = time.perf_counter()
            with evaluating(model):
                outs.append(write(model, idx, max_new_tokens, model.config.context_length))
        clocks.append([tick - start for tick in ticks])
    report("new tokens   everything again       with the cache         ratio")
    for n in sorted({max(1, max_new_tokens // parts) for parts in (10, 4, 2, 1)}):
        again, cached = (clock[n - 1] for clock in clocks)
        speeds = "".join(f"{seconds:>7.2f} s {n / seconds:>6.1f}/s     " for seconds in (again, cached))
        report(f"{n:>10} {speeds}{again / cached:>6.1f}")
    again, cached = (clock[-1] for clock in clocks)
    speeds = f"{max_new_tokens / again:.1f} tokens/s without the cache, {max_new_tokens / cached:.1f} with it"
    report(f"Speed: {speeds}, {again / cached:.1f} x as fast")
    report(
        f"Identical tokens: {_yes(torch.equal(*outs))}\nOutput: {outs[1][0].tolist()}\n"
        f"Output length: {outs[1].shape[1]}\nOutput text: {token_ids_to_text(outs[1], tokenizer)}"
    )


def show_window(window: int, n_tokens: int, report: Report = print) -> None:
    """Report which of `n_tokens` tokens sees which, under a sliding window of `window`."""
    places = torch.arange(n_tokens)
    for place, seen in enumerate(causal_mask(places, places, window).tolist()):
        report(f"  token {place} sees  {' '.join('x' if see else '.' for see in seen)}")


def show_windows(
    model: CachedGPTModel, idx: Tensor, windows: Sequence[int | None], max_new_tokens: int, report: Report = print
) -> None:
    """Generate after (1, T) ids under each window: report the cache's memory, how the prompt is read, and a check."""
    report("kv_window_size   cache, a row   prompt read in pieces of        as without a cache")
    for window in windows:
        with torch.device("meta"):
            windowed = CachedGPTModel(model.config.replace(sliding_window=window))
        windowed.load_state_dict(model.state_dict(), assign=True)  # the same weights, not copies
        pieces: list[int] = []
        hook = windowed.tok_emb.register_forward_hook(lambda _, inputs, __, to=pieces: to.append(inputs[0].shape[1]))
        got = generate_within_context(windowed.eval(), idx, max_new_tokens)
        hook.remove()
        expected = generate_text_simple(windowed, idx, max_new_tokens, model.config.context_length)
        cache = windowed.new_cache()
        read = ", ".join(map(str, pieces[: 1 - max_new_tokens or None]))
        memory = f"{(cache.keys.nbytes + cache.values.nbytes) / _MIB:.2f} MiB"
        report(f"{window or 'none':>14} {memory:>14}   {read:<31} {_yes(torch.equal(got, expected))}")


def show_step(
    model: GPTModel, batch: Batch, optimizer: torch.optim.Optimizer, max_norm: float = 1.0, report: Report = print
) -> None:
    """Take one training step on `batch`, and report what each part of it gives."""
    inputs, targets = batch
    device = model.device
    loss = calc_loss_batch(inputs, targets, model, device)
    report(
        f"calc_loss_batch          {loss.item():.3f} nats a token (ln {model.vocab_size:,} = "
        f"{math.log(model.vocab_size):.3f} is what knowing nothing costs)"
    )
    optimizer.zero_grad()
    loss.backward()
    report(f"find_highest_gradient    {_highest(model):.4f}")
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()
    report(f"  after clipping         {_highest(model):.4f}: the norm of all was {norm:.3f}, now at most {max_norm:g}")
    optimizer.step()
    report(f"calc_loss_batch again    {calc_loss_batch(inputs, targets, model, device).item():.3f}, after one step")


def show_choices(
    model: GPTModel,
    idx: Tensor,
    tokenizer: BookTokenizer,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    n: int = 5,
    report: Report = print,
) -> None:
    """Report the `n` likeliest tokens after (1, T) ids, as `generate` draws them, beside what the model itself says."""
    with evaluating(model), torch.no_grad():
        scores = model(idx[:, -model.config.context_length :])[:, -1]
    drawn = next_token_probabilities(scores, temperature, top_k, top_p)[0]
    plain = next_token_probabilities(scores)[0]
    report("  the model   drawn with   token")
    for token in plain.topk(min(n, len(plain))).indices.tolist():
        report(f"  {plain[token]:>9.4f}   {drawn[token]:>10.4f}   {tokenizer.decode([token])!r}")
    report(f"  {int((drawn > 0).sum()):,} of {len(drawn):,} tokens can come next")


def show_rates(rates: Sequence[float], report: Report = print) -> None:
    """Report learning rates as a picture of one line each, of at most 20 of them."""
    for step in range(0, len(rates), -(-len(rates) // 20)):
        report(f"  step {step:>3}  {rates[step]:.6f}  {'#' * round(40 * rates[step] / max(rates))}".rstrip())


def _n(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _highest(model: nn.Module) -> float:
    highest = find_highest_gradient(model)
    return float("nan") if highest is None else highest.item()


@contextlib.contextmanager
def _ticks(module: nn.Module) -> Iterator[list[float]]:
    """The time after each pass through `module`."""
    ticks: list[float] = []
    hook = module.register_forward_hook(lambda *_: ticks.append(time.perf_counter()))
    try:
        yield ticks
    finally:
        hook.remove()


def _title(word: str) -> str:
    return f"\n{'=' * 50}\n{word:^50}\n{'=' * 50}\n"
