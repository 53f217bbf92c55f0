"""From a client's RTP packets to the PCM that its backend hears.

Theory. The backend counts samples instead of reading timestamps, so every stretch of time
is filled, exactly once and in order, from the first packet on:

    what the next packet in order shows                    what fills the time before it
    its timestamp continues                                nothing
    packets are missing, and it carries in-band FEC        PLC, then the FEC copy of the last
    packets are missing, and it does not                   PLC
    none is missing, but its timestamp is ahead (DTX)      comfort noise
    timestamps leap, run back or outrun the clock;         by the clock of arrival, PLC or
        a new SSRC; a restart of the sequence              comfort noise

Only CONCEAL_MS of a fill come from the decoder, the rest is silence. A Concealed stands
before every fill but the FEC copy, which is the client's own audio. Nothing comes out
while nothing comes in: a pause is filled when the packet after it tells how long it was.

With nothing lost, what comes out is bit for bit what one libopus decoder makes of the
packets in order. Samples are counted from set_rate; before it, the newest second waits.

Not done here (yet): SPEECH, RED, asking for retransmission, correction of clock drift.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dataplane.proto.backend_frame import AudioFrame, Concealed, ConcealedHow, Speech
from dataplane.proto.errors import BadPacket
from dataplane.proto.jitter_buffer import JitterBuffer, Ordered
from dataplane.proto.opus import OpusDecoder, OpusLibrary, packet_samples
from dataplane.proto.rtcp import ReceptionStats
from dataplane.proto.rtp import RtpPacket, rtp_ts_delta

CLOCK_RATE = 48_000
"""Of Opus over RTP at any rate (RFC 7587 4.1)."""

CONCEAL_MS = {ConcealedHow.LOST: 200, ConcealedHow.DTX: 60}
"""How much of a fill the decoder makes; as costly as decoding. libopus fades PLC out well
before 200 ms; in a pause 60 ms lead from speech into the silence without a click."""

MAX_FILL = 60 * CLOCK_RATE
"""Samples at 48 kHz. A longer pause is cut to this, or taken for a restart."""
MAX_CREDIT = 10 * CLOCK_RATE
"""Samples at 48 kHz by which fills may outrun the clock of arrival, so that a client that
lies about time cannot turn packets into floods of silence."""
CREDIT_PERCENT = 1
"""Of passing time, added to the credit: far more than two honest clocks drift apart."""
MAX_HELD = 1 * CLOCK_RATE
"""Samples at 48 kHz that wait for a backend to be ready."""
MAX_HELD_PACKETS = 400
"""The same second in the shortest Opus packets, for packets without audio."""

_CLOCK_STEP = 960
"""Samples at 48 kHz: 20 ms. Fills by the clock of arrival are whole steps: jitter is none."""
_SILENCE_CHUNK_MS = 1000

UplinkFrame = AudioFrame | Concealed | Speech


@dataclass(frozen=True, slots=True)
class UplinkStats:
    """Packets, from the start of the call. received: all but duplicates. lost: never came.
    late: came after their time had been filled. repaired: lost, then heard by FEC. invalid:
    no Opus. dropped_held: waited for a backend longer than a second."""

    received: int
    expected: int
    lost: int
    late: int
    duplicate: int
    repaired: int
    invalid: int
    dropped_held: int
    concealed_samples: int
    """At 48 kHz."""
    jitter_ns: int


class Uplink:
    """See the module's docstring. max_wait_ns: the longest wait for a missing packet."""

    def __init__(
        self, payload_type: int, max_wait_ns: int, library: OpusLibrary | None = None
    ) -> None:
        self.reception = ReceptionStats(CLOCK_RATE)
        """Of the stream that is being heard, for our receiver reports."""
        self._payload_type = payload_type
        self._library = library
        self._order = JitterBuffer(max_wait_ns)
        self._ssrc: int | None = None
        self._retired_ssrc: int | None = None
        self._held: deque[Ordered] = deque()
        self._held_samples = 0
        self._decoder: OpusDecoder | None = None
        self._frames: list[UplinkFrame] = []
        self._received = 0
        self._repaired = 0
        self._invalid = 0
        self._dropped_held = 0
        self._concealed_samples = 0
        self._credit = MAX_CREDIT
        self._begin_time()

    def _begin_time(self) -> None:
        self._next_ts: int | None = None  # None: the next packet begins it
        self._missing = 0  # packets, since the last that was heard
        self._first_sample = 0  # of the next frame, at the backend's rate
        self._fill_remainder = 0  # of a sample, in 1/48,000
        self._last_arrival_ns = 0
        self._last_samples = 0  # of the last packet, at 48 kHz

    # --- in ---

    def set_rate(self, rate: int | None) -> None:
        """A backend is ready for PCM at rate (Hz): its count of samples begins with the oldest
        packet that waits. None: it is gone, and packets wait for the next."""
        self._begin_time()
        self._decoder = None
        if rate is None:
            return
        self._decoder = OpusDecoder(rate, self._library)
        while self._held:
            self._hear(self._held.popleft(), self._decoder)
        self._held_samples = 0

    def handle_rtp(self, packet: RtpPacket, arrival_ns: int) -> None:
        """Take an authentic packet. Raises BadPacket for one that is not heard: drop_rtp_ssrc,
        drop_rtp_late, drop_rtp_duplicate, drop_rtp_payload_type, drop_opus_invalid. The last
        two keep their place in the order, so that nothing waits for them."""
        if packet.ssrc != self._ssrc:
            self._change_ssrc(packet.ssrc)
        self.reception.update(packet.ssrc, packet.seq, packet.rtp_ts, arrival_ns)
        refusal: BadPacket | None = None
        if packet.payload_type != self._payload_type:
            refusal = BadPacket("drop_rtp_payload_type", f"payload type {packet.payload_type}")
        else:
            try:
                packet_samples(packet.payload, CLOCK_RATE)
            except BadPacket as error:
                refusal = error
                self._invalid += 1
        if refusal is not None:
            packet = packet._replace(payload=b"")
        try:
            self._order.insert(packet, arrival_ns)
            self._received += 1
        except BadPacket as error:
            self._received += error.reason == "drop_rtp_late"
            raise
        finally:
            self._drain()
        if refusal is not None:
            raise refusal

    def _change_ssrc(self, ssrc: int) -> None:
        """A new source replaces the old one for good: stragglers do not bring it back."""
        if ssrc == self._retired_ssrc:
            raise BadPacket("drop_rtp_ssrc", f"SSRC {ssrc} was replaced by {self._ssrc}")
        self._retired_ssrc, self._ssrc = self._ssrc, ssrc
        self._order.restart()

    def handle_timer(self, now_ns: int) -> None:
        """Give up the packets whose time is over."""
        self._order.handle_timer(now_ns)
        self._drain()

    def next_timeout(self) -> int | None:
        """When handle_timer is due; None while nothing is missing."""
        return self._order.next_timeout()

    # --- out ---

    def poll(self) -> list[UplinkFrame]:
        """What is there for the backend, in order."""
        frames, self._frames = self._frames, []
        return frames

    @property
    def stats(self) -> UplinkStats:
        return UplinkStats(
            received=self._received,
            expected=self._received + self._order.lost,
            lost=self._order.lost,
            late=self._order.late,
            duplicate=self._order.duplicates,
            repaired=self._repaired,
            invalid=self._invalid,
            dropped_held=self._dropped_held,
            concealed_samples=self._concealed_samples,
            jitter_ns=self.reception.jitter_ns,
        )

    # --- between ---

    def _drain(self) -> None:
        decoder = self._decoder
        for ordered in self._order.poll():
            if decoder is not None:
                self._hear(ordered, decoder)
            else:
                self._hold(ordered)

    def _hold(self, ordered: Ordered) -> None:
        self._held.append(ordered)
        self._held_samples += _samples_48k(ordered)
        while self._held_samples > MAX_HELD or len(self._held) > MAX_HELD_PACKETS:
            self._held_samples -= _samples_48k(self._held.popleft())
            self._dropped_held += 1

    def _hear(self, ordered: Ordered, decoder: OpusDecoder) -> None:
        """Fill the time up to a packet, then decode it."""
        packet = ordered.packet
        self._missing += ordered.lost
        samples = _samples_48k(ordered)
        if samples == 0:
            self._missing += 1
            return
        if ordered.restarted:
            decoder.reset()
        if self._next_ts is not None:
            gap = self._gap(ordered, samples)
            if gap > 0:
                self._fill(gap, packet.payload, decoder)
        self._last_arrival_ns = max(self._last_arrival_ns, ordered.arrival_ns)
        self._last_samples = samples
        self._missing = 0
        self._next_ts = packet.rtp_ts + samples
        try:
            self._emit(decoder.decode(packet.payload))
        except BadPacket:  # its framing was checked, so libopus itself has failed
            self._conceal(samples * decoder.rate // CLOCK_RATE, ConcealedHow.LOST, decoder)

    def _gap(self, ordered: Ordered, samples: int) -> int:
        """How much time (samples at 48 kHz) lies between the last packet and this."""
        assert self._next_ts is not None
        elapsed_ns = max(0, ordered.arrival_ns - self._last_arrival_ns)
        elapsed = elapsed_ns * CLOCK_RATE // 1_000_000_000
        allowed = self._credit + elapsed
        gap = rtp_ts_delta(ordered.packet.rtp_ts, self._next_ts)
        if ordered.restarted or not 0 <= gap <= min(allowed, MAX_FILL):
            gap = min(max(0, elapsed - self._last_samples), MAX_FILL)
            gap -= gap % _CLOCK_STEP
        credit = allowed + elapsed * CREDIT_PERCENT // 100 - gap - samples
        self._credit = min(max(0, credit), MAX_CREDIT)
        return gap

    def _fill(self, gap: int, payload: bytes, decoder: OpusDecoder) -> None:
        """Fill gap samples (48 kHz) before the packet with this payload."""
        count, self._fill_remainder = divmod(gap * decoder.rate + self._fill_remainder, CLOCK_RATE)
        if not self._missing:
            self._conceal(count, ConcealedHow.DTX, decoder)
            return
        recovered = decoder.recoverable_samples(payload)
        if recovered > count:
            recovered = 0
        self._conceal(count - recovered, ConcealedHow.LOST, decoder)
        if recovered:
            # Of a packet of several frames only the last one is there.
            self._repaired += recovered == packet_samples(payload, decoder.rate)
            self._emit(decoder.decode_fec(payload, recovered))

    def _conceal(self, count: int, how: ConcealedHow, decoder: OpusDecoder) -> None:
        """Emit count samples (at the backend's rate) that nobody said."""
        if count == 0:
            return
        self._frames.append(Concealed(self._first_sample, count, how))
        self._concealed_samples += count * CLOCK_RATE // decoder.rate
        pcm = decoder.conceal(min(count, CONCEAL_MS[how] * decoder.rate // 1000))
        if pcm:
            self._emit(pcm)
        left = count - len(pcm) // 2
        chunk = _SILENCE_CHUNK_MS * decoder.rate // 1000
        while left > 0:
            part = min(left, chunk)
            self._emit(bytes(2 * part))
            left -= part

    def _emit(self, pcm: bytes) -> None:
        self._frames.append(AudioFrame(pcm))
        self._first_sample += len(pcm) // 2


def _samples_48k(ordered: Ordered) -> int:
    """Length of the packet's audio; 0 for one that was refused when it came."""
    payload = ordered.packet.payload
    return packet_samples(payload, CLOCK_RATE) if payload else 0
