"""What is counted for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from glassgpt.server.served import Served

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "glassgpt_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "glassgpt_prompt_tokens", "Tokens of prompts that were taken in.", ["model"], registry=registry
        )
        self.new_tokens = Counter("glassgpt_new_tokens", "Tokens that were written.", ["model"], registry=registry)
        self.first_token = Histogram(
            "glassgpt_time_to_first_token_seconds",
            "From a request to the first token of its answer.",
            ["model"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.next_token = Histogram(
            "glassgpt_time_between_tokens_seconds",
            "From one token of a text to the next.",
            ["model"],
            registry=registry,
            buckets=_SECONDS,
        )
        opened = Gauge("glassgpt_texts", "Texts that wait, are read or are written.", ["model"], registry=registry)
        live = Gauge("glassgpt_live_rows", "Texts that are read or written.", ["model"], registry=registry)
        for name, model in models.items():
            opened.labels(name).set_function(lambda engine=model.engine: engine.n_open)  # type: ignore[misc]
            live.labels(name).set_function(lambda engine=model.engine: engine.n_live)  # type: ignore[misc]

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
