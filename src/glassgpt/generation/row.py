"""One text being generated: its ids, its random numbers, and the text that is certain so far."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from glassgpt.generation.decoder import Draw, Scores
from glassgpt.generation.decoder import Row as ScoreRow
from glassgpt.generation.options import Generation
from glassgpt.generation.sampling import (
    TokenLogprobs,
    UniformStream,
    UniqueIds,
    UnusableScoresError,
    draw,
    logprobs_of,
)
from glassgpt.tokenizer import StreamDecoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """What one prompt became."""

    text: str
    """The new text, without the prompt and without the stop text that ended it."""
    ids: list[int]
    """The new tokens; they may go further than the text where a stop text ended it."""
    n_prompt_tokens: int
    finish_reason: str
    """Why it ended: "length", "stop" or "end_of_text"; "cancelled" where a scheduler was told to."""
    logprobs: list[TokenLogprobs] | None = None
    """Of each new token, where they were asked for."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; without `logprobs` where they were not asked for."""
        values = dataclasses.asdict(self)
        if self.logprobs is None:
            del values["logprobs"]
        return values


class Row:
    """A prompt and what follows it. The scheduler asks for tokens with `choose` and hands each to `accept`."""

    def __init__(
        self,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        generation: Generation,
        on_overflow: Callable[[int], None] | None = None,
        *,
        scored: bool = False,
        writes: bool = True,
    ) -> None:
        """`on_overflow` hears the context length once the text exceeds it. `scored`: the log-probabilities of the
        prompt's own tokens are wanted, too; without `writes` nothing else is. `ValueError` for an empty prompt, and for
        a bias of a token that there is not.
        """
        if not prompt:
            raise ValueError("the prompt is empty: give at least one token")
        if generation.logit_bias and (last := generation.logit_bias[-1][0]) >= tokenizer.n_vocab:
            raise ValueError(f"logit_bias names the token {last}, the tokenizer has 0..{tokenizer.n_vocab - 1}")
        self.ids = list(prompt)
        self.n_prompt = len(prompt)
        self.finish_reason: str | None = None
        self.error: UnusableScoresError | None = None
        """Why a row ended that "failed"."""
        self.text = ""
        self.overflow, self.speculate = generation.overflow, generation.speculate
        self.n_drawn = 0
        """Tokens so far, the end of text that `ids` leaves out included."""
        self.logprobs: list[TokenLogprobs] = []
        """Of each token after the prompt, where they were asked for."""
        self.prompt_logprobs: list[TokenLogprobs] | None = [] if scored else None
        """Of each token of the prompt that was read, but the first, which nothing comes before."""
        self.end_logprobs: TokenLogprobs | None = None
        """Of the end of text, which `ids` leaves out, where one was drawn after a prompt that is scored."""
        self.ends: list[int] = []
        """Where the text of each token after the prompt ends, in characters."""
        self._tokenizer, self._generation, self._on_overflow = tokenizer, generation, on_overflow
        self._most = generation.max_new_tokens if writes else 0
        self._uniform = UniformStream(generation.seed)
        self._seen = UniqueIds(prompt)
        self._drawn = Counter[int]()
        self._excluded = tuple(tokenizer.stop_ids) if generation.ignore_eot else ()
        self._decoder = StreamDecoder(tokenizer)
        self._stop = StopTexts(generation.stop)

    def read(self, scores: Scores) -> None:
        """Hear the scores after the next tokens of the prompt, (n, vocab_size), where it is scored."""
        assert self.prompt_logprobs is not None
        for row in scores:
            if (place := 1 + len(self.prompt_logprobs)) < self.n_prompt:
                of_tokenizer = row[: self._tokenizer.n_vocab]
                self.prompt_logprobs.append(logprobs_of(of_tokenizer, self.ids[place], self._generation.logprobs or 0))

    def choose(self, scores: ScoreRow) -> int:
        """Draw this row's next token from (vocab_size,) scores; ids the tokenizer does not have are never drawn."""
        scores = scores[: self._tokenizer.n_vocab]
        token = draw(self._generation, scores, self._seen.array, self._uniform.draw(), self._excluded, self._drawn)
        if self._generation.logprobs is not None:
            if token not in self._tokenizer.stop_ids:
                self.logprobs.append(logprobs_of(scores, token, self._generation.logprobs))
            elif self.prompt_logprobs is not None:
                self.end_logprobs = logprobs_of(scores, token, self._generation.logprobs)
        return token

    def ahead(self, n: int) -> Draw | None:
        """What `choose` would do for the next `n` tokens, where those change nothing in it and nobody asks for more."""
        if self._generation.changes_scores or self._generation.logprobs is not None:
            return None
        uniforms = [self._uniform.peek(i) for i in range(n)]
        return Draw(self._generation, self._tokenizer.n_vocab, self._excluded, uniforms)

    def take(self, token: int) -> str:
        """`accept` a token that was drawn by `ahead`, as if `choose` had."""
        self._uniform.draw()
        return self.accept(token)

    def guess(self, scores: ScoreRow, ahead: int) -> int:
        """The token that `choose` would draw from another model's scores after `ahead` further ones."""
        scores = scores[: self._tokenizer.n_vocab]
        return draw(self._generation, scores, self._seen.array, self._uniform.peek(ahead), self._excluded, self._drawn)

    def fail(self, error: UnusableScoresError) -> None:
        """End, for what came out of the model."""
        self.error, self.finish_reason = error, "failed"

    @property
    def n_left(self) -> int:
        """How many more tokens the row may have."""
        return self._most - (len(self.ids) - self.n_prompt)

    def accept(self, token: int) -> str:
        """Append a token; returns the text that is certain now. Sets `finish_reason` when the row is done."""
        self.n_drawn += 1
        if token in self._tokenizer.stop_ids:
            self.finish_reason = "end_of_text"
            return self._release(self._decoder.finish())
        self.ids.append(token)
        self._seen.add(token)
        self._drawn[token] += 1
        new = self._decoder.push(token)
        self.ends.append(len(new) + (self.ends[-1] if self.ends else 0))
        if not self.n_left:
            self.finish_reason = "length"
            new += self._decoder.finish()
        return self._release(new)

    def outgrow(self, context_length: int) -> None:
        """From here on the beginning of the text is not seen; whoever wants to know is told, once."""
        tell, self._on_overflow = self._on_overflow, None
        if tell:
            tell(context_length)

    def completion(self) -> Completion:
        """The result; the row must be done."""
        assert self.finish_reason is not None
        logprobs = None if self._generation.logprobs is None else self.logprobs
        return Completion(self.text, self.ids[self.n_prompt :], self.n_prompt, self.finish_reason, logprobs)

    def _release(self, new: str) -> str:
        text, stopped = self._stop.push(new, final=self.finish_reason is not None)
        if stopped:
            self.finish_reason = "stop"
        self.text += text
        return text


class StopTexts:
    """Looks for the first of several texts in one that comes in pieces, holding back what may begin one of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""

    def push(self, new: str, final: bool) -> tuple[str, bool]:
        """The text that is certain now, which ends before a stop text, and whether one was found."""
        text = self._held + new
        starts = [start for stop in self._texts if (start := text.find(stop)) >= 0]
        if starts:
            return text[: min(starts)], True
        keep = 0 if final else max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
