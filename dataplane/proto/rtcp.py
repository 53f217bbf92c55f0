"""RTCP (RFC 3550 section 6, RFC 4585 section 6) and the statistics behind it.

Reduced-size packets (RFC 5506) are taken: a compound need not start with a report.
Not done: APP and XR (given as Unknown), profile-specific extensions of SR and RR
(skipped), the transmission interval (6.2, 6.3: the session's affair).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from dataplane.proto.errors import BadPacket
from dataplane.proto.rtp import rtp_ts_delta, seq_delta

# RFC 3550 12.1, RFC 4585 6.1
PT_SENDER_REPORT = 200
PT_RECEIVER_REPORT = 201
PT_SDES = 202
PT_BYE = 203
PT_TRANSPORT_FEEDBACK = 205
PT_PAYLOAD_FEEDBACK = 206

FORMAT_NACK = 1  # of transport feedback, RFC 4585 6.2
SDES_CNAME = 1

_REASON = "drop_rtcp_malformed"
_HEADER = struct.Struct("!BBH")
_SENDER_INFO = struct.Struct("!IQIII")
_BLOCK = struct.Struct("!IIIIII")
_NTP_UNIX_SECONDS = 2_208_988_800  # 1900 to 1970, RFC 5905 6
_NS = 1_000_000_000


@dataclass(frozen=True)
class ReportBlock:
    """RFC 3550 6.4.1. fraction_lost: of 256. cumulative_lost: signed, clamped to 24 bits.
    jitter: RTP timestamp units. last_sr: middle 32 bits of the NTP time of the last SR, 0 if
    none came. delay_since_last_sr: 1/65536 s."""

    ssrc: int
    fraction_lost: int
    cumulative_lost: int
    highest_seq: int
    jitter: int
    last_sr: int
    delay_since_last_sr: int


@dataclass(frozen=True)
class SenderReport:
    """RFC 3550 6.4.1. ntp: 32.32 fixed point since 1900."""

    ssrc: int
    ntp: int
    rtp_ts: int
    packet_count: int
    octet_count: int
    reports: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True)
class ReceiverReport:
    """RFC 3550 6.4.2."""

    ssrc: int
    reports: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True)
class Sdes:
    """RFC 3550 6.5: per source its items, each type and bytes."""

    chunks: tuple[tuple[int, tuple[tuple[int, bytes], ...]], ...]

    def cname(self, ssrc: int) -> bytes | None:
        """The canonical name that the source gives itself."""
        for source, items in self.chunks:
            for kind, value in items:
                if source == ssrc and kind == SDES_CNAME:
                    return value
        return None


@dataclass(frozen=True)
class Bye:
    """RFC 3550 6.6."""

    ssrcs: tuple[int, ...]
    reason: bytes = b""


@dataclass(frozen=True)
class Feedback:
    """RFC 4585 6.1. fci: the format's own part, whole words."""

    packet_type: int
    format: int
    sender_ssrc: int
    media_ssrc: int
    fci: bytes

    @property
    def nacked_seqs(self) -> tuple[int, ...]:
        """Sequence numbers that a generic NACK asks for (RFC 4585 6.2.1); empty for others."""
        if (self.packet_type, self.format) != (PT_TRANSPORT_FEEDBACK, FORMAT_NACK):
            return ()
        seqs = []
        for first, mask in struct.iter_unpack("!HH", self.fci):
            seqs.append(first)
            seqs.extend((first + 1 + bit) & 0xFFFF for bit in range(16) if mask >> bit & 1)
        return tuple(seqs)


@dataclass(frozen=True)
class Unknown:
    """A packet of another type; count: the five bits beside the padding bit."""

    packet_type: int
    count: int
    body: bytes


RtcpPacket = SenderReport | ReceiverReport | Sdes | Bye | Feedback | Unknown


def parse_rtcp(datagram: bytes) -> list[RtcpPacket]:
    """Parse a compound packet, whole or not at all (RFC 3550 A.2, less its demand that a
    report comes first). Raises BadPacket("drop_rtcp_malformed")."""
    packets: list[RtcpPacket] = []
    offset = 0
    size = len(datagram)
    if size == 0:
        raise BadPacket(_REASON, "empty")
    while offset < size:
        if size - offset < _HEADER.size:
            raise BadPacket(_REASON, "cut within a header")
        first, packet_type, words = _HEADER.unpack_from(datagram, offset)
        end = offset + 4 + 4 * words
        if first & 0xC0 != 0x80 or end > size:
            raise BadPacket(_REASON, f"version {first >> 6}, {words} words")
        body = datagram[offset + 4 : end]
        if first & 0x20:
            # RFC 3550 6.4.1: "only the last individual packet" has padding.
            if end != size or not body or not 0 < body[-1] <= len(body) or body[-1] % 4:
                raise BadPacket(_REASON, "padding")
            body = body[: -body[-1]]
        packets.append(_parse_one(packet_type, first & 0x1F, body))
        offset = end
    return packets


