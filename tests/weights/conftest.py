"""What the tests of downloads stand on: an environment without settings, and a server on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hostile_server import HostileServer


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, certificate, mirror or offline mode set."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(("HF_", "GLASSGPT_", "SSL_CERT_", "TRANSFORMERS_")):
            monkeypatch.delenv(name)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    """Healthy until it is told to misbehave."""
    with HostileServer() as server:
        yield server
