"""From prompts to text: `complete`, `generate` and `stream`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

from glassgpt.generation.decoder import Decoder, Speculative
from glassgpt.generation.options import Generation, GenerationKeywords
from glassgpt.generation.row import Completion, Row
from glassgpt.generation.scheduler import Scheduler, check_speculates
from glassgpt.generation.speculation import DraftModel, PromptLookup, Proposer, Tally
from glassgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from glassgpt.language_model import LanguageModel


class _Keywords(GenerationKeywords, total=False):
    on_overflow: Callable[[int], None] | None
    draft: LanguageModel | Decoder | None
    tally: Tally | None


class _BatchKeywords(_Keywords, total=False):
    seeds: Sequence[int | None]


@overload
def complete(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    model: LanguageModel | Decoder, tokenizer: Tokenizer, prompts: str, **options: Unpack[_Keywords]
) -> Completion: ...
@overload
def complete(
    model: LanguageModel | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    **options: Unpack[_BatchKeywords],
) -> list[Completion]: ...
def complete(
    model: LanguageModel | Decoder,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str | Sequence[int]],
    *,
    seeds: Sequence[int | None] | None = None,
    on_overflow: Callable[[int], None] | None = None,
    draft: LanguageModel | Decoder | None = None,
    tally: Tally | None = None,
    **options: Unpack[GenerationKeywords],
) -> Completion | list[Completion]:
    """Continue each prompt, a text or token ids; prompts may differ in length and are decoded together.

    One text gives one `Completion`, a list gives a list.

    `options` are the fields of `Generation`; `seeds` gives each row its own. A row draws its own random numbers, so its
    text depends on its own prompt and seed, up to rounding: where two tokens are all but equally likely, the sums of
    another batch size may choose the other. A row ends at `max_new_tokens`, at a `stop` text (left out) or at the end
    of text. `on_overflow` is called with the context length at each row's first token that is not computed from all of
    its text, because `overflow` took effect. `model` may be a decoder, which must have no live rows.

    `draft` is a smaller model with the same tokenizer, or its decoder: it guesses tokens that `model` checks several at
    a time. Neither it nor `speculate` changes the text, up to rounding; `tally` is told what came of the guesses.

    Raises `ValueError` for values out of range, before any computation.
    """
    one = isinstance(prompts, str)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    rows, capacity = _rows(model, tokenizer, prompts, seeds, on_overflow, options)
    for _ in _run(model, tokenizer, rows, capacity, draft, tally):
        pass
    completions = [row.completion() for row in rows]
    return completions[0] if one else completions


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    model: LanguageModel | Decoder, tokenizer: Tokenizer, prompt: str, **options: Unpack[_Keywords]
) -> str: ...
@overload
def generate(
    model: LanguageModel | Decoder, tokenizer: Tokenizer, prompt: Sequence[str], **options: Unpack[_BatchKeywords]
) -> list[str]: ...
def generate(
    model: LanguageModel | Decoder, tokenizer: Tokenizer, prompt: str | Sequence[str], **options: Any
) -> str | list[str]:
    """The text that follows `prompt`, or a list of them for a list of prompts; options and errors as in `complete`."""
    if isinstance(prompt, str):
        return complete(model, tokenizer, prompt, **options).text
    return [completion.text for completion in complete(model, tokenizer, prompt, **options)]


def stream(
    model: LanguageModel | Decoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    **options: Unpack[_Keywords],
) -> Iterator[str]:
    """The text that follows `prompt`, piece by piece as it is generated, never half a character.

    Arguments and errors as in `complete`; errors come at the call, not at the first piece.
    """
    return (piece for _, piece in stream_rows(model, tokenizer, [prompt], **options))


def stream_rows(
    model: LanguageModel | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    *,
    seeds: Sequence[int | None] | None = None,
    on_overflow: Callable[[int], None] | None = None,
    draft: LanguageModel | Decoder | None = None,
    tally: Tally | None = None,
    **options: Unpack[GenerationKeywords],
) -> Iterator[tuple[int, str]]:
    """As `stream` for several prompts, decoded together: (number of the prompt, piece of its text)."""
    rows, capacity = _rows(model, tokenizer, prompts, seeds, on_overflow, options)
    return ((number, piece) for number, piece in _run(model, tokenizer, rows, capacity, draft, tally) if piece)


def prompt_ids(model: LanguageModel | Decoder, tokenizer: Tokenizer, prompt: str | Sequence[int]) -> list[int]:
    """A prompt's token ids; of an empty one the end of text, GPT-2's own way to begin from nothing.

    `ValueError` where the model lacks a token.
    """
    if isinstance(prompt, int):
        raise ValueError(f"prompt {prompt!r} must be a text or a list of token ids")
    try:
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt is not valid UTF-8: its character {error.start + 1} stands for no text") from None
    if not ids and tokenizer.eot_id is not None:
        ids = [tokenizer.eot_id]
    if not ids:
        raise ValueError("the prompt is empty: give at least one token")
    if bad := [i for i in ids if not 0 <= i < model.vocab_size]:
        raise ValueError(f"token id {bad[0]} is outside the model's 0..{model.vocab_size - 1}")
    return ids


def check_fits(model: LanguageModel | Decoder, n_prompt: int, generation: Generation) -> None:
    """`ValueError` where a prompt of so many tokens and its new ones may exceed the context, and must not."""
    if generation.overflow == "error" and n_prompt + generation.max_new_tokens > model.context_length:
        raise ValueError(
            f"a prompt of {n_prompt} tokens and {generation.max_new_tokens} new ones exceed "
            f"the context length of {model.context_length}: ask for fewer, shorten the prompt, or choose "
            "overflow 'shift' or 'slide'"
        )


def decoder_for(model: LanguageModel | Decoder, longest: int) -> Decoder:
    """The decoder for a model, with room for rows of `longest` tokens, within the context; a decoder is one already."""
    if isinstance(model, Decoder):
        return model
    from glassgpt.generation.torch_decoder import CachedDecoder  # PyTorch is loaded only for a model that needs it

    return CachedDecoder(model, longest)


def _rows(
    model: LanguageModel | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    seeds: Sequence[int | None] | None,
    on_overflow: Callable[[int], None] | None,
    options: Mapping[str, Any],
) -> tuple[list[Row], int]:
    """The rows, and the number of tokens that the longest of them can reach."""
    generation = Generation.from_dict(options)
    if seeds is not None and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one for each")
    rows = []
    for number, prompt in enumerate(prompts):
        ids = prompt_ids(model, tokenizer, prompt)
        own = generation if seeds is None else generation.replace(seed=seeds[number])
        rows.append(Row(ids, tokenizer, own, on_overflow))
    longest = max((row.n_prompt for row in rows), default=0)
    if rows:
        check_fits(model, longest, generation)
    return rows, longest + generation.max_new_tokens


def _run(
    model: LanguageModel | Decoder,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    longest: int,
    draft: LanguageModel | Decoder | None,
    tally: Tally | None,
) -> Iterator[tuple[int, str]]:
    """(row number, new text) as it is drawn; nothing is computed before the first one is asked for.

    Who stops asking leaves a decoder without live rows, for the next text.
    """
    scheduler = Scheduler(decoder_for(model, longest), tally=tally)
    proposers = proposers_for(tokenizer, draft, longest)
    if draft is not None:
        for row in rows:
            prompt_ids(draft, tokenizer, row.ids)  # ids beyond the tokenizer's may be the model's, and not the draft's
    numbers = {scheduler.submit(row, proposers[row.speculate]): number for number, row in enumerate(rows)}

    def run() -> Iterator[tuple[int, str]]:
        try:
            for request, text in scheduler.run():
                yield numbers[request], text
        finally:
            scheduler.close()
            for proposer in filter(None, proposers.values()):  # a step that was broken off may have lost a request
                for row in rows:
                    proposer.forget(row)

    return run()


def proposers_for(
    tokenizer: Tokenizer, draft: LanguageModel | Decoder | None, longest: int
) -> dict[str, Proposer | None]:
    """Who guesses for a row, by its `speculate`: with a `draft` that one, for rows that reach `longest` tokens.

    `ValueError` for a draft that lacks tokens of the tokenizer, or cannot take back what it guessed.
    """
    if draft is None:
        return {"none": None, "lookup": PromptLookup()}
    if draft.vocab_size < tokenizer.n_vocab:
        raise ValueError(
            f"the draft model has {draft.vocab_size} tokens, the tokenizer {tokenizer.n_vocab}: "
            "take one that was trained with the same tokenizer"
        )
    decoder = decoder_for(draft, longest)
    check_speculates(decoder, "the draft model")
    assert isinstance(decoder, Speculative)
    proposer = DraftModel(decoder)
    return {"none": proposer, "lookup": proposer}
