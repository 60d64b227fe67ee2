"""Answers as OpenAI's interface gives them, from pieces of texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from glassgpt.generation.sampling import TokenLogprobs
from glassgpt.server.engine import Piece
from glassgpt.tokenizer import Tokenizer

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


class CompletionShape:
    """`/v1/completions`."""

    kind, chunk_kind = "text_completion", "text_completion"

    def __init__(self, tokenizer: Tokenizer, wants_logprobs: bool, wants_ids: bool) -> None:
        self._tokenizer, self._wants_logprobs, self._wants_ids = tokenizer, wants_logprobs, wants_ids
        self._offsets: dict[int, int] = {}

    def opening(self, index: int, echoed: str) -> list[dict[str, Any]]:
        """Chunks before the first token of a text."""
        self._offsets[index] = len(echoed)
        return [self._choice(index, echoed, None, [], [])] if echoed else []

    def chunks(self, piece: Piece) -> list[dict[str, Any]]:
        """Chunks for a piece of a text."""
        return [self._choice(piece.index, piece.text, finish_reason(piece), piece.logprobs, piece.ids)]

    def whole(self, piece: Piece, echoed: str) -> dict[str, Any]:
        """A text that has ended."""
        self._offsets[piece.index] = len(echoed)
        return self._choice(piece.index, echoed + piece.text, finish_reason(piece), piece.logprobs, piece.ids)

    def _choice(
        self, index: int, text: str, reason: str | None, logprobs: Sequence[TokenLogprobs], ids: list[int]
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, logprobs) if self._wants_logprobs else None,
            "finish_reason": reason,
        }
        if self._wants_ids:
            choice["token_ids"] = ids
        return choice

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        texts = [token_text(self._tokenizer, entry.token) for entry in logprobs]
        offsets = []
        for entry in logprobs:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(self._tokenizer.decode((entry.token,)))
        return {
            "tokens": texts,
            "token_logprobs": [max(entry.logprob, _LEAST) for entry in logprobs],
            "top_logprobs": [
                {token_text(self._tokenizer, token): max(value, _LEAST) for token, value in entry.top}
                for entry in logprobs
            ],
            "text_offset": offsets,
        }


class ChatShape:
    """`/v1/chat/completions`."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, wants_logprobs: bool, wants_ids: bool) -> None:
        self._tokenizer, self._wants_logprobs, self._wants_ids = tokenizer, wants_logprobs, wants_ids

    def opening(self, index: int, echoed: str) -> list[dict[str, Any]]:
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

    def whole(self, piece: Piece, echoed: str) -> dict[str, Any]:
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


def envelope(identity: str, kind: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What every answer and every chunk begins with."""
    return {"id": identity, "object": kind, "created": int(time.time()), "model": model, "choices": choices}
