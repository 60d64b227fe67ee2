"""What a request for text may say: the fields are the keywords, the command line's options and their help."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from glassgpt.options import Options, option

OVERFLOW = ("error", "shift", "slide")
SPECULATE = ("none", "lookup")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """How the next token is drawn. The filters apply in this order, each to what the one before it kept.

    Before them scores change as in vLLM: the bias, the repetition penalty (of all that is in the text), then OpenAI's
    two, of what was drawn. Raises `ValueError` for a value outside its range, naming the field.
    """

    repetition_penalty: float = option(
        1.0, "above 1 avoids tokens that are already in the text (Keskar et al. 2019)", unit="factor", above=0
    )
    presence_penalty: float = option(
        0.0, "subtracted from the score of each token that was drawn before", unit="score", at_least=-2, at_most=2
    )
    frequency_penalty: float = option(
        0.0, "subtracted from a token's score for each time it was drawn before", unit="score", at_least=-2, at_most=2
    )
    logit_bias: tuple[tuple[int, float], ...] = option(
        (), "add BIAS to the score of the token ID, -100 forbids it; may be repeated", unit="id=bias", derived="none"
    )
    temperature: float = option(1.0, "0 is greedy, below 1 safer, above 1 wilder", unit="T", at_least=0)
    top_k: int | None = option(None, "keep the K best tokens", unit="K", at_least=1, derived="all")
    top_p: float | None = option(
        None,
        "keep the fewest best tokens whose probabilities reach P (Holtzman et al. 2020)",
        unit="P",
        above=0,
        at_most=1,
        derived="all",
    )
    min_p: float | None = option(
        None,
        "keep tokens at least P times as likely as the best one (Nguyen et al. 2024)",
        unit="P",
        at_least=0,
        at_most=1,
        derived="all",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", tuple(sorted(_biases(self.logit_bias).items())))
        super().__post_init__()

    @property
    def changes_scores(self) -> bool:
        """Whether a score is not taken as the model gave it."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
            or bool(self.logit_bias)
        )


def _biases(given: object) -> dict[int, float]:
    """By token id; from a mapping, from pairs, or from texts "ID=BIAS"."""
    items: Iterable[Any] = (given,)
    if isinstance(given, Mapping):
        items = given.items()
    elif isinstance(given, Iterable) and not isinstance(given, str):
        items = given
    biases: dict[int, float] = {}
    for item in items:
        try:
            token, bias = item.split("=") if isinstance(item, str) else item
            token, bias = int(token), float(bias)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"logit_bias {item!r} must be a token id and a number, such as 50256=-100") from None
        if token < 0 or not -100 <= bias <= 100:
            raise ValueError(f"logit_bias {token}={bias:g} must be a token id, and a number from -100 to 100")
        biases[token] = bias
    return biases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation(Sampling):
    """All that a request may say besides its prompt. Raises `ValueError` for a value outside its range."""

    max_new_tokens: int = option(100, "most tokens to generate", unit="tokens", at_least=1)
    stop: tuple[str, ...] = option((), "end before this text; may be repeated", unit="text", derived="none")
    seed: int | None = option(
        None, "the same seed gives the same text", unit="N", at_least=0, at_most=2**64 - 1, derived="a new one"
    )
    overflow: str = option(
        "error",
        "past the context length: refuse before any computation (error), drop the older half whenever it is full and "
        "go on as fast as before (shift), or compute exactly what reading the last tokens that fit again gives (slide; "
        "each token then costs a whole context)",
        choices=OVERFLOW,
    )
    ignore_eot: bool = option(False, "never draw the end of text")
    logprobs: int | None = option(
        None,
        "with each token its log-probability, and those of the K likeliest, by the model's own scores",
        unit="K",
        at_least=0,
        derived="none",
    )
    speculate: str = option(
        "none",
        "guess the next tokens from what followed the last few before, and check them all at once (lookup): the same "
        "text, faster where it repeats itself",
        choices=SPECULATE,
    )

    def __post_init__(self) -> None:
        stop = self.stop if isinstance(self.stop, (list, tuple)) else (self.stop,)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop {text!r} must be a text, and not empty: that would stop everything at once")
        object.__setattr__(self, "stop", tuple(stop))
        super().__post_init__()


class GenerationKeywords(TypedDict, total=False):
    """The fields of `Generation`, for type checkers and editors; a test keeps the two alike."""

    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | Sequence[str]
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    max_new_tokens: int
    stop: str | Sequence[str]
    seed: int | None
    overflow: str
    ignore_eot: bool
    logprobs: int | None
    speculate: str
