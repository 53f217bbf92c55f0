"""The a= lines of an offer that an answer depends on, one function each.

An attribute that is not in the tables at the end means nothing to us and is
passed over, as RFC 8866 section 5.13 asks. So is one that stands at a level
where it has no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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

# RFC 8866 section 9, "token".
_TOKEN = re.compile(r"[!#$%&'*+\-.0-9A-Z^_`a-z{|}~]+")
# RFC 8839 section 5.4.
_ICE_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}")
_ICE_PWD = re.compile(r"[A-Za-z0-9+/]{22,256}")
# RFC 8122 section 5: upper-case hex; lower case is met in the wild.
_HEX_BYTES = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2})*")
_DIGITS = re.compile(r"[0-9]{1,20}")

# Hash functions of RFC 8122 section 5 with the length of their digests.
_DIGEST_BYTES = {"sha-1": 20, "sha-224": 28, "sha-256": 32, "sha-384": 48, "sha-512": 64}
_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_SETUPS = ("active", "passive", "actpass", "holdconn")


def parse_decimal(text: str, low: int, high: int, what: str, line: Line) -> int:
    if not _DIGITS.fullmatch(text) or not low <= int(text) <= high:
        raise SdpError(f"the {what} must be a number from {low} to {high}", line)
    return int(text)


def parse_token(text: str, what: str, line: Line) -> str:
    if not _TOKEN.fullmatch(text):
        raise SdpError(f"the {what} is not a token (RFC 8866 section 9)", line)
    return text


def _once(section: Section, name: str, line: Line) -> None:
    earlier = section.seen.setdefault(name, line)
    if earlier is not line:
        raise SdpError(f"a second {name}; the first is line {earlier.number}", line)


def parse_attribute(section: Section, body: str, line: Line) -> None:
    name, _, value = body.partition(":")
    if shared := _SHARED.get(name):
        shared(section, value, line)
    elif in_media := _MEDIA_LEVEL.get(name):
        if isinstance(section, MediaSection):
            in_media(section, value, line)
    elif name in _DIRECTIONS:
        _once(section, "direction", line)
        section.direction = name
    elif at_session_level := _SESSION_LEVEL.get(name):
        if isinstance(section, SessionDescription):
            at_session_level(section, value, line)
    else:
        parse_token(name, "attribute's name", line)


def _ice_ufrag(section: Section, value: str, line: Line) -> None:
    _once(section, "a=ice-ufrag", line)
    if not _ICE_UFRAG.fullmatch(value):
        raise SdpError("an ice-ufrag is 4 to 256 of A-Z a-z 0-9 + / (RFC 8839)", line)
    section.ice_ufrag = value


def _ice_pwd(section: Section, value: str, line: Line) -> None:
    _once(section, "a=ice-pwd", line)
    if not _ICE_PWD.fullmatch(value):
        raise SdpError("an ice-pwd is 22 to 256 of A-Z a-z 0-9 + / (RFC 8839)", line)
    section.ice_pwd = value


def _setup(section: Section, value: str, line: Line) -> None:
    _once(section, "a=setup", line)
    if value not in _SETUPS:
        raise SdpError(f"setup must be one of {', '.join(_SETUPS)} (RFC 4145)", line)
    section.setup = value


def _fingerprint(section: Section, value: str, line: Line) -> None:
    """RFC 8122 section 5: <hash-func> SP <upper-case hex with colons>."""
    algorithm, _, digits = value.partition(" ")
    algorithm = parse_token(algorithm, "hash function", line).lower()
    if not _HEX_BYTES.fullmatch(digits):
        raise SdpError("the digest must be pairs of hex digits with colons between", line)
    digest = bytes.fromhex(digits.replace(":", ""))
    expected = _DIGEST_BYTES.get(algorithm, len(digest))
    if len(digest) != expected:
        raise SdpError(f"a {algorithm} digest has {expected} bytes, this one {len(digest)}", line)
    section.fingerprints.append(Fingerprint(algorithm, digest, line))


def _extmap(section: Section, value: str, line: Line) -> None:
    """RFC 8285 section 8: <id>["/"<direction>] <URI> <attributes>."""
    fields = value.split(" ")
    if len(fields) < 2 or not fields[1]:
        raise SdpError("extmap takes an id and a URI", line)
    id_text, slash, direction = fields[0].partition("/")
    if slash and direction not in _DIRECTIONS:
        raise SdpError(f"the direction must be one of {', '.join(_DIRECTIONS)}", line)
    # 4096 and above: an offer with more extensions than ids (section 8).
    extension_id = parse_decimal(id_text, 1, 4351, "extension's id", line)
    if any(known.id == extension_id for known in section.header_extensions):
        raise SdpError(f"extension id {extension_id} is used twice", line)
    section.header_extensions.append(
        HeaderExtension(extension_id, direction or "sendrecv", fields[1], line)
    )


def _group(session: SessionDescription, value: str, line: Line) -> None:
    semantics, *mids = value.split(" ")
    parse_token(semantics, "group's semantics", line)
    named = tuple(parse_token(mid, "mid in the group", line) for mid in mids if mid)
    session.groups.append(Group(semantics, named, line))


def _ice_lite(session: SessionDescription, value: str, line: Line) -> None:
    session.ice_lite = True
    session.seen.setdefault("a=ice-lite", line)


def _mid(media: MediaSection, value: str, line: Line) -> None:
    _once(media, "a=mid", line)
    media.mid = parse_token(value, "mid", line)
    # The session row holds 64 bytes; browsers use one digit.
    if len(value) > 63:
        raise SdpError("a mid longer than 63 characters", line)


def _rtcp_mux(media: MediaSection, value: str, line: Line) -> None:
    media.rtcp_mux = True


def _bundle_only(media: MediaSection, value: str, line: Line) -> None:
    media.bundle_only = True


def _payload_type(value: str, name: str, line: Line) -> tuple[int, str]:
    number, space, rest = value.partition(" ")
    if not space or not rest:
        raise SdpError(f"{name} takes a payload type and a value", line)
    return parse_decimal(number, 0, 127, "payload type", line), rest


def _rtpmap(media: MediaSection, value: str, line: Line) -> None:
    """RFC 8866 section 6.6: <payload type> <encoding>/<clock rate>[/<channels>]."""
    payload_type, rest = _payload_type(value, "rtpmap", line)
    encoding, *numbers = rest.strip(" ").split("/")
    parse_token(encoding, "encoding's name", line)
    if not 1 <= len(numbers) <= 2:
        raise SdpError("rtpmap takes encoding/clock rate, or encoding/clock rate/channels", line)
    clock_rate = parse_decimal(numbers[0], 1, 2**31 - 1, "clock rate", line)
    channels = parse_decimal(numbers[1], 1, 255, "channel count", line) if len(numbers) == 2 else 1
    if payload_type in media.rtp_maps:
        raise SdpError(f"a second rtpmap for payload type {payload_type}", line)
    media.rtp_maps[payload_type] = RtpMap(payload_type, encoding, clock_rate, channels, line)


def _fmtp(media: MediaSection, value: str, line: Line) -> None:
    if not media.is_rtp:
        return  # formats that are not payload types: nothing we read
    payload_type, rest = _payload_type(value, "fmtp", line)
    media.format_parameters[payload_type] = rest


def _rtcp_fb(media: MediaSection, value: str, line: Line) -> None:
    number, space, rest = value.partition(" ")
    if not space or not rest:
        raise SdpError("rtcp-fb takes a payload type and a value", line)
    if number != "*":
        parse_decimal(number, 0, 127, "payload type", line)
    media.feedback.append((number, rest))


def _ssrc(media: MediaSection, value: str, line: Line) -> None:
    """RFC 5576 section 4.1: <ssrc-id> <attribute>[:<value>]."""
    number, space, _ = value.partition(" ")
    if not space:
        raise SdpError("a=ssrc takes an SSRC and an attribute", line)
    ssrc = parse_decimal(number, 0, 2**32 - 1, "SSRC", line)
    if ssrc not in media.ssrcs:
        media.ssrcs.append(ssrc)


def _sctp_port(media: MediaSection, value: str, line: Line) -> None:
    _once(media, "a=sctp-port", line)
    media.sctp_port = parse_decimal(value, 0, 65535, "SCTP port", line)


def _max_message_size(media: MediaSection, value: str, line: Line) -> None:
    _once(media, "a=max-message-size", line)
    media.max_message_bytes = parse_decimal(value, 0, 2**64 - 1, "message size", line)


_SHARED: dict[str, Callable[[Section, str, Line], None]] = {
    "ice-ufrag": _ice_ufrag,
    "ice-pwd": _ice_pwd,
    "setup": _setup,
    "fingerprint": _fingerprint,
    "extmap": _extmap,
}
_SESSION_LEVEL: dict[str, Callable[[SessionDescription, str, Line], None]] = {
    "group": _group,
    "ice-lite": _ice_lite,
}
_MEDIA_LEVEL: dict[str, Callable[[MediaSection, str, Line], None]] = {
    "mid": _mid,
    "rtcp-mux": _rtcp_mux,
    "bundle-only": _bundle_only,
    "rtpmap": _rtpmap,
    "fmtp": _fmtp,
    "rtcp-fb": _rtcp_fb,
    "ssrc": _ssrc,
    "sctp-port": _sctp_port,
    "max-message-size": _max_message_size,
}
