"""From a talk to tokens: by the model's own chat template, or as a plain transcript."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glassgpt.data.transcript import MODEL, STOP, transcript
from glassgpt.files import read_bounded
from glassgpt.json_file import read_json
from glassgpt.terminal_text import one_line
from glassgpt.tokenizer import Tokenizer

RENDER_SECONDS = 2.0
"""So long a template may take."""

_START_SECONDS = 30.0  # and so much longer the first time, when its process begins

_MOST_BYTES = 2**20  # of a template
_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Chat:
    """How one model is talked with. `encode` and `close` may be called from any thread."""

    kind = "transcript"
    """Or "template"."""
    stop: tuple[str, ...] = (STOP,)
    """Texts that end an answer, besides the end of text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens after which the answer comes. `ValueError` for messages that cannot be put so.

        No text in a message becomes a control token.
        """
        return self.tokenizer.encode(f"{transcript(list(messages))}\n{MODEL}")

    def close(self) -> None:
        """Nothing is asked any more."""


class TemplateChat(Chat):
    """By a Jinja template, rendered in a process of its own: sandboxed, and bounded in time and memory."""

    kind = "template"
    stop = ()

    def __init__(self, tokenizer: Tokenizer, template: str, variables: Mapping[str, Any]) -> None:
        """`ValueError` for a template that cannot render one message of a user."""
        super().__init__(tokenizer)
        self._template, self._variables = template, dict(variables)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        try:
            self._render([{"role": "user", "content": "Hello"}])
        except BaseException:
            self.close()
            raise

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """See `Chat`. Texts are rendered once as they are, and once as marks that tell where they went."""
        nonce = secrets.token_hex(8)
        marks = [f"\ue000{nonce}-{number}\ue001" for number in range(len(messages))]
        text = self._render(messages)
        marked = self._render([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])
        special = self.tokenizer.special_tokens_in
        if special(text) == special(marked):  # all control tokens are the template's own
            return self.tokenizer.encode(text, allowed_special="all")
        contents = [message["content"] for message in messages]
        for inserted in (contents, [content.strip() for content in contents]):
            parts = list(_parts(marked, dict(zip(marks, inserted, strict=True))))
            if "".join(part for part, _ in parts) == text:
                return self.tokenizer.encode_parts(parts)
        raise ValueError(
            "a message holds the name of a control token, or one comes about where it is put into the model's chat "
            "template: leave it out"
        )

    def close(self) -> None:
        """See `Chat`."""
        with self._lock:
            self._end()

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        variables = {**self._variables, "messages": list(messages), "add_generation_prompt": True}
        request = json.dumps({"template": self._template, "variables": variables}).encode("ascii") + b"\n"
        with self._lock:
            seconds = RENDER_SECONDS
            if self._process is not None and self._process.poll() is not None:  # somebody has killed it
                self._end()
            if self._process is None:
                seconds += _START_SECONDS
                worker = Path(__file__).with_name("template_worker.py")
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            clock = threading.Timer(seconds, process.kill)
            clock.start()
            answer = b""
            try:
                with contextlib.suppress(OSError):
                    process.stdin.write(request)
                    process.stdin.flush()
                    answer = process.stdout.readline()
            finally:
                clock.cancel()
            if not answer.endswith(b"\n"):
                self._end()
                raise ValueError(f"the model's chat template took more than {RENDER_SECONDS:g} s, or too much memory")
        result = json.loads(answer)
        if "error" in result:
            raise ValueError(f"the model's chat template cannot render this: {one_line(result['error'])}")
        text: str = result["text"]
        return text

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _parts(marked: str, inserted: Mapping[str, str]) -> list[tuple[str, bool]]:
    """A rendered text with its marks replaced, in parts: (text, whether it is the template's own)."""
    parts = [(marked, True)]
    for mark, content in inserted.items():
        cut: list[tuple[str, bool]] = []
        for text, trusted in parts:
            first, *others = text.split(mark) if trusted else [text]
            cut.append((first, trusted))
            for other in others:
                cut += [(content, False), (other, True)]
        parts = cut
    return parts


def chat_for(directory: Path, tokenizer: Tokenizer) -> Chat:
    """By the template of a model directory: `chat_template.jinja`, or a key of `tokenizer_config.json`.

    A transcript where there is neither. `ValueError` for a template that does not work.
    """
    directory = directory if directory.is_dir() else directory.parent
    path = directory / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    file = directory / "chat_template.jinja"
    if file.is_file():
        template = read_bounded(file, _MOST_BYTES, "a chat template").decode("utf-8")
    if not template:
        return Chat(tokenizer)
    if not isinstance(template, str) or len(template) > _MOST_BYTES:
        raise ValueError(f"{path}: chat_template is not a text of at most {_MOST_BYTES} characters")
    variables = {}
    for name in _TOKENS:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            variables[name] = token
    try:
        return TemplateChat(tokenizer, template, variables)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}; mend it, or take it away to talk in a plain transcript") from None
