"""A model that is served: its engine, its tokenizer, how it is talked with, and what it may be asked."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.generation.options import Generation
from glassgpt.generation.row import Row
from glassgpt.generation.text import decoder_for
from glassgpt.server.chat import Chat, chat_for
from glassgpt.server.engine import Engine
from glassgpt.server.errors import ApiError, check_ids, too_long
from glassgpt.server.settings import ServerOptions
from glassgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from glassgpt.generation.decoder import Decoder
    from glassgpt.language_model import LanguageModel

_SEEDS = 2**64


@dataclasses.dataclass
class Served:
    """One model. Its methods take time for long texts: call them off the event loop."""

    name: str
    path: Path
    tokenizer: Tokenizer
    chat: Chat
    engine: Engine
    options: ServerOptions
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls, name: str, path: Path, model: LanguageModel | Decoder, tokenizer: Tokenizer, options: ServerOptions
    ) -> Served:
        """A model directory that was loaded. `ValueError` for a chat template that does not work."""
        chat = chat_for(path, tokenizer)
        engine = Engine(
            decoder_for(model, model.context_length),
            max_rows=options.max_rows,
            max_queue=options.max_queue,
            remembered_bytes=options.prefix_cache * 2**20,
        )
        if options.max_n > engine.max_open:
            options = options.replace(max_n=engine.max_open)
        return cls(name, path, tokenizer, chat, engine, options)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.engine.decoder.context_length

    @property
    def most_prompt_tokens(self) -> int:
        """One token of an answer must fit, too."""
        most = self.context_length - 1
        return min(most, self.options.max_prompt_tokens or most)

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt; `ApiError` where it cannot be one, and before much work where it is far too long."""
        if len(text) // self._longest_token > self.most_prompt_tokens:
            raise self._far_too_long(len(text), "prompt")
        try:
            return self.tokenizer.encode(text)
        except ValueError as error:  # a character that the vocabulary lacks, half a surrogate pair
            raise ApiError(400, f"the prompt cannot be encoded: {_plain(error)}", param="prompt") from None

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids after which the answer to a talk comes; errors as in `encode`."""
        n_characters = sum(len(message["content"]) for message in messages)
        if n_characters // self._longest_token > self.most_prompt_tokens:
            raise self._far_too_long(n_characters, "messages")
        try:
            return self.chat.encode(messages)
        except ValueError as error:
            raise ApiError(400, _plain(error), param="messages") from None

    def check_number(self, n_prompts: int, n: int) -> None:
        """`ApiError` for more texts than one request may ask for."""
        if n * n_prompts > self.options.max_n:
            raise ApiError(400, f"n {n} for {n_prompts} prompts: {self.options.max_n} texts are allowed", param="n")

    def check(self, ids: Sequence[int], param: str = "prompt") -> list[int]:
        """A prompt that fits; of an empty one the end of text. `ApiError` for one that does not."""
        if not ids and self.tokenizer.eot_id is not None:
            ids = [self.tokenizer.eot_id]
        check_ids(ids, self.tokenizer.n_vocab)
        if len(ids) > self.most_prompt_tokens:
            raise too_long(len(ids), self.most_prompt_tokens, self.context_length, param)
        return list(ids)

    def rows(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        asked: Mapping[str, Any],
        max_tokens: int | None,
        default_tokens: int,
        scored: bool = False,
    ) -> list[Row]:
        """`n` rows for each prompt. With a seed the others of a prompt have the next seeds.

        Of `scored` prompts the log-probabilities are wanted, and for 0 new tokens nothing else. A row ends at the
        context's edge at the latest. `ApiError` for more than may be asked for.
        """
        limit = self.options.max_tokens
        if limit is not None and max_tokens is not None and max_tokens > limit:
            raise ApiError(400, f"max_tokens {max_tokens} is more than the {limit} allowed", param="max_tokens")
        most = min(default_tokens, limit or default_tokens) if max_tokens is None else max_tokens
        rows = []
        try:
            for prompt in prompts:
                room = self.context_length - len(prompt)
                generation = Generation.from_dict({**asked, "max_new_tokens": max(1, min(most, room))})
                for j in range(n):
                    seed = None if generation.seed is None else (generation.seed + j) % _SEEDS
                    own = generation.replace(seed=seed)
                    rows.append(Row(prompt, self.tokenizer, own, scored=scored, writes=most > 0))
        except ValueError as error:
            param = str(error).split(" ", 1)[0]
            raise ApiError(400, _plain(error), param=param if param in Generation.rules() else None) from None
        return rows

    @functools.cached_property
    def _longest_token(self) -> int:
        """In bytes, and so at least in characters."""
        return max(1, *self.tokenizer.token_lengths())

    def _far_too_long(self, n_characters: int, param: str) -> ApiError:
        return ApiError(
            400,
            f"{n_characters} characters are more than the {self.most_prompt_tokens} tokens that a prompt may have: "
            f"the model's context is {self.context_length} tokens",
            param=param,
            code="context_length_exceeded",
        )

    def close(self) -> None:
        """End its threads and processes."""
        self.engine.close()
        self.chat.close()


def _plain(error: ValueError) -> str:
    if isinstance(error, UnicodeError):
        return "it holds half a surrogate pair, which is no character"
    return str(error)
