"""The kernel's enums in Python. Generated from layout.h by
dataplane.kernel.generate_enums; do not edit."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class RegionKind(IntEnum):
    """What a shared segment holds."""

    SESSIONS = 1
    STATUS = 2
    FLOWS = 3
    ROUTES = 4
    WORKERS = 5


class WorkerKind(IntEnum):
    """Which process a worker row is of."""

    NONE = 0
    RELAY = 1
    TRANSCEIVER = 2
    CONTROL_PLANE = 3
    SUPERVISOR = 4


class SessionState(IntEnum):
    """What the control plane says of a slot."""

    FREE = 0
    OFFERED = 1
    CLOSING = 2
    ENDED = 3


class CallState(IntEnum):
    """What the transceiver says of a call."""

    NONE = 0
    ICE = 1
    DTLS = 2
    CONNECTED = 3
    ENDED = 4


class EndReason(IntEnum):
    """Why a call ended."""

    NONE = 0
    HANGUP = 1
    CLIENT_CLOSED = 2
    CONSENT_EXPIRED = 3
    DTLS_FAILED = 4
    DTLS_TIMEOUT = 5
    BACKEND_STOPPED = 6
    NEVER_CONNECTED = 7
    TRANSCEIVER_DIED = 8
    SHUTDOWN = 9
    TIME_LIMIT = 10
    INTERNAL_ERROR = 11


class BackendState(IntEnum):
    """How the call's backend fares."""

    NONE = 0
    CONNECTING = 1
    STARTED = 2
    READY = 3
    UNAVAILABLE = 4
    REFUSED = 5
    LOST = 6


class Transport(IntEnum):
    """How a client reaches us."""

    NONE = 0
    UDP = 1
    TCP = 2


class FingerprintAlgorithm(IntEnum):
    """Hash of the client's certificate fingerprint (RFC 8122)."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3


class Codec(IntEnum):
    """The audio codec agreed on."""

    OPUS = 1
    PCMU = 2
    PCMA = 3


class HopFlag(IntFlag):
    """Record flags on the hop."""

    STUN = 1
    DTLS = 2
    RTP = 4
    NEW_FLOW = 8


class Demux(IntEnum):
    """A datagram's protocol by its first byte (RFC 7983)."""

    NONE = 0
    STUN = 1
    DTLS = 2
    RTP = 3


class Counter(IntEnum):
    """Every counter; a metric's name is the lower case."""

    RX_DATAGRAMS = 0
    RX_BYTES = 1
    FORWARDED = 2
    HOP_TX_DATAGRAMS = 3
    SLOW_PATH = 4
    FLOWS_INSTALLED = 5
    FLOWS_EVICTED = 6
    RX_BATCHES = 7
    DROP_EMPTY = 8
    DROP_OVERSIZE = 9
    DROP_DEMUX = 10
    DROP_STUN_MALFORMED = 11
    DROP_STUN_NOT_REQUEST = 12
    DROP_STUN_NO_USERNAME = 13
    DROP_STUN_FOREIGN_UFRAG = 14
    DROP_STUN_STALE_GENERATION = 15
    DROP_STUN_BAD_INTEGRITY = 16
    DROP_UNKNOWN_FLOW = 17
    DROP_STALE_FLOW = 18
    DROP_NO_ROUTE = 19
    DROP_SLOW_PATH_FULL = 20
    DROP_HOP_SEND = 21
    KERNEL_RX_OVERFLOW = 22
    HOP_RX_DATAGRAMS = 32
    HOP_RX_RECORDS = 33
    HOP_RECORDS_LOST = 34
    DROP_HOP_MALFORMED = 35
    RECORDS_HANDLED = 36
    DROP_RECORD_NO_SESSION = 37
    DROP_RECORD_STALE_GENERATION = 38
    DROP_RECORD_UNVERIFIED_ADDRESS = 39
    DROP_SESSION_STUN_MALFORMED = 40
    DROP_SESSION_STUN_BAD_INTEGRITY = 41
    DROP_SESSION_STUN_BAD_USERNAME = 42
    DROP_DTLS_MALFORMED = 43
    DROP_DTLS_LIMIT = 44
    DROP_SRTP_NO_KEYS = 45
    DROP_SRTP_AUTH = 46
    DROP_SRTP_REPLAY = 47
    DROP_RTP_MALFORMED = 48
    DROP_RTP_PAYLOAD_TYPE = 49
    DROP_RTP_SSRC = 50
    DROP_RTP_LATE = 51
    DROP_RTP_DUPLICATE = 52
    DROP_RTCP_MALFORMED = 53
    TX_DATAGRAMS = 54
    TX_BYTES = 55
    TX_ERRORS = 56
    CALLS_STARTED = 57
    CALLS_ENDED = 58
    STUN_REFUSED = 59
    PLAYOUT_FRAMES = 60
    PLAYOUT_LATE = 61
    BACKEND_CONNECTS = 62
    BACKEND_AUDIO_DROPPED = 63
    BACKEND_BAD_FRAME = 64
    DROP_OPUS_INVALID = 65
    KERNEL_HOP_OVERFLOW = 66
    DROP_SCTP = 67
    DROP_RECORD_INTERNAL_ERROR = 68
    DROP_SESSION_STUN_REPLAY = 69
    OFFERS = 80
    OFFERS_REFUSED = 81
    CALLS_HANGUP = 82
