"""A talk as text: what is learned from messages is what `chat` continues."""

from __future__ import annotations

from typing import Any

import pytest

from glassgpt.data.transcript import STOP, asked, transcript


def test_a_transcript_is_what_chat_asks_for() -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}, {"type": "text", "text": "You?"}]},
        {"role": "user", "content": "Bye"},
    ]
    text = transcript(talk)
    assert text == "Be brief.\nYou: Hi\nGPT: Hello!\nYou?\nYou: Bye"
    answered = transcript([*talk, {"role": "assistant", "content": "So long"}])
    assert answered == asked("Be brief.\nYou: Hi\nGPT: Hello!\nYou?\n", "Bye") + " So long"
    assert STOP in text.partition("GPT:")[2]
    assert transcript([]) == ""


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("Hi", "messages must be a list"),
        (["Hi"], "message 1 has no role and content"),
        ([{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}], "message 2 .* but from, value"),
        ([{"role": "tool", "content": "a"}], "message 1 has the role 'tool', which is none of system"),
        ([{"role": [], "content": "a"}], "message 1 has the role"),
        ([{"role": "user", "content": None}], "message 1 has a content that is no text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "message 1 has a content"),
        ([{"role": "user", "content": {"text": 1}}], "message 1 has a content"),
    ],
)
def test_what_is_no_talk(messages: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        transcript(messages)
