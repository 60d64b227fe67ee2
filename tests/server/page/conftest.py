"""Models, a server and a browser for the tests of the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_server import Loaded, Watched, page_serving
from running import CONTEXT, Running

from glassgpt import GPTModel, Tokenizer, save_model

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session")
def bpe(tokenizers_by_kind: dict[str, Tokenizer]) -> Tokenizer:
    """300 tokens or so, of one letter to a word."""
    return tokenizers_by_kind["bpe"]


@pytest.fixture(scope="session")
def load_page_model(
    tiny_model: Callable[..., GPTModel], bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Loaded]:
    """Makes a model directory and gives it."""

    def load(seed: int) -> Loaded:
        model = tiny_model(seed, vocab_size=bpe.n_vocab, context_length=CONTEXT, emb_dim=24, n_heads=3, n_layers=2)
        path = tmp_path_factory.mktemp("page") / "model"
        save_model(model, bpe, path)
        return path, model, bpe

    return load


@pytest.fixture(scope="session")
def page_models(load_page_model: Callable[[int], Loaded]) -> dict[str, Loaded]:
    """Two of them."""
    return {"first": load_page_model(0), "second": load_page_model(1)}


@pytest.fixture(scope="module")
def two_models(page_models: dict[str, Loaded]) -> Iterator[Running]:
    """A server of both."""
    with page_serving(page_models) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, with a profile of its own."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    found = os.environ.get("GLASSGPT_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install chromium, or name one in GLASSGPT_CHROMIUM")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def watched(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Opens pages: `watched(**options)`. At the end none has said a word on its console, or asked another host."""
    opened: list[Watched] = []

    def make(**options: Any) -> Watched:
        opened.append(Watched(browser, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.context.close()
    for one in opened:
        assert one.said == []
        assert [url for url in one.requests if not url.startswith(("http://127.0.0.1:", "file:"))] == []
