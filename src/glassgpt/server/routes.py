"""The other routes: models, tokens, health, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from glassgpt.server.completions import plain
from glassgpt.server.errors import ApiError, JSONResponse
from glassgpt.server.schema import DetokenizeRequest, TokenizeRequest
from glassgpt.server.served import Served
from glassgpt.server.state import find_model, state_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The models that are served."""
    found = [_about(served) for served in state_of(request).models.values()]
    return JSONResponse({"object": "list", "data": found})


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> Response:
    """One of them."""
    return JSONResponse(_about(find_model(request, name)))


def _about(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "glassgpt",
        "max_model_len": served.context_length,
    }


@router.api_route("/v1/embeddings", methods=["GET", "POST"], include_in_schema=False)
async def embeddings() -> Response:
    """Not here."""
    raise ApiError(
        404,
        "no embeddings: a GPT-2 is trained to predict the next token, and no vector of it was trained to stand for a "
        "text; use a model made for that",
        code="not_supported",
    )


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The tokens of a text, or of a talk as the model would read it."""
    served = find_model(request, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give a prompt or messages", param="prompt")
    if body.messages is not None:
        ids = await asyncio.to_thread(served.encode_chat, plain(body.messages))
    else:
        ids = await asyncio.to_thread(served.encode, body.prompt or "")
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": served.context_length, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = await asyncio.to_thread(lambda: [served.tokenizer.decode((i,)) for i in ids])
    return JSONResponse(answer)


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of tokens."""
    served = find_model(request, body.model)
    try:
        return JSONResponse({"prompt": await asyncio.to_thread(served.tokenizer.decode, body.tokens)})
    except ValueError as error:
        raise ApiError(400, str(error), param="tokens") from None


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether every model answers; what has failed, where one does not."""
    failed = {
        name: served.engine.error
        for name, served in state_of(request).models.items()
        if served.engine.error is not None
    }
    return JSONResponse({"status": "failed" if failed else "ok", "failed": sorted(failed)}, 503 if failed else 200)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(state_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
