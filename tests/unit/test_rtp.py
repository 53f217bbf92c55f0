"""RTP headers: RFC 3550 section 5.1, RFC 8285 section 4, RFC 5761 section 4, RFC 6464."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.errors import BadPacket
from dataplane.proto.rtp import (
    AudioLevel,
    RtpPacket,
    encode_rtp,
    extend_seq,
    is_rtcp,
    parse_audio_level,
    parse_rtp,
    rtp_ts_delta,
    seq_delta,
)

PLAIN = bytes.fromhex("80ef12340000ffffdeadbeef") + b"opus"


def header(first: int, rest: bytes = b"") -> bytes:
    return struct.pack("!BBHII", first, 111, 1, 2, 3) + rest


def malformed(datagram: bytes) -> str:
    with pytest.raises(BadPacket) as caught:
        parse_rtp(datagram)
    assert caught.value.reason == "drop_rtp_malformed"
    return caught.value.detail


def test_fixed_header_of_rfc_3550_5_1() -> None:
    packet = parse_rtp(PLAIN)
    assert packet == RtpPacket(
        payload_type=111, marker=True, seq=0x1234, rtp_ts=0xFFFF, ssrc=0xDEADBEEF, payload=b"opus"
    )
    assert encode_rtp(packet) == PLAIN


def test_csrc_list() -> None:
    packet = parse_rtp(header(0x82, struct.pack("!II", 7, 0xFFFFFFFF) + b"x"))
    assert packet.csrc == (7, 0xFFFFFFFF)
    assert packet.payload == b"x"


@pytest.mark.parametrize(
    ("tail", "payload"),
    [
        (b"ab\x00\x00\x03", b"ab"),
        (b"ab\x01", b"ab"),
        (b"\x00\x02", b""),
    ],
)
def test_padding_is_taken_off(tail: bytes, payload: bytes) -> None:
    assert parse_rtp(header(0xA0, tail)).payload == payload


@pytest.mark.parametrize("tail", [b"", b"\x00", b"ab\x00", b"ab\x04", b"\xff"])
def test_padding_that_cannot_be(tail: bytes) -> None:
    assert "padding" in malformed(header(0xA0, tail))


def test_padding_may_not_reach_into_the_extension() -> None:
    block = bytes.fromhex("bede000110ff0000")
    assert parse_rtp(header(0xB0, block + b"\x01")).payload == b""
    malformed(header(0xB0, block + b"\x02"))
    malformed(header(0xB0, block))  # its last octet, 0, would be the padding's length


@pytest.mark.parametrize("first", [0x00, 0x40, 0xC0])
def test_other_versions(first: int) -> None:
    assert "version" in malformed(header(first))


def test_one_byte_extensions_as_drawn_in_rfc_8285_4_2() -> None:
    # "a header extension with three extension elements and some padding"
    block = bytes.fromhex("bede000310aa21bbbb000033cccccccc")
    packet = parse_rtp(header(0x90, block + b"payload"))
    assert packet.extensions == {1: b"\xaa", 2: b"\xbb\xbb", 3: b"\xcc" * 4}
    assert packet.payload == b"payload"


def test_two_byte_extensions_as_drawn_in_rfc_8285_4_3() -> None:
    # "a header extension with three extension elements and some padding"; appbits are ours
    block = bytes.fromhex("1007000301000201bb000304cccccccc")
    packet = parse_rtp(header(0x90, block + b"payload"))
    assert packet.extensions == {1: b"", 2: b"\xbb", 3: b"\xcc" * 4}
    assert packet.payload == b"payload"


def test_one_byte_id_15_ends_the_walk() -> None:
    block = bytes.fromhex("bede000210aaf0bb20cc0000")
    assert parse_rtp(header(0x90, block)).extensions == {1: b"\xaa"}


def test_one_byte_id_0_with_a_length_ends_the_walk() -> None:
    block = bytes.fromhex("bede000210aa01bbbb20cc00")
    assert parse_rtp(header(0x90, block)).extensions == {1: b"\xaa"}


def test_unknown_profile_is_skipped() -> None:
    packet = parse_rtp(header(0x90, bytes.fromhex("abcd0001ffffffff") + b"x"))
    assert packet.extensions == {}
    assert packet.payload == b"x"


@pytest.mark.parametrize(
    "block",
    [
        "be",  # cut within the profile
        "bede00",
        "bede000210aa0000",  # a word short
        "bede00011faa0000",  # element longer than the block
        "1000000101040000",
        "1000000100000001",  # id without a length
    ],
)
def test_malformed_extensions(block: str) -> None:
    malformed(header(0x90, bytes.fromhex(block)))


def test_every_short_length_of_a_full_header_is_refused_or_parsed() -> None:
    full = encode_rtp(
        RtpPacket(111, False, 1, 2, 3, b"", (4, 5), {1: b"\x80", 4: b"abc"}), padding_bytes=0
    )
    for length in range(len(full)):
        malformed(full[:length])
    assert parse_rtp(full).csrc == (4, 5)


def check_verdict(datagram: bytes) -> None:
    """It parses, or it is refused with the one reason; nothing else."""
    reason = "drop_rtp_malformed"
    try:
        packet = parse_rtp(datagram)
    except BadPacket as error:
        reason = error.reason
    else:
        assert len(packet.payload) <= len(datagram) - 12
    assert reason == "drop_rtp_malformed"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=120))
def test_any_bytes(datagram: bytes) -> None:
    check_verdict(datagram)


@settings(deadline=None, max_examples=300)
@given(st.integers(0x80, 0xBF), st.binary(min_size=11, max_size=80))
def test_any_bytes_of_version_2(first: int, rest: bytes) -> None:
    check_verdict(bytes((first,)) + rest)


_U32 = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=200)
@given(
    st.builds(
        RtpPacket,
        payload_type=st.integers(0, 127),
        marker=st.booleans(),
        seq=st.integers(0, 65535),
        rtp_ts=_U32,
        ssrc=_U32,
        payload=st.binary(max_size=50),
        csrc=st.lists(_U32, max_size=15).map(tuple),
        extensions=st.one_of(
            st.dictionaries(st.integers(1, 14), st.binary(min_size=1, max_size=16), max_size=4),
            st.dictionaries(st.integers(1, 255), st.binary(max_size=255), max_size=3),
        ),
    ),
    st.integers(0, 255),
)
def test_round_trip(packet: RtpPacket, padding_bytes: int) -> None:
    assert parse_rtp(encode_rtp(packet, padding_bytes)) == packet


@pytest.mark.parametrize(
    ("packet", "padding_bytes", "why"),
    [
        (RtpPacket(0, False, 0, 0, 0, b"", (1,) * 16), 0, "15 CSRCs"),
        (RtpPacket(0, False, 0, 0, 0, b""), 256, "255 bytes"),
        (RtpPacket(0, False, 0, 0, 0, b"", (), {0: b"x"}), 0, "extension 0"),
        (RtpPacket(0, False, 0, 0, 0, b"", (), {1: b"x" * 256}), 0, "256 bytes"),
    ],
)
def test_what_cannot_be_written(packet: RtpPacket, padding_bytes: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encode_rtp(packet, padding_bytes)


def test_rtcp_is_told_by_its_second_byte() -> None:
    for second in range(256):
        assert is_rtcp(bytes((0x80, second))) == (192 <= second <= 223)
    assert not is_rtcp(b"\x80")


@given(st.integers(2**16, 2**48), st.integers(-0x8000, 0x7FFF))
def test_extend_seq_finds_the_nearest_index(highest: int, ahead: int) -> None:
    index = highest + ahead
    assert extend_seq(index & 0xFFFF, highest) == index


def test_deltas_wrap() -> None:
    assert seq_delta(2, 65534) == 4
    assert seq_delta(65534, 2) == -4
    assert rtp_ts_delta(10, 2**32 - 950) == 960
    assert rtp_ts_delta(2**32 - 950, 10) == -960


def test_audio_level_of_rfc_6464_3() -> None:
    assert parse_audio_level(b"\x80") == AudioLevel(voice=True, level_dbov=0)
    assert parse_audio_level(b"\x7f") == AudioLevel(voice=False, level_dbov=-127)
    for element in (b"", b"\x80\x00"):
        with pytest.raises(BadPacket, match="drop_rtp_malformed"):
            parse_audio_level(element)
