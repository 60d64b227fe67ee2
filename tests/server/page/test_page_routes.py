"""What the page asks beside OpenAI's interface."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from page_server import Loaded, page_serving
from running import CONTEXT, Running

from glassgpt.explain import attention_maps
from glassgpt.generation.options import Sampling
from glassgpt.generation.sampling import candidates
from glassgpt.server.page.inspections import Inspections
from glassgpt.server.page.routes import _MOST_WAITING

TEXT = "To be, or not to be"


@pytest.fixture
def http(two_models: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=two_models.address, timeout=60, trust_env=False) as client:
        yield client


def inspect(http: httpx.Client, **body: Any) -> Any:
    answer = http.post("/inspect", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_page_is_there_with_a_strict_policy(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "unsafe" not in page.headers["content-security-policy"]
    script = http.get("/page/page.js")
    assert script.status_code == 200 and script.headers["content-type"].startswith("text/javascript")
    for name in ("nothing.js", "..%2f__init__.py", "%2e%2e/routes.py"):
        assert http.get(f"/page/{name}").status_code == 404


def test_a_place_is_the_models(http: httpx.Client, page_models: dict[str, Loaded]) -> None:
    _, model, tokenizer = page_models["second"]
    ids = tokenizer.encode(TEXT)
    options = {"temperature": 0.7, "top_p": 0.8}
    told = inspect(http, model="second", prompt=ids, position=5, candidates=400, **options)
    with torch.no_grad():
        scores = model(torch.tensor([ids]))[0, 4, : tokenizer.n_vocab]
    softmax = torch.softmax(scores.double(), dim=0)
    assert (told["model"], told["position"], told["token"]) == ("second", 5, ids[5])
    assert len(told["candidates"]) == tokenizer.n_vocab and told["rest"] == []
    assert [c["probability"] for c in told["candidates"]] == pytest.approx(
        softmax[[c["id"] for c in told["candidates"]]].tolist(), rel=1e-4
    )
    kept, probabilities = candidates(Sampling(**options), scores.numpy())
    found = {c["id"]: c["final"] for c in told["candidates"] if c["removed_by"] is None}
    assert found == pytest.approx(dict(zip(kept.tolist(), probabilities.tolist(), strict=True)), rel=1e-4)
    rows = np.array(told["attention"])
    np.testing.assert_allclose(rows, attention_maps(model, ids[:5])[:, :, -1].numpy(), atol=2e-6)
    np.testing.assert_allclose(rows.sum(axis=-1), 1, atol=1e-4)


def test_a_text_may_stand_for_its_ids_and_the_end_is_the_default(
    http: httpx.Client, page_models: dict[str, Loaded]
) -> None:
    ids = page_models["first"][2].encode(TEXT)
    told = inspect(http, prompt=TEXT)
    assert told == inspect(http, model="first", prompt=ids, position=len(ids))
    assert told["token"] is None


def test_the_seed_and_the_penalties_of_what_was_drawn(http: httpx.Client, page_models: dict[str, Loaded]) -> None:
    ids = page_models["first"][2].encode(TEXT)
    body = {"prompt": ids, "max_tokens": 6, "seed": 11, "frequency_penalty": 2.0, "temperature": 1.5}
    written = http.post(
        "/v1/completions", json={"model": "first", **body, "return_token_ids": True, "ignore_eos": True}
    )
    new = written.json()["choices"][0]["token_ids"]
    del body["max_tokens"]
    for n, token in enumerate(new):
        body["prompt"] = [*ids, *new[:n]]
        assert inspect(http, model="first", **body, n_drawn=n)["drawn"] == token


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": [1] * (CONTEXT + 1)}, 400, "prompt"),
        ({"prompt": "x" * 10_000}, 400, "prompt"),
        ({"prompt": [299, 99_999]}, 400, "prompt"),
        ({"prompt": [1, 2], "position": 0}, 400, "position"),
        ({"prompt": [1, 2], "position": 3}, 400, "position"),
        ({"prompt": [1, 2], "top_p": 2}, 400, "top_p"),
        ({"prompt": [1, 2], "nonsense": 2}, 400, "nonsense"),
        ({"prompt": [1.5]}, 400, "prompt"),
        ({"model": "none", "prompt": [1]}, 404, "model"),
        ({}, 400, "prompt"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_form_of_errors(
    http: httpx.Client, body: dict[str, Any], status: int, param: str
) -> None:
    answer = http.post("/inspect", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_it_goes_on_one_at_a_time_beside_everything_else(
    page_models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, begun, at_once, most = threading.Event(), threading.Event(), [0], [0]
    real = Inspections.inspect

    def slow(self: Inspections, *asked: Any) -> Any:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        begun.set()
        assert gate.wait(60)
        at_once[0] -= 1
        return real(self, *asked)

    monkeypatch.setattr(Inspections, "inspect", slow)
    answers: list[httpx.Response] = []
    with (
        page_serving(page_models) as running,
        httpx.Client(base_url=running.address, timeout=60, trust_env=False) as http,
    ):

        def ask() -> None:
            answers.append(http.post("/inspect", json={"prompt": TEXT}))
            finished.release()

        finished = threading.Semaphore(0)
        threads = [threading.Thread(target=ask) for _ in range(_MOST_WAITING + 2)]
        for thread in threads:
            thread.start()
        assert begun.wait(60)
        assert finished.acquire(timeout=60) and finished.acquire(timeout=60)  # the two that are too many
        assert [answer.status_code for answer in answers] == [429, 429]
        assert http.get("/health").status_code == 200
        gate.set()
        for thread in threads:
            thread.join(60)
    assert [answer.status_code for answer in answers[2:]] == [200] * _MOST_WAITING
    assert most == [1]


def test_a_model_that_is_no_run_has_none(http: httpx.Client) -> None:
    assert http.get("/runs/first").json() == {"run": None}
    assert http.get("/runs/none").status_code == 404


def test_a_key_is_wanted_for_all_but_the_page(page_models: dict[str, Loaded]) -> None:
    with (
        page_serving(page_models, api_key="secret") as running,
        httpx.Client(base_url=running.address, timeout=60, trust_env=False) as http,
    ):
        assert http.get("/").status_code == http.get("/page/page.css").status_code == 200
        assert http.get("/runs/first").status_code == 401
        assert http.post("/inspect", json={"prompt": TEXT}).status_code == 401
