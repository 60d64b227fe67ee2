"""The server as OpenAI's own client sees it, over a real connection."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from running import CONTEXT, SECONDS, Load, Running, serving

from glassgpt import GPTModel, Tokenizer, complete, save_model
from glassgpt.generation.cpu.load import load_decoder
from glassgpt.generation.options import Generation
from glassgpt.generation.row import Row
from glassgpt.generation.sampling import TokenLogprobs
from glassgpt.server.engine import Ask, _piece, _Running
from glassgpt.server.shapes import CompletionShape, Echo

PROMPT = "To be, or not"
ASK: dict[str, Any] = dict(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0)


def text_of(two_models: Running, prompt: str = PROMPT, model: str = "tiny", **options: Any) -> str:
    """The oracle: what the library itself writes, through the readable model."""
    from glassgpt import load_model

    readable, tokenizer = load_model(two_models.models[model].path)
    return complete(readable, tokenizer, prompt, **{"max_new_tokens": 20, "temperature": 0, **options}).text


def test_the_server_loads_no_torch_before_it_needs_it() -> None:
    code = "import sys, glassgpt.server.app, glassgpt.server.probe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


# ---- completions ----------------------------------------


def test_a_completion_is_the_librarys(two_models: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(**ASK)
    (choice,) = answer.choices
    assert choice.text == text_of(two_models)
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("length", 0, None)
    assert (answer.object, answer.model) == ("text_completion", "tiny")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (13, 20, 33)


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    whole = client.completions.create(**ASK).choices[0].text
    with client.completions.create(**ASK, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_seeds_and_n(two_models: Running, client: openai.OpenAI, stream: bool) -> None:
    """The same seed gives the same texts, and the choices of one prompt have the seeds that follow."""
    options = ASK | {"temperature": 1.5, "seed": 7, "n": 3, "prompt": [PROMPT, "Now"], "stream": stream}
    options["extra_body"] = {"ignore_eos": True}
    texts: dict[int, str] = {}
    answer = client.completions.create(**options)
    for part in answer if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    given: dict[str, Any] = {"temperature": 1.5, "ignore_eot": True}
    wanted = [text_of(two_models, p, seed=7 + j, **given) for p in (PROMPT, "Now") for j in range(3)]
    assert [texts[index] for index in range(6)] == wanted
    assert len(set(wanted)) == 6


def test_several_models_by_name(two_models: Running, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "other"]
    assert client.models.retrieve("other").id == "other"
    texts = [client.completions.create(**{**ASK, "model": name}).choices[0].text for name in ("tiny", "other")]
    assert texts == [text_of(two_models, model=name) for name in ("tiny", "other")]
    assert texts[0] != texts[1]


def test_prompts_as_tokens(client: openai.OpenAI, two_models: Running) -> None:
    ids = two_models.models["tiny"].tokenizer.encode(PROMPT)
    (alone,) = client.completions.create(**ASK).choices
    for prompt in (ids, [ids], [PROMPT]):
        assert client.completions.create(**{**ASK, "prompt": prompt}).choices[0].text == alone.text
    both = client.completions.create(**{**ASK, "prompt": [ids, ids]}).choices
    assert [choice.text for choice in both] == [alone.text] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_stop_and_echo(client: openai.OpenAI, stream: bool) -> None:
    whole = client.completions.create(**ASK).choices[0].text
    stop = whole[6:9]
    answer = client.completions.create(**ASK, stop=[stop, "\x00never"], echo=True, logprobs=None, stream=stream)
    parts = list(answer) if stream else [answer]
    assert "".join(part.choices[0].text for part in parts) == PROMPT + whole[: whole.index(stop)]
    assert parts[-1].choices[0].finish_reason == "stop"


def test_logprobs_of_a_completion(two_models: Running, client: openai.OpenAI) -> None:
    """Of the model's own distribution, whatever was asked of the draw, and a token's text at its place."""
    served = two_models.models["tiny"]
    more = {"top_k": 5, "return_token_ids": True, "ignore_eos": True}
    (choice,) = client.completions.create(**ASK | {"temperature": 2.0}, seed=1, logprobs=3, extra_body=more).choices
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert choice.logprobs.text_offset == list(range(20))
    ids = choice.model_extra["token_ids"]  # type: ignore[index]
    prompt = served.tokenizer.encode(PROMPT)
    scores = served.engine.decoder.read(prompt).scores[: served.tokenizer.n_vocab].astype(np.float64)
    wanted = scores - np.log(np.exp(scores).sum())
    assert choice.logprobs.token_logprobs is not None and choice.logprobs.top_logprobs is not None
    assert choice.logprobs.token_logprobs[0] == pytest.approx(wanted[ids[0]], abs=1e-6)
    best = np.argsort(-scores, kind="stable")[:3]
    assert choice.logprobs.top_logprobs[0] == pytest.approx(
        {served.tokenizer.decode([i]): wanted[i] for i in best.tolist()}, abs=1e-6
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_logprobs_of_a_prompt(two_models: Running, client: openai.OpenAI, stream: bool, max_tokens: int) -> None:
    """What evaluations ask for: each token's own, the best ones beside it, and nothing for the first."""
    served = two_models.models["tiny"]
    prompts = [PROMPT, "once " * 15]
    ask = {**ASK, "prompt": prompts, "max_tokens": max_tokens, "n": 2, "seed": 1}
    answer = client.completions.create(**ask, echo=True, logprobs=2, stream=stream, extra_body={"ignore_eos": True})
    parts = [choice for part in (answer if stream else [answer]) for choice in part.choices]
    for index in range(4):
        own = [choice for choice in parts if choice.index == index]
        prompt, text = prompts[index // 2], "".join(choice.text for choice in own)
        assert text.startswith(prompt) and len(text) == len(prompt) + max_tokens
        assert own[-1].finish_reason == "length"
        joined = {
            name: [value for choice in own for value in getattr(choice.logprobs, name)]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        assert "".join(joined["tokens"]) == text and joined["text_offset"] == list(range(len(text)))
        assert (joined["token_logprobs"][0], joined["top_logprobs"][0]) == (None, None)
        ids = served.tokenizer.encode(text)
        (_, scores), *more = served.engine.decoder.scores_of(ids)  # type: ignore[attr-defined]
        scores = np.concatenate([scores, *(rest for _, rest in more)])[:, : served.tokenizer.n_vocab]
        wanted = scores - np.log(np.exp(scores.astype(np.float64)).sum(axis=1, keepdims=True))
        assert joined["token_logprobs"][1:] == pytest.approx(
            [wanted[place, token] for place, token in enumerate(ids[1:])], abs=1e-5
        )
        assert all(len(best) == 2 for best in joined["top_logprobs"][1:])
    if not stream:
        assert answer.usage.completion_tokens == 4 * max_tokens


def test_an_end_of_text_after_a_scored_prompt_has_its_entry(two_models: Running, client: openai.OpenAI) -> None:
    """Who evaluates asks for one token more than is scored, and leaves the last entry out."""
    tokenizer = two_models.models["tiny"].tokenizer
    ask = {**ASK, "max_tokens": 4, "logit_bias": {str(tokenizer.eot_id): 100}, "logprobs": 1}
    for stream in (False, True):
        for prompt in (PROMPT, ""):
            answer = client.completions.create(**{**ask, "prompt": prompt}, echo=True, stream=stream)
            parts = [choice for part in (answer if stream else [answer]) for choice in part.choices]
            found = [token for choice in parts for token in choice.logprobs.tokens]
            places = [place for choice in parts for place in choice.logprobs.text_offset]
            assert found == ([*prompt] or ["<|endoftext|>"]) + ["<|endoftext|>"]
            assert places[-1] == len(prompt)
            assert parts[-1].finish_reason == "stop"
        plain = client.completions.create(**ask, stream=stream)
        parts = [choice for part in (plain if stream else [plain]) for choice in part.choices]
        assert [token for choice in parts for token in choice.logprobs.tokens] == []


def test_a_place_in_the_text_counts_characters_not_tokens() -> None:
    tokenizer = Tokenizer.bytes_()
    ids = tokenizer.encode("a\u00e9\u20acb")
    generation = Generation(max_new_tokens=len(ids), ignore_eot=True, logprobs=0)
    row = Row(ids, tokenizer, generation, scored=True)
    scores = np.zeros((len(ids), tokenizer.n_vocab), np.float32)
    row.read(scores)
    shape = CompletionShape(tokenizer, wants_logprobs=True, wants_ids=False)
    (choice,) = shape.opening(0, Echo("a\u00e9\u20acb", row))
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2, 2, 2, 3]
    pieces = []
    running = _Running(Ask([row], lambda _: None, 0.0), 0)
    for token in ids:
        row.logprobs.append(TokenLogprobs(token, 0.0, []))
        pieces.append(_piece(running, row, row.accept(token)))
    starts = [start for piece in pieces for start in piece.starts]
    assert starts == [0, 1, 1, 2, 2, 2, 3]
    places = [place for piece in pieces for place in shape.chunks(piece)[0]["logprobs"]["text_offset"]]
    assert places == [4 + start for start in starts]


def test_penalties_and_biases(client: openai.OpenAI, two_models: Running) -> None:
    tokenizer = two_models.models["tiny"].tokenizer
    (only,) = tokenizer.encode("z")
    biased = client.completions.create(**ASK, logit_bias={str(only): 100})
    assert biased.choices[0].text == "z" * 20
    again = client.completions.create(**ASK, logit_bias={str(only): 30}, frequency_penalty=2.0)
    assert 1 <= again.choices[0].text.count("z") < 20
    for penalty in ({"presence_penalty": 1.5}, {"frequency_penalty": 0.7}):
        wanted = text_of(two_models, **penalty)
        assert client.completions.create(**ASK, **penalty).choices[0].text == wanted


def test_the_edge_of_the_context(client: openai.OpenAI) -> None:
    prompt = "a" * (CONTEXT - 5)
    (choice,) = client.completions.create(model="tiny", prompt=prompt, max_tokens=50).choices
    assert len(choice.text) <= 5 and choice.finish_reason in ("length", "stop")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a" * CONTEXT)
    assert caught.value.code == "context_length_exceeded"


# ---- chat ----------------------------------------


def test_chat_is_a_transcript_where_there_is_no_template(two_models: Running, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=messages, max_completion_tokens=12, temperature=0
    )
    assert raw.headers["x-glassgpt-chat"] == "transcript"
    (choice,) = raw.parse().choices
    wanted = text_of(two_models, "Be brief.\nYou: Hi\nGPT:", max_new_tokens=12, stop="\nYou:")
    assert (choice.message.role, choice.message.content) == ("assistant", wanted)
    with client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=12, temperature=0, stream=True
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    assert chunks[-1].choices[0].finish_reason == "length"


def test_chat_goes_on_to_the_context_and_a_next_turn_takes_its_answer(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, seed=3, extra_body={"ignore_eos": True})
    assert answer.usage is not None and answer.usage.total_tokens == CONTEXT
    assert answer.choices[0].finish_reason == "length"
    short = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5)
    messages += [short.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
    client.chat.completions.create(model="tiny", messages=messages, max_tokens=5)


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = dict(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=8, logprobs=True, top_logprobs=2, seed=1
    )
    (choice,) = client.chat.completions.create(**ask).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    assert all(len(entry.top_logprobs) == 2 and entry.logprob < 0 for entry in choice.logprobs.content)
    assert [bytes(entry.bytes or []).decode() for entry in choice.logprobs.content] == [
        entry.token for entry in choice.logprobs.content
    ]
    streamed = []
    for chunk in client.chat.completions.create(**ask, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == choice.logprobs.content


# ---- errors, as the client's own exceptions ----------------------------------------


@pytest.mark.parametrize(
    ("kind", "change", "param"),
    [
        (openai.NotFoundError, {"model": "tinny"}, "model"),
        (openai.BadRequestError, {"temperature": -1}, "temperature"),
        (openai.BadRequestError, {"max_tokens": 0}, "max_tokens"),
        (openai.BadRequestError, {"n": 33}, "n"),
        (openai.BadRequestError, {"logit_bias": {"99": 1}}, "logit_bias"),
        (openai.BadRequestError, {"prompt": [500]}, "prompt"),
        (openai.BadRequestError, {"prompt": "caf\u00e9"}, "prompt"),
        (openai.BadRequestError, {"suffix": "x"}, "suffix"),
        (openai.BadRequestError, {"best_of": 3}, "best_of"),
        (openai.BadRequestError, {"extra_body": {"repetition_penalty": 1e-37}}, "repetition_penalty"),
        (openai.BadRequestError, {"extra_body": {"topk": 3}}, "topk"),
    ],
)
def test_errors_are_the_clients_exceptions(
    client: openai.OpenAI, kind: type[openai.APIStatusError], change: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        with pytest.raises(kind) as caught:
            client.completions.create(**{**ASK, **change}, stream=stream)
        assert caught.value.param == param and caught.value.body["message"]  # type: ignore[index]


def test_a_padded_models_spare_ids_are_no_tokens(
    tiny_model: Callable[..., GPTModel], letters: Tokenizer, tmp_path: Path
) -> None:
    """As nanoGPT pads GPT-2's vocabulary: they have a score, and no text."""
    model = tiny_model(vocab_size=letters.n_vocab + 5, context_length=CONTEXT)
    save_model(model, letters, tmp_path / "padded")
    decoder, tokenizer = load_decoder(tmp_path / "padded", threads=1)
    models = {"tiny": (tmp_path / "padded", decoder, tokenizer)}
    with serving(models, log_prompts=True) as running, running.client() as client:
        for echo in (False, True):
            with pytest.raises(openai.BadRequestError, match=f"token id {letters.n_vocab} is outside the tokenizer's"):
                client.completions.create(**{**ASK, "prompt": [1, letters.n_vocab]}, echo=echo)
        assert client.completions.create(**ASK).usage.prompt_tokens == len(PROMPT)  # type: ignore[union-attr]
        assert running.models["tiny"].engine.n_open == 0


def test_messages_are_called_so_where_they_do_not_fit(client: openai.OpenAI, http: httpx.Client) -> None:
    for n in (CONTEXT, 1000 * CONTEXT):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * n}])
        assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")
    answer = http.post("/tokenize", json={"prompt": ["a"]}).json()["error"]
    assert answer["param"] == "prompt" and "list of texts" not in answer["message"]


