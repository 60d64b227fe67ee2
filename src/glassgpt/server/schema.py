"""What may be asked: each field of a request, its type and bounds. The server's OpenAPI document is made from it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints

from glassgpt.options import nearest

MOST_STOPS, MOST_LOGPROBS = 4, 20


class _FirstError(FailFast):
    """A list with a million mistakes is one error, not a million."""

    def __hash__(self) -> int:  # in a union of types there must be one
        return 1


_FIRST_ERROR = _FirstError()

Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Ids = Annotated[list[Id], _FIRST_ERROR]
_StopText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
_BiasId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]

_UNIONS = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of such lists",
    "stop": f"a text of 1 to 1000 characters, or a list of at most {MOST_STOPS}",
}
"""In words, for fields of a completion where a message about each alternative would confuse."""

REFUSED = frozenset(
    (
        "audio", "function_call", "functions", "modalities", "parallel_tool_calls", "prediction", "reasoning_effort",
        "suffix", "tool_choice", "tools", "verbosity", "web_search_options",
    )
)  # fmt: skip
"""Fields of OpenAI's that ask for what these models do not do."""


class Strict(BaseModel):
    """No unknown fields, no number as a text, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(Strict):
    """Plain text is the only one."""

    type: Literal["text"]


class _Harmless(Strict):
    """Fields of OpenAI's that are accepted and change nothing here."""

    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class SamplingFields(Strict):
    """How tokens are drawn."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="0 and -1 keep all")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[_BiasId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None

    def generation(self) -> dict[str, Any]:
        """The fields of `Generation` that were given."""
        fields: dict[str, Any] = {
            "temperature": self.temperature,
            # OpenAI allows 0 for what keeps only the best token
            "top_p": None if self.top_p is None else max(self.top_p, sys.float_info.min),
            "top_k": self.top_k if self.top_k is not None and self.top_k > 0 else None,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            "seed": None if self.seed is None else self.seed % 2**64,
        }
        return {name: value for name, value in fields.items() if value is not None}


class Sampled(_Harmless, SamplingFields):
    """What both kinds of request say."""

    model: str
    n: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: _StopText | Annotated[list[_StopText], _FIRST_ERROR, Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(None, description="never draw the end of text")
    return_token_ids: bool | None = Field(None, description="tell token ids beside texts, as vLLM does")

    def generation(self) -> dict[str, Any]:
        """See `SamplingFields`."""
        return super().generation() | ({} if self.ignore_eos is None else {"ignore_eot": self.ignore_eos})

    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(Sampled):
    """Go on with a text."""

    prompt: (
        str
        | Annotated[list[str], _FIRST_ERROR, Field(min_length=1)]
        | Annotated[Ids, Field(min_length=1)]
        | Annotated[list[Ids], _FIRST_ERROR, Field(min_length=1)]
        | None
    ) = Field(None, description="none begins from nothing, with the end of text")
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="0 with echo, for the prompt alone")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Literal[1] | None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a talk. Fields of OpenAI's answers may come back with it, as null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], _FIRST_ERROR]
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(None, max_length=0)

    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


_Messages = Annotated[list[Message], _FIRST_ERROR, Field(min_length=1, max_length=2048)]


class ChatRequest(Sampled):
    """Answer the last message of a talk."""

    messages: _Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None


class TokenizeRequest(Strict):
    """What tokens a text or a talk is; in vLLM's form."""

    model: str | None = None
    prompt: str | None = None
    messages: _Messages | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """What text tokens are; in vLLM's form."""

    model: str | None = None
    tokens: Ids


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer whose status is 400 or more."""

    error: ErrorDetail


def describe(errors: Sequence[Mapping[str, Any]], body: type[BaseModel] | None = None) -> tuple[str, str | None]:
    """(message, the field at fault) of what pydantic says of a request."""
    first = errors[0]
    where = [part for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', 'syntax error')}", None
    if not where:
        return "the body must be a JSON object", None
    top = str(where[0])
    if first["type"] == "extra_forbidden":
        path = _path(where)
        if top in REFUSED:
            return f"{path} is not supported by this server", path
        known = body.model_fields if body is not None and len(where) == 1 else ()
        return f"unknown field {path!r}" + (f": {nearest(path, known)}" if known else ""), path
    if first["type"] == "missing":
        return f"{_path(where)} is missing", _path(where)
    if top in _UNIONS and body is not None and issubclass(body, Sampled):
        return f"{top} must be {_UNIONS[top]}", top
    return f"{_path(where)}: {first['msg']}", _path(where)


def _path(where: Sequence[str | int]) -> str:
    """`messages[0].role`; the names of alternatives are left out."""
    path = ""
    for part in where:
        if isinstance(part, int):
            path += f"[{part}]"
        elif (part.isidentifier() and part != "str") or not path:
            path += f".{part}" if path else part
    return path[:100]
