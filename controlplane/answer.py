"""The answer's text, from the offer and what was agreed (RFC 8829 section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.offer_answer import AUDIO_LEVEL_URI, MID_URI, Negotiated
from controlplane.sdp import MediaSection, SessionDescription

LOCAL_SCTP_PORT = 5000
LOCAL_MAX_MESSAGE_BYTES = 65536

# RFC 8445 section 5.1.2.2: the type preference of host candidates.
_HOST_PREFERENCE = 126
_STREAM_ID = "earshot"
_TRACK_ID = "earshot-audio"
# By (we send, we receive).
_DIRECTIONS = {
    (True, True): "sendrecv",
    (True, False): "sendonly",
    (False, True): "recvonly",
    (False, False): "inactive",
}


@dataclass(frozen=True)
class LocalParameters:
    """Our side of the answer."""

    ice_ufrag: str
    ice_pwd: str
    fingerprint_sha256: str
    """"AA:BB:…", of the node's certificate."""
    candidates: tuple[tuple[str, int], ...]
    """Host and UDP port, in order of preference; at least one."""
    ssrc: int
    cname: str
    """The same as in our RTCP (RFC 3550 section 6.5.1)."""
    session_id: int
    """For o=, below 2**63 (RFC 8829 section 5.2.1)."""


def encode_answer(offer: SessionDescription, agreed: Negotiated, local: LocalParameters) -> str:
    """The answer's text, lines ended by CRLF. One m= line for each of the offer's."""
    lines = [
        "v=0",
        f"o=- {local.session_id} 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        # RFC 8839 section 5.3: session level only.
        "a=ice-lite",
    ]
    if agreed.bundled:
        lines.append(f"a=group:BUNDLE {' '.join(agreed.bundled)}")
    lines.append("a=msid-semantic:WMS *")
    for media in offer.media:
        if media.index == agreed.audio_index:
            lines += _audio_lines(media, agreed, local)
        elif media.index == agreed.data_index:
            lines += _data_lines(media, agreed, local)
        elif media.index == agreed.idle_index:
            lines += _idle_lines(media, agreed, local)
        else:
            lines += _rejected_lines(media, agreed, local)
    return "\r\n".join(lines) + "\r\n"


def _head_lines(media: MediaSection, formats: str, local: LocalParameters) -> list[str]:
    """m= and c= name the default candidate (RFC 8839 section 4.2.1)."""
    host, port = local.candidates[0]
    family = 6 if ":" in host else 4
    lines = [f"m={media.kind} {port} {media.protocol} {formats}", f"c=IN IP{family} {host}"]
    if media.mid is not None:
        lines.append(f"a=mid:{media.mid}")
    return lines


def _transport_lines(media: MediaSection, agreed: Negotiated, local: LocalParameters) -> list[str]:
    """ICE and DTLS. Repeated in every accepted section, as browsers do; the
    candidates stand in the tagged one."""
    lines = [
        f"a=ice-ufrag:{local.ice_ufrag}",
        f"a=ice-pwd:{local.ice_pwd}",
        f"a=fingerprint:sha-256 {local.fingerprint_sha256}",
        f"a=setup:{'active' if agreed.dtls_active else 'passive'}",
    ]
    if media.index == agreed.transport_index:
        lines += [
            f"a=candidate:{order + 1} 1 udp {_priority(order)} {host} {port} typ host"
            for order, (host, port) in enumerate(local.candidates)
        ]
        lines.append("a=end-of-candidates")
    return lines


def _priority(order: int) -> int:
    """RFC 8445 section 5.1.2.1, component 1."""
    return (_HOST_PREFERENCE << 24) | ((65535 - order) << 8) | 255


def _audio_lines(media: MediaSection, agreed: Negotiated, local: LocalParameters) -> list[str]:
    payload_type, codec = agreed.audio_payload_type, agreed.codec
    lines = _head_lines(media, str(payload_type), local)
    lines.append(f"a={_DIRECTIONS[agreed.client_receives, agreed.client_sends]}")
    lines += _transport_lines(media, agreed, local)
    lines.append("a=rtcp-mux")
    channels = f"/{codec.channels}" if codec.channels > 1 else ""
    lines.append(f"a=rtpmap:{payload_type} {codec.encoding}/{codec.clock_rate}{channels}")
    if codec.answer_parameters:
        lines.append(f"a=fmtp:{payload_type} {codec.answer_parameters}")
    if agreed.nack:
        lines.append(f"a=rtcp-fb:{payload_type} nack")
    for extension_id, uri in (
        (agreed.audio_level_ext_id, AUDIO_LEVEL_URI),
        (agreed.mid_ext_id, MID_URI),
    ):
        if extension_id is not None:
            # recvonly: we read these and send none (RFC 8285 section 6).
            lines.append(f"a=extmap:{extension_id}/recvonly {uri}")
    if agreed.client_receives:
        lines += [
            f"a=msid:{_STREAM_ID} {_TRACK_ID}",
            f"a=ssrc:{local.ssrc} cname:{local.cname}",
            f"a=ssrc:{local.ssrc} msid:{_STREAM_ID} {_TRACK_ID}",
        ]
    return lines


def _data_lines(media: MediaSection, agreed: Negotiated, local: LocalParameters) -> list[str]:
    return [
        *_head_lines(media, "webrtc-datachannel", local),
        *_transport_lines(media, agreed, local),
        f"a=sctp-port:{LOCAL_SCTP_PORT}",
        f"a=max-message-size:{LOCAL_MAX_MESSAGE_BYTES}",
    ]


def _idle_lines(media: MediaSection, agreed: Negotiated, local: LocalParameters) -> list[str]:
    """Accepted for its transport; no media either way."""
    return [
        *_head_lines(media, media.formats[0], local),
        "a=inactive",
        *_transport_lines(media, agreed, local),
        *_one_codec_lines(media),
    ]


def _rejected_lines(media: MediaSection, agreed: Negotiated, local: LocalParameters) -> list[str]:
    """RFC 8829 section 5.3.1: port 0, at its place, outside of BUNDLE.

    Nothing after a=mid has a meaning in a rejected section; aiortc validates
    it all the same.
    """
    lines = [f"m={media.kind} 0 {media.protocol} {media.formats[0]}", "c=IN IP4 0.0.0.0"]
    if media.mid is not None:
        lines.append(f"a=mid:{media.mid}")
    if media.is_rtp:
        lines.append("a=inactive")
    lines += _transport_lines(media, agreed, local)
    return lines + _one_codec_lines(media)


def _one_codec_lines(media: MediaSection) -> list[str]:
    """For a section without media: as much as its m= line promises."""
    if not media.is_rtp:
        return []
    lines = ["a=rtcp-mux"]
    rtp_map = media.rtp_maps.get(int(media.formats[0]))
    if rtp_map is not None:
        lines.append(f"a=rtpmap:{rtp_map.payload_type} {rtp_map.encoding}/{rtp_map.clock_rate}")
    return lines
