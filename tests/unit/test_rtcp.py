"""RTCP: RFC 3550 section 6 and appendix A, RFC 4585 section 6."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.errors import BadPacket
from dataplane.proto.rtcp import (
    Bye,
    Feedback,
    ReceiverReport,
    ReceptionStats,
    ReportBlock,
    RtcpPacket,
    Sdes,
    SenderReport,
    SenderStats,
    Unknown,
    encode_rtcp,
    nack,
    ntp_from_unix_ns,
    ntp_middle,
    parse_rtcp,
    rtt_ns,
    sdes_cname,
)

S = 1_000_000_000
MS = 1_000_000

BLOCK = ReportBlock(
    ssrc=0x01020304,
    fraction_lost=64,
    cumulative_lost=-2,
    highest_seq=0x00018001,
    jitter=77,
    last_sr=0xB7052000,
    delay_since_last_sr=0x00054000,
)


def malformed(datagram: bytes) -> None:
    with pytest.raises(BadPacket) as caught:
        parse_rtcp(datagram)
    assert caught.value.reason == "drop_rtcp_malformed"


def test_sender_report_of_rfc_3550_6_4_1() -> None:
    datagram = bytes.fromhex(
        "81c8000c"
        "cafebabe" "b44db705" "20000000" "0000bb80" "00000002" "000000c8"
        "01020304" "40fffffe" "00018001" "0000004d" "b7052000" "00054000"
    )  # fmt: skip
    report = SenderReport(0xCAFEBABE, 0xB44DB70520000000, 48000, 2, 200, (BLOCK,))
    assert parse_rtcp(datagram) == [report]
    assert encode_rtcp([report]) == datagram


def test_round_trip_time_as_in_figure_2_of_rfc_3550() -> None:
    # "[10 Nov 1995 11:33:25.125 UTC]" SR; RR at 11:33:36.5; DLSR 5.250 s; delay 6.125 s
    sent_unix_ns = 816_003_205 * S + 125 * MS
    ntp = ntp_from_unix_ns(sent_unix_ns)
    assert ntp == 0xB44DB705_20000000
    assert ntp_middle(ntp) == 0xB7052000
    received = ntp_from_unix_ns(sent_unix_ns + 11 * S + 375 * MS)
    assert received == 0xB44DB710_80000000
    assert rtt_ns(BLOCK, received) == 6 * S + 125 * MS


def test_round_trip_time_is_unknown_without_a_sender_report_or_when_it_cannot_be() -> None:
    now = ntp_from_unix_ns(816_003_210 * S)
    unanswered = ReportBlock(1, 0, 0, 0, 0, last_sr=0, delay_since_last_sr=0)
    assert rtt_ns(unanswered, now) is None
    assert rtt_ns(BLOCK, now) is None  # 5 s after LSR, and held back for 5.25 s


def test_ntp_wraps_in_2036() -> None:
    assert ntp_from_unix_ns((2**32 - 2_208_988_800) * S) == 0


def test_compound_of_every_kind() -> None:
    packets: list[RtcpPacket] = [
        ReceiverReport(9, (BLOCK, BLOCK)),
        Sdes(((9, ((1, b"earshot"), (2, b""))), (10, ((1, b"abc"),)))),
        Feedback(206, 1, 9, 8, b""),  # PLI
        Unknown(204, 3, b"appl"),
        Bye((9, 10), b"teardown"),
        Bye((), b""),
    ]
    datagram = encode_rtcp(packets)
    assert parse_rtcp(datagram) == packets
    assert sdes_cname(9, "earshot").cname(9) == b"earshot"
    assert sdes_cname(9, "earshot").cname(8) is None


def test_receiver_report_without_blocks_and_profile_extension() -> None:
    assert parse_rtcp(bytes.fromhex("80c9000100000005")) == [ReceiverReport(5)]
    assert parse_rtcp(bytes.fromhex("80c9000200000005ffffffff")) == [ReceiverReport(5)]


def test_padding_on_the_last_packet_alone() -> None:
    bye = bytes.fromhex("a1cb00020000000500000004")
    assert parse_rtcp(bye) == [Bye((5,))]
    malformed(bye + bytes.fromhex("80c9000100000005"))
    malformed(bytes.fromhex("a1cb00020000000500000000"))
    malformed(bytes.fromhex("a1cb0002000000050000000c"))
    malformed(bytes.fromhex("a1cb00020000000500000003"))
    malformed(bytes.fromhex("a0cb0000"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "80c900",
        "00c9000100000005",  # version 0
        "80c9000200000005",  # longer than the datagram
        "80c90000",  # no SSRC
        "81c9000100000005",  # no block
        "80c8000100000005",
        "81ca000100000005",  # no end of the chunk
        "81ca0002000000050108aabb",  # item overruns
        "82ca00020000000500000000",  # second chunk is missing
        "82cb000100000005",  # second SSRC is missing
        "80cb000104aabbcc",  # reason overruns
        "81cd000100000005",  # no media SSRC
    ],
)
def test_malformed(text: str) -> None:
    malformed(bytes.fromhex(text))


def test_every_truncation_of_a_compound() -> None:
    parts = [SenderReport(1, 2, 3, 4, 5, (BLOCK,)), sdes_cname(1, "earshot"), nack(1, 2, [3, 5])]
    sizes = {len(encode_rtcp(parts[:count])) for count in range(4)}
    datagram = encode_rtcp(parts)
    for length in range(len(datagram)):
        if length in sizes - {0}:
            assert parse_rtcp(datagram[:length]) == parts[: sorted(sizes).index(length)]
        else:
            malformed(datagram[:length])


def check_verdict(datagram: bytes) -> None:
    """It parses, or it is refused with the one reason; nothing else."""
    reason = "drop_rtcp_malformed"
    try:
        packets = parse_rtcp(datagram)
    except BadPacket as error:
        reason = error.reason
    else:
        for packet in packets:
            assert not isinstance(packet, Feedback) or len(packet.nacked_seqs) <= 17 * 13
    assert reason == "drop_rtcp_malformed"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=100))
def test_any_bytes(datagram: bytes) -> None:
    check_verdict(datagram)


@settings(deadline=None, max_examples=500)
@given(st.integers(0x80, 0xBF), st.integers(200, 207), st.binary(max_size=60))
def test_any_body_of_every_type(first: int, packet_type: int, body: bytes) -> None:
    body += bytes(-len(body) % 4)
    check_verdict(struct.pack("!BBH", first, packet_type, len(body) // 4) + body)


def test_nack_of_rfc_4585_6_2_1() -> None:
    feedback = nack(1, 2, [65530, 65531, 10, 11, 500])
    # 65530 with 65531 (bit 0) and, 16 further on, 10 (bit 15); 11 begins a pair of its own
    assert feedback.fci == struct.pack("!HHHHHH", 65530, 0x8001, 11, 0, 500, 0)
    assert feedback.nacked_seqs == (65530, 65531, 10, 11, 500)
    assert parse_rtcp(encode_rtcp([feedback])) == [feedback]
    assert Feedback(206, 1, 1, 2, b"\x00\x01\x00\x00").nacked_seqs == ()


@given(st.integers(0, 65535), st.lists(st.integers(1, 40), max_size=30))
def test_nack_round_trip(first: int, steps: list[int]) -> None:
    seqs = [first]
    for step in steps:
        seqs.append((seqs[-1] + step) & 0xFFFF)
    assert nack(1, 2, seqs).nacked_seqs == tuple(seqs)


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="32 parts"):
        encode_rtcp([Bye(tuple(range(32)))])


# --- reception ---


def test_loss_as_in_appendix_a_3() -> None:
    stats = ReceptionStats()
    assert stats.report_block(0) is None
    assert stats.expected == 0
    for seq in (65534, 65535, 0, 3, 4):  # 1 and 2 are lost; 65536 cycles once
        stats.update(7, seq, seq * 960, 0)
    block = stats.report_block(0)
    assert block is not None
    assert (block.ssrc, block.highest_seq) == (7, 0x10004)
    assert (block.cumulative_lost, block.fraction_lost) == (2, 2 * 256 // 7)
    stats.update(7, 5, 0, 0)
    block = stats.report_block(0)
    assert block is not None
    assert (block.cumulative_lost, block.fraction_lost) == (2, 0)
    for _ in range(3):  # duplicates: received more than expected, A.3
        stats.update(7, 5, 0, 0)
    block = stats.report_block(0)
    assert block is not None
    assert (block.cumulative_lost, block.fraction_lost) == (-1, 0)


def test_all_of_an_interval_lost_but_one_is_at_most_255() -> None:
    stats = ReceptionStats()
    stats.update(7, 0, 0, 0)
    stats.report_block(0)
    stats.update(7, 2999, 0, 0)
    block = stats.report_block(0)
    assert block is not None
    assert block.fraction_lost == 255


def test_jitter_as_in_appendix_a_8() -> None:
    """Against the RFC's floating formula: J(i) = J(i-1) + (|D(i-1,i)| - J(i-1))/16."""
    rng = random.Random(3550)
    stats = ReceptionStats()
    expected = 0.0
    previous = None
    for seq in range(500):
        rtp_ts = (2**32 - 5000 + 960 * seq) % 2**32
        arrival_ns = seq * 20 * MS + rng.randrange(0, 15 * MS)
        transit = arrival_ns * 48 / MS - 960 * seq
        if previous is not None:
            expected += (abs(transit - previous) - expected) / 16
        previous = transit
        stats.update(7, seq, rtp_ts, arrival_ns)
    assert stats.jitter == pytest.approx(expected, abs=2)
    assert stats.jitter_ns == stats.jitter * S // 48000


