"""One peer's audio: RTP out, RTP in, and the reports about both.

Owns no socket and no clock: it turns Opus payloads into protected datagrams and
datagrams from the server into ReceivedPackets.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from typing import NamedTuple

from bench.offer import OPUS_PAYLOAD_TYPE
from dataplane.proto.errors import BadPacket
from dataplane.proto.rtcp import (
    Bye,
    ReceiverReport,
    ReceptionStats,
    RtcpPacket,
    SenderReport,
    SenderStats,
    encode_rtcp,
    ntp_from_unix_ns,
    parse_rtcp,
    rtt_ns,
    sdes_cname,
)
from dataplane.proto.rtp import is_rtcp, parse_rtp
from dataplane.proto.srtp import SrtpSession

FRAME_NS = 20_000_000
FRAME_RTP_SAMPLES = 960  # 20 ms at Opus's RTP clock of 48 kHz (RFC 7587 section 4.1)

_RTP_HEADER = struct.Struct("!BBHII")  # RFC 3550 section 5.1


class ReceivedPacket(NamedTuple):
    """An RTP packet that verified."""

    seq: int
    rtp_ts: int
    arrival_ns: int
    marker: bool
    payload: bytes


@dataclass
class RemoteReports:
    """What the server's RTCP told."""

    reports: int = 0
    sender_reports: int = 0
    bye: bool = False
    fraction_lost: int = 0
    """Of 256, of our stream, in its latest interval."""
    cumulative_lost: int = 0
    rtt_ns: int | None = None


class MediaStream:
    """The media of one call, from the client's side.

    record: keep every received packet in ``received``; counters are kept either way.
    """

    def __init__(self, *, record: bool = True, cname: str = "peer") -> None:
        self.srtp: SrtpSession | None = None
        self.ssrc = secrets.randbits(31) + 1
        # Room for a long test before the sequence number wraps: wrapping is tested on purpose.
        self.seq = secrets.randbits(14)
        self.rtp_ts = secrets.randbits(30)
        self.record = record
        self.received: list[ReceivedPacket] = []
        self.packets_received = 0
        self.bytes_received = 0
        self.last_arrival_ns = 0
        self.remote = RemoteReports()
        self.reception = ReceptionStats()
        self.sender = SenderStats(self.ssrc)
        self._cname = cname

    def skip(self, frames: int) -> None:
        """Lets the RTP clock run on without packets, as a client in DTX does."""
        self.rtp_ts = (self.rtp_ts + frames * FRAME_RTP_SAMPLES) & 0xFFFFFFFF

    def protect_audio(self, payload: bytes, now_ns: int, *, marker: bool = False) -> bytes:
        """The next 20 ms packet, protected. payload: one Opus packet."""
        header = _RTP_HEADER.pack(
            0x80, (marker << 7) | OPUS_PAYLOAD_TYPE, self.seq, self.rtp_ts, self.ssrc
        )
        self.sender.update(len(payload), self.rtp_ts, now_ns)
        self.seq = (self.seq + 1) & 0xFFFF
        self.skip(1)
        return self._keys().protect_rtp(header + payload)

    def handle_datagram(self, datagram: bytes, now_ns: int, unix_ns: int) -> bool:
        """Takes SRTP or SRTCP; True when it was audio. BadPacket when it does not verify."""
        srtp = self._keys()
        if is_rtcp(datagram):
            for report in parse_rtcp(srtp.unprotect_rtcp(datagram)):
                self._handle_report(report, now_ns, unix_ns)
            return False
        packet = parse_rtp(srtp.unprotect_rtp(datagram))
        self.reception.update(packet.ssrc, packet.seq, packet.rtp_ts, now_ns)
        self.packets_received += 1
        self.bytes_received += len(packet.payload)
        self.last_arrival_ns = now_ns
        if self.record:
            self.received.append(
                ReceivedPacket(packet.seq, packet.rtp_ts, now_ns, packet.marker, packet.payload)
            )
        return True

    def protect_report(self, now_ns: int, unix_ns: int) -> bytes:
        """SR or RR with a block about the server's stream, and SDES with the CNAME, protected."""
        block = self.reception.report_block(now_ns)
        blocks = (block,) if block is not None else ()
        report: RtcpPacket = ReceiverReport(self.ssrc, blocks)
        if self.sender.packets:
            report = self.sender.sender_report(now_ns, unix_ns, blocks)
        return self._keys().protect_rtcp(encode_rtcp([report, sdes_cname(self.ssrc, self._cname)]))

    def _handle_report(self, report: RtcpPacket, now_ns: int, unix_ns: int) -> None:
        remote = self.remote
        if isinstance(report, Bye):
            remote.bye = True
        if not isinstance(report, SenderReport | ReceiverReport):
            return
        remote.reports += 1
        if isinstance(report, SenderReport):
            remote.sender_reports += 1
            self.reception.handle_sender_report(report, now_ns)
        for block in report.reports:
            if block.ssrc == self.ssrc:
                remote.fraction_lost = block.fraction_lost
                remote.cumulative_lost = block.cumulative_lost
                remote.rtt_ns = rtt_ns(block, ntp_from_unix_ns(unix_ns))

    def _keys(self) -> SrtpSession:
        if self.srtp is None:
            raise BadPacket("drop_srtp_no_keys")
        return self.srtp
