"""What a datagram on the public port is, by its first byte (RFC 7983 section 7).

The oracle of the kernel's demux.c. ZRTP (16..19) and TURN channels (64..79) are not for us,
and are NONE with everything else that the RFC does not name.
"""

from __future__ import annotations

from enum import IntEnum


class Demux(IntEnum):
    """enum ek_demux in layout.h."""

    NONE = 0
    STUN = 1
    DTLS = 2
    RTP = 3  # RTCP included


def classify(datagram: bytes) -> Demux:
    """The class of a datagram; an empty one has none."""
    if not datagram:
        return Demux.NONE
    first = datagram[0]
    if first <= 3:
        return Demux.STUN
    if 20 <= first <= 63:
        return Demux.DTLS
    if 128 <= first <= 191:
        return Demux.RTP
    return Demux.NONE