def test_steady_stream_has_no_jitter() -> None:
    stats = ReceptionStats()
    for seq in range(100):
        stats.update(7, seq, 960 * seq, 5 * S + seq * 20 * MS)
    assert stats.jitter == 0


def test_last_sr_and_its_delay() -> None:
    stats = ReceptionStats()
    stats.update(7, 1, 0, 0)
    stats.handle_sender_report(SenderReport(8, 0x1111_2222_3333_4444, 0, 0, 0), 0)  # another's
    block = stats.report_block(5 * S)
    assert block is not None
    assert (block.last_sr, block.delay_since_last_sr) == (0, 0)
    stats.handle_sender_report(SenderReport(7, 0xB44DB705_20000000, 0, 0, 0), 10 * S)
    block = stats.report_block(15 * S + 250 * MS)
    assert block is not None
    assert (block.last_sr, block.delay_since_last_sr) == (0xB7052000, 0x00054000)


@pytest.mark.parametrize("jump", [3010, 30000, -3001])
def test_a_jump_of_the_source_starts_anew(jump: int) -> None:
    stats = ReceptionStats()
    for seq in range(10):
        stats.update(7, seq, 0, 0)
    stats.report_block(0)
    stats.update(7, jump & 0xFFFF, 0, 0)
    assert (stats.expected, stats.received) == (1, 1)
    block = stats.report_block(0)
    assert block is not None
    assert (block.cumulative_lost, block.fraction_lost) == (0, 0)


def test_another_ssrc_starts_anew() -> None:
    stats = ReceptionStats()
    stats.update(7, 100, 0, 0)
    stats.update(8, 200, 0, 0)
    assert (stats.ssrc, stats.expected, stats.received) == (8, 1, 1)


def test_sender_report_tells_rtp_time_of_its_ntp_time() -> None:
    stats = SenderStats(ssrc=5)
    assert stats.sender_report(0, 0) == SenderReport(5, 2_208_988_800 << 32, 0, 0, 0)
    stats.update(100, 2**32 - 480, 10 * S)
    stats.update(50, 480, 10 * S + 20 * MS)
    report = stats.sender_report(10 * S + 30 * MS, 816_003_205 * S, (BLOCK,))
    assert report.rtp_ts == 480 + 480
    assert (report.packet_count, report.octet_count) == (2, 150)
    assert report.ntp >> 32 == 0xB44DB705
    assert report.reports == (BLOCK,)
