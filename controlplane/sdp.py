"""SDP offers, parsed strictly and within bounds.

RFC 8866 gives the grammar, RFC 8829 (JSEP) section 5.8 says what WebRTC makes
of it. Only what an answer depends on is given a type; an attribute that means
nothing to us is checked for its shape and passed over. Bytes in, a
`SessionDescription` or a `SdpError` out, and nothing else: the error names the
line, shows it and says what is wrong with it.

Deliberately not read:

- a=candidate, a=remote-candidates, addresses in c=, o= and a=rtcp: the edge
  never sends to an address from SDP, so it has no use for them (RFC 8839);
- b=, k=, r=, z=, e=, p=, u=, i=: only their letter is checked;
- a=ssrc-group, a=simulcast, a=rid, a=msid: we take one audio stream.
"""

from __future__ import annotations

import re

from controlplane.sdp_attributes import parse_attribute, parse_decimal, parse_token
from controlplane.sdp_model import (
    Fingerprint,
    Group,
    HeaderExtension,
    Line,
    MediaSection,
    RtpMap,
    SdpError,
    Section,
    SessionDescription,
)

__all__ = [
    "Fingerprint",
    "Group",
    "HeaderExtension",
    "Line",
    "MediaSection",
    "RtpMap",
    "SdpError",
    "Section",
    "SessionDescription",
    "parse_sdp",
]

MAX_BYTES = 65536
"""Of a whole offer. Chromium's with one microphone is 2,300 bytes."""
MAX_LINES = 2000
MAX_LINE_CHARS = 8192
MAX_MEDIA = 32
"""m= lines; the answer repeats each, so this bounds the answer too."""

# Tab apart, which RFC 8866's byte-string allows like any other character; the
# second range is how a byte that is not UTF-8 was decoded.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\udc80-\udcff]")
_SESSION_ONLY = "uepzr"
_KNOWN_TYPES = "vosiuepcbtrzkam"


def parse_sdp(body: bytes) -> SessionDescription:
    """Parses an offer. Raises `SdpError`, and only that."""
    lines = _split(body)
    _expect_head(lines)
    session = SessionDescription(line=lines[0])
    section: Section = session
    for line in lines[3:]:
        kind, value = line.text[0], line.text[2:]
        if kind == "m":
            section = _parse_media(session, value, line)
        elif kind == "a":
            parse_attribute(section, value, line)
        elif kind == "c":
            _parse_connection(value, line)
        elif kind == "t":
            _parse_timing(session, section, value, line)
        elif kind in "vos":
            raise SdpError(f"a second {kind}= line", line)
        elif kind in _SESSION_ONLY and section is not session:
            raise SdpError(f"a {kind}= line belongs before the first m= line", line)
    if "t" not in session.seen:
        raise SdpError("no t= line at session level (RFC 8866 section 5)", lines[-1])
    _check_groups(session)
    return session


def _split(body: bytes) -> list[Line]:
    """Cuts the offer into lines and checks what every line must satisfy."""
    if len(body) > MAX_BYTES:
        number = body.count(b"\n", 0, MAX_BYTES) + 1
        raise SdpError(
            f"the offer is longer than {MAX_BYTES} bytes; line {number} crosses the limit",
            code="sdp_too_large",
        )
    text = body.decode("utf-8", errors="surrogateescape")
    texts = text.replace("\r\n", "\n").rstrip("\r\n").split("\n")
    if texts == [""]:
        raise SdpError("the offer is empty: line 1 must be v=0")
    if len(texts) > MAX_LINES:
        raise SdpError(
            f"the offer has {len(texts)} lines; line {MAX_LINES} is the last allowed",
            code="sdp_too_large",
        )
    lines = [Line(number, text) for number, text in enumerate(texts, 1)]
    has_control = _CONTROL.search("".join(texts)) is not None
    for line in lines:
        if has_control and _CONTROL.search(line.text):
            raise SdpError("holds a control character, or is not valid UTF-8", line)
        _check_line(line)
    return lines


