"""Who may ask, how much and how often; each refusal has its status, in OpenAI's form."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running import SECONDS, Gate, Load, Running, serving

from glassgpt import Tokenizer
from glassgpt.server import guard
from glassgpt.server.errors import ApiError

ASK: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "max_tokens": 3}
Tiny = tuple[Path, Gate, Tokenizer]


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"} and found["message"]
    return found


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "[::2]:1", "127.0.0.1.nip.io"]
)
def test_a_name_that_was_made_to_point_here_is_refused(http: httpx.Client, host: str) -> None:
    for path in ("/health", "/v1/models", "/"):
        assert error(http.get(path, headers={"host": host}), 403)["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1234", "[::1]:80", "LOCALHOST:5"])
def test_this_machines_own_names_are_answered(http: httpx.Client, host: str) -> None:
    assert http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_pages_from_elsewhere_are_refused(http: httpx.Client, origin: str) -> None:
    headers = {"origin": origin}
    assert error(http.post("/v1/completions", json=ASK, headers=headers), 403)["code"] == "origin_not_allowed"
    preflight = http.options("/v1/completions", headers={**headers, "access-control-request-method": "POST"})
    assert preflight.status_code == 403 and "access-control-allow-origin" not in preflight.headers


def test_the_servers_own_page_may_ask(http: httpx.Client, two_models: Running) -> None:
    answer = http.get("/v1/models", headers={"origin": two_models.address})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_only_json_is_taken(http: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    refused = error(http.post("/v1/completions", content=json.dumps(ASK), headers=headers), 415)
    assert refused["message"] == "send JSON, with the header Content-Type: application/json"


def test_the_key_is_demanded_and_the_page_and_health_go_without(load_tiny: Load) -> None:
    with serving({"tiny": load_tiny()}, api_key=["secret", "second"], cors="https://a.example") as running:
        for key, status in (("secret", 200), ("second", 200), ("wrong", 401), ("secre", 401)):
            with running.client(key) as client:
                if status == 200:
                    assert client.completions.create(**ASK).choices
                else:
                    with pytest.raises(openai.AuthenticationError, match="wrong API key"):
                        client.completions.create(**ASK)
        with running.http() as http:
            assert error(http.get("/v1/models"), 401)["code"] == "invalid_api_key"
            assert error(http.get("/metrics"), 401)
            assert error(http.get("/v1/models", headers={"authorization": "Basic secret"}), 401)
            assert http.get("/health").status_code == 200
            assert error(http.get("/page/x"), 404)
            # who was asked for may ask, and reads errors, too
            headers = {"origin": "https://a.example"}
            answer = http.get("/v1/models", headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://a.example")
            asked = {**headers, "access-control-request-method": "POST"}
            asked["access-control-request-headers"] = (
                "authorization,content-type,x-stainless-os,x-stainless-retry-count"
            )
            assert http.options("/v1/completions", headers=asked).status_code == 200
            assert error(http.get("/v1/models", headers={"origin": "https://b.example"}), 403)


def test_guesses_of_a_key_are_limited(load_tiny: Load) -> None:
    options: dict[str, Any] = dict(api_key=["secret"], requests_per_minute=5)
    with serving({"tiny": load_tiny()}, **options) as running, running.http() as http:
        wrong = [http.get("/v1/models", headers={"authorization": f"Bearer {n}"}).status_code for n in range(8)]
        assert wrong == [401] * 5 + [429] * 3
        assert http.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_limits_of_size_time_rate_and_length(load_tiny: Load) -> None:
    limits: dict[str, Any] = dict(
        max_body=1024, request_seconds=0.3, max_tokens=20, max_prompt_tokens=30, max_n=4, requests_per_minute=30
    )
    tiny = load_tiny()
    with serving({"tiny": tiny}, **limits) as running, running.http() as http:
        for content in (b" " * 1025, iter([b" " * 600] * 2)):
            answer = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
            error(answer, 413)
        assert error(http.post("/v1/completions", json={**ASK, "max_tokens": 21}), 400)["param"] == "max_tokens"
        found = error(http.post("/v1/completions", json={**ASK, "prompt": "x" * 31}), 400)
        assert found["code"] == "context_length_exceeded"
        found = error(http.post("/v1/completions", json={**ASK, "prompt": ["a", "b"], "n": 3}), 400)
        assert found["param"] == "n"
        with tiny[1].closed():
            late = http.post("/v1/completions", json=ASK)
            assert error(late, 408)["code"] == "timeout"
            assert late.headers["x-should-retry"] == "false"  # OpenAI's client would have all of it written again
        while (answer := http.get("/health")).status_code == 200:
            pass
        assert error(answer, 429)["code"] == "rate_limit_exceeded"
        assert 1 <= int(answer.headers["retry-after"]) <= 3


def test_a_rate_fills_again_and_forgets_old_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(guard.time, "monotonic", lambda: now)
    monkeypatch.setattr(guard, "_CLIENTS", 3)
    rate = guard.Rate(60)
    for _ in range(60):
        rate.count("a")
    with pytest.raises(ApiError, match=r"^more than 60 requests in a minute: wait 1\.0 s$"):
        rate.count("a")
    rate.count("b")
    now += 1.0
    rate.count("a")
    with pytest.raises(ApiError):
        rate.count("a")
    for client in "cdef":
        rate.count(client)
    assert len(rate._left) == 3


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_has_a_line_for_each_request_and_no_prompt_unless_asked(
    load_tiny: Load, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    with (
        caplog.at_level(logging.INFO, "glassgpt.server.access"),
        serving({"tiny": load_tiny()}, log_prompts=log_prompts) as running,
        running.http() as http,
    ):
        http.post("/v1/completions", json={**ASK, "prompt": "my secret"})
        http.post("/v1/completions", json={**ASK, "prompt": "my secret", "colour": "my secret"})
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["path"], line["status"]) for line in lines] == [("/v1/completions", 200), ("/v1/completions", 400)]
    assert (lines[0]["model"], lines[0]["n_prompt"], lines[0]["n_new"]) == ("tiny", 9, 3)
    assert ("my secret" in caplog.text) == log_prompts
    if log_prompts:
        assert lines[0]["prompts"] == ["my secret"] and len(lines[0]["texts"][0]) == 3


def test_a_client_that_leaves_is_no_error(two_models: Running, caplog: pytest.LogCaptureFixture) -> None:
    engine = two_models.models["tiny"].engine
    decoder = engine.decoder
    assert isinstance(decoder, Gate)

    def statuses() -> list[int]:
        return [json.loads(r.message)["status"] for r in caplog.records if r.name.endswith("access")]

    with caplog.at_level(logging.INFO), decoder.closed():
        for stream in (False, True):
            with pytest.raises(httpx.ReadTimeout), two_models.http() as http:
                ask = {**ASK, "stream": stream, "max_tokens": 80, "ignore_eos": True, "logprobs": 0}
                http.post("/v1/completions", json=ask, timeout=0.3)
        end = time.monotonic() + SECONDS
        while statuses() != [499, 499]:
            assert time.monotonic() < end
            time.sleep(0.002)
        decoder.n_steps = 0
    with two_models.client() as client:
        assert client.completions.create(**ASK).choices
    assert engine.n_open == 0
    assert decoder.n_steps < 10  # nothing of the 80 tokens, each of which is a step
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
