"""Errors as OpenAI's interface tells them: a status, and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from glassgpt.terminal_text import one_line

_TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
_LONGEST = 500


class ApiError(Exception):
    """What a client is told. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What goes over the wire."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = one_line(self, _LONGEST)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


class JSONResponse(Response):
    """JSON in ASCII: half a surrogate pair in somebody's text must not break the answer that mentions it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See Starlette."""
        return dumps(content)


def dumps(content: Any) -> bytes:
    """`ValueError` for NaN and infinity, which JSON does not know."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def error_response(error: ApiError) -> Response:
    """The answer that tells of an error."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def check_ids(ids: Sequence[int], n_ids: int) -> None:
    """`ApiError` for no token, and for one that a tokenizer of so many lacks: a padded model has more."""
    if not ids:
        raise ApiError(400, "the prompt is empty: give at least one token", param="prompt")
    if bad := [i for i in ids if not 0 <= i < n_ids]:
        raise ApiError(400, f"token id {bad[0]} is outside the tokenizer's 0..{n_ids - 1}", param="prompt")


def too_long(n_prompt: int, most: int, context_length: int, param: str = "prompt") -> ApiError:
    """A prompt that does not fit."""
    return ApiError(
        400,
        f"the prompt has {n_prompt} tokens and may have {most}: the model's context is {context_length} tokens",
        param=param,
        code="context_length_exceeded",
    )
