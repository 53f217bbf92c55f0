"""STUN Binding requests and their answers, for an ICE-lite agent (RFC 8489, RFC 8445 section 7.3).

The codec is aioice's. What stands around it here: a walk that believes no length, one error
type, MESSAGE-INTEGRITY required and compared in constant time, nothing after it believed, and
FINGERPRINT only as the last attribute.

Deliberately not implemented: every method but Binding, indications (ours is the answering side),
long-term credentials, MESSAGE-INTEGRITY-SHA256 (no ICE agent sends it), ALTERNATE-SERVER,
and sending requests: a lite agent sends none.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from aioice import stun

from dataplane.proto.address import Address
from dataplane.proto.errors import BadPacket

__all__ = [
    "BindingRequest",
    "encode_error",
    "encode_success",
    "parse_binding_request",
    "verify_integrity",
]

_MALFORMED = "drop_session_stun_malformed"
_BAD_INTEGRITY = "drop_session_stun_bad_integrity"

_HEADER = struct.Struct("!HHI12s")
_HEADER_BYTES = 20
# Requests of today's browsers have about 150 bytes.
_MAX_MESSAGE_BYTES = 1500

BINDING_REQUEST = 0x0001
BINDING_SUCCESS = 0x0101
BINDING_ERROR = 0x0111

USERNAME = 0x0006
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
UNKNOWN_ATTRIBUTES = 0x000A
XOR_MAPPED_ADDRESS = 0x0020
PRIORITY = 0x0024
USE_CANDIDATE = 0x0025
FINGERPRINT = 0x8028

_INTEGRITY_BYTES = 20
# RFC 8489 section 14: types below 0x8000 must be understood, the others may be ignored.
_COMPREHENSION_OPTIONAL = 0x8000
_UNDERSTOOD = frozenset((USERNAME, MESSAGE_INTEGRITY, PRIORITY, USE_CANDIDATE))
# RFC 8489 section 14.3: USERNAME has fewer than 509 bytes.
_MAX_USERNAME_BYTES = 508
_MAX_UNKNOWN_REPORTED = 16

# What aioice's parser raises on bytes that it did not expect.
_CODEC_ERRORS = (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class BindingRequest:
    """A request that is well-formed; nothing in it is proven before verify_integrity.

    local_ufrag, remote_ufrag: USERNAME is "<ours>:<theirs>" (RFC 8445 section 7.2.2).
    ice_controlling, ice_controlled: the tie-breaker, None if absent.
    integrity_offset: where MESSAGE-INTEGRITY begins, None if absent.
    unknown_required: comprehension-required attributes that we do not know, for a 420.
    """

    transaction_id: bytes
    local_ufrag: str
    remote_ufrag: str
    use_candidate: bool
    priority: int | None
    ice_controlling: int | None
    ice_controlled: int | None
    unknown_required: tuple[int, ...]
    integrity_offset: int | None


def parse_binding_request(datagram: bytes) -> BindingRequest:
    """Parse one Binding request. Raises BadPacket("drop_session_stun_malformed")."""
    transaction_id = _parse_header(datagram)
    integrity_offset: int | None = None
    seen: set[int] = set()
    unknown: list[int] = []
    for attribute, offset, length in _walk(datagram):
        if FINGERPRINT in seen:
            _malformed("FINGERPRINT is not the last attribute")  # RFC 8489 section 14.7
        if integrity_offset is not None and attribute != FINGERPRINT:
            continue  # RFC 8489 section 14.5: what follows MESSAGE-INTEGRITY is ignored
        if attribute in seen:
            # Which of two counts differs between parsers, and ours in C is another one.
            _malformed("attribute twice")
        seen.add(attribute)
        if attribute == MESSAGE_INTEGRITY:
            if length != _INTEGRITY_BYTES:
                _malformed("MESSAGE-INTEGRITY is not of 20 bytes")
            integrity_offset = offset
        elif attribute == USERNAME and length > _MAX_USERNAME_BYTES:
            _malformed("USERNAME is too long")
        elif attribute < _COMPREHENSION_OPTIONAL and attribute not in _UNDERSTOOD:
            unknown.append(attribute)
    attributes = _decode(datagram)
    local_ufrag, remote_ufrag = _split_username(attributes.get("USERNAME"))
    return BindingRequest(
        transaction_id=transaction_id,
        local_ufrag=local_ufrag,
        remote_ufrag=remote_ufrag,
        use_candidate="USE-CANDIDATE" in attributes,
        priority=attributes.get("PRIORITY"),
        ice_controlling=attributes.get("ICE-CONTROLLING"),
        ice_controlled=attributes.get("ICE-CONTROLLED"),
        unknown_required=tuple(unknown),
        integrity_offset=integrity_offset,
    )


def verify_integrity(datagram: bytes, request: BindingRequest, ice_pwd: str) -> None:
    """Check MESSAGE-INTEGRITY of the datagram that request was parsed from.

    Raises BadPacket("drop_session_stun_bad_integrity") if it is absent or wrong. FINGERPRINT,
    which proves nothing, was checked while parsing.
    """
    offset = request.integrity_offset
    if offset is None:
        raise BadPacket(_BAD_INTEGRITY, "absent")
    expected = stun.message_integrity(datagram[:offset], ice_pwd.encode("ascii"))
    if not hmac.compare_digest(expected, datagram[offset + 4 : offset + 4 + _INTEGRITY_BYTES]):
        raise BadPacket(_BAD_INTEGRITY)


def encode_success(request: BindingRequest, mapped_addr: Address, ice_pwd: str) -> bytes:
    """The success response with XOR-MAPPED-ADDRESS (RFC 8445 section 7.3.1.2)."""
    value = stun.pack_xor_address((mapped_addr.host, mapped_addr.port), request.transaction_id)
    return _encode(BINDING_SUCCESS, request, [(XOR_MAPPED_ADDRESS, value)], ice_pwd)


def encode_error(request: BindingRequest, code: int, reason: str, ice_pwd: str) -> bytes:
    """An error response, authenticated. A 420 names the attributes that were not understood
    (RFC 8489 section 6.3.1)."""
    attributes = [(ERROR_CODE, stun.pack_error_code((code, reason)))]
    if code == 420:
        types = request.unknown_required[:_MAX_UNKNOWN_REPORTED]
        attributes.append((UNKNOWN_ATTRIBUTES, struct.pack(f"!{len(types)}H", *types)))
    return _encode(BINDING_ERROR, request, attributes, ice_pwd)


def _malformed(detail: str) -> NoReturn:
    raise BadPacket(_MALFORMED, detail)


def _parse_header(datagram: bytes) -> bytes:
    """RFC 8489 section 5. Returns the transaction id."""
    if not _HEADER_BYTES <= len(datagram) <= _MAX_MESSAGE_BYTES:
        _malformed("length")
    message_type, length, cookie, transaction_id = _HEADER.unpack_from(datagram)
    if message_type != BINDING_REQUEST:
        _malformed("not a Binding request")
    if cookie != stun.COOKIE:
        _malformed("magic cookie")
    if length != len(datagram) - _HEADER_BYTES or length % 4:
        _malformed("length field")
    return bytes(transaction_id)


def _walk(datagram: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (type, offset of the attribute, length of its value); each lies in the datagram."""
    offset = _HEADER_BYTES
    while offset < len(datagram):
        # The whole message and each padded attribute are multiples of four, so four bytes remain.
        attribute, length = struct.unpack_from("!HH", datagram, offset)
        end = offset + 4 + length + stun.padding_length(length)
        if end > len(datagram):
            _malformed("attribute cut short")
        yield attribute, offset, length
        offset = end


