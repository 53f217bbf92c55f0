"""From an offer to what is agreed with the client.

`negotiate` is pure and needs the offer alone, so that a bad offer is refused
before a session row is taken; `answer.encode_answer` then writes what was
agreed and what is ours (ufrag, certificate, candidates). The rules are those of JSEP (RFC 8829
section 5.3), BUNDLE (RFC 9143) and ICE-lite (RFC 8445), cut to what a voice
edge serves: one audio section, at most one data channel, one transport.

Deliberately not agreed: video; a second audio section; transport-cc and other
RTCP feedback; RTCP on a port of its own; more than one transport; the
pre-standard data channel (a=sctpmap).
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.sdp import (
    Fingerprint,
    Group,
    MediaSection,
    RtpMap,
    SdpError,
    Section,
    SessionDescription,
)

AUDIO_LEVEL_URI = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"  # RFC 6464
MID_URI = "urn:ietf:params:rtp-hdrext:sdes:mid"  # RFC 9143 section 15.1

# JSEP section 5.1.2: all of them mean DTLS-SRTP; the answer repeats the offer's.
_AUDIO_PROTOCOLS = frozenset(
    f"{transport}{profile}"
    for transport in ("UDP/TLS/", "TCP/DTLS/", "TCP/TLS/", "")
    for profile in ("RTP/SAVPF", "RTP/SAVP")
)
_DATA_PROTOCOLS = frozenset({"UDP/DTLS/SCTP", "TCP/DTLS/SCTP"})

# Strongest first. sha-1 is not here (RFC 8122 section 5 still allows it).
_HASH_FUNCTIONS = ("sha-512", "sha-384", "sha-256")

# What we send at most, also to a client that takes more: a data channel's
# message must not hold the others up for long. Chromium takes this much.
_MAX_REMOTE_MESSAGE_BYTES = 262144
# RFC 8841 section 6.1: what an offer without a=max-message-size takes.
_DEFAULT_MESSAGE_BYTES = 65536


@dataclass(frozen=True)
class CodecRule:
    """A codec the edge speaks: how an offer names it, what the answer adds."""

    name: str
    encoding: str
    clock_rate: int
    channels: int
    answer_parameters: str = ""

    def matches(self, rtp_map: RtpMap) -> bool:
        return (
            rtp_map.encoding.lower() == self.encoding
            and rtp_map.clock_rate == self.clock_rate
            and rtp_map.channels == self.channels
        )


# RFC 7587 section 7: opus is always 48000/2 in rtpmap. stereo=0 asks for mono,
# which is what a backend hears.
OPUS = CodecRule("opus", "opus", 48000, 2, "minptime=10;useinbandfec=1;stereo=0")


@dataclass(frozen=True)
class Policy:
    """What this node is willing to agree to."""

    codecs: tuple[CodecRule, ...] = (OPUS,)
    """In order of preference."""
    nack: bool = False
    """Ask for repair of the uplink: a=rtcp-fb nack, offered or not. Browsers
    honour it in the answer alone."""


@dataclass(frozen=True)
class Negotiated:
    """What an offer and our policy agree on. Ids are None where not agreed."""

    audio_index: int
    data_index: int | None
    idle_index: int | None
    """A section that carries nothing and is accepted, inactive, for its transport
    alone: see `_idle_section`."""
    transport_index: int
    """The section whose ICE and DTLS attributes count (BUNDLE's tagged one)."""
    bundled: tuple[str, ...]
    """mids of the answer's BUNDLE group, the tagged one first; empty: no group."""
    remote_ufrag: str
    fingerprint_algorithm: str
    remote_fingerprint: bytes
    dtls_active: bool
    mid: str
    codec: CodecRule
    audio_payload_type: int
    red_payload_type: int | None
    dtmf_payload_type: int | None
    audio_level_ext_id: int | None
    mid_ext_id: int | None
    client_sends: bool
    client_receives: bool
    nack: bool
    remote_ssrc: int
    """0: not announced."""
    sctp_port: int
    """The client's; 0: no data channel. Ours is `answer.LOCAL_SCTP_PORT`."""
    sctp_max_message_bytes: int
    """The longest message we may send."""
    ptime_ms: int = 20


def negotiate(offer: SessionDescription, policy: Policy) -> Negotiated:
    """Agrees on one audio section and its transport. Raises `SdpError`."""
    if offer.ice_lite:
        raise SdpError(
            "both sides would be ICE-lite and nobody would send a check",
            offer.seen["a=ice-lite"],
            "sdp_ice_lite",
        )
    audio = _choose_audio(offer)
    codec, payload_type = _choose_codec(audio, policy)
    group = _bundle_of(offer, audio)
    if not audio.rtcp_mux:
        raise SdpError("no a=rtcp-mux for this section", audio.line, "sdp_no_rtcp_mux")
    data = _choose_data(offer, group)
    idle = _idle_section(offer, audio, data, group)
    tagged, bundled = _choose_transport(audio, data, idle, group)
    transport = _TransportOf(offer, tagged, audio, group)
    fingerprint = _strongest(transport.fingerprints())
    client_sends, client_receives = _direction_of(offer, audio)
    return Negotiated(
        audio_index=audio.index,
        data_index=None if data is None else data.index,
        idle_index=None if idle is None else idle.index,
        transport_index=tagged.index,
        bundled=bundled,
        remote_ufrag=transport.ice_ufrag(),
        fingerprint_algorithm=fingerprint.algorithm,
        remote_fingerprint=fingerprint.digest,
        dtls_active=transport.setup() != "active",
        mid=audio.mid or "",
        codec=codec,
        audio_payload_type=payload_type,
        red_payload_type=None,
        dtmf_payload_type=None,
        audio_level_ext_id=_extension_id(offer, audio, AUDIO_LEVEL_URI) if client_sends else None,
        mid_ext_id=_extension_id(offer, audio, MID_URI) if client_sends and audio.mid else None,
        client_sends=client_sends,
        client_receives=client_receives,
        nack=policy.nack,
        remote_ssrc=audio.ssrcs[0] if audio.ssrcs else 0,
        sctp_port=0 if data is None else data.sctp_port or 0,
        sctp_max_message_bytes=0 if data is None else _message_bytes(data),
    )


def _choose_audio(offer: SessionDescription) -> MediaSection:
    """The first usable audio section; the others are rejected in the answer."""
    refused: SdpError | None = None
    for media in offer.media:
        if media.kind != "audio" or not media.offered:
            continue
        if media.protocol in _AUDIO_PROTOCOLS:
            return media
        refused = refused or SdpError(
            f"{media.protocol} is not DTLS-SRTP (UDP/TLS/RTP/SAVPF is)",
            media.line,
            "sdp_no_dtls_srtp",
        )
    if refused is not None:
        raise refused
    if not offer.media:
        raise SdpError("the offer has no m= line at all, so no audio", offer.line, "sdp_no_audio")
    raise SdpError(
        f"the offer has no m=audio section that is switched on; this is the first of its"
        f" {len(offer.media)} sections",
        offer.media[0].line,
        "sdp_no_audio",
    )


def _choose_codec(audio: MediaSection, policy: Policy) -> tuple[CodecRule, int]:
    """Our first codec that the section offers, and its payload type."""
    offered = [int(text) for text in audio.formats]
    for rule in policy.codecs:
        for payload_type in offered:
            rtp_map = audio.rtp_maps.get(payload_type)
            if rtp_map is None or not rule.matches(rtp_map):
                continue
            if 64 <= payload_type <= 95:
                raise SdpError(
                    "payload types 64 to 95 look like RTCP beside rtcp-mux (RFC 5761 section 4)",
                    rtp_map.line,
                    "sdp_payload_type",
                )
            return rule, payload_type
    names = [audio.rtp_maps[pt].encoding for pt in offered if pt in audio.rtp_maps]
    spoken = ", ".join(f"{rule.encoding}/{rule.clock_rate}" for rule in policy.codecs)
    raise SdpError(
        f"no codec that we speak: offered are {', '.join(names[:12]) or 'none with a=rtpmap'};"
        f" spoken are {spoken}",
        audio.line,
        "sdp_no_codec",
    )


def _bundle_of(offer: SessionDescription, audio: MediaSection) -> Group | None:
    """The BUNDLE group of the audio section.

    An offer whose only live section is the audio needs no group: it has one
    transport either way. With anything beside it, BUNDLE is required.
    """
    for group in offer.groups:
        if group.semantics == "BUNDLE" and audio.mid is not None and audio.mid in group.mids:
            return group
    if audio.port == 0:
        raise SdpError("a=bundle-only outside of any BUNDLE group", audio.line, "sdp_no_bundle")
    others = [media for media in offer.media if media is not audio and media.offered]
    if others:
        raise SdpError(
            f"this section is in no a=group:BUNDLE, and {others[0].line} wants a transport too",
            audio.line,
            "sdp_no_bundle",
        )
    return None


def _choose_data(offer: SessionDescription, group: Group | None) -> MediaSection | None:
    """The data channel section, if it can share the audio's transport."""
    for media in offer.media:
        if media.kind != "application" or not media.offered:
            continue
        if media.protocol not in _DATA_PROTOCOLS or "webrtc-datachannel" not in media.formats:
            continue  # a=sctpmap of old drafts, BFCP: rejected, not an error
        if group is None or media.mid not in group.mids:
            continue
        if not media.sctp_port:
            raise SdpError(
                "a data channel needs a=sctp-port above 0 (RFC 8841 section 5)",
                media.seen.get("a=sctp-port", media.line),
                "sdp_no_sctp_port",
            )
        return media
    return None


def _message_bytes(data: MediaSection) -> int:
    """RFC 8841 section 6.1: absent means 64 KiB, 0 means any size."""
    offered = data.max_message_bytes
    if offered is None:
        return _DEFAULT_MESSAGE_BYTES
    return min(offered or _MAX_REMOTE_MESSAGE_BYTES, _MAX_REMOTE_MESSAGE_BYTES)


def _idle_section(
    offer: SessionDescription,
    audio: MediaSection,
    data: MediaSection | None,
    group: Group | None,
) -> MediaSection | None:
    """The first of the group, where it is a video that shares the audio's transport.

    bundlePolicy "max-bundle" makes such offers: the audio is a=bundle-only
    (Firefox) or repeats the first section's ufrag (Chromium). With the tagged
    section rejected there is no transport left (RFC 9143 section 7.3.1), and
    Chromium refuses the answer. So that one video is not rejected but inactive.
    """
    if group is None:
        return None
    first = next(media for media in offer.media if media.mid == group.mids[0])
    if first is audio or first is data:
        return None
    shared = audio.port == 0 or (first.ice_ufrag or offer.ice_ufrag) == (
        audio.ice_ufrag or offer.ice_ufrag
    )
    usable = first.port != 0 and first.rtcp_mux and first.protocol in _AUDIO_PROTOCOLS
    return first if shared and usable and int(first.formats[0]) in first.rtp_maps else None


def _choose_transport(
    audio: MediaSection,
    data: MediaSection | None,
    idle: MediaSection | None,
    group: Group | None,
) -> tuple[MediaSection, tuple[str, ...]]:
    """The tagged section and the mids of the answer's group (RFC 9143 section 7.3).

    "Tagged" is the accepted section that stands first in the offer's group
    and has a port of its own; only its transport attributes count.
    """
    if group is None:
        return audio, ()
    accepted = {media.mid: media for media in (audio, data, idle) if media is not None}
    ordered = [accepted[mid] for mid in group.mids if mid in accepted]
    ordered.sort(key=lambda media: media.port == 0)  # stable: bundle-only sections last
    return ordered[0], tuple(media.mid for media in ordered if media.mid is not None)


class _TransportOf:
    """Finds a transport attribute where the offer may have put it: in the tagged
    section or at session level; failing that, in the first of the offered group
    or in the audio's own section."""

    def __init__(
        self,
        offer: SessionDescription,
        tagged: MediaSection,
        audio: MediaSection,
        group: Group | None,
    ) -> None:
        self._blamed = audio.line
        self._places: list[Section] = [tagged, offer]
        if group is not None:
            first = next(media for media in offer.media if media.mid == group.mids[0])
            self._places += [first, audio]

    def ice_ufrag(self) -> str:
        for place in self._places:
            if place.ice_ufrag is not None and place.ice_pwd is not None:
                return place.ice_ufrag
        raise SdpError(
            "no a=ice-ufrag with its a=ice-pwd in this section or at session level",
            self._blamed,
            "sdp_no_ice",
        )

    def fingerprints(self) -> list[Fingerprint]:
        for place in self._places:
            if place.fingerprints:
                return place.fingerprints
        raise SdpError(
            "no a=fingerprint in this section or at session level",
            self._blamed,
            "sdp_no_fingerprint",
        )

    def setup(self) -> str:
        """RFC 4145 section 4: an offer without a=setup means active."""
        for place in self._places:
            if place.setup == "holdconn":
                raise SdpError(
                    "holdconn asks for no connection", place.seen["a=setup"], "sdp_setup"
                )
            if place.setup is not None:
                return place.setup
        return "active"


def _strongest(fingerprints: list[Fingerprint]) -> Fingerprint:
    for algorithm in _HASH_FUNCTIONS:
        for fingerprint in fingerprints:
            if fingerprint.algorithm == algorithm:
                return fingerprint
    raise SdpError(
        f"the fingerprint must be made with {', '.join(reversed(_HASH_FUNCTIONS))},"
        f" not with {fingerprints[0].algorithm} alone",
        fingerprints[0].line,
        "sdp_weak_fingerprint",
    )


def _direction_of(offer: SessionDescription, audio: MediaSection) -> tuple[bool, bool]:
    """Whether the client sends and receives; the session's direction is inherited."""
    direction = audio.direction or offer.direction or "sendrecv"
    return direction in ("sendrecv", "sendonly"), direction in ("sendrecv", "recvonly")


def _extension_id(offer: SessionDescription, audio: MediaSection, uri: str) -> int | None:
    """The id of a header extension that the client is ready to send.

    1 to 14 only: one-byte headers (RFC 8285 section 4.2).
    """
    for extension in [*audio.header_extensions, *offer.header_extensions]:
        if extension.uri == uri and extension.id <= 14 and extension.direction.startswith("send"):
            return extension.id
    return None
