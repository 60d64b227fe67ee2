"""What can go wrong between here and a server, and how to say it in one line."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

from glassgpt.terminal_text import one_line


class DownloadError(OSError):
    """A file could not be had. One line: what failed, for each source why, and the way out.

    `reason` is the line without the way out. `by_hand` is what `resolve.files_to_fetch` takes, a known name and its
    source, where bringing those files by hand is a way out; else None.
    """

    def __init__(self, reason: str, way_out: str = "", by_hand: tuple[str, str] | None = None) -> None:
        super().__init__(f"{reason}; {way_out}" if way_out else reason)
        self.reason, self.way_out, self.by_hand = reason, way_out, by_hand


class OfflineError(DownloadError):
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