def _decode(datagram: bytes) -> dict[str, Any]:
    try:
        attributes: dict[str, Any] = stun.parse_message(datagram).attributes
    except _CODEC_ERRORS as error:
        raise BadPacket(_MALFORMED, str(error)) from error
    return attributes


def _split_username(username: str | None) -> tuple[str, str]:
    local_ufrag, colon, remote_ufrag = (username or "").partition(":")
    if not (local_ufrag and colon and remote_ufrag):
        _malformed("USERNAME")
    return local_ufrag, remote_ufrag


def _encode(
    message_type: int,
    request: BindingRequest,
    attributes: list[tuple[int, bytes]],
    ice_pwd: str,
) -> bytes:
    body = b"".join(_attribute(attribute, value) for attribute, value in attributes)
    message = _HEADER.pack(message_type, len(body), stun.COOKIE, request.transaction_id) + body
    message += _attribute(
        MESSAGE_INTEGRITY, stun.message_integrity(message, ice_pwd.encode("ascii"))
    )
    message += _attribute(FINGERPRINT, struct.pack("!I", stun.message_fingerprint(message)))
    return stun.set_body_length(message, len(message) - _HEADER_BYTES)


def _attribute(attribute: int, value: bytes) -> bytes:
    padding = bytes(stun.padding_length(len(value)))
    return struct.pack("!HH", attribute, len(value)) + value + padding
