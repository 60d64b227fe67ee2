"""The application: routes behind their guard; and running it until it is told to stop."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import socket
from collections.abc import Mapping

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from glassgpt.server import completions, routes
from glassgpt.server.connections import limited_protocol
from glassgpt.server.errors import ApiError, error_response
from glassgpt.server.guard import Guard
from glassgpt.server.metrics import Metrics
from glassgpt.server.page import routes as page
from glassgpt.server.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ErrorBody,
    TokenizeRequest,
    describe,
)
from glassgpt.server.served import Served
from glassgpt.server.settings import ServerOptions
from glassgpt.server.state import ServerState
from glassgpt.server.stream import ClientGoneError

_log = logging.getLogger(__name__)

ROUTERS: tuple[APIRouter, ...] = (completions.router, routes.router, page.router)
_BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/inspect": page.InspectRequest,
}


def make_app(models: Mapping[str, Served], options: ServerOptions) -> ASGIApp:
    """The application for some models by name, in the order in which they are listed."""
    metrics = Metrics(models)
    # the pages with the documentation load scripts from elsewhere
    api = FastAPI(
        title="glassgpt",
        version=importlib.metadata.version("glassgpt"),
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    api.state.server = ServerState(models, options, metrics)
    for router in ROUTERS:
        api.include_router(router)
    api.add_exception_handler(ApiError, _told)
    api.add_exception_handler(ClientGoneError, _gone)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(Exception, _failed)
    app: ASGIApp = Guard(api, options, metrics, list(api.openapi()["paths"]))
    if options.cors:
        app = CORSMiddleware(
            app,
            allow_origins=options.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's own client in a browser sends some
            expose_headers=["retry-after", "x-should-retry", "x-glassgpt-chat"],
        )
    return app


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _gone(_: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it but the log


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"no such path: {request.url.path[:200]}",
        405: f"{request.url.path[:200]} does not take {request.method[:20]}",
        400: "the body cannot be read as JSON",
    }
    message = messages.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=error.headers))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message, param = describe(error.errors(), _BODIES.get(request.url.path))
    return error_response(ApiError(400, message, param=param))


async def _failed(_: Request, error: Exception) -> Response:
    _log.error("a request failed: %r", error)
    return error_response(ApiError(500, "the server failed at this request; its log says more"))


class Server(uvicorn.Server):
    """Uvicorn's, which gives live answers `stop_seconds` to end and then ends them in order."""

    def __init__(self, app: ASGIApp, models: Mapping[str, Served], options: ServerOptions) -> None:
        config = uvicorn.Config(
            app,
            http=limited_protocol(options.max_connections, options.receive_seconds),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=int(options.stop_seconds) + 3,
        )
        super().__init__(config)
        self._models, self._stop_seconds = models, options.stop_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See Uvicorn."""
        ending = asyncio.create_task(self._end_texts())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    async def _end_texts(self) -> None:
        await asyncio.sleep(self._stop_seconds)
        await asyncio.gather(*(asyncio.to_thread(served.engine.close) for served in self._models.values()))


def listen(options: ServerOptions) -> socket.socket:
    """The socket of a server; `OSError` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio sends small pieces at once only where the protocol is named: without it they wait 40 ms for each other
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen at {options.host} port {options.port}: {error.strerror}") from None
    return listening


def address_of(listening: socket.socket) -> str:
    """What a client on this machine types."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(server: Server, listening: socket.socket, models: Mapping[str, Served]) -> None:
    """Serve until a signal, or `server.should_exit`, says to stop; then nothing of the models is left running."""
    try:
        server.run(sockets=[listening])
    finally:
        for served in models.values():
            served.close()
