"""Connectivity checks as the controlling side sends them (RFC 8445 section 7.2).

Built on aioice's STUN codec rather than on our own, so that the edge's parser
is always tested against somebody else's encoder.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from aioice import stun

# RFC 8445 section 5.1.2.1, peer-reflexive: type preference 110, what a check
# carries in PRIORITY.
PRIORITY = (110 << 24) | (65535 << 8) | 255

TRANSACTION_ID_BYTES = 12


@dataclass(frozen=True)
class CheckResponse:
    """An answer to a Binding request."""

    transaction_id: bytes
    error_code: int
    """0 for a success response; 403 when the call has ended (RFC 7675 section 5.2)."""
    mapped: tuple[str, int] | None
    authentic: bool
    """MESSAGE-INTEGRITY is there and verifies under the server's ice_pwd."""
    arrival_ns: int = 0

    @property
    def ok(self) -> bool:
        return self.authentic and self.error_code == 0


def encode_check(
    username: str,
    ice_pwd: str,
    *,
    tie_breaker: int,
    use_candidate: bool = True,
    transaction_id: bytes | None = None,
) -> bytes:
    """A Binding request with USERNAME, MESSAGE-INTEGRITY and FINGERPRINT.

    username: ``SERVER_UFRAG:CLIENT_UFRAG``; ice_pwd: the server's.
    """
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST, transaction_id)
    message.attributes["USERNAME"] = username
    message.attributes["ICE-CONTROLLING"] = tie_breaker
    if use_candidate:
        message.attributes["USE-CANDIDATE"] = None
    message.attributes["PRIORITY"] = PRIORITY
    message.add_message_integrity(ice_pwd.encode())
    return bytes(message)


def parse_check_response(datagram: bytes, ice_pwd: str, arrival_ns: int) -> CheckResponse | None:
    """Reads a Binding response; None when the datagram is something else."""
    try:
        message = stun.parse_message(datagram)
    except (ValueError, struct.error):
        return None
    if message.message_class not in (stun.Class.RESPONSE, stun.Class.ERROR):
        return None
    return CheckResponse(
        transaction_id=message.transaction_id,
        error_code=message.error_code or 0,
        mapped=message.attributes.get("XOR-MAPPED-ADDRESS"),
        authentic=message.check_message_integrity(ice_pwd.encode()),
        arrival_ns=arrival_ns,
    )


def answer_check(datagram: bytes, source: tuple[str, int], ice_pwd: str) -> bytes | None:
    """The response to a server that is a full ICE agent and checks us too.

    None when the datagram is not a Binding request with our integrity.
    """
    try:
        request = stun.parse_message(datagram)
    except (ValueError, struct.error):
        return None
    if request.message_class != stun.Class.REQUEST:
        return None
    if not request.check_message_integrity(ice_pwd.encode()):
        return None
    response = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, request.transaction_id)
    response.attributes["XOR-MAPPED-ADDRESS"] = source
    response.add_message_integrity(ice_pwd.encode())
    return bytes(response)
