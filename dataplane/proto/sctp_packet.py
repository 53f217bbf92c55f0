"""What an SCTP packet must not contain before aiortc may read it (RFC 9260 section 3).

aiortc believes the lengths and ranges of a peer that speaks SCTP over authenticated DTLS. One
packet of such a peer can make it loop for ever (a parameter of length 0), or for seconds (a SACK
that acknowledges 2^25 packets), and TSNs far ahead of what has been received make it keep, sort
and search more with every chunk. All of that stands in the chunk headers, so it is looked for
here; what passes may still be nonsense, which aiortc raises exceptions for.
"""

from __future__ import annotations

import struct

MAX_ACKED_AHEAD = 4096
"""TSNs that one SACK may report beyond a gap: all that we ever have in flight, several times."""

MAX_TSN_AHEAD = 256
"""DATA further ahead than this is dropped, as if the network had; it is sent again."""

_COMMON_HEADER_BYTES = 12
_CHUNK = struct.Struct("!BBH")
_SACK = struct.Struct("!IIHH")
_GAP = struct.Struct("!HH")

_DATA = 0
_SACK_TYPE = 3
# Where the parameters (type u16, length u16) of a chunk's body begin: INIT and INIT ACK have 16
# bytes before them; HEARTBEAT and its ACK, ABORT, ERROR and RE-CONFIG (RFC 6525) have none.
_PARAMETERS_AT = {1: 16, 2: 16, 4: 0, 5: 0, 6: 0, 9: 0, 130: 0}


def is_acceptable(packet: bytes, last_received_tsn: int | None) -> bool:
    """Whether aiortc can be given the packet. last_received_tsn: its own; None before any."""
    offset = _COMMON_HEADER_BYTES
    while offset <= len(packet) - _CHUNK.size:
        kind, _, length = _CHUNK.unpack_from(packet, offset)
        if length < _CHUNK.size or offset + length > len(packet):
            return False
        body = packet[offset + _CHUNK.size : offset + length]
        if not _is_acceptable_chunk(kind, body, last_received_tsn):
            return False
        offset += _padded(length)
    return True


def _is_acceptable_chunk(kind: int, body: bytes, last_received_tsn: int | None) -> bool:
    if kind == _DATA:
        if last_received_tsn is None or len(body) < 4:
            return False
        ahead = (int.from_bytes(body[:4], "big") - last_received_tsn) & 0xFFFFFFFF
        return ahead <= MAX_TSN_AHEAD or ahead >= 1 << 31  # or it has been received
    if kind == _SACK_TYPE:
        return _acked_ahead(body) <= MAX_ACKED_AHEAD
    parameters_at = _PARAMETERS_AT.get(kind)
    return parameters_at is None or _has_whole_parameters(body, parameters_at)


def _acked_ahead(body: bytes) -> int:
    """How many TSNs the gap blocks of a SACK name, each as often as it is named."""
    if len(body) < _SACK.size:
        return 0
    gaps = _SACK.unpack_from(body)[2]
    blocks = body[_SACK.size : _SACK.size + _GAP.size * gaps]
    whole = len(blocks) - len(blocks) % _GAP.size
    return sum(max(0, end - start + 1) for start, end in _GAP.iter_unpack(blocks[:whole]))


def _has_whole_parameters(body: bytes, offset: int) -> bool:
    while offset <= len(body) - 4:
        length = int.from_bytes(body[offset + 2 : offset + 4], "big")
        if length < 4:
            return False
        offset += _padded(length)
    return True


def _padded(length: int) -> int:
    return length + -length % 4
