"""The one error that untrusted bytes can raise."""

from __future__ import annotations


class BadPacket(Exception):  # noqa: N818 - the house word for it; it is a verdict, not a bug
    """Bytes from outside that are dropped.

    reason: the counter to count it under, spelled as in layout.h, lower case and
    without its prefix ("drop_srtp_auth"). detail: for a log line, never for a peer.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
