"""What an offer is made of once it is parsed, and the error that refuses it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Line(NamedTuple):
    """One line of the offer; `number` counts from 1."""

    number: int
    text: str

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= 100 else self.text[:97] + "..."
        return f'line {self.number} "{_UNPRINTABLE.sub("?", shown)}"'


class SdpError(ValueError):
    """An offer that cannot be parsed or answered.

    `code` is stable and meant for programs; the message is meant for people
    and begins with the line where there is one to blame.
    """

    def __init__(self, problem: str, line: Line | None = None, code: str = "sdp_syntax") -> None:
        super().__init__(f"{line}: {problem}" if line is not None else problem)
        self.line = line
        self.code = code


class Fingerprint(NamedTuple):
    """a=fingerprint. `algorithm` is in lower case."""

    algorithm: str
    digest: bytes
    line: Line


class RtpMap(NamedTuple):
    """a=rtpmap. `encoding` as written; compare it without regard to case."""

    payload_type: int
    encoding: str
    clock_rate: int
    channels: int
    line: Line


class HeaderExtension(NamedTuple):
    """a=extmap (RFC 8285 section 8). No direction given means sendrecv."""

    id: int
    direction: str
    uri: str
    line: Line


class Group(NamedTuple):
    """a=group (RFC 5888)."""

    semantics: str
    mids: tuple[str, ...]
    line: Line


@dataclass(slots=True)
class Section:
    """What may stand at session level and in a media section alike."""

    line: Line
    """The m= line; the v= line at session level."""
    seen: dict[str, Line] = field(default_factory=dict)
    """Where each attribute that may occur only once was found."""
    direction: str | None = None
    ice_ufrag: str | None = None
    ice_pwd: str | None = None
    setup: str | None = None
    fingerprints: list[Fingerprint] = field(default_factory=list)
    header_extensions: list[HeaderExtension] = field(default_factory=list)


@dataclass(slots=True)
class MediaSection(Section):
    """An m= line and what follows it."""

    index: int = 0
    kind: str = ""
    port: int = 0
    protocol: str = ""
    formats: tuple[str, ...] = ()
    mid: str | None = None
    rtcp_mux: bool = False
    bundle_only: bool = False
    rtp_maps: dict[int, RtpMap] = field(default_factory=dict)
    format_parameters: dict[int, str] = field(default_factory=dict)
    feedback: list[tuple[str, str]] = field(default_factory=list)
    """a=rtcp-fb: payload type or "*", and the rest."""
    ssrcs: list[int] = field(default_factory=list)
    sctp_port: int | None = None
    max_message_bytes: int | None = None

    @property
    def offered(self) -> bool:
        """False for a section that the client itself has switched off.

        Port 0 switches it off, except with a=bundle-only (RFC 9143 section 6).
        """
        return self.port != 0 or self.bundle_only

    @property
    def is_rtp(self) -> bool:
        return "RTP/" in self.protocol


@dataclass(slots=True)
class SessionDescription(Section):
    """A whole offer."""

    groups: list[Group] = field(default_factory=list)
    ice_lite: bool = False
    media: list[MediaSection] = field(default_factory=list)
