"""From RTP to the backend's PCM, in virtual time and over seeded networks."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable

import numpy as np
import pytest

from dataplane.proto.backend_frame import AudioFrame, Concealed, ConcealedHow
from dataplane.proto.errors import BadPacket
from dataplane.proto.opus import RATES, has_lbrr, packet_samples
from dataplane.proto.rtp import RtpPacket
from dataplane.proto.uplink import Uplink, UplinkFrame
from tests.support.opus_stream import level, offline_decode, opus_packets, voice

MS = 1_000_000
S = 1000 * MS
WAIT = 60 * MS
PT = 111
LOST, DTX = ConcealedHow.LOST, ConcealedHow.DTX


@functools.cache
def speech(ptime_ms: int = 20, channels: int = 1, fec_loss_percent: int = 0) -> tuple[bytes, ...]:
    """1.2 s from a client whose encoder runs at 48 kHz."""
    pcm = voice(48000, 1200, channels)
    bitrate = 24_000 if fec_loss_percent else 32_000
    return tuple(
        opus_packets(
            pcm, 48000, ptime_ms, channels, bitrate=bitrate, fec_loss_percent=fec_loss_percent
        )
    )


def rtp(
    payload: bytes, seq: int, rtp_ts: int | None = None, ssrc: int = 7, payload_type: int = PT
) -> RtpPacket:
    """rtp_ts: by seq in steps of 20 ms if not given."""
    ts = seq * 960 if rtp_ts is None else rtp_ts
    return RtpPacket(payload_type, False, seq & 0xFFFF, ts & 0xFFFFFFFF, ssrc, payload)


def stream(
    payloads: Iterable[bytes], seq: int = 65530, rtp_ts: int = 2**32 - 2000
) -> list[RtpPacket]:
    packets = []
    for payload in payloads:
        packets.append(rtp(payload, seq, rtp_ts))
        seq += 1
        rtp_ts += packet_samples(payload, 48000)
    return packets


def ready(rate: int = 16000, max_wait_ns: int = WAIT) -> Uplink:
    uplink = Uplink(PT, max_wait_ns)
    uplink.set_rate(rate)
    return uplink


def pcm_of(frames: Iterable[UplinkFrame]) -> bytes:
    return b"".join(frame.pcm for frame in frames if isinstance(frame, AudioFrame))


def concealed(frames: Iterable[UplinkFrame]) -> list[Concealed]:
    return [frame for frame in frames if isinstance(frame, Concealed)]


def refused(uplink: Uplink, packet: RtpPacket, now_ns: int = 0) -> str:
    with pytest.raises(BadPacket) as caught:
        uplink.handle_rtp(packet, now_ns)
    return caught.value.reason


def send(uplink: Uplink, packets: Iterable[RtpPacket], start_ns: int = 0) -> list[UplinkFrame]:
    """One packet each 20 ms, then all that time brings."""
    frames = []
    now_ns = start_ns
    for packet in packets:
        uplink.handle_rtp(packet, now_ns)
        frames += uplink.poll()
        now_ns += 20 * MS
    while (due_ns := uplink.next_timeout()) is not None:
        uplink.handle_timer(due_ns)
    return frames + uplink.poll()


# --- nothing lost ---


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("ptime_ms", [10, 20, 40, 60])
@pytest.mark.parametrize("channels", [1, 2])
def test_without_loss_it_is_bit_exact(rate: int, ptime_ms: int, channels: int) -> None:
    payloads = speech(ptime_ms, channels)
    uplink = ready(rate)
    frames = []
    for i, packet in enumerate(stream(payloads)):
        uplink.handle_rtp(packet, i * ptime_ms * MS)
        [frame] = uplink.poll()  # at once
        assert uplink.next_timeout() is None
        frames.append(frame)
    assert pcm_of(frames) == offline_decode(payloads, rate)
    assert concealed(frames) == []
    assert uplink.stats.concealed_samples == 0


def test_ptime_may_change_within_a_stream() -> None:
    payloads = [*speech(20)[:10], *speech(60)[3:6], *speech(10)[40:50], *speech(40)[12:]]
    frames = send(ready(), stream(payloads))
    assert pcm_of(frames) == offline_decode(payloads, 16000)
    assert concealed(frames) == []


@pytest.mark.parametrize("seed", range(8))
def test_reordering_and_duplication_change_nothing(seed: int) -> None:
    rng = random.Random(seed)
    arrivals = []
    for i, packet in enumerate(stream(speech())):
        for _ in range(1 + (i > 0 and rng.random() < 0.2)):
            delay_ns = rng.randint(0, WAIT) if i else 0
            arrivals.append((i * 20 * MS + delay_ns, i, packet))
    arrivals.sort()
    uplink = ready()
    frames: list[UplinkFrame] = []
    duplicates = 0
    for at_ns, _, packet in arrivals:
        uplink.handle_timer(at_ns)
        try:
            uplink.handle_rtp(packet, at_ns)
        except BadPacket as error:
            duplicates += error.reason == "drop_rtp_duplicate"
        frames += uplink.poll()
    assert pcm_of(frames) == offline_decode(speech(), 16000)
    stats = uplink.stats
    assert (stats.received, stats.expected, stats.duplicate) == (60, 60, duplicates)
    assert (stats.lost, stats.late, duplicates + 60) == (0, 0, len(arrivals))


# --- loss ---


def test_a_lost_packet_is_concealed_and_said_so() -> None:
    packets = stream(speech())
    uplink = ready()
    frames = send(uplink, packets[:20] + packets[21:])
    at = frames.index(Concealed(20 * 320, 320, LOST))
    assert len(concealed(frames)) == 1
    concealment = frames[at + 1]
    assert isinstance(concealment, AudioFrame)
    assert len(concealment.pcm) == 640
    before = pcm_of(frames[:at])
    assert level(concealment.pcm) > 0.3 * level(before[-640:])  # PLC, not silence
    truth = offline_decode(speech(), 16000)
    assert before == truth[: len(before)]
    assert len(pcm_of(frames)) == len(truth)
    stats = uplink.stats
    assert (stats.received, stats.expected, stats.lost, stats.late) == (59, 60, 1, 0)
    assert (stats.repaired, stats.concealed_samples) == (0, 960)


def test_a_gap_waits_for_its_packet_and_then_waits_no_more() -> None:
    packets = stream(speech())
    uplink = ready()
    for i in (0, 1, 3):
        uplink.handle_rtp(packets[i], i * 20 * MS)
    assert len(uplink.poll()) == 2
    assert uplink.next_timeout() == 60 * MS + WAIT
    uplink.handle_timer(60 * MS + WAIT - 1)
    assert uplink.poll() == []
    uplink.handle_timer(60 * MS + WAIT)
    assert concealed(uplink.poll()) == [Concealed(640, 320, LOST)]
    assert uplink.next_timeout() is None
    assert refused(uplink, packets[2], 60 * MS + WAIT) == "drop_rtp_late"
    assert uplink.poll() == []
    stats = uplink.stats
    assert (stats.received, stats.expected, stats.lost, stats.late) == (4, 4, 0, 1)


@pytest.mark.parametrize("rate", RATES)
def test_in_band_fec_repairs_the_last_of_a_gap(rate: int) -> None:
    payloads = speech(fec_loss_percent=25)
    at = next(i for i in range(15, 40) if has_lbrr(payloads[i]))
    packets = stream(payloads)
    truth = offline_decode(payloads, rate)
    frame = rate // 50

    uplink = ready(rate)
    frames = send(uplink, packets[: at - 1] + packets[at:])
    assert concealed(frames) == []  # it was heard
    assert (uplink.stats.repaired, uplink.stats.lost) == (1, 1)
    pcm = pcm_of(frames)
    assert len(pcm) == len(truth)
    span = slice(2 * (at - 1) * frame, 2 * at * frame)
    a, b = np.frombuffer(pcm[span], "<i2"), np.frombuffer(truth[span], "<i2")
    assert np.corrcoef(a, b)[0, 1] > 0.7

    uplink = ready(rate)
    frames = send(uplink, packets[: at - 3] + packets[at:])
    assert concealed(frames) == [Concealed((at - 3) * frame, 2 * frame, LOST)]
    assert uplink.stats.repaired == 1
    assert uplink.stats.concealed_samples == 2 * 960
    assert len(pcm_of(frames)) == len(truth)


def test_fec_of_a_longer_frame_than_the_gap_is_not_used() -> None:
    pcm = voice(16000, 1200)
    long_frames = opus_packets(pcm, 16000, 60, bitrate=24_000, fec_loss_percent=25)
    at = next(i for i in range(5, 20) if has_lbrr(long_frames[i]))
    payloads = [*speech(20)[:3], long_frames[at]]
    packets = stream(payloads)
    uplink = ready()
    frames = send(uplink, [packets[0], packets[1], packets[3]])
    assert concealed(frames) == [Concealed(640, 320, LOST)]
    assert uplink.stats.repaired == 0


def test_fec_of_part_of_a_packet_repairs_no_packet() -> None:
    """Hybrid frames last 20 ms at most, so a packet of 60 ms has three, and FEC for one."""
    payloads = speech(60, fec_loss_percent=25)
    at = next(i for i in range(5, 20) if has_lbrr(payloads[i]) and payloads[i][0] & 3)
    packets = stream(payloads)
    uplink = ready()
    frames = send(uplink, packets[: at - 1] + packets[at:])
    assert concealed(frames) == [Concealed((at - 1) * 960, 640, LOST)]
    assert (uplink.stats.repaired, uplink.stats.concealed_samples) == (0, 1920)


def test_a_long_gap_is_concealed_by_the_decoder_at_first_only() -> None:
    packets = stream(speech())
    frames = send(ready(), packets[:20] + packets[45:])  # 500 ms
    [gap] = concealed(frames)
    assert gap == Concealed(20 * 320, 25 * 320, LOST)
    start = frames.index(gap) + 1
    plc, silence = frames[start], frames[start + 1]
    assert isinstance(plc, AudioFrame)
    assert isinstance(silence, AudioFrame)
    assert len(plc.pcm) == 200 * 32
    assert silence.pcm == bytes(300 * 32)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("fec_loss_percent", [0, 25])
@pytest.mark.parametrize("rate", [8000, 48000])
def test_samples_are_time_whatever_is_lost(seed: int, fec_loss_percent: int, rate: int) -> None:
    """Every sample has its place, Concealed says exactly which were not heard, and what is
    not spoken of is the client's own."""
    rng = random.Random(seed)
    payloads = speech(fec_loss_percent=fec_loss_percent)
    packets = stream(payloads)
    loss = rng.choice((0.02, 0.1, 0.4))
    arrivals = [(0, 0, packets[0])]
    for i in range(1, len(packets)):
        if rng.random() >= loss:
            arrivals.append((i * 20 * MS + rng.randint(0, 100 * MS), i, packets[i]))
    arrivals.sort()
    uplink = ready(rate)
    frames: list[UplinkFrame] = []
    heard = set()
    late = 0
    for at_ns, i, packet in arrivals:
        while (due_ns := uplink.next_timeout()) is not None and due_ns < at_ns:
            uplink.handle_timer(due_ns)
        try:
            uplink.handle_rtp(packet, at_ns)
            heard.add(i)
        except BadPacket as error:
            late += error.reason == "drop_rtp_late"
    uplink.handle_timer(10 * S)
    frames = uplink.poll()

    frame = rate // 50
    last = max(heard)
    assert len(pcm_of(frames)) == (last + 1) * frame * 2
    silent: set[int] = set()
    position = 0
    for f in frames:
        if isinstance(f, Concealed):
            assert (f.first_sample, f.how) == (position, LOST)
            silent.update(range(f.first_sample // frame, (f.first_sample + f.samples) // frame))
        elif isinstance(f, AudioFrame):
            position += len(f.pcm) // 2
    missing = set(range(last)) - heard
    assert silent <= missing
    stats = uplink.stats
    assert stats.repaired == len(missing - silent)
    assert stats.repaired == 0 or fec_loss_percent
    assert stats.concealed_samples == 960 * len(silent)
    assert stats.lost + stats.late == len(missing)
    assert stats.late == late
    assert stats.received == len(arrivals) == len(heard) + late


# --- pauses ---


def test_a_pause_is_filled_when_the_next_packet_tells_how_long_it_was() -> None:
    payloads = speech()[:20]
    uplink = ready()
    frames = []
    for i, payload in enumerate(payloads):
        ts = i * 960 + (400 * 48 if i >= 10 else 0)
        uplink.handle_rtp(rtp(payload, i, ts), ts * MS // 48)
        assert uplink.next_timeout() is None  # nobody is woken in a pause
        frames += uplink.poll()
    [gap] = concealed(frames)
    assert gap == Concealed(3200, 400 * 16, DTX)
    assert len(pcm_of(frames)) == (20 * 20 + 400) * 32
    start = frames.index(gap) + 1
    assert [len(f.pcm) // 32 for f in frames[start : start + 2] if isinstance(f, AudioFrame)] == [
        60,
        340,
    ]
    assert uplink.stats.concealed_samples == 400 * 48
    assert uplink.stats.lost == 0


def test_a_client_with_dtx_keeps_time() -> None:
    """What a real encoder leaves out (RFC 7587 3.1.3), packets of two bytes or fewer."""
    pcm = voice(48000, 400) + bytes(48000 * 2 * 3) + voice(48000, 400, seed=2)
    payloads = opus_packets(pcm, 48000, dtx=True)
    uplink = ready(24000)
    frames = []
    seq = 0
    for i, payload in enumerate(payloads):
        if len(payload) > 2:
            uplink.handle_rtp(rtp(payload, seq, i * 960), i * 20 * MS)
            frames += uplink.poll()
            seq += 1
    assert seq < len(payloads) - 50
    assert len(pcm_of(frames)) == len(pcm) // 2
    assert {gap.how for gap in concealed(frames)} == {DTX}
    assert sum(gap.samples for gap in concealed(frames)) == (len(payloads) - seq) * 480


def test_a_minute_of_pause_comes_in_pieces_that_fit_a_frame() -> None:
    uplink = ready(48000)
    payloads = speech()
    uplink.handle_rtp(rtp(payloads[0], 0, 0), 0)
    uplink.handle_rtp(rtp(payloads[1], 1, 960 + 59 * 48000), 59 * S)
    frames = uplink.poll()
    assert concealed(frames) == [Concealed(960, 59 * 48000, DTX)]
    assert len(pcm_of(frames)) == 2 * (2 * 960 + 59 * 48000)
    assert max(len(f.pcm) for f in frames if isinstance(f, AudioFrame)) <= 96_000


def test_a_longer_pause_is_cut_to_a_minute() -> None:
    uplink = ready()
    payloads = speech()
    uplink.handle_rtp(rtp(payloads[0], 0, 0), 0)
    uplink.handle_rtp(rtp(payloads[1], 1, 960 + 3600 * 48000), 3600 * S)
    assert concealed(uplink.poll()) == [Concealed(320, 60 * 16000, DTX)]


def test_odd_timestamps_lose_no_time_at_a_low_rate() -> None:
    """One sample at 48 kHz is a sixth of one at 8 kHz; six of them make one."""
    uplink = ready(8000)
    for i, payload in enumerate(speech()[:13]):
        uplink.handle_rtp(rtp(payload, i, i * 961), i * 20 * MS)
    frames = uplink.poll()
    assert [gap.samples for gap in concealed(frames)] == [1, 1]
    assert len(pcm_of(frames)) == 2 * (13 * 160 + 2)


# --- timestamps and sources that leap ---


@pytest.mark.parametrize("leap", [-960, -480, 2**31 - 1, 61 * 48000, 11 * 48000])
def test_timestamps_that_leap_are_not_believed(leap: int) -> None:
    payloads = speech()[:20]
    uplink = ready()
    frames = []
    for i, payload in enumerate(payloads):
        uplink.handle_rtp(rtp(payload, i, i * 960 + (leap if i >= 10 else 0)), i * 20 * MS)
        frames += uplink.poll()
    assert concealed(frames) == []
    assert pcm_of(frames) == offline_decode(payloads, 16000)


def test_a_restarted_sequence_is_a_new_stream_and_time_goes_by_the_clock() -> None:
    old, new = speech()[:10], speech()[30:40]
    uplink = ready()
    frames = send(uplink, stream(old, 100, 5000))
    frames += send(uplink, stream(new, 40000, 123456), start_ns=(200 + 107) * MS)
    assert concealed(frames) == [Concealed(3200, 100 * 16, DTX)]
    pcm = pcm_of(frames)
    assert pcm[:6400] == offline_decode(old, 16000)
    assert pcm[6400 + 3200 :] == offline_decode(new, 16000)  # by a fresh decoder


def test_another_ssrc_takes_over_and_the_old_one_is_out() -> None:
    old, new = speech()[:10], speech()[30:40]
    uplink = ready()
    frames = []
    for i, payload in enumerate(old):
        uplink.handle_rtp(rtp(payload, i), i * 20 * MS)
    for i, payload in enumerate(new):
        uplink.handle_rtp(rtp(payload, 500 + i, ssrc=8), (200 + i * 20) * MS)
    frames = uplink.poll()
    assert concealed(frames) == []
    assert pcm_of(frames) == offline_decode(old, 16000) + offline_decode(new, 16000)
    assert refused(uplink, rtp(old[0], 10), S) == "drop_rtp_ssrc"
    assert uplink.reception.ssrc == 8


def test_what_the_old_ssrc_left_behind_a_gap_is_heard() -> None:
    payloads = speech()
    uplink = ready()
    for seq in (0, 2):
        uplink.handle_rtp(rtp(payloads[seq], seq), seq * 20 * MS)
    uplink.handle_rtp(rtp(payloads[3], 3, ssrc=8), 60 * MS)
    frames = uplink.poll()
    assert concealed(frames) == [Concealed(320, 320, LOST)]
    assert len(pcm_of(frames)) == 4 * 640
    assert uplink.next_timeout() is None


def test_a_client_that_lies_about_time_cannot_flood_the_backend() -> None:
    """Each packet claims a pause of 9 s before it: silence stays near the clock of arrival."""
    payload = speech()[5]
    uplink = ready(8000)
    total = 0
    for i in range(500):
        uplink.handle_rtp(rtp(payload, i, i * 9 * 48000), i * 20 * MS)
        total += len(pcm_of(uplink.poll())) // 2
    assert total / 8000 < 10 + 10 * 1.01 + 10  # the time, its percent, and the credit


def test_drifting_clocks_never_turn_a_pause_away() -> None:
    """A client 300 ppm fast for a day (26 s), in pauses of nearly a minute."""
    payload = speech(60)[5]
    uplink = ready(8000)
    samples = 0
    for i in range(1464):
        uplink.handle_rtp(rtp(payload, i, i * 59 * 48000), round(i * 59 * S / 1.0003))
        samples += len(pcm_of(uplink.poll())) // 2
    assert samples == (1463 * 59) * 8000 + 480


# --- before READY, and from backend to backend ---


def test_the_newest_second_waits_for_the_backend() -> None:
    payloads = [*speech(), *speech()]
    packets = stream(payloads)
    uplink = Uplink(PT, WAIT)
    for i, packet in enumerate(packets[:80]):
        uplink.handle_rtp(packet, i * 20 * MS)
    assert uplink.poll() == []
    assert uplink.stats.dropped_held == 30
    uplink.set_rate(16000)
    frames = uplink.poll()
    for i, packet in enumerate(packets[80:], 80):
        uplink.handle_rtp(packet, i * 20 * MS)
        frames += uplink.poll()
    assert pcm_of(frames) == offline_decode(payloads[30:], 16000)
    assert concealed(frames) == []


def test_a_gap_among_what_waits_is_filled_later() -> None:
    packets = stream(speech())
    uplink = Uplink(PT, WAIT)
    for i in (0, 1, 3, 4):
        uplink.handle_rtp(packets[i], i * 20 * MS)
    uplink.handle_timer(S)
    uplink.set_rate(16000)
    assert concealed(uplink.poll()) == [Concealed(640, 320, LOST)]


def test_packets_without_audio_do_not_pile_up() -> None:
    uplink = Uplink(PT, WAIT)
    for seq in range(2000):
        assert refused(uplink, rtp(b"", seq)) == "drop_opus_invalid"
    assert uplink.stats.dropped_held == 1600


def test_another_backend_counts_anew_at_its_own_rate() -> None:
    payloads = speech()
    packets = stream(payloads)
    uplink = ready(16000)
    first = send(uplink, packets[:20])
    uplink.set_rate(None)
    assert send(uplink, packets[20:30], 400 * MS) == []
    uplink.set_rate(8000)
    second = send(uplink, packets[30:40] + packets[41:], 600 * MS)
    assert pcm_of(first) == offline_decode(payloads[:20], 16000)
    assert concealed(second) == [Concealed(20 * 160, 160, LOST)]
    assert pcm_of(second)[: 20 * 320] == offline_decode(payloads[20:40], 8000)
    assert len(pcm_of(second)) == 40 * 320


# --- what is refused ---


@pytest.mark.parametrize(
    ("payload", "payload_type", "reason"),
    [
        (b"", PT, "drop_opus_invalid"),
        (b"\x03", PT, "drop_opus_invalid"),
        (b"\x01\x00", PT, "drop_opus_invalid"),
        (speech()[10], 0, "drop_rtp_payload_type"),
    ],
)
def test_a_packet_that_is_not_heard_keeps_its_place(
    payload: bytes, payload_type: int, reason: str
) -> None:
    packets = stream(speech(), 0, 0)
    packets[10] = rtp(payload, 10, payload_type=payload_type)
    uplink = ready()
    frames = []
    for i, packet in enumerate(packets):
        if i == 10:
            assert refused(uplink, packet, i * 20 * MS) == reason
        else:
            uplink.handle_rtp(packet, i * 20 * MS)
        assert uplink.next_timeout() is None  # nothing waits for it
        frames += uplink.poll()
    assert concealed(frames) == [Concealed(3200, 320, LOST)]
    assert len(pcm_of(frames)) == 60 * 640
    stats = uplink.stats
    assert (stats.received, stats.expected, stats.lost) == (60, 60, 0)
    assert stats.invalid == (reason == "drop_opus_invalid")


def test_packets_that_only_pad_take_no_time() -> None:
    packets = stream(speech()[:20], 0, 0)
    uplink = ready()
    frames = []
    for i, packet in enumerate(packets):
        uplink.handle_rtp(packet._replace(seq=2 * i), i * 20 * MS)
        assert refused(uplink, rtp(b"", 2 * i + 1, i * 960), i * 20 * MS) == "drop_opus_invalid"
        frames += uplink.poll()
    assert pcm_of(frames) == offline_decode(speech()[:20], 16000)
    assert concealed(frames) == []


def test_any_authentic_garbage_keeps_the_uplink_alive() -> None:
    rng = random.Random(6716)
    uplink = ready()
    reasons = set()
    now_ns = 0
    for i in range(3000):
        seq = rng.choice((i, i, i, rng.randrange(65536)))
        ts = rng.choice((i * 960, i * 960, rng.randrange(2**32)))
        ssrc = 7 if rng.random() < 0.99 else rng.randrange(3)
        payload = rng.randbytes(rng.choice((0, 1, 2, 5, 40)))
        now_ns += rng.randrange(40 * MS)
        try:
            uplink.handle_rtp(rtp(payload, seq, ts, ssrc), now_ns)
        except BadPacket as error:
            reasons.add(error.reason)
        uplink.poll()
    uplink.handle_timer(now_ns + S)
    uplink.poll()
    assert reasons <= {
        "drop_opus_invalid",
        "drop_rtp_late",
        "drop_rtp_duplicate",
        "drop_rtp_ssrc",
    }
    now_ns += S
    payloads = speech()[:10]
    frames = []
    for i, payload in enumerate(payloads):
        uplink.handle_rtp(rtp(payload, 30000 + i, ssrc=99), now_ns + i * 20 * MS)
        frames += uplink.poll()
    assert pcm_of(frames).endswith(offline_decode(payloads, 16000))


def test_jitter_and_reports_are_kept() -> None:
    uplink = ready()
    for i, packet in enumerate(stream(speech())):
        uplink.handle_rtp(packet, i * 20 * MS + (i % 2) * 10 * MS)
    assert 8 * MS < uplink.stats.jitter_ns < 10 * MS
    block = uplink.reception.report_block(2 * S)
    assert block is not None
    assert (block.ssrc, block.cumulative_lost) == (7, 0)
