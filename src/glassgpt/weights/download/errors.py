"""What can go wrong between here and a server, and how to say it in one line."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

from glassgpt.terminal_text import one_line


class DownloadError(OSError):
    """A file could not be had. One line: what failed, for each source why, and the way out."""


class UnreachableError(DownloadError):
    """No source gives the file, so it has to come another way; `reason` says why in a few words."""

    def __init__(self, text: str, *, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class OfflineError(UnreachableError):
    """The network is switched off by the environment and a file is not here."""


def network_reason(error: BaseException) -> str | None:
    """What is wrong between here and the server, where trying again would not help, else None."""
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({one_line(cause.verify_message)}); "
                "behind a proxy that opens TLS, set SSL_CERT_FILE to the proxy's CA file"
            )
        if isinstance(cause, socket.gaierror) or getattr(cause, "errno", None) == errno.ENETUNREACH:
            return "no network, or no such host"
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    for _ in range(20):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
