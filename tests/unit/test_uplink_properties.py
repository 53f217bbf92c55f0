"""What holds of the uplink whatever the network does to an honest client, and whatever a
dishonest one sends (hypothesis).

The stream is made of packets of several lengths with pauses between them. The network
loses, delays, swaps and doubles. Which stretch of time each packet fills is known from
the start, so is what the backend must hear of it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.proto.backend_frame import AudioFrame, Concealed, ConcealedHow
from dataplane.proto.errors import BadPacket
from dataplane.proto.opus import RATES, OpusDecoder, OpusEncoder
from dataplane.proto.rtp import RtpPacket
from dataplane.proto.uplink import MAX_CREDIT, MAX_FILL, Uplink
from tests.support.opus_stream import voice

MS = 1_000_000
WAIT_NS = 60 * MS
PT = 111
UNIT = 120
"""Samples at 48 kHz: 2.5 ms, a whole number of samples at every rate."""


@functools.cache
def pool(ptime_ms: int, fec: bool) -> tuple[bytes, ...]:
    """Payloads of one length, from an encoder at 48 kHz."""
    encoder = OpusEncoder(48_000, bitrate=24_000, fec=fec, expected_loss_percent=25 if fec else 0)
    pcm = voice(48_000, 600)
    step = ptime_ms * 48 * 2
    return tuple(encoder.encode(pcm[at : at + step]) for at in range(0, len(pcm) - step + 1, step))


@dataclass
class Sent:
    """A packet on its way. first, samples: its place in time, at 48 kHz from the first one."""

    packet: RtpPacket
    first: int
    samples: int
    arrivals_ns: list[int]


@st.composite
def journeys(draw: st.DrawFn, perfect: bool = False) -> list[Sent]:
    """perfect: nothing is lost, nor later than the wait, nor is there a pause."""
    fec = draw(st.booleans())
    seq = draw(st.sampled_from([0, 1, 100, 65_530]))
    base = draw(st.sampled_from([0, 5000, 2**32 - 3000]))
    count = draw(st.integers(1, 40))
    now_ns = 10**12
    first = 0
    sent = []
    for i in range(count):
        ptime_ms = draw(st.sampled_from([20, 20, 20, 10, 40, 60]))
        # No pause with FEC: an encoder that pauses has nothing to repeat after it.
        if not perfect and not fec and i and draw(st.integers(0, 9)) == 0:
            pause = draw(st.integers(1, 800)) * UNIT
            first += pause
            now_ns += pause * 1_000_000 // 48
        payloads = pool(ptime_ms, fec)
        packet = RtpPacket(
            PT,
            False,
            (seq + i) & 0xFFFF,
            (base + first) & 0xFFFFFFFF,
            7,
            payloads[i % len(payloads)],
        )
        now_ns += ptime_ms * MS
        lost = not perfect and i and draw(st.integers(0, 4)) == 0
        copies = 0 if lost else draw(st.sampled_from([1, 1, 1, 1, 2]))
        worst_ms = 50 if perfect else 150
        delays = [draw(st.sampled_from([0, 0, 5, 30, worst_ms])) for _ in range(copies)]
        if i == 0:
            delays = [0] * len(delays)  # so that it is the first to come
        sent.append(Sent(packet, first, ptime_ms * 48, [now_ns + delay * MS for delay in delays]))
        first += ptime_ms * 48
    return sent


class Backend:
    """Takes what the uplink gives and checks its order."""

    def __init__(self, rate: int, uplink: Uplink) -> None:
        self.rate = rate
        self.uplink = uplink
        self.pcm = bytearray()
        self.concealed: list[Concealed] = []

    @property
    def units(self) -> int:
        """How much time was heard, in units of 2.5 ms."""
        units, rest = divmod(len(self.pcm) // 2 * 400, self.rate)
        assert rest == 0
        return units

    def listen(self) -> None:
        for frame in self.uplink.poll():
            if isinstance(frame, Concealed):
                assert frame.first_sample == len(self.pcm) // 2, (
                    "it does not stand before its audio"
                )
                assert frame.samples > 0
                if self.concealed:
                    last = self.concealed[-1]
                    assert last.first_sample + last.samples <= frame.first_sample
                self.concealed.append(frame)
            else:
                assert isinstance(frame, AudioFrame)
                assert frame.pcm
                assert len(frame.pcm) % 2 == 0
                self.pcm += frame.pcm
        if self.concealed:
            last = self.concealed[-1]
            assert last.first_sample + last.samples <= len(self.pcm) // 2, "less than was said"

    def concealed_units(self, how: ConcealedHow) -> set[int]:
        units: set[int] = set()
        for c in self.concealed:
            if c.how is how:
                start, end = c.first_sample * 400, (c.first_sample + c.samples) * 400
                assert start % self.rate == end % self.rate == 0
                units.update(range(start // self.rate, end // self.rate))
        return units


def units_of(sent: Sent) -> range:
    return range(sent.first // UNIT, (sent.first + sent.samples) // UNIT)


def offer(uplink: Uplink, sent: Sent, at_ns: int) -> str:
    """Why the packet was refused; empty if it was taken."""
    try:
        uplink.handle_rtp(sent.packet, at_ns)
    except BadPacket as error:
        return error.reason
    return ""


REFUSALS = ("", "drop_rtp_late", "drop_rtp_duplicate")


def travel(journey: list[Sent], uplink: Uplink, backend: Backend) -> tuple[list[Sent], int]:
    """Let everything arrive, with a punctual timer. What was heard, and the copies refused."""
    arrivals = sorted(
        ((at_ns, i) for i, sent in enumerate(journey) for at_ns in sent.arrivals_ns),
    )
    heard: set[int] = set()
    refused = 0
    for at_ns, i in arrivals:
        while (due_ns := uplink.next_timeout()) is not None and due_ns < at_ns:
            uplink.handle_timer(due_ns)
            later_ns = uplink.next_timeout()
            assert later_ns is None or later_ns > due_ns, "it would be called for ever"
        refusal = offer(uplink, journey[i], at_ns)
        assert refusal in REFUSALS
        if refusal:
            refused += 1
        else:
            heard.add(i)
        backend.listen()
        # Nothing waits without a reason, nor longer than the wait.
        due_ns = uplink.next_timeout()
        if heard >= set(range(max(heard) + 1)):
            assert backend.units == units_of(journey[max(heard)]).stop
            assert due_ns is None
        assert due_ns is None or due_ns <= at_ns + WAIT_NS
    while (due_ns := uplink.next_timeout()) is not None:
        uplink.handle_timer(due_ns)
    backend.listen()
    return [journey[i] for i in sorted(heard)], refused


@settings(max_examples=80, deadline=None)
@given(journeys(perfect=True), st.sampled_from(RATES))
def test_without_loss_it_is_what_one_decoder_makes_of_the_packets(
    journey: list[Sent], rate: int
) -> None:
    uplink = Uplink(PT, WAIT_NS)
    uplink.set_rate(rate)
    backend = Backend(rate, uplink)
    heard, _ = travel(journey, uplink, backend)
    assert heard == journey
    decoder = OpusDecoder(rate)
    assert backend.pcm == b"".join(decoder.decode(sent.packet.payload) for sent in journey)
    assert backend.concealed == []
    assert uplink.stats.lost == uplink.stats.late == 0


@settings(max_examples=150, deadline=None)
@given(journeys(), st.sampled_from(RATES))
def test_every_stretch_of_time_is_heard_or_said_to_be_concealed(
    journey: list[Sent], rate: int
) -> None:
    uplink = Uplink(PT, WAIT_NS)
    uplink.set_rate(rate)
    backend = Backend(rate, uplink)
    heard, refused = travel(journey, uplink, backend)

    end = units_of(heard[-1]).stop
    assert backend.units == end
    lost = backend.concealed_units(ConcealedHow.LOST)
    pauses = set()  # between packets that follow one another
    gaps = set()  # where packets are missing
    for before, after in itertools.pairwise(heard):
        between = range(units_of(before).stop, units_of(after).start)
        follows = journey.index(after) == journey.index(before) + 1
        (pauses if follows else gaps).update(between)
    assert backend.concealed_units(ConcealedHow.DTX) == pauses
    assert lost <= gaps, "what was heard was called concealed"
    repaired = gaps - lost
    missing = {u for sent in journey if sent not in heard for u in units_of(sent)}
    assert repaired <= missing, "a pause was passed off as heard"

    stats = uplink.stats
    count = journey.index(heard[-1]) + 1
    assert stats.expected == stats.received + stats.lost
    assert stats.received + stats.duplicate == sum(len(sent.arrivals_ns) for sent in journey)
    assert stats.late + stats.duplicate == refused
    assert len(heard) + stats.late + stats.lost == count
    assert stats.concealed_samples == len(lost | pauses) * UNIT


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_backends_come_and_go(data: st.DataObject) -> None:
    """Each hears from its own zero; between them the newest second waits."""
    journey = data.draw(journeys())
    uplink = Uplink(PT, WAIT_NS)
    backend: Backend | None = None
    arrivals = sorted((at_ns, i) for i, s in enumerate(journey) for at_ns in s.arrivals_ns)
    for at_ns, i in arrivals:
        if data.draw(st.integers(0, 5)) == 0:
            rate = data.draw(st.sampled_from([None, *RATES]))
            uplink.set_rate(rate)
            if rate is None:
                backend = None
                uplink.poll()
            else:
                backend = Backend(rate, uplink)
                backend.listen()
        assert offer(uplink, journey[i], at_ns) in REFUSALS
        if backend is None:
            assert uplink.poll() == []
        else:
            backend.listen()
            assert backend.units * UNIT <= journey[-1].first + journey[-1].samples


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_client_can_make_more_audio_than_time(data: st.DataObject) -> None:
    """Authentic, but with any sequence, timestamp, SSRC and payload. Beyond its own packets it
    gets the time that passed, and the credit, filled; nothing but BadPacket is raised."""
    uplink = Uplink(PT, data.draw(st.sampled_from([0, WAIT_NS])))
    uplink.set_rate(8000)
    now_ns = 0
    own = total = 0
    near = st.integers(-3, 3)
    numbers = st.one_of(near, st.sampled_from([100, 2999, 3001, 0x7FFF, 0x8000]))
    leaps = st.one_of(
        near.map(lambda n: n * 960),
        st.integers(-(2**31), 2**31),
        st.sampled_from([MAX_FILL, MAX_CREDIT, -960, 48_000 * 9]),
    )
    payloads = st.one_of(st.binary(max_size=12), st.sampled_from(pool(20, True)))
    seq = rtp_ts = 0
    for _ in range(data.draw(st.integers(1, 60))):
        seq += data.draw(numbers)
        rtp_ts += data.draw(leaps)
        now_ns += data.draw(st.sampled_from([0, 1, 20, 20, 20, 1000])) * MS
        payload_type = data.draw(st.sampled_from([PT, PT, PT, PT, 13]))
        ssrc = data.draw(st.sampled_from([7, 7, 7, 7, 8, 9]))
        packet = RtpPacket(
            payload_type, False, seq & 0xFFFF, rtp_ts & 0xFFFFFFFF, ssrc, data.draw(payloads)
        )
        with contextlib.suppress(BadPacket):
            uplink.handle_rtp(packet, now_ns)
        own += 960 * 6  # no packet is longer than 120 ms
        if data.draw(st.booleans()):
            uplink.handle_timer(now_ns)
        for frame in uplink.poll():
            if isinstance(frame, AudioFrame):
                total += len(frame.pcm) // 2 * 6
        filled = now_ns * 48 // MS * 102 // 100 + MAX_CREDIT
        assert total <= own + filled + 960
