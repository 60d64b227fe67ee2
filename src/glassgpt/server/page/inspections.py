"""`POST /inspect`: the candidates and the attention at one place of a text, by the readable model.

The readable model is loaded when it is first asked for, and is a second copy of the weights beside the decoder's. The
last few places are remembered, because a person moves sliders on the one that is open.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.generation.inspection import Place, describe_place, drawn_at, read_place
from glassgpt.generation.options import Generation
from glassgpt.server.errors import ApiError, check_ids, too_long

if TYPE_CHECKING:
    from glassgpt.model import GPTModel
    from glassgpt.tokenizer import Tokenizer

_REMEMBERED = 8


class Inspections:
    """Answers for the models of a server, by name. It takes one call at a time."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        self._paths = models
        self._loaded: dict[str, tuple[GPTModel, Tokenizer]] = {}
        self._places: collections.OrderedDict[tuple[str, tuple[int, ...]], Place] = collections.OrderedDict()

    def inspect(
        self, name: str, ids: Sequence[int], position: int | None, generation: Generation, n: int, n_drawn: int
    ) -> dict[str, Any]:
        """The place before the token number `position` of a text, from 1; None: what comes after all. Ready for JSON.

        It has the `n` best candidates. `n_drawn` tokens before it were drawn; with a seed it says which one is drawn
        here. `ApiError` for a text that does not fit, and for an id or a position that there is not.
        """
        model, tokenizer = self._load(name)
        check_ids(ids, tokenizer.n_vocab)
        position = len(ids) if position is None else position
        if not 1 <= position <= len(ids):
            raise ApiError(
                400, f"position {position} must be from 1 to {len(ids)}, the prompt's length", param="position"
            )
        if position > model.context_length:
            raise too_long(position, model.context_length, model.context_length)
        before, token = ids[:position], ids[position] if position < len(ids) else None
        place, n_drawn = self._place(name, model, tuple(before)), min(n_drawn, position)
        result = describe_place(place, tokenizer, before, token, generation, n_drawn=n_drawn, n=n)
        if generation.seed is not None:
            result["drawn"] = drawn_at(place, tokenizer, before, n_drawn, generation)
        return {"model": name, **result}

    def _load(self, name: str) -> tuple[GPTModel, Tokenizer]:
        from glassgpt.checkpoint import load_model

        if name not in self._loaded:
            self._loaded[name] = load_model(self._paths[name])
        return self._loaded[name]

    def _place(self, name: str, model: GPTModel, before: tuple[int, ...]) -> Place:
        key = name, before
        if key not in self._places:
            self._places[key] = read_place(model, before)
            while len(self._places) > _REMEMBERED:
                self._places.popitem(last=False)
        self._places.move_to_end(key)
        return self._places[key]
