"""The SDP of a synthetic client: an offer like Chromium's, and reading the answer.

Only what a client needs of RFC 8866, 8829, 8839 and 8842. The parser is for
answers of servers under test, so it raises ValueError with the line that it
could not use rather than guessing.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

OPUS_PAYLOAD_TYPE = 111

_AUDIO_LINES = """\
a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=sendrecv
a=msid:{stream} {track}
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:111 opus/48000/2
a=rtcp-fb:111 transport-cc
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:63 red/48000/2
a=fmtp:63 111/111
a=rtpmap:9 G722/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:13 CN/8000
a=rtpmap:110 telephone-event/48000
a=rtpmap:126 telephone-event/8000
a=ssrc:{ssrc} cname:{cname}
a=ssrc:{ssrc} msid:{stream} {track}"""


@dataclass(frozen=True)
class Offer:
    """What a client announces of itself."""

    ufrag: str
    pwd: str
    fingerprint: str
    """``AA:BB:…`` of SHA-256."""
    ssrc: int
    data_channel: bool = False
    candidates: tuple[tuple[str, int], ...] = ()
    """(address, port) of UDP host candidates. Browsers post none here; a full
    ICE agent such as aiortc's wants to be told."""
    stream: str = field(default_factory=lambda: secrets.token_hex(8))

    def text(self) -> str:
        """The offer, CRLF line ends, candidates in the first m-line only (BUNDLE)."""
        lines = [
            "v=0",
            f"o=- {secrets.randbits(62)} 2 IN IP4 127.0.0.1",
            "s=-",
            "t=0 0",
            "a=group:BUNDLE 0 1" if self.data_channel else "a=group:BUNDLE 0",
            "a=extmap-allow-mixed",
            f"a=msid-semantic: WMS {self.stream}",
            "m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126",
            "c=IN IP4 0.0.0.0",
            "a=rtcp:9 IN IP4 0.0.0.0",
            *self._candidate_lines(),
            *self._transport_lines(mid="0"),
            *_AUDIO_LINES.format(
                stream=self.stream, track=f"{self.stream}a", ssrc=self.ssrc, cname=self.stream
            ).split("\n"),
        ]
        if self.data_channel:
            lines += [
                "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
                "c=IN IP4 0.0.0.0",
                *self._transport_lines(mid="1"),
                "a=sctp-port:5000",
                "a=max-message-size:262144",
            ]
        return "\r\n".join(lines) + "\r\n"

    def _transport_lines(self, mid: str) -> list[str]:
        return [
            f"a=ice-ufrag:{self.ufrag}",
            f"a=ice-pwd:{self.pwd}",
            "a=ice-options:trickle",
            f"a=fingerprint:sha-256 {self.fingerprint}",
            "a=setup:actpass",
            f"a=mid:{mid}",
        ]

    def _candidate_lines(self) -> list[str]:
        lines = [
            f"a=candidate:{i + 1} 1 udp 2130706431 {host} {port} typ host"
            for i, (host, port) in enumerate(self.candidates)
        ]
        return [*lines, "a=end-of-candidates"] if lines else []


@dataclass(frozen=True)
class Candidate:
    """One place that the answer says the server can be reached at."""

    host: str
    port: int
    transport: str
    """``udp`` or ``tcp``."""

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host


@dataclass(frozen=True)
class Answer:
    """What the server announced, of the first m-line unless said otherwise."""

    ufrag: str
    pwd: str
    fingerprint_algorithm: str
    fingerprint: bytes
    setup: str
    payload_types: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    ssrc: int | None
    sctp_port: int | None
    text: str = field(repr=False, default="")

    def candidate(self, *, ipv6: bool) -> Candidate:
        """The first UDP candidate of that family; LookupError when there is none."""
        for candidate in self.candidates:
            if candidate.transport == "udp" and candidate.is_ipv6 == ipv6:
                return candidate
        family = "IPv6" if ipv6 else "IPv4"
        raise LookupError(f"the answer has no {family} UDP candidate: {self.candidates}")


def parse_answer(text: str) -> Answer:
    """Reads an answer to an Offer. ValueError names what is missing."""
    session, *media = _sections(text)
    audio = next((m for m in media if m[0].startswith("m=audio")), None)
    if audio is None:
        raise ValueError("the answer has no audio m-line")
    m_line = audio[0].split()
    if int(m_line[1]) == 0:
        raise ValueError(f"the answer rejects the audio: {audio[0]}")
    attributes = [*audio, *session]
    algorithm, _, digits = _attribute(attributes, "fingerprint").partition(" ")
    ssrc = _optional_attribute(audio, "ssrc")
    application = next((m for m in media if m[0].startswith("m=application")), [])
    sctp_port = _optional_attribute(application, "sctp-port")
    return Answer(
        ufrag=_attribute(attributes, "ice-ufrag"),
        pwd=_attribute(attributes, "ice-pwd"),
        fingerprint_algorithm=algorithm.lower(),
        fingerprint=bytes.fromhex(digits.replace(":", "")),
        setup=_attribute(attributes, "setup"),
        payload_types=tuple(int(pt) for pt in m_line[3:]),
        candidates=tuple(
            _parse_candidate(line.partition(":")[2])
            for line in audio
            if line.startswith("a=candidate:")
        ),
        ssrc=int(ssrc.split()[0]) if ssrc else None,
        sctp_port=int(sctp_port) if sctp_port else None,
        text=text,
    )


def _sections(text: str) -> list[list[str]]:
    """The lines before the first m-line, then those of each m-line."""
    sections: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("m="):
            sections.append([])
        sections[-1].append(line.rstrip())
    return sections


def _optional_attribute(lines: list[str], name: str) -> str | None:
    prefix = f"a={name}:"
    return next((line[len(prefix) :].strip() for line in lines if line.startswith(prefix)), None)


def _attribute(lines: list[str], name: str) -> str:
    value = _optional_attribute(lines, name)
    if value is None:
        raise ValueError(f"the answer has no a={name}")
    return value


def _parse_candidate(value: str) -> Candidate:
    """RFC 8839 section 5.1: foundation component transport priority address port …"""
    parts = value.split()
    if len(parts) < 8 or parts[6] != "typ":
        raise ValueError(f"not a candidate: {value}")
    return Candidate(host=parts[4], port=int(parts[5]), transport=parts[2].lower())
