"""A call's side of RTCP: what we report, and what the client's reports tell us."""

from __future__ import annotations

from dataplane.proto.rtcp import (
    Bye,
    ReceiverReport,
    ReceptionStats,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    SenderStats,
    encode_rtcp,
    ntp_from_unix_ns,
    parse_rtcp,
    rtt_ns,
    sdes_cname,
)

_NS = 1_000_000_000
_CLOCK_RATE = 48_000


class Reports:
    """One outgoing stream and what comes back about it.

    unix_offset_ns: CLOCK_REALTIME minus CLOCK_MONOTONIC; SR carries wall-clock time.
    """

    def __init__(self, ssrc: int, cname: str, unix_offset_ns: int) -> None:
        self._ssrc = ssrc
        self._cname = cname
        self._unix_offset_ns = unix_offset_ns
        self._sender = SenderStats(ssrc)
        self.rtt_ns = 0
        """Round trip of the last report; 0 before one came."""
        self.remote_lost = 0
        self.remote_fraction_lost = 0
        self.remote_jitter_ns = 0
        self.remote_said_bye = False

    def sent(self, payload_bytes: int, rtp_ts: int, now_ns: int) -> None:
        """An RTP packet left. payload_bytes: without header (RFC 3550 6.4.1)."""
        self._sender.update(payload_bytes, rtp_ts, now_ns)

    def handle_compound(
        self, compound: bytes, reception: ReceptionStats | None, now_ns: int
    ) -> None:
        """What the client reports. Raises BadPacket("drop_rtcp_malformed")."""
        for packet in parse_rtcp(compound):
            if isinstance(packet, SenderReport | ReceiverReport):
                if isinstance(packet, SenderReport) and reception is not None:
                    reception.handle_sender_report(packet, now_ns)
                for block in packet.reports:
                    if block.ssrc == self._ssrc:
                        self._handle_block(block, now_ns)
            elif isinstance(packet, Bye):
                # The source leaves, not the call: that ends by DTLS, consent or hang-up.
                self.remote_said_bye = True

    def _handle_block(self, block: ReportBlock, now_ns: int) -> None:
        self.remote_lost = max(0, block.cumulative_lost)
        self.remote_fraction_lost = block.fraction_lost
        self.remote_jitter_ns = block.jitter * _NS // _CLOCK_RATE
        measured_ns = rtt_ns(block, ntp_from_unix_ns(now_ns + self._unix_offset_ns))
        if measured_ns is not None:
            self.rtt_ns = measured_ns

    def encode(self, reception: ReceptionStats | None, now_ns: int) -> bytes:
        """A compound packet: SR once we have sent, RR before, and SDES (RFC 3550 6.1)."""
        return encode_rtcp([self._report(reception, now_ns), sdes_cname(self._ssrc, self._cname)])

    def encode_bye(self, reception: ReceptionStats | None, now_ns: int) -> bytes:
        """The last compound packet of the stream (RFC 3550 6.6)."""
        return encode_rtcp(
            [
                self._report(reception, now_ns),
                sdes_cname(self._ssrc, self._cname),
                Bye((self._ssrc,)),
            ]
        )

    def _report(self, reception: ReceptionStats | None, now_ns: int) -> RtcpPacket:
        block = reception.report_block(now_ns) if reception is not None else None
        blocks = (block,) if block is not None else ()
        if self._sender.packets:
            return self._sender.sender_report(now_ns, now_ns + self._unix_offset_ns, blocks)
        return ReceiverReport(self._ssrc, blocks)
