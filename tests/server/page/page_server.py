"""Servers that can be stopped and begun again, a model whose steps can be held, and pages that are watched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from running import CONTEXT, SECONDS, Running, serving

from glassgpt import GPTModel, Tokenizer
from glassgpt.generation.decoder import Scores
from glassgpt.generation.torch_decoder import CachedDecoder

Loaded = tuple[Path, GPTModel, Tokenizer]


class Held(CachedDecoder):
    """A decoder that takes only so many more steps as were allowed, and waits then."""

    def __init__(self, model: GPTModel, longest: int) -> None:
        super().__init__(model, longest)
        self._changed = threading.Condition()
        self._left: int | None = None

    def allow(self, steps: int | None) -> None:
        """So many more; None: any number."""
        with self._changed:
            self._left = steps
            self._changed.notify_all()

    def step(self, tokens: Sequence[int]) -> Scores:
        with self._changed:
            assert self._changed.wait_for(lambda: self._left != 0, SECONDS)
            if self._left is not None:
                self._left -= 1
        return super().step(tokens)


@contextlib.contextmanager
def page_serving(models: Mapping[str, Loaded], **options: Any) -> Iterator[Running]:
    """As `serving`, with a `Held` decoder for each model, of which none holds up the end."""
    held = {name: (path, Held(model, CONTEXT), tokenizer) for name, (path, model, tokenizer) in models.items()}
    with serving(held, **{"stop_seconds": 0.0, **options}) as running:
        try:
            yield running
        finally:
            for name in held:
                held_of(running, name).allow(None)


def held_of(running: Running, name: str) -> Held:
    """A model's decoder."""
    decoder = running.models[name].engine.decoder
    assert isinstance(decoder, Held)
    return decoder


class Watched:
    """A page of its own, of which every word on the console and every request is kept."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * SECONDS)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.context.on("request", lambda request: self.requests.append(request.url))