def test_there_are_no_embeddings_and_the_server_says_why(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="trained to predict the next token"):
        client.embeddings.create(model="tiny", input="x")


def test_unknown_paths_and_methods_have_the_same_form(http: httpx.Client) -> None:
    for method, path, status in (("GET", "/v2", 404), ("GET", "/v1/completions", 405), ("GET", "/docs", 404)):
        answer = http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


# ---- many at once ----------------------------------------


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.2, "seed": 5, "top_p": 0.9}])
def test_a_request_alone_and_among_seven_others_is_the_same(client: openai.OpenAI, options: dict[str, Any]) -> None:
    asks = [{**ASK, **options, "prompt": PROMPT[: 2 + n] + "x" * n, "max_tokens": 30 + n} for n in range(8)]
    alone = [client.completions.create(**ask).choices[0].text for ask in asks]
    together = threading.Barrier(len(asks))

    def ask_with_others(ask: dict[str, Any]) -> str:
        together.wait(SECONDS)
        return client.completions.create(**ask).choices[0].text

    with ThreadPoolExecutor(len(asks)) as pool:
        assert list(pool.map(ask_with_others, asks)) == alone


def test_a_full_queue_is_a_rate_limit_error(load_tiny: Load) -> None:
    tiny = load_tiny()
    with serving({"tiny": tiny}, max_rows=1, max_queue=1, max_n=2) as running, running.client() as client:
        with tiny[1].closed(), ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(client.completions.create, **ASK, n=2)
            assert tiny[1].entered.wait(SECONDS)
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(**ASK)
            assert caught.value.code == "queue_full" and caught.value.response.headers["retry-after"] == "1"
            tiny[1].opened.set()
            assert len(waiting.result(SECONDS).choices) == 2
        assert client.completions.create(**ASK).choices


