"""Servers that can be stopped and begun again, a model whose steps can be held, and pages that are watched."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glassgpt import GPTModel, Tokenizer
from glassgpt.generation.decoder import Scores
from glassgpt.generation.torch_decoder import CachedDecoder
from glassgpt.server.app import Server, address_of, listen, make_app, run
from glassgpt.server.served import Served
from glassgpt.server.settings import ServerOptions

CONTEXT = 96
SECONDS = 10.0
"""Longer than anything takes, on a machine with much else to do."""
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


@dataclasses.dataclass
class Running:
    """A server in a thread."""

    address: str
    models: Mapping[str, Served]
    server: Server

    def held(self, name: str) -> Held:
        """A model's decoder."""
        decoder = self.models[name].engine.decoder
        assert isinstance(decoder, Held)
        return decoder


@contextlib.contextmanager
def serving(models: Mapping[str, Loaded], **options: Any) -> Iterator[Running]:
    """A server until the end of the block; a `port` that was had before can be had again."""
    settings = ServerOptions(**{"port": 0, "stop_seconds": 0.0, **options})
    served = {
        name: Served.of(name, path, Held(model, CONTEXT), tokenizer, settings)
        for name, (path, model, tokenizer) in models.items()
    }
    listening = listen(settings)
    server = Server(make_app(served, settings), served, settings)
    thread = threading.Thread(target=run, args=(server, listening, served))
    thread.start()
    running = Running(address_of(listening), served, server)
    try:
        yield running
    finally:
        for name in served:
            running.held(name).allow(None)
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


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