def _parse_one(packet_type: int, count: int, body: bytes) -> RtcpPacket:
    try:
        if packet_type == PT_SENDER_REPORT:
            ssrc, ntp, rtp_ts, sent_packets, sent_octets = _SENDER_INFO.unpack_from(body)
            blocks = _parse_blocks(body, _SENDER_INFO.size, count)
            return SenderReport(ssrc, ntp, rtp_ts, sent_packets, sent_octets, blocks)
        if packet_type == PT_RECEIVER_REPORT:
            (ssrc,) = struct.unpack_from("!I", body)
            return ReceiverReport(ssrc, _parse_blocks(body, 4, count))
        if packet_type == PT_SDES:
            return _parse_sdes(body, count)
        if packet_type == PT_BYE:
            return _parse_bye(body, count)
        if packet_type in (PT_TRANSPORT_FEEDBACK, PT_PAYLOAD_FEEDBACK):
            sender_ssrc, media_ssrc = struct.unpack_from("!II", body)
            return Feedback(packet_type, count, sender_ssrc, media_ssrc, body[8:])
    except struct.error as error:
        raise BadPacket(_REASON, f"packet type {packet_type}: {error}") from None
    return Unknown(packet_type, count, body)


def _parse_blocks(body: bytes, offset: int, count: int) -> tuple[ReportBlock, ...]:
    blocks = []
    for at in range(offset, offset + count * _BLOCK.size, _BLOCK.size):
        ssrc, losses, highest, jitter, last_sr, delay = _BLOCK.unpack_from(body, at)
        lost = losses & 0xFFFFFF
        lost -= (lost & 0x800000) << 1
        blocks.append(ReportBlock(ssrc, losses >> 24, lost, highest, jitter, last_sr, delay))
    return tuple(blocks)


def _parse_sdes(body: bytes, count: int) -> Sdes:
    chunks = []
    offset = 0
    for _ in range(count):
        (ssrc,) = struct.unpack_from("!I", body, offset)
        offset += 4
        items = []
        while True:
            (kind,) = struct.unpack_from("!B", body, offset)
            if kind == 0:  # RFC 3550 6.5: a null octet, then to the next word
                offset += 4 - offset % 4
                break
            (length,) = struct.unpack_from("!B", body, offset + 1)
            value = body[offset + 2 : offset + 2 + length]
            if len(value) != length:
                raise BadPacket(_REASON, "cut within an SDES item")
            items.append((kind, value))
            offset += 2 + length
        chunks.append((ssrc, tuple(items)))
    return Sdes(tuple(chunks))


def _parse_bye(body: bytes, count: int) -> Bye:
    ssrcs = struct.unpack_from(f"!{count}I", body)
    rest = body[4 * count :]
    reason = b""
    if rest:
        reason = rest[1 : 1 + rest[0]]
        if len(reason) != rest[0]:
            raise BadPacket(_REASON, "cut within the reason of BYE")
    return Bye(ssrcs, reason)


# --- encode ---


def encode_rtcp(packets: Iterable[RtcpPacket]) -> bytes:
    """A compound packet."""
    return b"".join(_encode_one(packet) for packet in packets)


def _encode_one(packet: RtcpPacket) -> bytes:
    match packet:
        case SenderReport():
            info = _SENDER_INFO.pack(
                packet.ssrc, packet.ntp, packet.rtp_ts, packet.packet_count, packet.octet_count
            )
            body = info + _encode_blocks(packet.reports)
            return _frame(PT_SENDER_REPORT, len(packet.reports), body)
        case ReceiverReport():
            body = struct.pack("!I", packet.ssrc) + _encode_blocks(packet.reports)
            return _frame(PT_RECEIVER_REPORT, len(packet.reports), body)
        case Sdes():
            body = b"".join(_encode_chunk(ssrc, items) for ssrc, items in packet.chunks)
            return _frame(PT_SDES, len(packet.chunks), body)
        case Bye():
            body = struct.pack(f"!{len(packet.ssrcs)}I", *packet.ssrcs)
            if packet.reason:
                body += bytes((len(packet.reason),)) + packet.reason
            return _frame(PT_BYE, len(packet.ssrcs), body + bytes(-len(body) % 4))
        case Feedback():
            body = struct.pack("!II", packet.sender_ssrc, packet.media_ssrc) + packet.fci
            return _frame(packet.packet_type, packet.format, body)
        case Unknown():
            return _frame(packet.packet_type, packet.count, packet.body)


