"""How a talk is written as text: what `glassgpt chat` continues is what a model learns from messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PERSON, MODEL = "You:", "GPT:"

STOP = f"\n{PERSON}"
"""Where an answer ends at the latest: the person's next line begins."""

# what stands before the text of each role; a system's text is nobody's line
_BEFORE = {"system": "", "developer": "", "user": f"{PERSON} ", "assistant": f"{MODEL} "}


def asked(talk: str, line: str) -> str:
    """The talk so far, whose last line is ended, with a person's next line: the model's answer comes after it."""
    return f"{talk}{PERSON} {line}\n{MODEL}"


def transcript(messages: Any) -> str:
    """The talk in a list of {"role", "content"}, where a content is a text or a list of {"type": "text", "text"}.

    Raises `ValueError` for anything else.
    """
    if not isinstance(messages, list):
        raise ValueError("messages must be a list of {role, content}")
    lines = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            keys = f" but {', '.join(sorted(message))[:80]}" if isinstance(message, Mapping) else ""
            raise ValueError(f"message {number} has no role and content{keys}")
        role = message["role"]
        if not isinstance(role, str) or role not in _BEFORE:
            raise ValueError(f"message {number} has the role {str(role)[:40]!r}, which is none of {', '.join(_BEFORE)}")
        lines.append(_BEFORE[role] + _content(message["content"], number))
    return "\n".join(lines)


def _content(content: Any, number: int) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise ValueError(f"message {number} has a content that is no text")
    return "\n".join(part["text"] for part in parts)
