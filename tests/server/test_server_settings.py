from typing import Any

import pytest

from glassgpt.server.settings import ServerOptions, is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "", "127.0.0.1.example.org"])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(ValueError, match="can be reached from other machines: give an api_key"):
        ServerOptions(host=host)
    assert ServerOptions(host=host, api_key="k").api_key == ("k",)
    assert not is_local(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_alone_needs_none(host: str) -> None:
    assert ServerOptions(host=host).host == host and is_local(host)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"api_key": [""]}, "api_key must be ASCII text, and not empty"),
        ({"api_key": [" a"]}, "api_key must be ASCII text"),
        ({"api_key": ["\u00e9"]}, "api_key must be ASCII text"),
        ({"cors": ["*"]}, r"cors '\*' must be an origin, such as https://example\.org"),
        ({"cors": ["https://a.example/"]}, "must be an origin"),
        ({"port": 65536}, "port 65536 must be a whole number, at least 0 and at most 65535"),
        ({"max_queue": -1}, "max_queue -1 must be"),
        ({"request_seconds": 0}, "request_seconds 0 must be a number, above 0"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ServerOptions(**options)
