"""`glassgpt serve`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassgpt.cli.console import say
from glassgpt.cli.options import (
    DONE,
    FAILED,
    add_decoder,
    add_fields,
    add_machine,
    command,
    given,
    load_for_text,
)
from glassgpt.packages import require
from glassgpt.server.settings import KEY_VARIABLE, ServerOptions
from glassgpt.terminal_text import visible

if TYPE_CHECKING:
    from glassgpt.server.served import Served

_PROBE = "The "
_PROBE_TOKENS = 48


def add_commands(commands: Any) -> None:
    """Add the command of this file."""
    serve = command(commands, "serve", _serve, "answer OpenAI's clients, curl and a browser with models", json=False)
    serve.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a model directory or file, or a name to download: gpt2; NAME=MODEL gives it another name",
    )
    add_fields(serve, ServerOptions)
    add_decoder(serve)
    add_machine(serve)


def _serve(arguments: argparse.Namespace) -> int:
    fields = given(arguments, ServerOptions)
    if "api_key" not in fields and os.environ.get(KEY_VARIABLE):
        fields["api_key"] = [os.environ[KEY_VARIABLE]]
    options = ServerOptions.from_dict(fields)
    names = _named(arguments.models)
    try:
        require("fastapi", "uvicorn", "jinja2", "prometheus_client")
    except ModuleNotFoundError as error:
        return say(f"serve needs an extra: pip install 'glassgpt[server]' ({error})", FAILED)
    from glassgpt.server.app import Server, address_of, listen, make_app, run

    models: dict[str, Served] = {}
    listening = listen(options)  # before a model is loaded for nothing
    try:
        for name, source in names.items():
            models[name] = _load(arguments, name, source, options)
        address = address_of(listening)
        _tell(models, options, address)
        _log_to_stderr()
        server = Server(make_app(models, options), models, options)
        # also before and after uvicorn's own handler, which raises again what it has heard
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        run(server, listening, models)
    finally:
        listening.close()
        for served in models.values():
            served.close()
    return say("stopped", DONE)


def _named(models: list[str]) -> dict[str, str]:
    """Sources by name; `ValueError` for two of one name."""
    names: dict[str, str] = {}
    for text in models:
        name, separator, source = text.partition("=")
        if not separator or Path(text).exists():
            name, source = Path(text).name or Path(text).resolve().name, text
        if not name or not source:
            raise ValueError(f"{text!r} must be a model, or NAME=MODEL")
        if name in names:
            raise ValueError(f"two models are called {name!r}: give one another name, such as {name}-2={source}")
        names[name] = source
    return names


def _load(arguments: argparse.Namespace, name: str, source: str, options: ServerOptions) -> Served:
    from glassgpt.server.served import Served
    from glassgpt.weights.download.resolve import resolve_model

    model, tokenizer = load_for_text(argparse.Namespace(**{**vars(arguments), "model": source}))
    return Served.of(name, resolve_model(source), model, tokenizer, options)


def _tell(models: dict[str, Served], options: ServerOptions, address: str) -> None:
    """What is served, where, how fast, and a line to try it with."""
    from glassgpt.server.probe import tokens_per_second

    for name, served in models.items():
        talk = "its own chat template" if served.chat.kind == "template" else "chat as a plain transcript: no template"
        rate = tokens_per_second(served, _PROBE, _PROBE_TOKENS)
        print(visible(f"{name}: context {served.context_length}, {rate:,.0f} tokens/s for one text, {talk}"))
    print(f"serving at {address}/v1{', with a key' if options.api_key else ''}; Ctrl-C stops")
    body = json.dumps({"model": next(iter(models)), "prompt": _PROBE, "max_tokens": 20})
    words = ["curl", f"{address}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
    line = shlex.join(words)
    if options.api_key:
        line += f' -H "Authorization: Bearer ${KEY_VARIABLE}"'
        if not os.environ.get(KEY_VARIABLE):
            line += f"  # with the key in {KEY_VARIABLE}"
    print(visible(f"try: {line}"), flush=True)


def _log_to_stderr() -> None:
    """A line of JSON for each request, and for what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    for name, level in (("glassgpt.server", logging.INFO), ("uvicorn", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        facts = getattr(record, "facts", None) or {"message": super().format(record)}
        return json.dumps({"time": stamp, "level": record.levelname, **facts})
