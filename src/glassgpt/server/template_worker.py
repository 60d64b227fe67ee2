"""A process that renders chat templates: whatever one does, it ends by a kill, and within these bytes of memory.

It is run as a file, imports nothing of glassgpt, and answers each line of JSON with one.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import signal
import sys
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_BYTES = 2**29
_LONGEST = 2**22  # characters of what is rendered

# what Hugging Face marks answers with for training; nothing is to be rendered there
_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def main() -> None:
    """Until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, whose end closes the pipe
    _limit_memory()
    environment = _environment()
    for line in sys.stdin.buffer:
        try:
            answer = {"text": _rendered(environment, **json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.buffer.write(json.dumps(answer).encode("ascii") + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))


def _environment() -> ImmutableSandboxedEnvironment:
    """With the functions that templates on Hugging Face count on."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _rendered(environment: ImmutableSandboxedEnvironment, template: str, variables: dict[str, Any]) -> str:
    pieces: list[str] = []
    length = 0
    for piece in environment.from_string(_MARKS.sub("", template)).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > _LONGEST:
            raise ValueError(f"it makes a text of more than {_LONGEST} characters")
    return "".join(pieces)


if __name__ == "__main__":
    main()
