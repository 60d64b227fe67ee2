"""The page at `/`, its files below `/page/`, and what it asks beside OpenAI's interface: `/inspect` and `/runs/`."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from glassgpt.generation.options import Generation
from glassgpt.server.errors import ApiError, JSONResponse
from glassgpt.server.page.document import INDEX, KINDS, page_files
from glassgpt.server.page.inspections import Inspections
from glassgpt.server.schema import Ids, SamplingFields
from glassgpt.server.state import find_model, state_of
from glassgpt.server.stream import listening

router = APIRouter()

_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
_MOST_WAITING, _MOST_CANDIDATES = 8, 1000


class InspectRequest(SamplingFields):
    """What could have come at one place of a text, and where the model looked."""

    model: str | None = None
    prompt: str | Ids
    position: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of the token in question, from 1, as nothing comes before the first; by default the end"
    )
    candidates: Annotated[int, Field(ge=1, le=_MOST_CANDIDATES)] = 50
    n_drawn: Annotated[int, Field(ge=0, le=2**20)] = Field(
        0, description="how many of the tokens before it were drawn with the seed"
    )


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The page."""
    return await page_file(INDEX)


@router.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """One of its files."""
    files = _files()
    if name not in files:
        raise ApiError(404, f"no file {name[:100]!r} of the page")
    return Response(files[name], media_type=KINDS[name.rpartition(".")[2]], headers=_HEADERS)


@functools.cache
def _files() -> dict[str, bytes]:
    return page_files()


@router.get("/runs/{name:path}")
async def run(name: str, request: Request) -> Response:
    """The training run of a model, as it stands now: `{"run": ...}`, null for a model that is none."""
    served = find_model(request, name)
    return JSONResponse({"run": await asyncio.to_thread(_run_view, served.path)})


def _run_view(path: Path) -> dict[str, Any] | None:
    from glassgpt.server.page.run_view import run_view  # loads PyTorch: not before somebody looks

    return run_view(path)


@router.post("/inspect")
async def inspect(body: InspectRequest, request: Request) -> Response:
    """The candidates, the filters and the attention at one place of a text, by the readable model in float32."""
    served = find_model(request, body.model)
    ids = await asyncio.to_thread(served.encode, body.prompt) if isinstance(body.prompt, str) else body.prompt
    generation = Generation.from_dict(body.generation())
    work = _turns(request).take(served.name, ids, body.position, generation, body.candidates, body.n_drawn)
    seconds = state_of(request).options.request_seconds
    return JSONResponse(await listening(work, request.receive, seconds))


class _Turns:
    """Inspections one after the other, off the event loop; who comes when too many wait is refused."""

    def __init__(self, inspections: Inspections) -> None:
        self._inspections, self._lock, self._n_waiting = inspections, asyncio.Lock(), 0

    async def take(self, *asked: Any) -> Any:
        if self._n_waiting >= _MOST_WAITING:
            raise ApiError(
                429,
                f"{self._n_waiting} inspections wait already: try again later",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        self._n_waiting += 1
        try:
            async with self._lock:
                work = asyncio.ensure_future(asyncio.to_thread(self._inspections.inspect, *asked))
                try:
                    return await asyncio.shield(work)
                except asyncio.CancelledError:
                    await asyncio.wait({work})  # a pass cannot be broken off, and the next must not begin beside it
                    raise
        finally:
            self._n_waiting -= 1


def _turns(request: Request) -> _Turns:
    state = request.app.state
    if not hasattr(state, "turns"):
        state.turns = _Turns(Inspections({name: served.path for name, served in state_of(request).models.items()}))
    turns: _Turns = state.turns
    return turns
