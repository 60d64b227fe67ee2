"""A server in a thread of the tests, and a decoder that can be made to wait."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai

from glassgpt import Tokenizer
from glassgpt.generation.cpu.decoder import CPUDecoder
from glassgpt.generation.decoder import Decoder, Prefix, Scores
from glassgpt.server.app import Server, address_of, listen, make_app, run
from glassgpt.server.served import Served
from glassgpt.server.settings import ServerOptions

CONTEXT = 96
SECONDS = 60.0
"""Longer than anything takes, on a machine with much else to do."""


class Gate(CPUDecoder):
    """A compiled decoder that can be made to wait in its work, and to fail."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.opened = threading.Event()
        self.opened.set()
        self.entered = threading.Event()
        """Set when work begins."""
        self.closing_in: int | None = None
        """So many calls are let through before it closes itself."""
        self.failing: Exception | None = None
        self.n_steps = 0
        """Calls that go on with live rows."""
        self.n_read: list[int] = []
        """Tokens of each call that reads."""

    @property
    def n_live(self) -> int:
        """Rows in its batch."""
        return len(self._lengths)

    def _wait(self) -> None:
        self.entered.set()
        if self.closing_in is not None:
            self.closing_in -= 1
            if self.closing_in < 0:
                self.closing_in = None
                self.opened.clear()
        assert self.opened.wait(SECONDS)
        if self.failing is not None:
            raise self.failing

    def read_all(self, tokens: Sequence[int], after: Prefix | None = None, *, every: bool = True) -> Any:
        self._wait()
        self.n_read.append(len(tokens))
        return super().read_all(tokens, after, every=every)

    def _steps(self, tokens: Sequence[int], draws: Any) -> Scores:
        self._wait()
        self.n_steps += 1
        return super()._steps(tokens, draws)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Inside, whoever begins to work waits, and `entered` tells of it."""
        self.entered.clear()
        self.opened.clear()
        try:
            yield
        finally:
            self.opened.set()


@dataclasses.dataclass
class Running:
    """A server in a thread."""

    address: str
    models: Mapping[str, Served]
    server: Server

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """OpenAI's own, which does not try again."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=SECONDS, **options)

    def http(self, **options: Any) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.address, timeout=SECONDS, trust_env=False, **options)


Load = Callable[..., tuple[Path, Gate, Tokenizer]]


@contextlib.contextmanager
def serving(models: Mapping[str, tuple[Path, Decoder, Tokenizer]], **options: Any) -> Iterator[Running]:
    """A server of models that were loaded, until the end of the block."""
    settings = ServerOptions(**{"port": 0, **options})
    served = {
        name: Served.of(name, path, decoder, tokenizer, settings) for name, (path, decoder, tokenizer) in models.items()
    }
    listening = listen(settings)
    server = Server(make_app(served, settings), served, settings)
    thread = threading.Thread(target=run, args=(server, listening, served), daemon=True)
    thread.start()
    try:
        yield Running(address_of(listening), served, server)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()
