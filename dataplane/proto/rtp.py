"""RTP packets (RFC 3550 section 5) with header extensions (RFC 8285).

Not done: extension profiles other than the two of RFC 8285 (skipped, as RFC
3550 5.3.1 allows), and writing of CSRC lists longer than the 15 that fit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

from dataplane.proto.errors import BadPacket

HEADER_BYTES = 12
ONE_BYTE_PROFILE = 0xBEDE  # RFC 8285 4.2
TWO_BYTE_PROFILE = 0x1000  # RFC 8285 4.3; the low four bits are "appbits"

_HEADER = struct.Struct("!BBHII")
_EXTENSION = struct.Struct("!HH")
_NO_EXTENSIONS: Mapping[int, bytes] = {}
_REASON = "drop_rtp_malformed"


class RtpPacket(NamedTuple):
    """One RTP packet, padding removed.

    seq: 16 bits. rtp_ts, ssrc: 32 bits. extensions: RFC 8285 elements by id; of
    two with one id the later stands.
    """

    payload_type: int
    marker: bool
    seq: int
    rtp_ts: int
    ssrc: int
    payload: bytes
    csrc: tuple[int, ...] = ()
    extensions: Mapping[int, bytes] = _NO_EXTENSIONS


class AudioLevel(NamedTuple):
    """RFC 6464 section 3. level_dbov: 0 (loudest) to -127 (digital silence)."""

    voice: bool
    level_dbov: int


def is_rtcp(datagram: bytes) -> bool:
    """RFC 5761 section 4: RTCP packet types 192..223 share the second byte with
    marker and payload type, and RTP payload types 64..95 are kept clear of them."""
    return len(datagram) >= 2 and 192 <= datagram[1] <= 223


def parse_rtp(datagram: bytes) -> RtpPacket:
    """Parse a whole decrypted packet. Raises BadPacket("drop_rtp_malformed")."""
    end = len(datagram)
    if end < HEADER_BYTES:
        raise BadPacket(_REASON, f"{end} bytes are no RTP header")
    first, second, seq, rtp_ts, ssrc = _HEADER.unpack_from(datagram)
    if first & 0xC0 != 0x80:
        raise BadPacket(_REASON, f"version {first >> 6}")
    offset = HEADER_BYTES
    csrc: tuple[int, ...] = ()
    extensions = _NO_EXTENSIONS
    if first & 0x3F:  # padding, extension or CSRCs: the rarer shapes
        if first & 0x0F:
            csrc, offset = _parse_csrc(datagram, first & 0x0F)
        if first & 0x10:
            extensions, offset = _parse_extension_block(datagram, offset)
        if first & 0x20:
            end -= _padding_bytes(datagram, offset)
    return RtpPacket(
        second & 0x7F,
        second >= 0x80,
        seq,
        rtp_ts,
        ssrc,
        datagram[offset:end],
        csrc,
        extensions,
    )


def _parse_csrc(datagram: bytes, count: int) -> tuple[tuple[int, ...], int]:
    offset = HEADER_BYTES + 4 * count
    if len(datagram) < offset:
        raise BadPacket(_REASON, f"cut within {count} CSRCs")
    return struct.unpack_from(f"!{count}I", datagram, HEADER_BYTES), offset


def _padding_bytes(datagram: bytes, offset: int) -> int:
    """RFC 3550 5.1: the last octet counts the padding octets, itself included."""
    padding = datagram[-1]
    if not 0 < padding <= len(datagram) - offset:
        raise BadPacket(_REASON, f"{padding} bytes of padding")
    return padding


def _parse_extension_block(datagram: bytes, offset: int) -> tuple[Mapping[int, bytes], int]:
    """Returns the elements and where the payload starts."""
    start = offset + _EXTENSION.size
    if len(datagram) < start:
        raise BadPacket(_REASON, "cut within the extension header")
    profile, words = _EXTENSION.unpack_from(datagram, offset)
    end = start + 4 * words
    if len(datagram) < end:
        raise BadPacket(_REASON, f"cut within {words} words of extension")
    if profile == ONE_BYTE_PROFILE:
        return _parse_one_byte(datagram, start, end), end
    if profile & 0xFFF0 == TWO_BYTE_PROFILE:
        return _parse_two_byte(datagram, start, end), end
    return _NO_EXTENSIONS, end


def _parse_one_byte(datagram: bytes, offset: int, end: int) -> dict[int, bytes]:
    """RFC 8285 4.2. Id 0 is a byte of padding, or with a length ends the walk; so does
    id 15: "only the extension elements present prior to [it] SHOULD be considered"."""
    found: dict[int, bytes] = {}
    while offset < end:
        head = datagram[offset]
        offset += 1
        if head == 0:
            continue
        identifier = head >> 4
        if identifier in (0, 15):
            break
        after = offset + (head & 0x0F) + 1
        if after > end:
            raise BadPacket(_REASON, f"extension {identifier} overruns its block")
        found[identifier] = datagram[offset:after]
        offset = after
    return found


def _parse_two_byte(datagram: bytes, offset: int, end: int) -> dict[int, bytes]:
    """RFC 8285 4.3. Id 0 is one byte of padding without a length."""
    found: dict[int, bytes] = {}
    while offset < end:
        identifier = datagram[offset]
        offset += 1
        if identifier == 0:
            continue
        if offset == end:
            raise BadPacket(_REASON, f"extension {identifier} has no length")
        after = offset + 1 + datagram[offset]
        if after > end:
            raise BadPacket(_REASON, f"extension {identifier} overruns its block")
        found[identifier] = datagram[offset + 1 : after]
        offset = after
    return found


def encode_rtp(packet: RtpPacket, padding_bytes: int = 0) -> bytes:
    """The packet's bytes, with padding_bytes (0..255) of padding. Extensions are written in
    the one-byte form when all fit it, else in the two-byte form. Raises ValueError."""
    if not 0 <= padding_bytes <= 255 or len(packet.csrc) > 15:
        raise ValueError("more than 255 bytes of padding, or more than 15 CSRCs")
    first = 0x80 | len(packet.csrc)
    block = b""
    if packet.extensions:
        first |= 0x10
        block = _encode_extension_block(packet.extensions)
    padding = b""
    if padding_bytes:
        first |= 0x20
        padding = bytes(padding_bytes - 1) + bytes((padding_bytes,))
    header = _HEADER.pack(
        first,
        packet.marker << 7 | packet.payload_type,
        packet.seq,
        packet.rtp_ts,
        packet.ssrc,
    )
    if first == 0x80:
        return header + packet.payload
    csrc = struct.pack(f"!{len(packet.csrc)}I", *packet.csrc)
    return b"".join((header, csrc, block, packet.payload, padding))


def _encode_extension_block(extensions: Mapping[int, bytes]) -> bytes:
    one_byte = all(1 <= i <= 14 and 1 <= len(v) <= 16 for i, v in extensions.items())
    body = bytearray()
    for identifier, value in extensions.items():
        if one_byte:
            body.append(identifier << 4 | len(value) - 1)
        elif 1 <= identifier <= 255 and len(value) <= 255:
            body += bytes((identifier, len(value)))
        else:
            raise ValueError(f"extension {identifier} of {len(value)} bytes fits no form")
        body += value
    body += bytes(-len(body) % 4)
    profile = ONE_BYTE_PROFILE if one_byte else TWO_BYTE_PROFILE
    return _EXTENSION.pack(profile, len(body) // 4) + bytes(body)


def extend_seq(seq: int, highest_index: int) -> int:
    """The index (seq without its wrap) nearest to highest_index that ends in these 16 bits.

    May be negative shortly after a start at index < 32,768: start at 65,536 or above.
    """
    return highest_index + seq_delta(seq, highest_index)


def seq_delta(seq: int, reference: int) -> int:
    """How far seq is ahead of the reference (mod 2^16): -32,768..32,767."""
    return ((seq - reference + 0x8000) & 0xFFFF) - 0x8000


def rtp_ts_delta(rtp_ts: int, reference: int) -> int:
    """How far rtp_ts is ahead of the reference (mod 2^32), signed."""
    return ((rtp_ts - reference + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def parse_audio_level(element: bytes) -> AudioLevel:
    """RFC 6464 section 3: one byte, voice bit then level. In the two-byte form the
    element may also have one byte of data. Raises BadPacket("drop_rtp_malformed")."""
    if len(element) != 1:
        raise BadPacket(_REASON, f"audio level of {len(element)} bytes")
    return AudioLevel(element[0] >= 0x80, -(element[0] & 0x7F))
