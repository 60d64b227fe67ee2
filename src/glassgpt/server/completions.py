"""`/v1/completions` and `/v1/chat/completions`: from a request to an answer, whole or as a stream."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from glassgpt.generation.decoder import ReadsAll
from glassgpt.generation.row import Row
from glassgpt.server import shapes
from glassgpt.server.engine import Piece
from glassgpt.server.errors import ApiError, JSONResponse
from glassgpt.server.schema import ChatRequest, CompletionRequest, Message, Sampled
from glassgpt.server.served import Served
from glassgpt.server.state import find_model, note, state_of
from glassgpt.server.stream import EventStream, Texts, cancelling, listening

router = APIRouter()

_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

_Envelope = Callable[[str, list[dict[str, Any]]], dict[str, Any]]

DEFAULT_TOKENS = 16
"""New tokens of a completion that says nothing of them, as OpenAI has it."""


@dataclasses.dataclass
class _Work:
    """A request that was checked."""

    served: Served
    body: Sampled
    prompts: list[list[int]]
    rows: list[Row]
    shape: shapes.CompletionShape | shapes.ChatShape
    echoes: Sequence[shapes.Echo]
    """What each text begins with."""
    prefix: str
    n: int

    @property
    def n_prompt(self) -> int:
        return sum(map(len, self.prompts))


@router.post("/v1/completions", responses=_STREAMED)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on with one text or several."""
    served = find_model(request, body.model)
    return await _answer(await asyncio.to_thread(_completion_work, served, body), request)


@router.post("/v1/chat/completions", responses=_STREAMED)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer the last message of a talk."""
    served = find_model(request, body.model)
    return await _answer(await asyncio.to_thread(_chat_work, served, body), request)


def _completion_work(served: Served, body: CompletionRequest) -> _Work:
    given = body.prompt if body.prompt is not None else ""
    several: list[Any] = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    n = body.n or 1
    served.check_number(len(several), n)
    prompts = [served.check(served.encode(p) if isinstance(p, str) else p) for p in several]
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens 0 without echo leaves nothing to answer", param="max_tokens")
    scored = bool(body.echo) and body.logprobs is not None
    if scored and not isinstance(served.engine.decoder, ReadsAll):
        raise ApiError(400, "echo with logprobs is not supported by this model's decoder", param="echo")
    asked = body.generation() | {"stop": body.stops(), "logprobs": body.logprobs}
    rows = served.rows(prompts, n, asked, body.max_tokens, DEFAULT_TOKENS, scored)
    shape = shapes.CompletionShape(served.tokenizer, body.logprobs is not None, bool(body.return_token_ids))
    echoed = [_text(served, p, ids) if body.echo else "" for p, ids in zip(several, prompts, strict=True)]
    echoes = [shapes.Echo(echoed[index // n], row) for index, row in enumerate(rows)]
    return _Work(served, body, prompts, rows, shape, echoes, "cmpl", n)


def _text(served: Served, given: Any, ids: list[int]) -> str:
    return given if isinstance(given, str) else served.tokenizer.decode(ids)


def _chat_work(served: Served, body: ChatRequest) -> _Work:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs true", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(400, "max_tokens and max_completion_tokens say the same: leave one out", param="max_tokens")
    n = body.n or 1
    served.check_number(1, n)
    prompt = served.check(served.encode_chat(plain(body.messages)), "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    asked = body.generation() | {"stop": (*body.stops(), *served.chat.stop), "logprobs": logprobs}
    rows = served.rows([prompt], n, asked, body.max_completion_tokens or body.max_tokens, served.context_length)
    shape = shapes.ChatShape(served.tokenizer, bool(body.logprobs), bool(body.return_token_ids))
    return _Work(served, body, [prompt], rows, shape, [shapes.Echo("", row) for row in rows], "chatcmpl", n)


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as chat templates take them."""
    return [{"role": message.role, "content": message.text()} for message in messages]


async def _answer(work: _Work, request: Request) -> Response:
    state = state_of(request)
    if state.options.log_prompts:
        note(request, prompts=[work.served.tokenizer.decode(ids) for ids in work.prompts], rows=work.rows)
    began = time.monotonic()
    texts = Texts(work.served.engine, work.rows, work.served.name, state.metrics)
    state.metrics.prompt_tokens.labels(work.served.name).inc(work.n_prompt)
    note(request, model=work.served.name, n_prompt=work.n_prompt, texts=texts)
    headers = {"x-glassgpt-chat": work.served.chat.kind} if work.prefix == "chatcmpl" else {}
    envelope = functools.partial(
        shapes.envelope, f"{work.prefix}-{secrets.token_hex(12)}", int(time.time()), work.served.name
    )
    seconds = state.options.request_seconds
    pieces = texts.pieces()
    if work.body.stream:
        try:
            first = await listening(anext(pieces), request.receive, seconds)
        except BaseException:
            texts.cancel()
            raise
        left = began + seconds - time.monotonic()
        return EventStream(_chunks(work, envelope, first, pieces, texts), texts, left, headers)
    with cancelling(texts):
        whole = await listening(_collect(pieces), request.receive, seconds)
    return JSONResponse(await asyncio.to_thread(_whole, work, envelope, whole, texts), headers=headers)


async def _collect(pieces: AsyncIterator[list[Piece]]) -> list[Piece]:
    found: dict[int, list[Piece]] = {}
    async for some in pieces:
        for piece in some:
            found.setdefault(piece.index, []).append(piece)
    return [shapes.joined(found[index]) for index in sorted(found)]


def _whole(work: _Work, envelope: _Envelope, whole: list[Piece], texts: Texts) -> dict[str, Any]:
    choices = []
    for piece in whole:
        choice = work.shape.whole(piece, work.echoes[piece.index])
        if work.body.return_token_ids:
            choice["prompt_token_ids"] = work.prompts[piece.index // work.n]
        choices.append(choice)
    answer = envelope(work.shape.kind, choices)
    answer["usage"] = shapes.usage(work.n_prompt, texts.n_tokens)
    if work.body.return_token_ids and len(work.prompts) == 1:
        answer["prompt_token_ids"] = work.prompts[0]
    return answer


async def _chunks(
    work: _Work, envelope: _Envelope, first: list[Piece], pieces: AsyncIterator[list[Piece]], texts: Texts
) -> AsyncIterator[dict[str, Any]]:
    options = work.body.stream_options
    wants_usage = options is not None and bool(options.include_usage)

    def chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
        found = envelope(work.shape.chunk_kind, choices)
        return found | {"usage": None} if wants_usage else found

    unopened = set(range(len(work.rows)))
    unsaid = set(range(len(work.rows))) if work.body.return_token_ids else set()

    def told(some: list[Piece]) -> list[dict[str, Any]]:
        found = []
        for piece in some:
            if piece.index in unopened:
                unopened.discard(piece.index)
                found += [chunk([choice]) for choice in work.shape.opening(piece.index, work.echoes[piece.index])]
            for choice in work.shape.chunks(piece):
                whole = chunk([choice])
                if piece.index in unsaid:  # with the first tokens of each text
                    unsaid.discard(piece.index)
                    choice["prompt_token_ids"] = work.prompts[piece.index // work.n]
                    if len(work.prompts) == 1:
                        whole["prompt_token_ids"] = work.prompts[0]
                found.append(whole)
        return found

    for found in await asyncio.to_thread(told, first):  # with a scored prompt it takes a moment
        yield found
    async for some in pieces:
        for found in await asyncio.to_thread(told, some) if unopened else told(some):
            yield found
    if wants_usage:
        yield chunk([]) | {"usage": shapes.usage(work.n_prompt, texts.n_tokens)}