def _check_line(line: Line) -> None:
    if len(line.text) > MAX_LINE_CHARS:
        raise SdpError(f"longer than {MAX_LINE_CHARS} characters", line, "sdp_too_large")
    if line.text[1:2] != "=":
        raise SdpError('not of the form "x=value"', line)
    # RFC 8866 section 5: a description with an unknown type letter is ignored whole.
    if line.text[0] not in _KNOWN_TYPES:
        raise SdpError(f'unknown line type "{line.text[0]}"', line)


def _expect_head(lines: list[Line]) -> None:
    """v=, o= and s=, in this order (RFC 8866 section 5)."""
    for line, kind in zip(lines, "vos", strict=False):
        if line.text[0] != kind:
            raise SdpError(f"line {line.number} must be a {kind}= line", line)
    if len(lines) < 3:
        raise SdpError("the offer stops before its o= and s= lines", lines[-1])
    if lines[0].text != "v=0":
        raise SdpError("only version 0 of SDP exists", lines[0])
    origin = lines[1].text[2:].split(" ")
    if len(origin) != 6:
        raise SdpError("o= takes six fields (RFC 8866 section 5.2)", lines[1])
    parse_decimal(origin[1], 0, 2**64 - 1, "session id", lines[1])
    parse_decimal(origin[2], 0, 2**64 - 1, "session version", lines[1])


def _parse_connection(value: str, line: Line) -> None:
    fields = value.split(" ")
    if len(fields) != 3 or fields[0] != "IN" or fields[1] not in ("IP4", "IP6"):
        raise SdpError("c= must be IN IP4 or IN IP6 and an address", line)


def _parse_timing(session: SessionDescription, section: Section, value: str, line: Line) -> None:
    if section is not session:
        raise SdpError("a t= line belongs before the first m= line", line)
    fields = value.split(" ")
    if len(fields) != 2:
        raise SdpError("t= takes a start and a stop time", line)
    for text in fields:
        parse_decimal(text, 0, 2**64 - 1, "time", line)
    session.seen.setdefault("t", line)


def _parse_media(session: SessionDescription, value: str, line: Line) -> MediaSection:
    """RFC 8866 section 5.14: m=<media> <port>[/<number>] <proto> <fmt> ..."""
    if len(session.media) >= MAX_MEDIA:
        raise SdpError(f"more than {MAX_MEDIA} m= lines", line, "sdp_too_large")
    fields = value.split(" ")
    if len(fields) < 4:
        raise SdpError("m= takes a kind, a port, a protocol and at least one format", line)
    kind, port, protocol, *formats = fields
    for part in protocol.split("/"):
        parse_token(part, "protocol", line)
    media = MediaSection(
        line=line,
        index=len(session.media),
        kind=parse_token(kind, "kind of media", line),
        port=parse_decimal(port.partition("/")[0], 0, 65535, "port", line),
        protocol=protocol,
        formats=tuple(parse_token(text, "format", line) for text in formats),
    )
    if media.is_rtp:
        for text in formats:
            parse_decimal(text, 0, 127, "payload type", line)
        if len(set(formats)) != len(formats):
            raise SdpError("a payload type is listed twice", line)
    session.media.append(media)
    return media


def _check_groups(session: SessionDescription) -> None:
    """mids are unique; BUNDLE groups name existing ones, each once (RFC 9143 section 7)."""
    mids: dict[str, Line] = {}
    for media in session.media:
        if media.mid is None:
            continue
        if media.mid in mids:
            raise SdpError(
                f'mid "{media.mid}" is taken by the m= line {mids[media.mid].number}',
                media.seen["a=mid"],
            )
        mids[media.mid] = media.line
    bundled: set[str] = set()
    for group in session.groups:
        if group.semantics != "BUNDLE":
            continue
        for mid in group.mids:
            if mid not in mids:
                raise SdpError(f'no m= line has mid "{mid}"', group.line)
            if mid in bundled:
                raise SdpError(f'mid "{mid}" is bundled twice', group.line)
            bundled.add(mid)
