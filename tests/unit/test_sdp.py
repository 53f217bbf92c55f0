"""The SDP parser: what it reads from real offers, and how it refuses bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.offer_answer import Policy, negotiate
from controlplane.sdp import MAX_BYTES, SdpError, parse_sdp

VECTORS = Path(__file__).parent.parent / "vectors" / "sdp"
OFFERS = {path.stem: path.read_bytes() for path in sorted(VECTORS.glob("*.sdp"))}
CHROMIUM = OFFERS["offer-chromium-156"].replace(b"\r\n", b"\n")
FIREFOX = OFFERS["offer-firefox-153"].replace(b"\r\n", b"\n")


def changed(old: str, new: str, offer: bytes = CHROMIUM) -> bytes:
    """The offer with the first `old` replaced; `old` must be there."""
    assert old.encode() in offer
    return offer.replace(old.encode(), new.encode(), 1)


def refusal(offer: bytes) -> SdpError:
    with pytest.raises(SdpError) as caught:
        parse_sdp(offer)
    return caught.value


def test_chromium_offer() -> None:
    session = parse_sdp(CHROMIUM)
    audio, data = session.media
    assert session.groups[0].mids == ("0", "1")
    assert (audio.kind, audio.port, audio.protocol) == ("audio", 9, "UDP/TLS/RTP/SAVPF")
    assert audio.formats[:2] == ("111", "63")
    assert (audio.ice_ufrag, audio.setup, audio.mid) == ("XLSz", "actpass", "0")
    assert audio.rtp_maps[111].encoding == "opus"
    assert (audio.rtp_maps[111].clock_rate, audio.rtp_maps[111].channels) == (48000, 2)
    assert audio.format_parameters[63] == "111/111"
    assert audio.feedback == [("111", "transport-cc")]
    assert audio.ssrcs == [3122472609]
    assert audio.rtcp_mux
    assert [(e.id, e.direction) for e in audio.header_extensions] == [
        (1, "sendrecv"), (2, "sendrecv"), (3, "sendrecv"), (4, "sendrecv"),
    ]  # fmt: skip
    assert (data.kind, data.sctp_port, data.max_message_bytes) == ("application", 5000, 262144)


def test_firefox_offer_has_its_fingerprint_and_direction_at_session_level() -> None:
    session = parse_sdp(FIREFOX)
    assert session.direction == "sendrecv"
    assert [f.algorithm for f in session.fingerprints] == ["sha-256"]
    assert session.media[0].fingerprints == []
    assert session.media[0].header_extensions[1].direction == "recvonly"


def test_aiortc_offer_has_three_fingerprints() -> None:
    audio = parse_sdp(OFFERS["offer-aiortc-1.16"]).media[0]
    assert [len(f.digest) for f in audio.fingerprints] == [32, 48, 64]


@pytest.mark.parametrize("name", OFFERS)
def test_line_ends_do_not_matter(name: str) -> None:
    unix = OFFERS[name].replace(b"\r\n", b"\n")
    windows = unix.replace(b"\n", b"\r\n")
    assert negotiate(parse_sdp(unix), Policy()) == negotiate(parse_sdp(windows), Policy())
    assert parse_sdp(windows + b"\r\n\r\n").media[0].mid == "0"


@pytest.mark.parametrize(
    ("offer", "number", "words"),
    [
        (changed("v=0", "v=1"), 1, "version 0"),
        (changed("v=0\n", ""), 1, "must be a v= line"),
        (changed("s=-", "t=0 0"), 3, "must be a s= line"),
        (changed("o=- 899053656015457418 2", "o=- 2"), 2, "six fields"),
        (changed("o=- 899053656015457418", "o=- -8"), 2, "session id"),
        (changed("t=0 0\n", ""), 47, "no t= line"),
        (changed("t=0 0", "t=0"), 4, "start and a stop"),
        (changed("t=0 0", "t=0 x"), 4, "time"),
        (changed("a=extmap-allow-mixed", "hello"), 6, "not of the form"),
        (changed("a=extmap-allow-mixed", ""), 6, "not of the form"),
        (changed("a=extmap-allow-mixed", "q=1"), 6, 'unknown line type "q"'),
        (changed("a=extmap-allow-mixed", "a=\x07"), 6, "control character"),
        (changed("a=extmap-allow-mixed", "a=x\ry"), 6, "control character"),
        (CHROMIUM.replace(b"a=extmap-allow-mixed", b"a=\xff\xfe"), 6, "UTF-8"),
        (changed("a=extmap-allow-mixed", "a=" + "x" * 9000), 6, "longer than 8192"),
        (changed("a=extmap-allow-mixed", "a=bad name:1"), 6, "not a token"),
        (changed("m=audio 9", "m=audio x"), 8, "port"),
        (changed("m=audio 9", "m=audio 70000"), 8, "port"),
        (changed(" 111 63 9 0 8 13 110 126", ""), 8, "at least one format"),
        (changed("111 63 9", "128 63 9"), 8, "payload type"),
        (changed("111 63 9", "111 111 9"), 8, "listed twice"),
        (changed("c=IN IP4 0.0.0.0", "c=IN IP5 0.0.0.0"), 9, "IN IP4 or IN IP6"),
        (changed("c=IN IP4 0.0.0.0", "s=again"), 9, "a second s="),
        (changed("c=IN IP4 0.0.0.0", "t=0 0"), 9, "before the first m="),
        (changed("c=IN IP4 0.0.0.0", "e=me@example.com"), 9, "before the first m="),
        (changed("a=ice-ufrag:XLSz", "a=ice-ufrag:XL"), 11, "ice-ufrag"),
        (changed("a=ice-ufrag:XLSz", "a=ice-ufrag:XLS:"), 11, "ice-ufrag"),
        (changed("a=ice-ufrag:XLSz", "a=ice-ufrag:" + "x" * 257), 11, "ice-ufrag"),
        (changed("a=ice-pwd:ExqK", "a=ice-pwd:"), 12, "ice-pwd"),
        (changed("a=ice-options:trickle", "a=ice-ufrag:AAAA"), 13, "a second a=ice-ufrag"),
        (changed("sha-256 9C:85", "sha-256 9C:8"), 14, "pairs of hex digits"),
        (changed("sha-256 9C:85", "sha-256 9C"), 14, "32 bytes, this one 31"),
        (changed("fingerprint:sha-256 ", "fingerprint:"), 14, "not a token"),
        (changed("setup:actpass", "setup:both"), 15, "setup must be one of"),
        (changed("mid:0", "mid:"), 16, "mid is not a token"),
        (changed("mid:0", "mid:" + "0" * 64), 16, "63"),
        (changed("extmap:1 urn", "extmap:0 urn"), 17, "extension's id"),
        (changed("extmap:1 urn:", "extmap:1/up urn:"), 17, "direction"),
        (changed("extmap:2 http", "extmap:1 http"), 18, "used twice"),
        (changed("a=rtcp-mux", "a=sendonly"), 23, "the first is line 21"),
        (changed("opus/48000/2", "opus"), 26, "clock rate"),
        (changed("opus/48000/2", "opus/0"), 26, "clock rate"),
        (changed("opus/48000/2", "opus/48000/0"), 26, "channel"),
        (changed("rtpmap:63 red", "rtpmap:111 red"), 29, "a second rtpmap"),
        (changed("a=fmtp:63 111/111", "a=fmtp:x 111"), 30, "payload type"),
        (changed("a=rtcp-fb:111 transport-cc", "a=rtcp-fb:111"), 27, "rtcp-fb"),
        (changed("ssrc:3122472609 cname", "ssrc:4294967296 cname"), 37, "SSRC"),
        (changed("sctp-port:5000", "sctp-port:66000"), 47, "SCTP port"),
        (changed("max-message-size:262144", "max-message-size:-1"), 48, "message size"),
        (changed("mid:1", "mid:0"), 46, 'mid "0" is taken by the m= line 8'),
        (changed("BUNDLE 0 1", "BUNDLE 0 2"), 5, 'no m= line has mid "2"'),
        (changed("BUNDLE 0 1", "BUNDLE 0 0"), 5, "bundled twice"),
    ],
)
def test_refusal_names_the_line(offer: bytes, number: int, words: str) -> None:
    error = refusal(offer)
    assert error.line is not None
    assert error.line.number == number
    assert f"line {number} " in str(error)
    assert words in str(error)


@pytest.mark.parametrize("offer", [b"", b"\n\n", b"\r\n"])
def test_empty_offer(offer: bytes) -> None:
    assert "line 1" in str(refusal(offer))


def test_offer_cut_short() -> None:
    assert "line 2" in str(refusal(b"v=0\no=- 1 2 IN IP4 127.0.0.1\n"))


def test_enormous_offer_names_the_line_that_crosses_the_limit() -> None:
    error = refusal(CHROMIUM + b"a=x\n" * 20000)
    lines = CHROMIUM.count(b"\n") + (MAX_BYTES - len(CHROMIUM)) // 4 + 1
    assert error.code == "sdp_too_large"
    assert f"line {lines} crosses" in str(error)


def test_limits_on_lines_and_sections() -> None:
    assert refusal(CHROMIUM + b"a=x\n" * 2000).code == "sdp_too_large"
    many = CHROMIUM + b"m=video 0 UDP/TLS/RTP/SAVPF 96\n" * 31
    error = refusal(many)
    assert error.code == "sdp_too_large"
    assert error.line is not None
    assert error.line.number == CHROMIUM.count(b"\n") + 31


def test_a_long_line_is_shown_in_part() -> None:
    error = refusal(changed("a=extmap-allow-mixed", "q=" + "y" * 5000))
    assert len(str(error)) < 200


def test_every_truncation_parses_or_raises_sdp_error() -> None:
    for offer in OFFERS.values():
        for end in range(len(offer)):
            answerable(offer[:end])


def answerable(offer: bytes) -> None:
    """Whatever happens, only SdpError comes out."""
    code = "sdp_"
    try:
        negotiate(parse_sdp(offer), Policy())
    except SdpError as error:
        code = error.code if str(error) else ""
    assert code.startswith("sdp_")


LINES = [line for offer in OFFERS.values() for line in offer.splitlines()]
TOKENS = [
    b"", b" ", b":", b"/", b"=", b"0", b"-1", b"9" * 30, b"\x00", b"\xff", b"\r", b"\n", b"m=audio",
    b"m=audio 9 RTP/AVP 0\n", b"a=", b"a=group:BUNDLE", b"a=bundle-only\n", b"a=ice-lite\n",
    b"a=setup:holdconn\n", "a=é\n".encode(), "٣".encode(),
]  # fmt: skip


@given(
    offer=st.sampled_from(list(OFFERS.values())),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.integers(0, 40),
            st.one_of(st.sampled_from(TOKENS), st.sampled_from(LINES), st.binary(max_size=12)),
        ),
        max_size=6,
    ),
)
def test_fuzz_mutated_bytes(offer: bytes, edits: list[tuple[float, int, bytes]]) -> None:
    for where, cut, put in edits:
        at = int(where * len(offer))
        offer = offer[:at] + put + offer[at + cut :]
    answerable(offer)


@given(
    order=st.lists(st.sampled_from(LINES), max_size=60),
    head=st.booleans(),
)
def test_fuzz_shuffled_lines(order: list[bytes], head: bool) -> None:
    start = LINES[:4] if head else []
    answerable(b"\n".join([*start, *order]))


@given(st.binary(max_size=400))
def test_fuzz_any_bytes(offer: bytes) -> None:
    answerable(offer)