def test_an_engine_that_fails_says_so_and_goes_on(load_tiny: Load) -> None:
    tiny = load_tiny()
    with serving({"tiny": tiny}) as running, running.client() as client, running.http() as http:
        text = client.completions.create(**ASK).choices[0].text
        for _ in range(2):
            tiny[1].failing = RuntimeError("the machine is on fire")
            with pytest.raises(openai.InternalServerError, match="the model failed") as caught:
                client.completions.create(**ASK)
            assert caught.value.status_code == 500 and caught.value.code == "engine_failed"
            tiny[1].failing = None
            assert http.get("/health").status_code == 200
            assert client.completions.create(**ASK).choices[0].text == text
        tiny[1].failing = RuntimeError("the machine is on fire")
        for status in (500, 500, 500, 503):
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(**ASK)
            assert caught.value.status_code == status
        assert http.get("/health").status_code == 503


def test_a_stop_ends_live_streams_in_order(load_tiny: Load) -> None:
    """What cannot end in time hears of it as an event of its stream."""
    tiny = load_tiny()
    events, stopping = [], threading.Event()
    with serving({"tiny": tiny}, stop_seconds=0.0) as running, running.http() as http:
        engine = running.models["tiny"].engine
        close = engine.close
        engine.close = lambda *seconds: (stopping.set(), close(*seconds))  # type: ignore[method-assign]
        ask = {**ASK, "max_tokens": 80, "stream": True, "ignore_eos": True, "logprobs": 0}
        tiny[1].closing_in = 3
        with http.stream("POST", "/v1/completions", json=ask) as answer:
            lines = answer.iter_lines()
            events.append(next(lines))
            running.server.should_exit = True
            assert stopping.wait(SECONDS)
            tiny[1].opened.set()
            events += [line for line in lines if line]
    assert '"code":"unavailable"' in events[-1] and "[DONE]" not in events[-1]


