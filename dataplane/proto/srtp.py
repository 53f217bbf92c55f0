"""SRTP and SRTCP of one session (RFC 3711, RFC 7714), by libsrtp.

One libsrtp context for each direction, keyed by the DTLS handshake. libsrtp makes a stream for an
SSRC when the first packet of it has authenticated (RFC 3711 section 3.3), so a stranger's SSRC
costs nothing; how many a peer may open is bounded here.

A packet that does not authenticate, or was seen before, is dropped and counted; it never ends a
session. Not implemented: MKI, AES-256, 32-bit tags, encrypted header extensions, re-keying
(2^48 packets last longer than a call).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pylibsrtp import Error, Policy, Session

from dataplane.proto.errors import BadPacket

# IANA, "DTLS-SRTP Protection Profiles": to libsrtp's name, and bytes of master key and salt.
_PROFILES = {
    1: (Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 30),
    7: (Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 28),
}

# Packets; 20 s of audio, so that a retransmission is never too old. libwebrtc has the same.
REPLAY_WINDOW = 1024

# An honest client has one audio SSRC, and one more after each of its own restarts of the track.
MAX_REMOTE_SSRCS = 32

_MIN_RTP_BYTES = 12
_MIN_RTCP_BYTES = 8
_RTP_SSRC = slice(8, 12)
_RTCP_SSRC = slice(4, 8)

# pylibsrtp gives libsrtp's status as text only.
_REASONS = {
    "authentication failure": "drop_srtp_auth",
    "replay check failed (bad index)": "drop_srtp_replay",
    "replay check failed (index too old)": "drop_srtp_replay",
}


class SrtpSession:
    """Both directions. profile: 1 or 7; keys: master key and salt as DtlsEndpoint.srtp_keys gives
    them. Raises ValueError for another profile or length."""

    def __init__(self, profile: int, local_key: bytes, remote_key: bytes) -> None:
        libsrtp_profile, key_bytes = _PROFILES.get(profile, (None, -1))
        if libsrtp_profile is None or {len(local_key), len(remote_key)} != {key_bytes}:
            raise ValueError("no such SRTP profile, or keys of the wrong length for it")
        self._sender = _session(libsrtp_profile, local_key, Policy.SSRC_ANY_OUTBOUND)
        self._receiver = _session(libsrtp_profile, remote_key, Policy.SSRC_ANY_INBOUND)
        self._remote_ssrcs: set[bytes] = set()

    def protect_rtp(self, packet: bytes) -> bytes:
        """packet: of ours, at most 1,356 bytes. Each sequence number once: send it again as it
        was protected. Raises ValueError or pylibsrtp.Error for what is our own mistake."""
        protected: bytes = self._sender.protect(packet)
        return protected

    def protect_rtcp(self, packet: bytes) -> bytes:
        """As protect_rtp."""
        protected: bytes = self._sender.protect_rtcp(packet)
        return protected

    def unprotect_rtp(self, packet: bytes) -> bytes:
        """The plaintext of an SRTP packet. Raises BadPacket drop_srtp_auth, drop_srtp_replay,
        drop_rtp_ssrc (one too many) or drop_rtp_malformed."""
        if len(packet) < _MIN_RTP_BYTES:
            raise BadPacket("drop_rtp_malformed", "short")
        return self._unprotect(
            self._receiver.unprotect, packet, packet[_RTP_SSRC], "drop_rtp_malformed"
        )

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """As unprotect_rtp; otherwise bad is drop_rtcp_malformed."""
        if len(packet) < _MIN_RTCP_BYTES:
            raise BadPacket("drop_rtcp_malformed", "short")
        return self._unprotect(
            self._receiver.unprotect_rtcp, packet, packet[_RTCP_SSRC], "drop_rtcp_malformed"
        )

    @property
    def contexts(self) -> tuple[Any, Any]:
        """libsrtp's own (srtp_t) to send and to receive with, as cdata; ours while we live."""
        return self._sender._srtp[0], self._receiver._srtp[0]

    def _unprotect(
        self, unprotect: Callable[[bytes], bytes], packet: bytes, ssrc: bytes, malformed: str
    ) -> bytes:
        is_new = ssrc not in self._remote_ssrcs
        if is_new and len(self._remote_ssrcs) >= MAX_REMOTE_SSRCS:
            raise BadPacket("drop_rtp_ssrc", "too many")
        try:
            plaintext = unprotect(packet)
        except Error as error:
            raise BadPacket(_REASONS.get(str(error), malformed), str(error)) from error
        except ValueError as error:  # longer than pylibsrtp's buffer
            raise BadPacket(malformed, str(error)) from error
        if is_new:
            self._remote_ssrcs.add(ssrc)
        return plaintext


def _session(profile: int, key: bytes, ssrc_type: int) -> Session:
    policy = Policy(key=key, ssrc_type=ssrc_type, srtp_profile=profile)
    policy.window_size = REPLAY_WINDOW
    return Session(policy=policy)