def _frame(packet_type: int, count: int, body: bytes) -> bytes:
    if count > 31 or len(body) % 4:
        raise ValueError(f"{count} parts in {len(body)} bytes")
    return _HEADER.pack(0x80 | count, packet_type, len(body) // 4) + body


def _encode_blocks(blocks: Iterable[ReportBlock]) -> bytes:
    return b"".join(
        _BLOCK.pack(
            b.ssrc,
            b.fraction_lost << 24 | b.cumulative_lost & 0xFFFFFF,
            b.highest_seq,
            b.jitter,
            b.last_sr,
            b.delay_since_last_sr,
        )
        for b in blocks
    )


def _encode_chunk(ssrc: int, items: Iterable[tuple[int, bytes]]) -> bytes:
    body = struct.pack("!I", ssrc)
    for kind, value in items:
        body += bytes((kind, len(value))) + value
    return body + bytes(4 - len(body) % 4)


def sdes_cname(ssrc: int, cname: str) -> Sdes:
    """The SDES that every compound of a source carries (RFC 3550 6.5.1)."""
    return Sdes(((ssrc, ((SDES_CNAME, cname.encode()),)),))


def nack(sender_ssrc: int, media_ssrc: int, seqs: Iterable[int]) -> Feedback:
    """Generic NACK (RFC 4585 6.2.1) for seqs, given in order of sending."""
    pairs: list[list[int]] = []
    for seq in seqs:
        ahead = (seq - pairs[-1][0]) & 0xFFFF if pairs else 0
        if pairs and ahead <= 16:
            if ahead:
                pairs[-1][1] |= 1 << (ahead - 1)
        else:
            pairs.append([seq, 0])
    fci = b"".join(struct.pack("!HH", first, mask) for first, mask in pairs)
    return Feedback(PT_TRANSPORT_FEEDBACK, FORMAT_NACK, sender_ssrc, media_ssrc, fci)


# --- time ---


def ntp_from_unix_ns(unix_ns: int) -> int:
    """NTP timestamp, 32.32 fixed point, wrapping in 2036 (RFC 3550 section 4)."""
    seconds, ns = divmod(unix_ns, _NS)
    return ((seconds + _NTP_UNIX_SECONDS) << 32 | (ns << 32) // _NS) & 0xFFFFFFFFFFFFFFFF


def ntp_middle(ntp: int) -> int:
    """The middle 32 bits: 16.16 seconds."""
    return ntp >> 16 & 0xFFFFFFFF


def rtt_ns(block: ReportBlock, ntp_now: int) -> int | None:
    """Round trip by RFC 3550 6.4.1: now - LSR - DLSR. ntp_now: of the same clock that wrote
    our sender reports. None when no SR was answered, or the peer's figures make no sense."""
    if block.last_sr == 0:
        return None
    units = (ntp_middle(ntp_now) - block.last_sr - block.delay_since_last_sr) & 0xFFFFFFFF
    if units >= _LONGEST_RTT_UNITS:
        return None
    return units * _NS >> 16


_LONGEST_RTT_UNITS = 60 << 16
"""1/65536 s. What exceeds a minute is a negative difference or a lie."""


# --- statistics ---

MAX_DROPOUT = 3000
"""Packets, RFC 3550 A.1: a longer jump ahead is a restart of the source."""


class ReceptionStats:
    """What RFC 3550 A.3 and A.8 keep of one source that we receive."""

    def __init__(self, clock_rate: int = 48_000) -> None:
        self._clock_rate = clock_rate
        self.ssrc = 0
        self.received = 0
        self._base_index: int | None = None
        self._highest_index = 0
        self._transit: int | None = None
        self._jitter_16 = 0  # jitter times 16: A.8's own scaling
        self._expected_prior = 0
        self._received_prior = 0
        self._last_sr = 0
        self._last_sr_ns = 0

    def update(self, ssrc: int, seq: int, rtp_ts: int, arrival_ns: int) -> None:
        """Every RTP packet that is authentic, duplicates too. A change of SSRC, or a jump
        of more than MAX_DROPOUT, starts anew."""
        if self._base_index is None or ssrc != self.ssrc:
            self._restart(ssrc, seq)
        ahead = seq_delta(seq, self._highest_index)
        if abs(ahead) > MAX_DROPOUT:
            self._restart(ssrc, seq)
        elif ahead > 0:
            self._highest_index += ahead
        self.received += 1
        # A.8: D(i-1,i) is the change of transit time, in timestamp units mod 2^32.
        transit = arrival_ns * self._clock_rate // _NS - rtp_ts
        if self._transit is not None:
            change = abs(rtp_ts_delta(transit, self._transit))
            self._jitter_16 += change - (self._jitter_16 + 8 >> 4)
        self._transit = transit

    def _restart(self, ssrc: int, seq: int) -> None:
        self.ssrc = ssrc
        self._base_index = self._highest_index = seq
        self.received = 0
        self._transit = None
        self._jitter_16 = 0
        self._expected_prior = self._received_prior = 0
        self._last_sr = self._last_sr_ns = 0

    @property
    def expected(self) -> int:
        """Packets from the first to the highest, A.3."""
        if self._base_index is None:
            return 0
        return self._highest_index - self._base_index + 1

    @property
    def jitter(self) -> int:
        """Interarrival jitter, RTP timestamp units."""
        return self._jitter_16 >> 4

    @property
    def jitter_ns(self) -> int:
        """Interarrival jitter."""
        return self.jitter * _NS // self._clock_rate

    def handle_sender_report(self, report: SenderReport, now_ns: int) -> None:
        """Remember the source's SR, for LSR and DLSR."""
        if report.ssrc == self.ssrc:
            self._last_sr = ntp_middle(report.ntp)
            self._last_sr_ns = now_ns

    def report_block(self, now_ns: int) -> ReportBlock | None:
        """The block for our next report; starts a new interval. None before any packet."""
        if self._base_index is None:
            return None
        expected, received = self.expected, self.received
        expected_interval = expected - self._expected_prior
        lost_interval = expected_interval - (received - self._received_prior)
        self._expected_prior, self._received_prior = expected, received
        fraction = 0
        if expected_interval > 0 and lost_interval > 0:
            fraction = min((lost_interval << 8) // expected_interval, 255)
        delay = (now_ns - self._last_sr_ns << 16) // _NS if self._last_sr else 0
        return ReportBlock(
            ssrc=self.ssrc,
            fraction_lost=fraction,
            cumulative_lost=max(-0x800000, min(expected - received, 0x7FFFFF)),
            highest_seq=self._highest_index & 0xFFFFFFFF,
            jitter=self.jitter,
            last_sr=self._last_sr,
            delay_since_last_sr=min(delay, 0xFFFFFFFF),
        )


class SenderStats:
    """What our sender reports say of one source that we send."""

    def __init__(self, ssrc: int, clock_rate: int = 48_000) -> None:
        self.ssrc = ssrc
        self._clock_rate = clock_rate
        self.packets = 0
        self.octets = 0
        self._rtp_ts = 0
        self._sent_ns = 0

    def update(self, payload_bytes: int, rtp_ts: int, sent_ns: int) -> None:
        """A packet left. payload_bytes: without header and padding (6.4.1)."""
        self.packets += 1
        self.octets += payload_bytes
        self._rtp_ts = rtp_ts
        self._sent_ns = sent_ns

    def sender_report(
        self, now_ns: int, unix_ns: int, reports: tuple[ReportBlock, ...] = ()
    ) -> SenderReport:
        """now_ns, unix_ns: the same instant on both clocks. Its RTP timestamp is that of the
        last packet, moved on to now (6.4.1: it need not equal that of any packet)."""
        moved = (now_ns - self._sent_ns) * self._clock_rate // _NS if self.packets else 0
        return SenderReport(
            ssrc=self.ssrc,
            ntp=ntp_from_unix_ns(unix_ns),
            rtp_ts=(self._rtp_ts + moved) & 0xFFFFFFFF,
            packet_count=self.packets & 0xFFFFFFFF,
            octet_count=self.octets & 0xFFFFFFFF,
            reports=reports,
        )
