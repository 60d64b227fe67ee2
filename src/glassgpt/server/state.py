"""What the routes share: the models, the options and the metrics of the server that a request came to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from glassgpt.options import nearest
from glassgpt.server.errors import ApiError
from glassgpt.server.metrics import Metrics
from glassgpt.server.served import Served
from glassgpt.server.settings import ServerOptions


@dataclasses.dataclass
class ServerState:
    """Kept as `app.state.server`."""

    models: Mapping[str, Served]
    options: ServerOptions
    metrics: Metrics


def state_of(request: Request) -> ServerState:
    """Of the server that answers a request."""
    state: ServerState = request.app.state.server
    return state


def find_model(request: Request, name: str | None) -> Served:
    """The model of that name, or the first one for None; `ApiError` (404) where there is none."""
    models = state_of(request).models
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise ApiError(404, f"no model {name[:100]!r}: {nearest(name, models)}", param="model", code="model_not_found")
    return models[name]


def note(request: Request, **facts: Any) -> None:
    """For the line that is logged when the request ends."""
    request.scope.setdefault("glassgpt", {}).update(facts)
