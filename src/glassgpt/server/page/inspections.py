"""`POST /inspect`: the candidates and the attention at one place of a text, by the readable model.

The readable model is loaded when it is first asked for, and is a second copy of the weights beside the decoder's. One
place is computed at a time; the last few are remembered, because a person moves sliders on the one that is open.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.generation.inspection import Place, describe_place, drawn_at, read_place
from glassgpt.generation.options import Generation, Sampling
from glassgpt.options import check_int, option

if TYPE_CHECKING:
    from glassgpt.model import GPTModel
    from glassgpt.tokenizer import Tokenizer

_REMEMBERED = 8
MOST_CANDIDATES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions(Sampling):
    """What a request may say besides its model and its text."""

    n: int = option(50, "candidates to give", at_least=1, at_most=MOST_CANDIDATES)
    seed: int | None = option(None, "tell which token this seed draws here", at_least=0, at_most=2**64 - 1)
    n_drawn: int = option(0, "how many tokens were drawn with the seed before this one", at_least=0, at_most=2**20)


class Inspections:
    """Answers for the models of a server, by name."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        self._paths = models
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[GPTModel, Tokenizer]] = {}
        self._places: collections.OrderedDict[tuple[str, tuple[int, ...]], Place] = collections.OrderedDict()

    def inspect(self, model: str, text: str | Sequence[int], position: int | None, options: InspectOptions) -> Any:
        """The place before the token number `position` of `text`, from 1; None, or one beyond the last: after all.

        Ready for JSON. Waits until no other is computed. `ValueError` for a text that does not fit the context, and for
        an id or a position that there is not.
        """
        with self._lock:
            readable, tokenizer = self._load(model)
            ids = tokenizer.encode(text) if isinstance(text, str) else list(text)
            if not ids:
                raise ValueError("the prompt is empty: give at least one token")
            position = len(ids) if position is None else position
            check_int("position", position, at_least=1, at_most=len(ids))
            if bad := [i for i in ids if not 0 <= i < tokenizer.n_vocab]:
                raise ValueError(f"token id {bad[0]} is outside the tokenizer's 0..{tokenizer.n_vocab - 1}")
            before = ids[:position]
            place = self._place(model, readable, tuple(before))
        token = ids[position] if position < len(ids) else None
        n_drawn = min(options.n_drawn, len(before))
        result = describe_place(place, tokenizer, before, token, options, n_drawn=n_drawn, n=options.n)
        if options.seed is not None:
            generation = Generation(**{name: getattr(options, name) for name in (*Sampling.rules(), "seed")})
            result["drawn"] = drawn_at(place, tokenizer, before, n_drawn, generation)
        return {"model": model, **result}

    def _load(self, model: str) -> tuple[GPTModel, Tokenizer]:
        from glassgpt.checkpoint import load_model

        if model not in self._loaded:
            self._loaded[model] = load_model(self._paths[model])
        return self._loaded[model]

    def _place(self, name: str, model: GPTModel, before: tuple[int, ...]) -> Place:
        key = name, before
        if key not in self._places:
            self._places[key] = read_place(model, before)
            while len(self._places) > _REMEMBERED:
                self._places.popitem(last=False)
        self._places.move_to_end(key)
        return self._places[key]
