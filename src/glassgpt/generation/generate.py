"""From prompts to text: the one loop under `generate`, `stream`, the command line and the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from glassgpt.generation.decoder import OVERFLOW, CachedDecoder, Decoder
from glassgpt.generation.sampling import Sampling
from glassgpt.model import GPTModel
from glassgpt.modes import evaluating
from glassgpt.tokenizer import StreamDecoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """What one prompt became: the new text and ids, and why it ended ("length", "stop" or "end_of_text")."""

    text: str
    ids: list[int]
    n_prompt_tokens: int
    finish_reason: str


class Row:
    """One text being written: its ids, its own random numbers, and the text that is certain so far."""

    def __init__(
        self,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        seed: int | None = None,
        ignore_eot: bool = False,
    ) -> None:
        """`seed` None draws a fresh one. Raises `ValueError` for an empty prompt or a useless stop string."""
        if not prompt:
            raise ValueError("the prompt is empty: give at least one token")
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {max_new_tokens!r} must be a whole number from 1 up")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
            raise ValueError(f"seed {seed!r} must be a whole number from 0 to 2**64 - 1")
        if "" in stop:
            raise ValueError("a stop string is empty: it would stop everything at once")
        self.ids = list(prompt)
        self.n_prompt = len(prompt)
        self.finish_reason: str | None = None
        self.text = ""
        self._tokenizer, self._max_new_tokens, self._stop = tokenizer, max_new_tokens, tuple(stop)
        self._sampling, self._ignore_eot = sampling, ignore_eot and tokenizer.eot_id is not None
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""  # text that may be the beginning of a stop string

    def choose(self, logits: Tensor) -> int:
        """Draw this row's next token from (vocab_size,) scores; ids the tokenizer does not have are never drawn."""
        logits = logits[: self._tokenizer.n_vocab]
        if self._ignore_eot:
            logits = logits.clone()
            logits[self._tokenizer.eot_id] = -torch.inf
        return self._sampling.draw(logits, self.ids, self._random)

    def accept(self, token: int) -> str:
        """Append a token; returns the text that is certain now. Sets `finish_reason` when the row is done."""
        if token == self._tokenizer.eot_id:
            self.finish_reason = "end_of_text"
            return self._release(self._decoder.finish(), final=True)
        self.ids.append(token)
        new = self._decoder.push(token)
        if len(self.ids) - self.n_prompt == self._max_new_tokens:
            self.finish_reason = "length"
            new += self._decoder.finish()
        return self._release(new, final=self.finish_reason is not None)

    def completion(self) -> Completion:
        """The result; the row must be done."""
        assert self.finish_reason is not None
        return Completion(self.text, self.ids[self.n_prompt :], self.n_prompt, self.finish_reason)

    def _release(self, new: str, final: bool) -> str:
        text = self._held + new
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            text, self._held = text[: min(places)], ""
            self.finish_reason = "stop"
        else:
            keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
            text, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += text
        return text


def write(decoder: Decoder, rows: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """Drive `rows` to their ends; yields (row number, new text) for each token as it is drawn."""
    if not rows:
        return
    live = list(range(len(rows)))
    logits = decoder.prefill([row.ids for row in rows])
    while True:
        last = {}
        for place, number in enumerate(live):
            token = rows[number].choose(logits[place])
            last[number] = token
            yield number, rows[number].accept(token)
        for place in reversed(range(len(live))):
            if rows[live[place]].finish_reason is not None:
                decoder.drop(place)
                live[place] = live[-1]  # as the decoder does
                live.pop()
        if not live:
            return
        logits = decoder.step([last[number] for number in live])


def complete(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 100,
    stop: str | Sequence[str] = (),
    seed: int | Sequence[int] | None = None,
    overflow: str = "error",
    ignore_eot: bool = False,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> list[Completion]:
    """Continue each prompt, a text or token ids; prompts may differ in length and are decoded together.

    `sampling` are the fields of `Sampling`. `seed`: one number for all rows or one for each; a row's text depends on
    its own prompt and seed alone. A row ends at `max_new_tokens`, at a `stop` string (left out of the text) or at the
    end of text, which `ignore_eot` never draws. `overflow` decides what happens when prompt and new tokens pass the
    context length: "error" raises before any computation, "slide" goes on with what recomputing the last
    `context_length` tokens gives.

    Raises `ValueError` for values out of range.
    """
    rows, capacity = _rows(model, tokenizer, prompts, max_new_tokens, stop, seed, overflow, ignore_eot, sampling)
    with evaluating(model):
        for _ in write(decoder or CachedDecoder(model, capacity), rows):
            pass
    return [row.completion() for row in rows]


@overload
def generate(model: GPTModel, tokenizer: Tokenizer, prompt: str, **options: Any) -> str: ...
@overload
def generate(model: GPTModel, tokenizer: Tokenizer, prompt: Sequence[str], **options: Any) -> list[str]: ...
def generate(model: GPTModel, tokenizer: Tokenizer, prompt: str | Sequence[str], **options: Any) -> str | list[str]:
    """The text that follows `prompt`, or a list of them for a list of prompts; options as in `complete`."""
    if isinstance(prompt, str):
        return complete(model, tokenizer, [prompt], **options)[0].text
    return [completion.text for completion in complete(model, tokenizer, prompt, **options)]


def stream(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 100,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    overflow: str = "error",
    ignore_eot: bool = False,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """The text that follows `prompt`, piece by piece as it is written, never half a character.

    Arguments and errors as in `complete`; errors come at the call, not at the first piece.
    """
    rows, capacity = _rows(model, tokenizer, [prompt], max_new_tokens, stop, seed, overflow, ignore_eot, sampling)

    def pieces() -> Iterator[str]:
        with evaluating(model):
            for _, piece in write(decoder or CachedDecoder(model, capacity), rows):
                if piece:
                    yield piece

    return pieces()


def _rows(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int,
    stop: str | Sequence[str],
    seed: int | Sequence[int] | None,
    overflow: str,
    ignore_eot: bool,
    sampling: dict[str, Any],
) -> tuple[list[Row], int]:
    """The rows, and the number of tokens the longest of them can reach."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one text: give a list of them")
    if overflow not in OVERFLOW:
        raise ValueError(f"overflow {overflow!r} is unknown: use one of {', '.join(OVERFLOW)}")
    known = [field.name for field in dataclasses.fields(Sampling)]
    if unknown := sampling.keys() - known:
        raise ValueError(f"unknown option {sorted(unknown)[0]!r}: sampling options are {', '.join(known)}")
    seeds = [seed] * len(prompts) if seed is None or isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one for all or one for each")
    rows = []
    for prompt, row_seed in zip(prompts, seeds, strict=True):
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids and tokenizer.eot_id is not None:
            ids = [tokenizer.eot_id]  # GPT-2's own way to begin from nothing
        if bad := [i for i in ids if not 0 <= i < model.config.vocab_size]:
            raise ValueError(f"token id {bad[0]} is outside the model's 0..{model.config.vocab_size - 1}")
        rows.append(
            Row(
                ids,
                tokenizer,
                max_new_tokens=max_new_tokens,
                sampling=Sampling(**sampling),
                stop=(stop,) if isinstance(stop, str) else stop,
                seed=row_seed,
                ignore_eot=ignore_eot,
            )
        )
    longest = max((row.n_prompt for row in rows), default=0)
    limit = model.config.context_length
    if overflow == "error" and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones pass the context length of {limit}: "
            "ask for fewer, shorten the prompt, or choose overflow 'slide'"
        )
    return rows, min(longest + max_new_tokens, limit)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
