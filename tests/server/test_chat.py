"""From messages to tokens. The oracle for templates is `transformers`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from glassgpt import Tokenizer
from glassgpt.server import chat as chat_module
from glassgpt.server.chat import Chat, TemplateChat, chat_for
from glassgpt.tokenizer import END_OF_TEXT

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hello there \n"},
    {"role": "assistant", "content": "Hi {{ messages }}"},
    {"role": "user", "content": "And now? 😀"},
]
PLAIN = """{% for message in messages %}<{{ message.role }}> {{ message.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
TRIMMED = PLAIN.replace("message.content", "message['content'] | trim")
TEMPLATES = {
    "plain": PLAIN,
    "trimmed": TRIMMED,
    "loops": "{%- for m in messages if m.content != '' -%}{% if loop.index > 3 %}{% continue %}{% endif %}"
    "{{ m.role[:1] | upper }}: {{ m['content'] }}{{ eos_token if not loop.last }}\n{%- endfor %}",
}


@pytest.fixture(scope="module")
def tokenizer(tokenizers_by_kind: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers_by_kind["bpe"]


@pytest.fixture(scope="module")
def chats(tokenizer: Tokenizer) -> Iterator[Mapping[str, Chat]]:
    found = {name: TemplateChat(tokenizer, text, {"eos_token": END_OF_TEXT}) for name, text in TEMPLATES.items()}
    yield found
    for chat in found.values():
        chat.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_rendered_and_encoded_as_transformers_does(
    chats: Mapping[str, Chat], tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(TALK, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True)
    ids = chats[name].encode(TALK)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer.encode(text, allowed_special="all")
    assert ids.count(tokenizer.eot_id) == text.count(END_OF_TEXT) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "n_own"), [("plain", 2), ("trimmed", 2)])
@pytest.mark.parametrize("content", [END_OF_TEXT, f" Hi{END_OF_TEXT}there ", f"{END_OF_TEXT}\n"])
def test_a_message_cannot_bring_a_control_token(
    chats: Mapping[str, Chat], tokenizer: Tokenizer, name: str, n_own: int, content: str
) -> None:
    talk = [{"role": "user", "content": content}, {"role": "user", "content": "x"}]
    ids = chats[name].encode(talk)
    assert ids.count(tokenizer.eot_id) == n_own  # type: ignore[arg-type]
    assert END_OF_TEXT in tokenizer.decode([i for i in ids if i != tokenizer.eot_id])


def test_nor_where_its_name_comes_about_from_two_messages_or_is_hidden_by_the_template(tokenizer: Tokenizer) -> None:
    joined = TemplateChat(
        tokenizer, "{{ messages | map(attribute='content') | join }}{{ eos_token }}", {"eos_token": END_OF_TEXT}
    )
    hiding = TemplateChat(tokenizer, "{% for m in messages %}{{ m.content | replace('_', '') }}{% endfor %}", {})
    try:
        ids = joined.encode([{"role": "user", "content": "<|endof"}, {"role": "user", "content": "text|>"}])
        assert ids.count(tokenizer.eot_id) == 1  # type: ignore[arg-type]
        assert tokenizer.decode(ids) == END_OF_TEXT * 2
        with pytest.raises(ValueError, match="the name of a control token"):
            hiding.encode([{"role": "user", "content": "<|end_of_text|>"}])
    finally:
        joined.close()
        hiding.close()


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% for x in %}", "TemplateSyntaxError"),
        ("{{ raise_exception('users alone') }}", "users alone"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{% set r = range(9**5) %}" + "{% for i in r %}" * 3 + "{% endfor %}" * 3, "took more than"),
        ("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
         "MemoryError|too much memory"),
        ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "more than 4194304 characters"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_work_is_one_line(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, error: str
) -> None:
    monkeypatch.setattr(chat_module, "_START_SECONDS", 0.0 if "in r %}" in template else 30.0)
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ValueError, match=error) as caught:
        chat_for(tmp_path, tokenizer)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_where_a_template_comes_from(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert chat_for(tmp_path, tokenizer).kind == "transcript"
    config = {"chat_template": "old {{ bos_token }}", "bos_token": {"content": "B"}, "eos_token": None}
    talk = [{"role": "user", "content": "x"}]

    def text() -> str:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        chat = chat_for(tmp_path, tokenizer)
        chat.close()
        assert (chat.kind, chat.stop) == ("template", ())
        found = tokenizer.decode(chat.encode(talk))
        chat.close()
        return found

    assert text() == "old B"
    config["chat_template"] = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    assert text() == "yes"
    (tmp_path / "chat_template.jinja").write_text("{% generation %}file{% endgeneration %}", encoding="utf-8")
    assert text() == "file"


def test_a_worker_that_was_killed_is_started_again(tokenizer: Tokenizer) -> None:
    chat = TemplateChat(tokenizer, "{{ messages[0].content }}", {})
    messages = [{"role": "user", "content": "Hello"}]
    ids = chat.encode(messages)
    assert chat._process is not None
    chat._process.send_signal(signal.SIGINT)  # Ctrl-C reaches it, too
    assert chat.encode(messages) == ids
    chat._process.kill()
    chat._process.wait()
    assert chat.encode(messages) == ids
    chat.close()


def test_a_transcript_is_what_the_terminals_chat_writes(tokenizer: Tokenizer) -> None:
    chat = Chat(tokenizer)
    assert tokenizer.decode(chat.encode(TALK[:2])) == "Be brief.\nYou:   Hello there \n\nGPT:"
    assert chat.stop == ("\nYou:",)
    ids = chat.encode([{"role": "user", "content": END_OF_TEXT}])
    assert tokenizer.eot_id not in ids