# ---- tokens ----------------------------------------


def test_text_to_tokens_and_back(http: httpx.Client) -> None:
    found = http.post("/tokenize", json={"prompt": PROMPT, "return_token_strs": True}).json()
    assert found["count"] == len(PROMPT) and "".join(found["token_strs"]) == PROMPT
    back = http.post("/detokenize", json={"tokens": found["tokens"], "model": "tiny"}).json()
    assert back == {"prompt": PROMPT}
    assert http.post("/detokenize", json={"tokens": [5000]}).status_code == 400
    assert http.post("/tokenize", json={}).status_code == 400
    talk = http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]}).json()
    assert talk["count"] == len("You: Hi\nGPT:")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_token_ids_beside_texts(http: httpx.Client, two_models: Running, stream: bool, chat: bool) -> None:
    """vLLM's field: what the page at / draws its tokens from."""
    tokenizer = two_models.models["tiny"].tokenizer
    ask = {**ASK, "return_token_ids": True, "stream": stream, "ignore_eos": True}
    path, prompt = "/v1/completions", PROMPT
    if chat:
        del ask["prompt"]
        ask["messages"], path = [{"role": "user", "content": "Hi"}], "/v1/chat/completions"
        prompt = "You: Hi\nGPT:"
    answer = http.post(path, json=ask)
    if stream:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in answer.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        parts = [json.loads(line) for line in lines]
    else:
        parts = [answer.json()]
    assert [part["prompt_token_ids"] for part in parts if "prompt_token_ids" in part] == [tokenizer.encode(prompt)]
    ids = [i for part in parts for i in part["choices"][0]["token_ids"]]
    text = "".join(
        part["choices"][0].get("text") or part["choices"][0].get("delta", {}).get("content")
        or part["choices"][0].get("message", {}).get("content") or "" for part in parts
    )  # fmt: skip
    assert len(ids) == 20 and tokenizer.decode(ids) == text


def test_metrics_count(http: httpx.Client, client: openai.OpenAI) -> None:
    client.completions.create(**ASK)
    text = http.get("/metrics").text
    assert 'glassgpt_requests_total{route="/v1/completions",status="200"}' in text
    assert 'glassgpt_live_rows{model="tiny"} 0.0' in text
    assert "glassgpt_time_to_first_token_seconds_bucket" in text


def test_the_document_describes_the_routes(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/health"} <= document["paths"].keys()
    for path in document["paths"].values():
        for operation in path.values():
            assert "4XX" in operation["responses"] and "422" not in operation["responses"]
