"""What a server may be told: where it listens, who may ask, and how much."""

from __future__ import annotations

import dataclasses
import ipaddress

from glassgpt.options import Options, option

KEY_VARIABLE = "GLASSGPT_API_KEY"
"""The environment's variable with a key, which no list of processes shows."""

_LOCAL = "127.0.0.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions(Options):
    """Raises `ValueError` for a value outside its range, and for an address that others reach without a key."""

    host: str = option(_LOCAL, "address to listen at; any but this machine's own needs a key", unit="address")
    port: int = option(8000, "port to listen at; 0 takes a free one", unit="port", at_least=0, at_most=65535)
    api_key: tuple[str, ...] = option(
        (), "key that requests must carry; may be repeated", unit="key", derived=f"{KEY_VARIABLE}, or none"
    )
    allow_host: tuple[str, ...] = option(
        (), "name in the Host header that is answered, beside this machine's own; may be repeated", unit="name"
    )
    cors: tuple[str, ...] = option(
        (), "origin whose pages may ask, such as https://example.org; may be repeated", unit="origin"
    )
    max_rows: int | None = option(None, "most texts decoded at once", unit="n", at_least=1, derived="64, or by memory")
    max_queue: int = option(64, "texts of a model that may wait; more are refused", unit="n", at_least=0)
    max_n: int = option(32, "most texts of one request: its prompts times n", unit="n", at_least=1)
    max_prompt_tokens: int | None = option(
        None, "longest prompt", unit="tokens", at_least=1, derived="what the model's context holds"
    )
    max_tokens: int | None = option(
        None, "most new tokens that a request may ask for", unit="tokens", at_least=1, derived="what the context holds"
    )
    max_body: int = option(2**22, "longest request", unit="bytes", at_least=1024)
    max_connections: int = option(256, "most connections", unit="n", at_least=1)
    request_seconds: float = option(600.0, "longest time for an answer", unit="s", above=0)
    receive_seconds: float = option(20.0, "longest time for a request to arrive", unit="s", above=0)
    requests_per_minute: int | None = option(
        None, "most requests of one key or address in a minute", unit="n", at_least=1, derived="no limit"
    )
    prefix_cache: int = option(
        256, "memory for what prompts begin with, so that it is not read again; 0 for none", unit="MiB", at_least=0
    )
    stop_seconds: float = option(10.0, "time for answers to end when the server is stopped", unit="s", at_least=0)
    log_prompts: bool = option(False, "write prompts and answers to the log, too")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("api_key", "allow_host", "cors"):
            given = getattr(self, name)
            given = (given,) if isinstance(given, str) else tuple(given)
            if not all(isinstance(text, str) and text.isascii() and text.strip() == text != "" for text in given):
                raise ValueError(f"{name} must be ASCII text, and not empty")
            if name == "allow_host":  # names have no case
                given = tuple(text.lower() for text in given)
            object.__setattr__(self, name, given)
        for origin in self.cors:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest:
                raise ValueError(f"cors {origin!r} must be an origin, such as https://example.org")
        if not is_local(self.host) and not self.api_key:
            raise ValueError(
                f"host {self.host!r} can be reached from other machines: give an api_key, or {KEY_VARIABLE} in the "
                f"environment, or listen at {_LOCAL}"
            )


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
