"""Answers as OpenAI's interface gives them, from pieces of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from glassgpt.generation.row import Row
from glassgpt.generation.sampling import TokenLogprobs
from glassgpt.server.engine import Piece
from glassgpt.tokenizer import StreamDecoder, Tokenizer

_LEAST = -9999.0  # stands for minus infinity, which JSON does not know


def finish_reason(piece: Piece) -> str | None:
    """As OpenAI calls it."""
    return "stop" if piece.finish_reason == "end_of_text" else piece.finish_reason


def usage(n_prompt: int, n_new: int) -> dict[str, int]:
    """How many tokens were read and written."""
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


def joined(pieces: Sequence[Piece]) -> Piece:
    """The pieces of one text as one."""
    return Piece(
        pieces[0].index,
        "".join(piece.text for piece in pieces),
        [i for piece in pieces for i in piece.ids],
        [start for piece in pieces for start in piece.starts],
        [logprobs for piece in pieces for logprobs in piece.logprobs],
        pieces[-1].finish_reason,
    )


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by its text, or by its bytes where those are no whole characters, as in OpenAI's completions."""
    data = tokenizer.decode_bytes((token,))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@dataclasses.dataclass(frozen=True)
class Echo:
    """What a text begins with: its prompt again, or nothing."""

    text: str
    row: Row


class CompletionShape:
    """`/v1/completions`."""

    kind, chunk_kind = "text_completion", "text_completion"

    def __init__(self, tokenizer: Tokenizer, wants_logprobs: bool, wants_ids: bool) -> None:
        self._tokenizer, self._wants_logprobs, self._wants_ids = tokenizer, wants_logprobs, wants_ids
        self._n_echoed: dict[int, int] = {}

    def opening(self, index: int, echo: Echo) -> list[dict[str, Any]]:
        """Chunks before the first token of a text."""
        self._n_echoed[index] = len(echo.text)
        choice = self._choice(Piece(index, echo.text, [], [], [])) | {"logprobs": None}
        if echo.row.prompt_logprobs is not None:
            choice["logprobs"] = self._logprobs_of_prompt(echo.row)
        return [choice] if echo.text or choice["logprobs"] else []

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Chunks for a piece of a text."""
        return [self._choice(piece)]

    def whole(self, piece: Piece, echo: Echo) -> dict[str, Any]:
        """A text that has ended."""
        self._n_echoed[piece.index] = len(echo.text)
        choice = self._choice(dataclasses.replace(piece, text=echo.text + piece.text))
        if echo.row.prompt_logprobs is not None:
            of_prompt, new = self._logprobs_of_prompt(echo.row), choice["logprobs"]
            choice["logprobs"] = {name: [*values, *new[name]] for name, values in of_prompt.items()}
        return choice

    def _choice(self, piece: Piece) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece) if self._wants_logprobs else None,
            "finish_reason": finish_reason(piece),
        }
        if self._wants_ids:
            choice["token_ids"] = piece.ids
        return choice

    def _logprobs(self, piece: Piece) -> dict[str, list[Any]]:
        starts = [self._n_echoed[piece.index] + start for start in piece.starts]
        return self._table([entry.token for entry in piece.logprobs], piece.logprobs, starts)

    def _logprobs_of_prompt(self, row: Row) -> dict[str, list[Any]]:
        """The first token has none: nothing comes before it."""
        assert row.prompt_logprobs is not None
        ids, decoder, starts = row.ids[: row.n_prompt], StreamDecoder(self._tokenizer), [0]
        for token in ids[:-1]:
            starts.append(starts[-1] + len(decoder.push(token)))
        return self._table(ids, [None, *row.prompt_logprobs], starts)

    def _table(
        self, ids: Sequence[int], entries: Sequence[TokenLogprobs | None], starts: Sequence[int]
    ) -> dict[str, list[Any]]:
        return {
            "tokens": [token_text(self._tokenizer, token) for token in ids],
            "token_logprobs": [entry and max(entry.logprob, _LEAST) for entry in entries],
            "top_logprobs": [
                entry and {token_text(self._tokenizer, token): max(value, _LEAST) for token, value in entry.top}
                for entry in entries
            ],
            "text_offset": list(starts),
        }


class ChatShape:
    """`/v1/chat/completions`."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, wants_logprobs: bool, wants_ids: bool) -> None:
        self._tokenizer, self._wants_logprobs, self._wants_ids = tokenizer, wants_logprobs, wants_ids

    def opening(self, index: int, echo: Echo) -> list[dict[str, Any]]:
        """Chunks before the first token of a text."""
        return [self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None, [], [])]

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Chunks for a piece of a text."""
        found = []
        if piece.text or piece.ids:
            delta = {"delta": {"content": piece.text}}
            found.append(self._choice(piece.index, delta, None, piece.logprobs, piece.ids))
        if piece.finish_reason:
            found.append(self._choice(piece.index, {"delta": {}}, finish_reason(piece), [], []))
        return found

    def whole(self, piece: Piece, echo: Echo) -> dict[str, Any]:
        """A text that has ended."""
        message = {"message": {"role": "assistant", "content": piece.text, "refusal": None}}
        return self._choice(piece.index, message, finish_reason(piece), piece.logprobs, piece.ids)

    def _choice(
        self,
        index: int,
        said: Mapping[str, Any],
        reason: str | None,
        logprobs: Sequence[TokenLogprobs],
        ids: list[int],
    ) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        if self._wants_logprobs and (logprobs or "message" in said):
            choice["logprobs"] = {"content": [self._entry(entry) for entry in logprobs], "refusal": None}
        if self._wants_ids:
            choice["token_ids"] = ids
        return choice

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [self._token(token, value) for token, value in entry.top]
        return {**self._token(entry.token, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.decode_bytes((token,))
        text = data.decode("utf-8", errors="replace")
        return {"token": text, "logprob": max(logprob, _LEAST), "bytes": list(data)}


def envelope(identity: str, created: int, model: str, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What every answer and every chunk begins with."""
    return {"id": identity, "object": kind, "created": created, "model": model, "choices": choices}
